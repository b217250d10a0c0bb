"""What ``affectrt doctor`` found, and the remedies that it knows."""

from __future__ import annotations

import platform
import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    state: Literal["ok", "note", "FAULT"]
    """``note``: not here, not needed by everyone."""
    subject: str
    """What was looked at."""
    detail: str
    """What was found."""
    fix: str = ""
    """What to do about it; a command where one does it."""


FOREIGN_FILES = "its files are for another processor: pip install --force-reinstall --no-cache-dir {name}"

TRAPS = (
    (
        r"numpy\.core\.multiarray failed|_ARRAY_API not found|compiled using NumPy 1|dtype size changed",
        "it was built for another numpy: pip install -U {name}, or where there is no newer one pip install "
        "'numpy<2'",
    ),
    (
        r"its wheel is for|wrong ELF class|invalid ELF header|Exec format error|incompatible architecture",
        FOREIGN_FILES,
    ),
    (
        r"GLIBC(XX)?_[\d.]+. not found",
        "it was built for a newer Linux: install an older {name}, or update the system",
    ),
    (
        r"lib(cudart|cublas|cublasLt|cudnn|cufft|curand|nvrtc|nvinfer|nvinfer_plugin|nvonnxparser)\.so",
        "a library of CUDA or TensorRT is missing or of another version: install the version in its name, or "
        "the {name} that is made for yours",
    ),
    (
        r"libcuda\.so",
        "the NVIDIA driver is missing: install it, and in a container pass the GPU on (--gpus all, or "
        "--runtime nvidia on a Jetson)",
    ),
)
"""What a library says when it can't be imported (a pattern), and what mends it."""


def remedy(reason: str, name: str) -> str:
    """How to mend a distribution that can't be imported for this reason."""
    unopened = re.search(r"(/[^:]+): cannot open shared object file", reason)
    if unopened and Path(unopened[1]).is_file():
        # glibc says so of a library that is there and for another processor of as many bits.
        return FOREIGN_FILES.format(name=name)
    for pattern, fix in TRAPS:
        if re.search(pattern, reason):
            return fix.format(name=name)
    return f"pip install -U {name}"


def foreign_architecture(name: str) -> str:
    """The processor that an installed wheel was made for, when it isn't this machine's, else nothing."""
    here = _one_name(platform.machine().lower())
    platforms = list(_platforms(metadata.distribution(name).read_text("WHEEL") or ""))
    if not platforms or any(tag.endswith(("any", "universal2", here)) for tag in map(_one_name, platforms)):
        return ""
    return ", ".join(platforms)


def _one_name(platform_tag: str) -> str:
    """Two processors have two names each."""
    return platform_tag.replace("amd64", "x86_64").replace("arm64", "aarch64")


def _platforms(wheel: str) -> Iterator[str]:
    for line in wheel.splitlines():
        if line.startswith("Tag:"):
            yield from line.split("-")[-1].strip().lower().split(".")
