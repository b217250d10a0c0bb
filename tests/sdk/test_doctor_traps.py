"""The classic traps of an installation, set for real: ``affectrt doctor`` finds each and tells the fix."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from affectrt.cli import main
from affectrt.cli.doctor_gpu import mismatches
from affectrt.cli.finding import foreign_architecture, remedy

Install = Callable[[str, str], Path]

MODULE = """
#include <Python.h>
static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "%(name)s", 0, -1, 0};
PyMODINIT_FUNC PyInit_%(name)s(void) { %(work)s return PyModule_Create(&module); }
"""
# What import_array() in NumPy 1's headers comes to.
NUMPY_1 = """
PyObject *numpy = PyImport_ImportModule("numpy.core._multiarray_umath");
if (!numpy || !PyObject_GetAttrString(numpy, "_ARRAY_API")) {
  PyErr_SetString(PyExc_ImportError, "numpy.core.multiarray failed to import");
  return 0;
}
"""
ARM, X86 = 183, 62
"""``e_machine`` in the header of a shared library."""


class Compiler:
    """Makes extension modules, whole and broken ones."""

    def __init__(self, folder: Path) -> None:
        found = shutil.which("gcc") or shutil.which("cc")
        header = Path(sysconfig.get_path("include"), "Python.h")
        if found is None or not header.is_file() or not sys.platform.startswith("linux"):
            pytest.skip("needs Linux, a C compiler and the headers of Python: it breaks real libraries")
        self._command, self._folder = [found, f"-I{header.parent}", "-shared", "-fPIC"], folder

    def module(self, into: Path, name: str, work: str = "", *libraries: Path) -> Path:
        source, made = self._folder / f"{name}.c", into / f"{name}.so"
        source.write_text(MODULE % {"name": name, "work": work})
        options = ["-Wl,--no-as-needed", *map(str, libraries), "-o", str(made), str(source)]
        subprocess.run([*self._command, *options], check=True)
        return made

    def library(self, name: str) -> Path:
        source, made = self._folder / "empty.c", self._folder / name
        source.write_text("int nothing(void) { return 0; }")
        subprocess.run([*self._command, f"-Wl,-soname,{name}", "-o", str(made), str(source)], check=True)
        return made


def for_another_processor(library: Path) -> None:
    data = bytearray(library.read_bytes())
    other = ARM if int.from_bytes(data[18:20], sys.byteorder) != ARM else X86
    data[18:20] = other.to_bytes(2, sys.byteorder)
    library.write_bytes(data)


def test_libraries_that_cannot_be_loaded(install: Install, tmp_path: Path) -> None:
    """Of one run: a library of another processor, of another numpy, and one whose own libraries are gone."""
    compiler = Compiler(tmp_path)
    folder = install("pocketsphinx", "pocketsphinx").parent
    for_another_processor(compiler.module(folder, "pocketsphinx"))
    install("tensorrt", "tensorrt")
    gone = compiler.library("libnvinfer.so.10")
    compiler.module(folder, "tensorrt", "", gone)
    gone.unlink()
    if has_numpy_2 := int(np.__version__.split(".")[0]) >= 2:
        install("matplotlib", "matplotlib")
        compiler.module(folder, "matplotlib", NUMPY_1)
    done = subprocess.run(
        [sys.executable, "-m", "affectrt", "doctor"],
        env={**os.environ, "PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1, done.stdout + done.stderr
    findings = dict(zip(lines := done.stdout.splitlines(), lines[1:], strict=False))

    def fix(said: str) -> str:
        (found,) = (line for line in findings if line.startswith("FAULT") and said in line)
        return findings[found]

    reinstall = "for another processor: pip install --force-reinstall --no-cache-dir pocketsphinx"
    assert reinstall in fix("pocketsphinx 9.9 is installed, but importing it fails: ")
    assert "a library of CUDA or TensorRT is missing" in fix("but importing it fails: libnvinfer.so.10: ")
    if has_numpy_2:
        assert "built for another numpy: pip install -U matplotlib" in fix("numpy.core.multiarray failed")


def test_two_onnxruntimes_are_a_fault(install: Install, capsys: pytest.CaptureFixture[str]) -> None:
    install("onnxruntime-gpu", "onnxruntime")
    assert main(["doctor"]) == 1
    out = capsys.readouterr().out
    assert "onnxruntime and onnxruntime-gpu are both installed" in out
    assert "pip uninstall -y onnxruntime onnxruntime-gpu" in out
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        assert "onnxruntime-gpu is installed but offers no CUDA, only " in out


def test_a_provider_that_is_listed_and_does_not_start(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As onnxruntime-gpu does on a machine without CUDA, where this was run by hand, too."""
    listed = ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]
    if set(listed) <= set(onnxruntime.get_available_providers()):
        pytest.skip("this ONNX Runtime has these providers")
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: listed)
    assert main(["doctor"]) == 1
    told = capsys.readouterr().out.splitlines()
    (fault,) = (line for line in told if line.startswith("FAULT"))
    assert "ONNX Runtime" in fault and "lists CUDAExecutionProvider, which doesn't start" in fault
    assert "pip install 'onnxruntime-gpu[cuda,cudnn]'" in told[told.index(fault) + 1]
    assert any(line.startswith("note") and "lists TensorrtExecutionProvider" in line for line in told)


def test_a_wheel_for_another_processor_is_found(install: Install, capsys: pytest.CaptureFixture[str]) -> None:
    other = "x86_64" if platform.machine() == "aarch64" else "aarch64"
    wheel = install("pocketsphinx", "pocketsphinx") / "WHEEL"
    wheel.write_text(f"Wheel-Version: 1.0\nTag: cp311-cp311-manylinux_2_17_{other}.manylinux2014_{other}\n")
    assert main(["doctor"]) == 1
    out = capsys.readouterr().out
    assert f"installed, but its wheel is for manylinux_2_17_{other}, manylinux2014_{other}" in out
    assert "its files are for another processor: pip install --force-reinstall" in out
    wheel.write_text(f"Tag: py3-none-any\nTag: cp311-cp311-linux_{other}\n")
    assert foreign_architecture("pocketsphinx") == ""


def test_what_is_made_for_a_newer_cuda_than_the_drivers() -> None:
    installed = [("tensorrt_cu13_bindings", "11.4"), ("tensorrt-cu13", "11.4"), ("tensorrt", "11.4")]
    installed += [("cuda-bindings", "13.0.1"), ("numpy", "2.0"), ("cucumber", "1.0")]
    assert list(mismatches(installed, "13.0")) == []
    found = list(mismatches(installed, "12.6"))
    assert [finding.subject for finding in found] == [
        "cuda-bindings",
        "tensorrt-cu13",
        "tensorrt_cu13_bindings",
    ]
    assert {finding.state for finding in found} == {"FAULT"}
    assert "CUDA 13, the driver knows CUDA up to 12.6" in found[0].detail and "CUDA 12" in found[0].fix


def test_parts_of_two_tensorrts() -> None:
    installed = [("tensorrt_cu12_bindings", "10.3.0"), ("tensorrt-cu12-libs", "10.3.0")]
    assert list(mismatches(installed, "12.6")) == []
    (found,) = mismatches([*installed[:1], ("tensorrt-cu12-libs", "10.7.0")], "12.6")
    assert (found.state, found.subject) == ("FAULT", "tensorrt-cu12")
    assert found.detail == (
        "tensorrt-cu12-libs 10.7.0 and tensorrt_cu12_bindings 10.3.0 are parts of different versions"
    )
    assert found.fix == "pip install --force-reinstall tensorrt-cu12"


@pytest.mark.parametrize(
    ("reason", "fix"),
    [
        ("importing it fails: numpy.core.multiarray failed to import", "'numpy<2'"),
        ("numpy.dtype size changed, may indicate binary incompatibility", "'numpy<2'"),
        ("/x/_foo.so: wrong ELF class: ELFCLASS32", "--force-reinstall --no-cache-dir lib"),
        ("/lib64/libm.so.6: version `GLIBC_2.38' not found (required by x)", "an older lib"),
        ("libcudart.so.12: cannot open shared object file", "library of CUDA or TensorRT is missing"),
        ("libnvinfer.so.10: cannot open shared object file", "library of CUDA or TensorRT is missing"),
        ("libcuda.so.1: cannot open shared object file", "NVIDIA driver is missing"),
        ("something else", "pip install -U lib"),
    ],
)
def test_what_a_library_says_tells_the_remedy(reason: str, fix: str) -> None:
    assert fix in remedy(reason, "lib")
