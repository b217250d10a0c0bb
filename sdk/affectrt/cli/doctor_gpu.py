"""Whether NVIDIA's driver, CUDA, TensorRT and ONNX Runtime's GPU providers fit together and start."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from importlib import import_module, metadata

from affectrt.backends.choice import PROVIDERS
from affectrt.backends.gpu import driver_cuda, find_gpu
from affectrt.backends.onnx_runtime import CPU, OnnxGraph
from affectrt.cli.finding import Finding
from affectrt.errors import AffectError

CUDA = "CUDAExecutionProvider"

_NEEDS = {
    CUDA: "CUDA and cuDNN (pip install 'onnxruntime-gpu[cuda,cudnn]')",
    **dict.fromkeys((PROVIDERS["onnxruntime-tensorrt"], PROVIDERS["onnxruntime-rtx"]), "CUDA and TensorRT"),
}
_MADE_FOR = re.compile(r"(?:tensorrt|onnxruntime|cuda)[a-z_-]*[-_]cu(\d+)(?:[-_].*)?$")
_PART = re.compile(r"(tensorrt[-_]cu\d+)[-_](?:bindings|libs)$")
# The smallest ONNX graph: y = Identity(x), one float each, opset 17.
_IDENTITY = (
    b'\x08\x08:7\n\x10\n\x01x\x12\x01y"\x08Identity\x12\x01g'
    b"Z\x0f\n\x01x\x12\n\n\x08\x08\x01\x12\x04\n\x02\x08\x01"
    b"b\x0f\n\x01y\x12\n\n\x08\x08\x01\x12\x04\n\x02\x08\x01B\x04\n\x00\x10\x11"
)


def check_gpu() -> Iterator[Finding]:
    """The GPU, when something that wants one is installed, and what is made for a newer driver."""
    driver = ""
    try:
        driver = driver_cuda()
        gpu = find_gpu()
    except AffectError as error:
        if error.code != "extra.missing":
            yield Finding("FAULT", "GPU", error.message, "mend what the message names; the CPU works without")
        if not driver:
            return
    else:
        capability = f"compute capability {gpu.compute_capability}"
        yield Finding("ok", "GPU", f"{gpu.name}, {capability}, driver for CUDA {driver}")
    installed = [(d.metadata["Name"], d.version) for d in metadata.distributions()]
    yield from mismatches(installed, driver)


def check_providers(*, gpu: bool) -> Iterator[Finding]:
    """What ONNX Runtime offers, and whether that starts; ``gpu``: onnxruntime-gpu is what is installed."""
    subject = "ONNX Runtime"
    try:
        listed: list[str] = import_module("onnxruntime").get_available_providers()
    except (ImportError, AttributeError) as error:
        yield Finding(
            "FAULT", subject, f"doesn't start: {error}", "pip install --force-reinstall onnxruntime"
        )
        return
    if gpu and CUDA not in listed:
        yield Finding(
            "FAULT",
            subject,
            f"onnxruntime-gpu is installed but offers no CUDA, only {', '.join(listed)}",
            "pip install --force-reinstall onnxruntime-gpu, or use affectrt[cpu]",
        )
    starts = []
    for provider in (name for name in (CPU, *PROVIDERS.values()) if name in listed):
        try:
            OnnxGraph(_IDENTITY, name="a test", threads=1, provider=provider)
        except AffectError:
            yield Finding(
                # TensorRT is more than onnxruntime-gpu needs; CUDA is what it is for.
                "FAULT" if provider in (CPU, CUDA) else "note",
                subject,
                f"lists {provider}, which doesn't start",
                f"install the {_NEEDS.get(provider, 'libraries')} that it names on stderr",
            )
        else:
            starts.append(provider)
    if starts:
        yield Finding("ok", subject, f"starts {', '.join(dict.fromkeys(starts))}")


def mismatches(installed: Sequence[tuple[str, str]], driver: str) -> Iterator[Finding]:
    """Distributions (name, version) that are made for a newer CUDA than the driver's, ``12.6``, and parts of
    TensorRT of different versions.
    """
    newest = int(driver.partition(".")[0])
    parts: dict[str, dict[str, str]] = {}
    for name, version in sorted(set(installed)):
        made_for, part = _MADE_FOR.match(name.lower()), _PART.match(name.lower())
        if part:
            parts.setdefault(part[1].replace("_", "-"), {})[name] = version
        if made_for:
            wanted = int(made_for[1])
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
    for whole, versions in parts.items():
        if len(set(versions.values())) > 1:
            told = " and ".join(f"{name} {version}" for name, version in versions.items())
            yield Finding(
                "FAULT",
                whole,
                f"{told} are parts of different versions",
                f"pip install --force-reinstall {whole}",
            )
