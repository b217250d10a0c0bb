"""Whether NVIDIA's driver, CUDA and TensorRT fit together."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from importlib import metadata

from affectrt.backends.gpu import find_gpu
from affectrt.cli.finding import Finding
from affectrt.errors import AffectError

_MADE_FOR = re.compile(r"(?:tensorrt|onnxruntime|cuda)[a-z_-]*[-_]cu(\d+)(?:[-_].*)?$")


def check_gpu() -> Iterator[Finding]:
    """The GPU, when something that wants one is installed."""
    try:
        gpu = find_gpu()
    except AffectError as error:
        if error.code != "extra.missing":
            yield Finding("FAULT", "GPU", error.message, "mend what the message names; the CPU works without")
        return
    yield Finding(
        "ok", "GPU", f"{gpu.name}, compute capability {gpu.compute_capability}, driver for CUDA {gpu.cuda}"
    )
    installed = [(d.metadata["Name"], d.version) for d in metadata.distributions()]
    yield from mismatches(installed, gpu.cuda)


def mismatches(installed: Sequence[tuple[str, str]], driver: str) -> Iterator[Finding]:
    """Distributions (name, version) that are made for a newer CUDA than the driver's, ``12.6``."""
    newest = int(driver.partition(".")[0])
    for name, version in sorted(set(installed)):
        match = _MADE_FOR.match(name.lower())
        if match:
            wanted = int(match[1])
        elif name.lower() == "cuda-bindings":
            wanted = int(version.partition(".")[0])
        else:
            continue
        if wanted > newest:
            yield Finding(
                "FAULT",
                name,
                f"is made for CUDA {wanted}, the driver knows CUDA up to {driver}",
                f"update the driver, or install what is made for CUDA {newest}",
            )
