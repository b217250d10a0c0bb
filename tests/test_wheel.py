"""The wheel carries all files of the packages: of ``affectrt serve`` the page, of the recipes the weights."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = (
    "sdk/affectrt",
    "kernels/affectrt_kernels",
    "export/affectrt_export",
    "training/affectrt_training",
)
BUILT = ROOT / "build" / "lint" / "wheel"
"""``make lint``, which goes before the tests of a change, leaves the wheel here."""


def test_the_wheel_is_whole() -> None:
    files = {
        path.relative_to(folder.parent).as_posix(): path
        for folder in (ROOT / package for package in PACKAGES)
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and path.suffix != ".so"
    }
    assert {Path(name).suffix for name in files if "/serving/page/" in name} == {
        ".html",
        ".js",
        ".css",
        ".svg",
    }
    newest = max(path.stat().st_mtime for path in files.values())
    wheels = [path for path in BUILT.glob("*.whl") if path.stat().st_mtime > newest]
    if not wheels:
        pytest.skip("no wheel of these files: make lint builds one")
    with zipfile.ZipFile(wheels[0]) as wheel:
        carried = {name: wheel.getinfo(name).file_size for name in wheel.namelist()}
    assert {name: path.stat().st_size for name, path in files.items()}.items() <= carried.items()
    assert any(name.startswith("affectrt_kernels/_native.") and name.endswith(".so") for name in carried)
