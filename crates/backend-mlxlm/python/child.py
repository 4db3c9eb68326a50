"""Runs one model with mlx_lm for a parent process, which speaks JSON Lines to it. docs/src/protocol.md has the messages.

The parent passes this file in an environment variable, which its `-c` argument executes. A reader thread takes requests in while the main
thread, on which all of MLX's work happens, computes; between two steps the main thread looks at what came in.
"""

import sys

# With `-c` the first entry is the working folder, whose files nobody vouches for.
sys.path[:] = [entry for entry in sys.path if entry]

import base64
import copy
import json
import math
import os
import queue
import re
import threading
import time
from collections import deque
from importlib import metadata
from pathlib import Path

# mlx.core, once a model is to be loaded: a probe must not wait for it.
mx = None
PROTOCOL = 1
MASK = (1 << 64) - 1
# json.dumps would make an encoder for each message.
encode = json.JSONEncoder(separators=(",", ":")).encode


class Channel:
    """The parent's end of the conversation, on descriptors that no library knows of."""

    def __init__(self):
        self.requests = os.fdopen(os.dup(0), "rb")
        self.out = os.dup(1)
        self.lock = threading.Lock()
        # Whoever prints, prints to stderr; whoever reads stdin, finds it empty.
        os.dup2(2, 1)
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, 0)
        os.close(nothing)
        sys.stdout.reconfigure(line_buffering=True)

    def send(self, *messages):
        lines = "".join(encode(message) + "\n" for message in messages)
        data = memoryview(lines.encode())
        with self.lock:
            while data:
                data = data[os.write(self.out, data) :]


def hello():
    def version(package):
        try:
            return metadata.version(package)
        except metadata.PackageNotFoundError:
            return None

    return {
        "event": "hello",
        "protocol": PROTOCOL,
        "mlx_lm": version("mlx-lm"),
        "mlx": version("mlx"),
        "python": ".".join(map(str, sys.version_info[:3])),
    }


def die_with_parent():
    """Linux ends this process with its parent even while a computation holds the interpreter; elsewhere end of file does."""
    if sys.platform == "linux":
        import ctypes
        import signal

        ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def read_requests(channel, inbox, masks):
    """The reader thread: end of file means that the parent is gone."""
    for line in channel.requests:
        try:
            request = json.loads(line)
            if request["op"] == "stats":
                channel.send({"event": "stats", "id": request["id"], **memory()})
                continue
            if request["op"] == "mask":
                masks.answer(request["id"], request["words"])
                continue
            if request["op"] == "generate" and request.get("masked"):
                masks.open(request["id"])
            if request["op"] == "cancel":
                masks.close(request["id"])
            inbox.put(request)
        except Exception as error:
            channel.send({"event": "error", "id": None, "kind": "protocol", "message": describe(error)})
    os._exit(0)


def memory():
    if mx is None:
        return {"active_memory": 0, "peak_memory": 0, "cache_memory": 0}
    return {
        "active_memory": mx.get_active_memory(),
        "peak_memory": max(Row.highest, mx.get_peak_memory()),
        "cache_memory": mx.get_cache_memory(),
    }


def describe(error):
    return f"{type(error).__name__}: {error}"


def failure(id, error):
    """An error message. MLX tells of missing memory only by its text."""
    text = str(error)
    kind = "import" if isinstance(error, ImportError) else "failed"
    message = {"event": "error", "id": id, "kind": kind, "message": describe(error)}
    if isinstance(error, MemoryError) or re.search(r"\[(metal::)?malloc|[Uu]nable to allocate|[Oo]ut of memory", text):
        message["kind"] = "out_of_memory"
        sizes = [int(size) for size in re.findall(r"(\d+) bytes", text)]
        message["needed"] = sizes[0] if sizes else 0
    return message


# Sampling, in the order: bias, penalties, then on log-probabilities top-p, min-p, XTC, top-k, temperature, draw.


def mix(seed, step):
    """SplitMix64 of a seed and a counter."""
    z = (seed + (step + 1) * 0x9E3779B97F4A7C15) & MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def make_sampler(options):
    """Log-probabilities [1, V] to a token [1]. The draw depends on seed and step, never on what runs beside it."""
    from mlx_lm.sample_utils import greedy_sampler

    temperature = options.get("temperature") or 0.0
    if temperature == 0.0:
        return greedy_sampler
    seed = options["seed"]
    top_p, min_p = options.get("top_p") or 1.0, options.get("min_p") or 0.0
    top_k, xtc = options.get("top_k") or 0, options.get("xtc")
    nothing = -float("inf")
    step = -1

    def sampler(logprobs):
        nonlocal step
        step += 1
        random = mix(seed, step)
        noise = mx.random.gumbel(logprobs.shape, key=mx.array([random >> 32, random & 0xFFFFFFFF], mx.uint32))
        cut = xtc and xtc["probability"] > (mix(~seed & MASK, step) >> 40) / (1 << 24)
        if top_p < 1.0 or cut or 0 < top_k < logprobs.shape[-1]:
            # From here on the likeliest come first; the noise stays with its token.
            order = mx.argsort(-logprobs, axis=-1)
            logprobs, noise = (mx.take_along_axis(x, order, axis=-1) for x in (logprobs, noise))
        else:
            order = None
        if top_p < 1.0:
            before = mx.cumsum(mx.exp(logprobs), axis=-1, inclusive=False)
            logprobs = mx.where(before < top_p, logprobs, nothing)
        if min_p > 0.0:
            floor = mx.max(logprobs, axis=-1, keepdims=True) + math.log(min_p)
            logprobs = mx.where(logprobs >= floor, logprobs, nothing)
        if cut:
            probabilities = mx.softmax(logprobs, axis=-1)
            above = mx.where(probabilities > xtc["threshold"], probabilities, float("inf"))
            logprobs = mx.where(probabilities > above.min(axis=-1, keepdims=True), nothing, logprobs)
        if 0 < top_k < logprobs.shape[-1]:
            rank = mx.cumsum((logprobs > nothing).astype(mx.int32), axis=-1)
            logprobs = mx.where(rank <= top_k, logprobs, nothing)
        choice = mx.argmax(logprobs / temperature + noise, axis=-1)
        return choice if order is None else mx.take_along_axis(order, choice[:, None], axis=-1)[:, 0]

    return sampler


def make_processors(options, prompt_tokens, ask):
    """What is done to the logits of a row before they become log-probabilities."""
    from mlx_lm.sample_utils import make_logits_processors

    bias = {}
    for id, value in options.get("logit_bias") or ():
        bias[id] = bias.get(id, 0.0) + (-float("inf") if value is None else value)
    processors = make_logits_processors(logit_bias=bias)
    eos, min_tokens = options.get("eos"), options.get("min_tokens") or 0
    if eos and min_tokens:
        banned = mx.array(eos)

        def no_end(tokens, logits):
            if len(tokens) < prompt_tokens + min_tokens:
                logits[:, banned] = -float("inf")
            return logits

        processors.append(no_end)
    # mlx_lm takes a repetition penalty of 1 for one that does something, and a window of 0 for the whole text.
    if window := options.get("penalty_window"):
        repetition = options.get("repetition_penalty") or 1.0
        processors += make_logits_processors(
            repetition_penalty=None if repetition == 1.0 else repetition,
            repetition_context_size=window,
            presence_penalty=options.get("presence_penalty"),
            presence_context_size=window,
            frequency_penalty=options.get("frequency_penalty"),
            frequency_context_size=window,
        )
    if options.get("masked"):
        processors.append(lambda tokens, logits: masked(tokens, logits, prompt_tokens, ask))
    return processors


def masked(tokens, logits, prompt_tokens, ask):
    """The logits [1, V] without the tokens that the parent does not allow. It works them out while the logits are computed."""
    mx.async_eval(logits)
    words = ask(tokens[-1].item() if len(tokens) > prompt_tokens else None)
    if words is None:
        return logits
    bits = mx.array(words)[:, None] >> mx.arange(32, dtype=mx.uint32)
    allowed = (bits & 1).astype(mx.bool_).reshape(1, -1)[:, : logits.shape[-1]]
    if allowed.shape[-1] < logits.shape[-1]:
        allowed = mx.pad(allowed, ((0, 0), (0, logits.shape[-1] - allowed.shape[-1])))
    # What is allowed stays possible, though a bias or a minimum of tokens may have banned all of it.
    return mx.where(allowed, mx.maximum(logits, -1e30), -float("inf"))


class Masks:
    """Asks the parent which tokens of a row may come next. The reader thread opens and closes rows and brings the answers, so
    that the main thread never waits for one that cannot come."""

    def __init__(self, channel):
        self.channel = channel
        self.rows = {}

    def open(self, id):
        self.rows[id] = queue.SimpleQueue()

    def answer(self, id, words):
        if answers := self.rows.get(id):
            answers.put(words)

    def close(self, id):
        if answers := self.rows.pop(id, None):
            answers.put(None)

    def ask(self, id):
        answers = self.rows.get(id)

        def ask(token):
            if self.rows.get(id) is not answers or answers is None:
                return None
            self.channel.send({"event": "mask", "id": id, "token": token})
            words = answers.get()
            return None if words is None else memoryview(base64.b64decode(words)).cast("I")

        return ask


class Row:
    """One generation: its request, and what it has cost so far."""

    # The highest memory use of the process.
    highest = 0

    def __init__(self, request, masks):
        self.id = request["id"]
        self.prompt = request["prompt"]
        self.max_tokens = request["max_tokens"]
        self.credit = request["credit"]
        self.logprobs = request.get("logprobs")
        self.stop = set(request.get("stop") or ())
        self.sampler = make_sampler(request)
        self.processors = make_processors(request, len(self.prompt), masks.ask(self.id))
        self.generated = 0
        self.peak = 0
        self.received = time.perf_counter()
        self.began = self.first = self.last = None

    def finished(self, reason, token=None):
        now = time.perf_counter()
        began = self.began or now
        first = self.first or now
        message = {
            "event": "finished",
            "id": self.id,
            "reason": reason,
            "prompt_tokens": len(self.prompt),
            "generated_tokens": self.generated,
            "queued": began - self.received,
            "prefill": first - began,
            "decode": (self.last or first) - first,
            "peak_memory": self.peak,
            "active_memory": mx.get_active_memory(),
        }
        if token is not None:
            message["token"] = token
        return message

    def token(self, token, logprobs):
        """The message of one token; `logprobs` [V] are computed."""
        message = {"event": "token", "id": self.id, "token": token}
        if self.logprobs is not None:
            message["logprob"] = finite(logprobs[token].item())
            if top := min(self.logprobs, logprobs.size):
                likeliest = mx.argsort(-logprobs)[:top]
                values = logprobs[likeliest].tolist()
                message["top"] = [[id, finite(value)] for id, value in zip(likeliest.tolist(), values)]
        return message


def finite(value):
    """JSON has no infinity: null stands for −∞."""
    return value if value > -float("inf") else None


class Float32Logits:
    """A model whose logits are float32: log-probabilities in bfloat16 make ties where the logits have none."""

    def __init__(self, model):
        self.model = model

    def __call__(self, tokens, cache=None):
        return self.model(tokens, cache=cache).astype(mx.float32)

    def __getattr__(self, name):
        return getattr(self.model, name)


class Batched:
    """Rows that decode together, by mlx_lm's BatchGenerator."""

    def __init__(self, model, max_batch, prefill_chunk):
        from mlx_lm.generate import BatchGenerator

        self.generator = BatchGenerator(
            model,
            completion_batch_size=max_batch,
            prefill_batch_size=min(8, max_batch),
            prefill_step_size=prefill_chunk,
        )
        # The constructor raises the limit on wired memory, which is the parent's affair; this undoes it and no more.
        self.generator.close()

    def insert(self, row):
        from mlx_lm.generate import StopSequences

        # One token more than wanted would do no harm, none at all is refused.
        [uid] = self.generator.insert(
            [row.prompt],
            max_tokens=[max(1, row.max_tokens)],
            samplers=[row.sampler],
            logits_processors=[row.processors],
            stop_sequences=[StopSequences([[id] for id in row.stop])],
        )
        return uid

    def remove(self, uid):
        self.generator.remove([uid])

    def next(self):
        """One decode step of the rows that have their prompt, and one chunk of the others' prompts: the progress of the
        latter as (uid, done, total), the tokens of the former as (uid, token, log-probabilities)."""
        prompts, tokens = self.generator.next()
        progress = [(p.uid, *p.progress) for p in prompts]
        return progress, [(t.uid, t.token, t.logprobs) for t in tokens]


class Serial:
    """Rows that take turns, for models whose caches mlx_lm cannot batch."""

    def __init__(self, model, prefill_chunk, poll):
        self.model, self.prefill_chunk, self.poll = model, prefill_chunk, poll
        self.steps = {}
        self.count = 0

    def insert(self, row):
        from mlx_lm.generate import generate_step
        uid = self.count
        self.count += 1

        def progress(done, total):
            # A prompt is computed in one go here: look for a cancellation between its chunks.
            self.progress.append((uid, done, total))
            self.poll()
            if uid not in self.steps:
                raise Removed

        self.steps[uid] = generate_step(
            mx.array(row.prompt),
            self.model,
            max_tokens=-1,
            sampler=row.sampler,
            logits_processors=row.processors,
            prefill_step_size=self.prefill_chunk,
            prompt_progress_callback=progress,
        )
        return uid

    def remove(self, uid):
        del self.steps[uid]

    def next(self):
        self.progress, tokens = [], []
        for uid, steps in list(self.steps.items()):
            if uid in self.steps:
                try:
                    tokens.append((uid, *next(steps)))
                except Removed:
                    pass
        return self.progress, [token for token in tokens if token[0] in self.steps]


class Removed(Exception):
    pass


class Worker:
    """The main thread's state: one model, the rows that run, those that wait, and the classifications."""

    def __init__(self, channel, inbox, masks):
        self.channel, self.inbox, self.masks = channel, inbox, masks
        self.model = self.engine = None
        self.waiting = deque()
        self.running = {}
        self.jobs = deque()

    def run(self):
        while True:
            self.drain()
            try:
                if self.jobs:
                    self.advance_job()
                self.admit()
                if self.can_step():
                    self.step()
            except Exception as error:
                # What one step computes belongs to all rows of the batch.
                failed = [failure(row.id, error) for row in self.running.values()]
                for row in self.running.values():
                    self.masks.close(row.id)
                self.channel.send(*failed)
                self.start_engine()

    def can_step(self):
        """A row without credit runs along with others, but not alone; when others wait for its place, it runs on."""
        return bool(self.running) and (bool(self.waiting) or any(row.credit > 0 for row in self.running.values()))

    def idle(self):
        """Whether only the parent can bring work."""
        can_admit = self.waiting and len(self.running) < self.max_batch
        return not (self.jobs or can_admit or self.can_step())

    def drain(self, wait=True):
        while True:
            try:
                request = self.inbox.get(block=wait and self.idle())
            except queue.Empty:
                return
            id = request.get("id")
            try:
                getattr(self, "on_" + request["op"])(request)
            except Exception as error:
                self.channel.send(failure(id, error))

    # Requests.

    def on_load(self, request):
        global mx
        import mlx.core as mx

        if (limit := request.get("memory_limit")) is not None:
            mx.set_memory_limit(limit)
        if (limit := request.get("cache_limit")) is not None:
            mx.set_cache_limit(limit)
        from mlx_lm.models.cache import make_prompt_cache
        from mlx_lm.utils import get_total_parameters, load_adapters, load_model

        path, adapter, blame = Path(request["path"]), request.get("adapter"), "invalid_model"
        name_tensors()
        try:
            model, _ = load_model(
                path,
                model_config=legacy_rope(path),
                trust_remote_code=bool(request.get("trust_remote_code")),
            )
            if adapter:
                blame = "invalid_adapter"
                model = load_adapters(model, adapter)
                model.eval()
        except (AttributeError, KeyError, OSError, TypeError, ValueError) as error:
            self.channel.send({"event": "error", "id": request["id"], "kind": blame, "message": describe(error)})
            return
        mx.eval(model.parameters())
        mx.clear_cache()
        self.model = Float32Logits(model)
        self.max_batch, self.prefill_chunk = request["max_batch"], request["prefill_chunk"]
        self.batched = all(hasattr(cache, "merge") for cache in make_prompt_cache(self.model))
        self.start_engine()
        self.channel.send(
            {
                "event": "loaded",
                "id": request["id"],
                "parameters": get_total_parameters(model),
                "batched": self.batched,
                "device": str(mx.default_device()),
                **memory(),
            }
        )

    def on_generate(self, request):
        self.waiting.append(Row(request, self.masks))

    def on_classify(self, request):
        self.jobs.append((request["id"], self.classify(request)))

    def on_credit(self, request):
        for row in (*self.running.values(), *self.waiting):
            if row.id == request["id"]:
                row.credit += request["tokens"]

    def on_cancel(self, request):
        """Whatever has ended already is not known here any more."""
        id = request["id"]
        for uid, row in list(self.running.items()):
            if row.id == id:
                self.engine.remove(uid)
                del self.running[uid]
                self.channel.send(row.finished("cancelled"))
        for row in [row for row in self.waiting if row.id == id]:
            self.waiting.remove(row)
            self.channel.send(row.finished("cancelled"))
        for job in [job for job in self.jobs if job[0] == id]:
            self.jobs.remove(job)
            self.channel.send({"event": "cancelled", "id": id})

    def on_close(self, request):
        self.channel.send({"event": "closed", "id": request["id"]})
        os._exit(0)

    # Work.

    def start_engine(self):
        self.running.clear()
        if self.batched:
            self.engine = Batched(self.model, self.max_batch, self.prefill_chunk)
        else:
            self.engine = Serial(self.model, self.prefill_chunk, lambda: self.drain(wait=False))

    def admit(self):
        while self.waiting and len(self.running) < self.max_batch:
            row = self.waiting.popleft()
            try:
                self.running[self.engine.insert(row)] = row
            except Exception as error:
                self.channel.send(failure(row.id, error))

    def step(self):
        began = time.perf_counter()
        Row.highest = max(Row.highest, mx.get_peak_memory())
        mx.reset_peak_memory()
        progress, tokens = self.engine.next()
        now = time.perf_counter()
        peak = mx.get_peak_memory()
        messages = []
        for uid, done, total in progress:
            if row := self.running.get(uid):
                if row.began is None:
                    row.began = began
                messages.append({"event": "progress", "id": row.id, "done": done, "total": total})
        for row in self.running.values():
            row.peak = max(row.peak, peak)
        for uid, token, logprobs in tokens:
            row = self.running[uid]
            row.first = row.first or now
            if row.max_tokens == 0:
                reason, final = "length", None
            elif token in row.stop:
                reason, final = "stop", token
            else:
                row.generated += 1
                row.credit -= 1
                row.last = now
                messages.append(row.token(token, logprobs))
                reason, final = ("length" if row.generated == row.max_tokens else None), None
            if reason:
                self.end(uid)
                messages.append(row.finished(reason, final))
        self.channel.send(*messages)

    def end(self, uid):
        """A row is over. A BatchGenerator has ended it by itself, for it was told of the same conditions."""
        self.masks.close(self.running[uid].id)
        del self.running[uid]
        if not self.batched:
            self.engine.remove(uid)

    def advance_job(self):
        """One chunk of the oldest classification."""
        id, job = self.jobs[0]
        try:
            next(job)
        except StopIteration:
            self.jobs.popleft()
        except Exception as error:
            self.jobs.popleft()
            self.channel.send(failure(id, error))

    def classify(self, request):
        """A generator that yields between chunks."""
        from mlx_lm.models.cache import make_prompt_cache

        labels = request.get("labels") or []
        for index, prompt in enumerate(request["prompts"]):
            cache = make_prompt_cache(self.model)
            tokens = mx.array(prompt)[None]
            while tokens.shape[1] > self.prefill_chunk:
                self.model(tokens[:, : self.prefill_chunk], cache=cache)
                mx.eval([c.state for c in cache])
                tokens = tokens[:, self.prefill_chunk :]
                self.channel.send({"event": "progress", "id": request["id"], "done": index, "total": len(request["prompts"])})
                yield
            logits = self.model(tokens, cache=cache)[:, -1]
            mx.eval(logits, [c.state for c in cache])
            logprobs = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
            scores = []
            for label in labels:
                score = logprobs[0, label[0]]
                if len(label) > 1:
                    # The first token's probability is known; each further one's follows from those before it.
                    after = self.model(mx.array(label[:-1])[None], cache=copy.deepcopy(cache))[0]
                    after = after - mx.logsumexp(after, axis=-1, keepdims=True)
                    score = score + mx.take_along_axis(after, mx.array(label[1:])[:, None], axis=-1).sum()
                scores.append(finite(score.item()))
            message = {"event": "classified", "id": request["id"], "index": index, "token": mx.argmax(logits).item()}
            message["scores"] = scores
            if request.get("logits"):
                message["logits"] = base64.b64encode(memoryview(logits[0])).decode()
            self.channel.send(message)
            yield


def name_tensors():
    """Has every load name all tensors that do not fit: MLX tells of those that are too many before those that lack."""
    import mlx.nn as nn
    from mlx.utils import tree_flatten

    load_weights = nn.Module.load_weights

    def load_all(self, weights, strict=True):
        if strict and isinstance(weights, list):
            wanted = {name for name, _ in tree_flatten(self.parameters())}
            given = {name for name, _ in weights}
            if wanted != given:
                lacking, unused = sorted(wanted - given), sorted(given - wanted)
                raise ValueError(f"missing tensors: {lacking[:20]}, unused tensors: {unused[:20]}")
        return load_weights(self, weights, strict=strict)

    nn.Module.load_weights = load_all


def legacy_rope(path):
    """transformers 5 writes `rope_parameters` where most of mlx_lm's models read `rope_theta` and `rope_scaling`."""
    config = json.loads((path / "config.json").read_bytes())
    rope = config.get("rope_parameters")
    if not isinstance(rope, dict) or "rope_theta" not in rope or "rope_theta" in config:
        return {}
    legacy = {"rope_theta": rope["rope_theta"]}
    if rope.get("rope_type", "default") != "default" and config.get("rope_scaling") is None:
        legacy["rope_scaling"] = {key: value for key, value in rope.items() if key != "rope_theta"}
    return legacy


def main():
    channel, inbox = Channel(), queue.SimpleQueue()
    die_with_parent()
    channel.send(hello())
    masks = Masks(channel)
    threading.Thread(target=read_requests, args=(channel, inbox, masks), daemon=True).start()
    Worker(channel, inbox, masks).run()


if __name__ == "__main__":
    main()
