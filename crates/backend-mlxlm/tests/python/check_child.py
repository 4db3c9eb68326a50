"""Holds the child's sampler to mlx_lm's own filters, its processors to their definition, and its scheduling to its promise.
The argument is the path of child.py."""

import importlib.util
import math
import sys

import mlx.core as mx
from mlx_lm import sample_utils

spec = importlib.util.spec_from_file_location("child", sys.argv[1])
child = importlib.util.module_from_spec(spec)
spec.loader.exec_module(child)
child.mx = mx

DRAWS = 1500


def logprobs(logits):
    return logits - mx.logsumexp(logits, axis=-1, keepdims=True)


def frequencies(sample, vocab, draws=DRAWS):
    counts = [0] * vocab
    for _ in range(draws):
        counts[sample().item()] += 1
    return [count / draws for count in counts]


def expected(options, x):
    """The distribution by mlx_lm's own functions, in mlx_lm's order."""
    if options.get("top_p"):
        x = sample_utils.apply_top_p(x, options["top_p"])
    if options.get("min_p"):
        x = sample_utils.apply_min_p(x, options["min_p"])
    if options.get("xtc"):
        x = sample_utils.apply_xtc(x, 1.0, options["xtc"]["threshold"], [])
    if options.get("top_k"):
        x = sample_utils.apply_top_k(x, options["top_k"])
    return mx.softmax(x / options["temperature"], axis=-1)[0].tolist()


def check_sampler():
    mx.random.seed(3)
    x = logprobs(mx.random.normal((1, 12)) * 1.5)
    always = {"probability": 1.0, "threshold": 0.1}
    cases = [
        {},
        {"temperature": 0.5},
        {"top_p": 0.8},
        {"min_p": 0.2},
        {"top_k": 3},
        {"xtc": always},
        {"temperature": 1.7, "top_p": 0.9, "min_p": 0.05, "xtc": always, "top_k": 4},
        {"temperature": 0.7, "top_p": 0.95, "top_k": 5},
    ]
    for case in cases:
        options = {"temperature": 1.0, "seed": 11, **case}
        sampler = child.make_sampler(options)
        got, want = frequencies(lambda: sampler(x), 12), expected(options, x)
        for g, w in zip(got, want):
            # Five standard deviations, and three draws for what is rare; what is filtered out is never drawn.
            tolerance = 5 * math.sqrt(w * (1 - w) / DRAWS) + 3 / DRAWS if w else 0
            assert abs(g - w) <= tolerance, (case, got, want)
    # XTC acts as often as it is told to.
    rare = child.make_sampler({"temperature": 1.0, "seed": 5, "xtc": {"probability": 0.25, "threshold": 0.05}})
    two = logprobs(mx.log(mx.array([[0.9, 0.1]])))
    share = frequencies(lambda: rare(two), 2)[1]
    assert abs(share - (0.25 + 0.75 * 0.1)) < 0.06, share


def check_seed():
    x = logprobs(mx.random.normal((1, 50)))
    options = {"temperature": 1.0, "seed": 2**64 - 1, "top_p": 0.9}
    draw = lambda sampler: [sampler(x).item() for _ in range(20)]
    first = draw(child.make_sampler(options))
    mx.random.seed(99)
    assert first == draw(child.make_sampler(options)), "the global state must not matter"
    assert first != draw(child.make_sampler({**options, "seed": 1}))


def check_processors():
    context, logits = mx.array([4, 1, 1, 3]), mx.array([[1.0, -2.0, 3.0, 4.0, 5.0]])

    def run(options, prompt_tokens=4, ask=None):
        x = mx.array(logits)
        for processor in child.make_processors(options, prompt_tokens, ask):
            x = processor(context, x)
        return x[0].tolist()

    neutral = {"repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0, "penalty_window": 3}
    assert child.make_processors(neutral, 4, None) == []
    assert run({"repetition_penalty": 2.0, "penalty_window": 3}) == [1.0, -4.0, 3.0, 2.0, 5.0]
    assert run({"presence_penalty": 1.0, "penalty_window": 3}) == [1.0, -3.0, 3.0, 3.0, 5.0]
    assert run({"frequency_penalty": 1.0, "penalty_window": 3}) == [1.0, -4.0, 3.0, 3.0, 5.0]
    assert run({"repetition_penalty": 2.0, "penalty_window": 0}) == [1.0, -2.0, 3.0, 4.0, 5.0]
    assert run({"logit_bias": [[0, 1.5], [0, 1.0], [2, None]]}) == [3.5, -2.0, -math.inf, 4.0, 5.0]
    # The bias comes before the penalty: (4 + 2) / 2.
    assert run({"logit_bias": [[3, 2.0]], "repetition_penalty": 2.0, "penalty_window": 1})[3] == 3.0
    assert run({"eos": [4], "min_tokens": 1})[4] == -math.inf
    assert run({"eos": [4], "min_tokens": 1}, prompt_tokens=3)[4] == 5.0
    asked = []

    def ask(token):
        asked.append(token)
        return [0b01010]

    no = -math.inf
    assert run({"masked": True}, ask=ask) == [no, -2.0, no, 4.0, no] and asked == [None]
    assert run({"masked": True}, prompt_tokens=3, ask=ask) == [no, -2.0, no, 4.0, no] and asked == [None, 3]
    assert run({"masked": True}, ask=lambda token: None) == logits[0].tolist(), "the request is gone"


def check_credit():
    class Row:
        def __init__(self, credit):
            self.credit = credit

    worker = child.Worker(None, None, None)
    worker.max_batch = 2
    assert worker.idle() and not worker.can_step()
    worker.running = {1: Row(0)}
    assert worker.idle() and not worker.can_step(), "a lone row without credit stands still"
    worker.running[2] = Row(3)
    assert not worker.idle() and worker.can_step(), "it runs along with one that has some"
    worker.running[2].credit = 0
    worker.waiting.append(Row(3))
    assert worker.can_step(), "it gives up its place to one that waits"


def check_failures():
    kind = lambda error: child.failure(1, error)["kind"]
    assert kind(MemoryError()) == "out_of_memory"
    needed = child.failure(1, RuntimeError("[malloc_or_wait] Unable to allocate 4096 bytes."))
    assert (needed["kind"], needed["needed"]) == ("out_of_memory", 4096)
    assert kind(ImportError("no module")) == "import"
    assert kind(RuntimeError("shapes")) == "failed"


for check in (check_sampler, check_seed, check_processors, check_credit, check_failures):
    check()
print("ok")
