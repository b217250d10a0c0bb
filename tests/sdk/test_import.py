"""``import affectrt`` is light, and its public names are there when they are used."""

from __future__ import annotations

import subprocess
import sys
from time import perf_counter

import pytest

import affectrt

HEAVY = (
    "onnxruntime",
    "torch",
    "cv2",
    "av",
    "tokenizers",
    "kaldi_native_fbank",
    "soxr",
    "matplotlib",
    "rich",
)


def run(code: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=60
    ).stdout


def test_import_loads_nothing_heavy() -> None:
    loaded = run(f"import affectrt, sys; print([m for m in {HEAVY!r} if m in sys.modules])")
    assert loaded.strip() == "[]"


def test_result_types_need_only_numpy() -> None:
    code = (
        "import sys; from affectrt import Affect, AffectError, FeatureSequence, Word\n"
        "known = set(sys.stdlib_module_names) | {'numpy', 'affectrt', '__main__'}\n"
        "print(sorted({m.partition('.')[0] for m in sys.modules if not m.startswith('_')} - known))"
    )
    # What the interpreter itself loads at start (site hooks of an editable install) is not ours.
    at_start = run("import sys; print(sorted({m.partition('.')[0] for m in sys.modules}))")
    assert set(eval(run(code))) <= set(eval(at_start))


def test_import_is_fast() -> None:
    code = "import time; t = time.perf_counter(); import affectrt; print(time.perf_counter() - t)"
    # The best of several: what other programs do meanwhile is not ours.
    assert min(float(run(code)) for _ in range(5)) < 0.15


def test_public_names() -> None:
    assert set(affectrt.__all__) <= set(dir(affectrt))
    for name in affectrt.__all__:
        assert getattr(affectrt, name) is not None
    start = perf_counter()
    for _ in range(1000):
        _ = affectrt.Affect
    assert perf_counter() - start < 0.1, "a public name is looked up once, then it is a plain attribute"


def test_unknown_name() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = affectrt.nothing
