#!/usr/bin/env python3
"""How fast the device `cpu` is beside its peers: mlx_lm, llama.cpp, and torch with transformers, on the same machine in one run.

    python3 benches/peers/run.py --program target/release/inference [--only qwen3-0.6b-4] [--json FILE]

Makes a virtual environment and random checkpoints of published shapes under --work, which later runs use again. llama.cpp is built
from source for this processor. Programs take turns, --rounds times; each figure is the median. Two numbers for each: tokens of the
prompt over the time until the next token is known, and tokens after that over theirs. With --batch requests at once, of all of them;
only llama.cpp is asked for that.
"""

import argparse
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import time
import urllib.error
import urllib.request
import venv
from pathlib import Path

HERE = Path(__file__).resolve().parent
# llama.cpp's AMX code ends with an illegal instruction on some virtual machines; without it, the code for AVX-512 runs. Where torch's
# does too, ONEDNN_MAX_CPU_ISA=AVX512_CORE_BF16 in the environment keeps it from AMX.
LLAMA_FLAGS = "-DGGML_NATIVE=ON -DLLAMA_CURL=OFF " + " ".join(
    f"-DCMAKE_{language}_FLAGS='-mno-amx-tile -mno-amx-int8 -mno-amx-bf16'" for language in ("C", "CXX")
) if platform.machine() == "x86_64" else "-DGGML_NATIVE=ON -DLLAMA_CURL=OFF"

CASES = ["qwen3-0.6b-4", "qwen3-0.6b-16", "llama3.2-1b-16", "gemma3-1b-4", "qwen3-moe-small-4", "qwen3.5-0.8b-4"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--program", type=Path, required=True, help="the program `inference`, built for release")
    parser.add_argument("--work", type=Path, default=Path("target/peers"), help="where environment and checkpoints are kept")
    parser.add_argument("--python", type=Path, help="a Python that has the peers already")
    parser.add_argument("--llama-server", type=Path, help="llama.cpp as this server, not as llama-cpp-python; for one request at once")
    parser.add_argument("--only", action="append", choices=CASES, help="this model, not all")
    parser.add_argument("--skip", action="append", default=[], choices=list(PEERS), help="not this peer")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--generate", type=int, default=64)
    parser.add_argument("--batch", type=int, default=1, help="requests at once")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write all figures there")
    options = parser.parse_args()
    python = options.python or environment(options.work / "venv")
    results = [measure(case, python, options) for case in options.only or CASES]
    if options.json:
        options.json.write_text(json.dumps({"machine": machine(), "cases": results}, indent=1))
    print(table(results))


def environment(folder):
    """A Python with the peers in it."""
    python = folder / "bin/python"
    if not python.exists():
        venv.create(folder, with_pip=True)
        pip = [python, "-m", "pip", "install", "--quiet"]
        subprocess.run([*pip, "numpy", "gguf", "mlx[cpu]", "mlx-lm", "torch", "transformers", "cmake"], check=True)
        variables = os.environ | {"CMAKE_ARGS": LLAMA_FLAGS}
        subprocess.run([*pip, "--no-binary", "llama-cpp-python", "llama-cpp-python"], check=True, env=variables)
    return python


def measure(case, python, options):
    """Every program on one model, in turns."""
    name, bits = case.rsplit("-", 1)
    folder, gguf = options.work / case, options.work / f"{case}.gguf"
    make = f"import sys; sys.path.insert(0, {str(HERE)!r}); from pathlib import Path; import shapes; shape = shapes.SHAPES[{name!r}]; "
    if not folder.exists():
        subprocess.run([python, "-c", f"{make}shapes.write_checkpoint(shape, {bits}, Path({str(folder)!r}))"], check=True)
    if not gguf.exists():
        subprocess.run([python, "-c", f"{make}shapes.write_gguf(shape, {bits}, {str(gguf)!r})"], check=True)
    sizes = [options.prompt, options.generate, options.threads, options.batch]
    runs = {"inference": lambda: ours(options.program, folder, sizes)}
    for peer, (takes, source) in PEERS.items():
        model = gguf if peer == "llama.cpp" else folder
        if peer not in options.skip and int(bits) in takes and (options.batch == 1 or peer == "llama.cpp"):
            runs[peer] = lambda source=source, model=model: child(python, source, [model, *sizes], options.threads)
            if peer == "llama.cpp" and options.llama_server:
                runs[peer] = lambda: served(options.llama_server, gguf, sizes)
    figures = {peer: [] for peer in runs}
    for _ in range(options.rounds):
        for peer, run in runs.items():
            figures[peer].append(run())
            print(f"{case}: {peer}: {figures[peer][-1]}", file=sys.stderr)
    medians = {}
    for peer, found in figures.items():
        found = [figure for figure in found if figure]
        medians[peer] = {key: statistics.median(f[key] for f in found) for key in ("prefill", "decode")} if found else None
    return {"case": case, "batch": options.batch, "weight_bytes": (folder / "model.safetensors").stat().st_size, "medians": medians, "rounds": figures}


def ours(program, folder, sizes):
    command = [program, "bench", "--backend", "cpu", "--model", folder, "--json", "--quiet", "--trials", "1"]
    command += ["--prompt-tokens", sizes[0], "--generate-tokens", sizes[1] + 1, "--batch", sizes[3]]
    variables = os.environ | {"INFERENCE_NUM_THREADS": str(sizes[2])}
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, env=variables)
    if done.returncode:
        print(done.stderr, file=sys.stderr)
        return None
    report = json.loads(done.stdout)
    return {key: report[f"{key}_tokens_per_second"]["median"] for key in ("prefill", "decode")}


def served(program, gguf, sizes):
    """llama.cpp by what its server says of a request. The first one warms up."""
    prompt, generate, threads, _ = sizes
    port = 8123
    command = [program, "-m", gguf, "-t", threads, "-tb", threads, "-c", prompt + generate + 64, "-ub", 512, "-np", 1, "-fa", "off"]
    command += ["--device", "none", "--cache-ram", 0, "--port", port]
    libraries = os.environ | {"LD_LIBRARY_PATH": str(program.resolve().parent)}
    with subprocess.Popen([str(part) for part in command], env=libraries, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            for turn in range(2):
                ids = [random.Random(turn).randrange(300, 120000) for _ in range(prompt)]
                asked = {"prompt": ids, "n_predict": generate, "ignore_eos": True, "cache_prompt": False, "samplers": ["top_k"], "top_k": 1}
                times = post(server, f"http://127.0.0.1:{port}/completion", asked)["timings"]
        finally:
            server.terminate()
    return {"prefill": times["prompt_per_second"], "decode": times["predicted_per_second"]}


def post(server, address, body):
    """What a server answers, once it is ready."""
    request = urllib.request.Request(address, json.dumps(body).encode(), {"Content-Type": "application/json"})
    while server.poll() is None:
        try:
            return json.load(urllib.request.urlopen(request))
        except urllib.error.HTTPError as error:
            if error.code != 503:
                raise
        except urllib.error.URLError:
            pass
        time.sleep(0.2)
    sys.exit(f"llama-server ended with {server.returncode}")


def child(python, source, arguments, threads):
    """A peer in a process of its own, which prints its figures last."""
    variables = os.environ | {"OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false"}
    command = [str(part) for part in [python, "-c", COMMON + source, *arguments]]
    done = subprocess.run(command, capture_output=True, text=True, env=variables)
    if done.returncode:
        print(f"ended with {done.returncode}: {done.stderr[-400:]}", file=sys.stderr)
        return None
    return json.loads(done.stdout.splitlines()[-1])


COMMON = """
import json, random, sys, time
model, prompt, generate, threads, batch = sys.argv[1], *map(int, sys.argv[2:])
ids = [random.Random(0).randrange(300, 120000) for _ in range(prompt)]
def report(start, first, last):
    print(json.dumps({"prefill": batch * prompt / (first - start), "decode": batch * generate / (last - first)}))
"""

MLX_LM = """
import mlx.core as mx
from pathlib import Path
from mlx_lm.generate import generate_step
from mlx_lm.utils import load_model
net, _ = load_model(Path(model))
def run(prompt, generate):
    start, times = time.perf_counter(), []
    for _ in generate_step(mx.array(prompt), net, max_tokens=generate + 1):
        times.append(time.perf_counter())
    return start, times[0], times[-1]
# Stock MLX takes minutes for what is asked of the others: a rate needs fewer tokens.
prompt, generate = 16, 3
report(*run(ids[:prompt], generate))
"""

LLAMA = """
import ctypes
import llama_cpp as llama
log = llama.llama_log_callback(lambda *_: None)
llama.llama_log_set(log, ctypes.c_void_p())
llama.llama_backend_init()
net = llama.llama_model_load_from_file(model.encode(), llama.llama_model_default_params())
how = llama.llama_context_default_params()
how.n_ctx, how.n_seq_max = batch * (prompt + generate + 16), batch
how.n_batch = how.n_ubatch = 512
how.n_threads = how.n_threads_batch = threads
if batch == 1:
    # Faster so on the processor that this was written on; for several requests, its own choice is.
    how.flash_attn_type = llama.LLAMA_FLASH_ATTN_TYPE_DISABLED
context = llama.llama_init_from_model(net, how)
# Tokens with their places, their requests, and whether logits are wanted.
def decode(tokens):
    part = llama.llama_batch_init(len(tokens), 0, 1)
    part.n_tokens = len(tokens)
    for i, (token, place, request, wanted) in enumerate(tokens):
        part.token[i], part.pos[i], part.logits[i] = token, place, wanted
        part.n_seq_id[i], part.seq_id[i][0] = 1, request
    if llama.llama_decode(context, part):
        sys.exit("llama_decode failed")
    llama.llama_batch_free(part)
for _ in range(2):
    llama.llama_memory_clear(llama.llama_get_memory(context), True)
    start = time.perf_counter()
    for request in range(batch):
        decode([(id, place, request, place == prompt - 1) for place, id in enumerate(ids)])
    first = time.perf_counter()
    for step in range(generate):
        decode([(ids[(step + request) % prompt], prompt + step, request, True) for request in range(batch)])
report(start, first, time.perf_counter())
"""

TORCH = """
import torch
from transformers import AutoConfig, AutoModelForCausalLM
torch.set_num_threads(threads)
with torch.inference_mode():
    net = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(model), dtype=torch.bfloat16).eval()
    for _ in range(2):
        start = time.perf_counter()
        state = net(torch.tensor([ids]), use_cache=True, logits_to_keep=1)
        first = time.perf_counter()
        for id in ids[:generate]:
            state = net(torch.tensor([[id]]), past_key_values=state.past_key_values, use_cache=True)
    report(start, first, time.perf_counter())
"""

# With the bits of the weights that each is asked for.
PEERS = {"mlx_lm": ([4], MLX_LM), "llama.cpp": ([4, 16], LLAMA), "torch": ([16], TORCH)}


def machine():
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return {"processor": names[0] if names else platform.processor(), "cores": os.cpu_count(), "system": platform.platform()}


def table(results):
    lines = ["| model | program | prefill tok/s | ours ÷ it | decode tok/s | ours ÷ it | weights GB/s |", "|---|---|--:|--:|--:|--:|--:|"]
    for result in results:
        own = result["medians"]["inference"]
        for peer, found in result["medians"].items():
            if found is None:
                lines.append(f"| {result['case']} | {peer} | failed | – | failed | – | – |")
                continue
            ratios = {key: f"{own[key] / found[key]:.2f}" if own and peer != "inference" else "–" for key in found}
            rate = f"{result['weight_bytes'] * found['decode'] / result['batch'] / 1e9:.1f}" if "moe" not in result["case"] else "–"
            lines.append(
                f"| {result['case']} | {peer} | {found['prefill']:.1f} | {ratios['prefill']} | {found['decode']:.1f} | {ratios['decode']} | {rate} |"
            )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
