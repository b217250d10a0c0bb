"""The C++ kernels tested by a program in C++: as shipped, under sanitizers, and on 64-bit Arm."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pybind11
import pytest

ROOT = Path(__file__).parents[2]
BUILD = ROOT / "build" / "tests"
PROGRAM = "affectrt_kernel_tests"
GROUPS = ["layers", "gated_rnn", "attention", "ring", "ghrnn_cma", "stream", "memory", "threads"]

FEWER = "10000000"
"""Products in a case under an emulator or a sanitizer: every width still comes with up to 63 steps."""

ARM_COMPILER, ARM_EMULATORS = "aarch64-linux-gnu-g++", ("qemu-aarch64-static", "qemu-aarch64")
ARM_PACKAGES = "apt-get install g++-aarch64-linux-gnu qemu-user-static"

# Puts a module built elsewhere in the place of the installed one, then tests.
WITH_MODULE = """
import importlib.util, sys
import affectrt_kernels, pytest
path, *arguments = sys.argv[1:]
spec = importlib.util.spec_from_file_location("affectrt_kernels._native", path)
affectrt_kernels._native = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(affectrt_kernels._native)
sys.exit(pytest.main(arguments))
"""
# What hands arrays over, refuses them, and frees them. Not what takes the time of a processor.
CHECKED_MODULES = [
    "test_bindings.py",
    "test_gated_rnn.py",
    "test_attention_ops.py",
    "test_ghrnn_cma_native.py",
    "test_ghrnn_cma_stream.py",
]
CHECKED_TESTS = (
    "bindings or wrong or refuse or row or subsets or threads_share or away or outlives or know or largest"
)


def run(*command: str | Path, **environment: str) -> str:
    """What the command prints; fails with the end of it where the command does."""
    # The variables of a `make` that runs these tests are not for the build's own.
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    done = subprocess.run(
        command,
        cwd=ROOT,
        env={**inherited, **environment},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stdout[-30_000:]}"
    return done.stdout


def build(name: str, *options: str) -> Path:
    """The folder of a build, which is made once and then follows the sources."""
    places = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    cmake = shutil.which("cmake", path=places)
    assert cmake, "CMake is not there; it comes with: pip install -e '.[dev]'"
    folder = BUILD / name
    run(cmake, "-S", ROOT, "-B", folder, "-DAFFECTRT_TESTS=ON", *options)
    run(cmake, "--build", folder, "--parallel", str(os.cpu_count()))
    return folder


def assert_all_groups_passed(output: str) -> None:
    print(output)
    assert re.findall(r"^(\w+) +ok +[1-9]\d* comparisons", output, re.MULTILINE) == GROUPS


def test_native() -> None:
    folder = build("native", "-DAFFECTRT_MODULE=OFF")
    assert_all_groups_passed(run(folder / PROGRAM))


def test_instruction_sets_share_no_code() -> None:
    """Of a function that several objects define alike the linker keeps one: perhaps one that can't run."""
    objects = [*build("native", "-DAFFECTRT_MODULE=OFF").rglob("kernels_*.dir/**/*.o")]
    assert len(objects) >= 2
    assert not re.findall(r"^.* [VWu] .*$", run("nm", "--demangle", *objects), re.MULTILINE)


def library(name: str) -> str:
    """Where the compiler keeps a library, or its bare name if it has none."""
    return run(os.environ.get("CXX", "c++"), f"-print-file-name={name}").strip()


def test_sanitizers() -> None:
    """No address error and no undefined behaviour: of the kernels, then of the module that Python loads."""
    folder = build(
        "sanitize",
        "-DAFFECTRT_SANITIZE=ON",
        f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
        f"-DPython_EXECUTABLE={sys.executable}",
    )
    assert_all_groups_passed(run(folder / PROGRAM, FEWER))

    [module] = folder.glob("_native*.so")
    preloaded = [library("libasan.so"), library("libstdc++.so.6")]
    if not all(Path(path).is_absolute() for path in preloaded):
        pytest.skip(f"the sanitizers are not those of GCC, which Python can load beforehand: {preloaded}")
    output = run(
        sys.executable,
        "-c",
        WITH_MODULE,
        module,
        *[str(Path(__file__).parent / name) for name in CHECKED_MODULES],
        *("-k", CHECKED_TESTS),
        *("-p", "no:cacheprovider"),
        "--capture=sys",  # what a sanitizer says before it ends the process isn't lost
        LD_PRELOAD=":".join(preloaded),
        # Python leaves memory to the end of the process. Fresh memory is NaN.
        ASAN_OPTIONS="detect_leaks=0:allocator_may_return_null=1:max_malloc_fill_size=1073741824:malloc_fill_byte=255",
    )
    print(output)
    assert re.search(r"\d+ passed", output)


def test_arm() -> None:
    emulator = next(filter(None, map(shutil.which, ARM_EMULATORS)), None)
    if emulator is None or shutil.which(ARM_COMPILER) is None:
        pytest.skip(f"no cross-compiler or emulator for 64-bit Arm: {ARM_PACKAGES}")
    toolchain = ROOT / "kernels" / "csrc" / "tests" / "aarch64.cmake"
    folder = build("arm", "-DAFFECTRT_MODULE=OFF", f"-DCMAKE_TOOLCHAIN_FILE={toolchain}")
    output = run(emulator, folder / PROGRAM, FEWER)
    assert_all_groups_passed(output)
    assert "instruction sets: neon\n" in output
    # The products are made of fused multiply-adds of four floats.
    [kernels] = folder.rglob("kernels_neon.dir/**/kernels.cpp.o")
    code = run(ARM_COMPILER.replace("g++", "objdump"), "--disassemble", kernels)
    fused, apart = (len(re.findall(rf"\b{name}\s+v\d+\.4s", code)) for name in ("fmla", "fmul"))
    assert fused > 300 and fused > 10 * apart
