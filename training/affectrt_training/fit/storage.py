"""Checkpoints on disk: safetensors with JSON and a checksum in the header, and JSON. Nothing is unpickled."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from affectrt.errors import AffectError

HEADER = "affectrt"
"""The one key of the header's metadata, as safetensors writes several in any order. Its value: 64 hexadecimal
digits of SHA-256, then JSON."""
DIGITS = 64


def write_bytes(path: Path, data: bytes) -> None:
    """A file that appears complete or not at all, also when the power goes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
        partial = Path(file.name)
        try:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
            partial.chmod(0o644)  # temporary files are private
            partial.replace(path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise


def write_json(path: Path, value: object) -> None:
    """Indented JSON, whole or not at all."""
    write_bytes(path, (json.dumps(value, indent=2, allow_nan=False) + "\n").encode())


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. Raises ``checkpoint.not_found``, ``checkpoint.corrupt``."""
    try:
        found = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise _not_found(path) from None
    except (OSError, ValueError) as error:
        raise AffectError(
            "checkpoint.corrupt", f"{path}: expected JSON; reading it failed: {error}"
        ) from error
    if not isinstance(found, dict):
        raise AffectError("checkpoint.corrupt", f"{path}: expected a JSON object, got {type(found).__name__}")
    return found


def write_tensors(path: Path, tensors: Mapping[str, Tensor], info: object = None) -> None:
    """Tensors and a JSON value in one safetensors file, with a checksum over both."""
    # Copies: safetensors refuses tensors that share memory, as tied weights do.
    own = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}
    text = json.dumps(info)
    write_bytes(path, save(own, {HEADER: _digest(own, text) + text}))


def read_tensors(path: Path) -> tuple[dict[str, Tensor], Any]:
    """What :func:`write_tensors` wrote. Raises ``checkpoint.not_found``, ``checkpoint.corrupt``."""
    if not path.is_file():
        raise _not_found(path)
    try:
        with safe_open(path, framework="pt") as file:
            header = (file.metadata() or {}).get(HEADER)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise AffectError(
            "checkpoint.corrupt",
            f"{path}: expected a safetensors file of ours; reading it failed: {error}; train again",
        ) from error
    if header is None:
        raise AffectError(
            "checkpoint.corrupt",
            f"{path}: expected a checkpoint of 'affectrt train', got other safetensors; train again",
        )
    digest, info = header[:DIGITS], header[DIGITS:]
    if digest != _digest(tensors, info):
        raise AffectError(
            "checkpoint.corrupt",
            f"{path}: its contents don't match its checksum: it was damaged or changed; train again",
        )
    return tensors, json.loads(info)


def _not_found(path: Path) -> AffectError:
    return AffectError(
        "checkpoint.not_found", f"{path}: no such file; expected a run folder of 'affectrt train'"
    )


def _digest(tensors: Mapping[str, Tensor], info: str) -> str:
    digest = hashlib.sha256(info.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def pack(value: object, tensors: dict[str, Tensor]) -> object:
    """A tree of dicts, lists, tuples, tensors and plain values as JSON; its tensors go to ``tensors``.

    Optimisers' states have integers as keys, which JSON has not, so dicts become lists of pairs.
    """
    if isinstance(value, Tensor):
        name = f"tensor.{len(tensors)}"
        tensors[name] = value
        return {"tensor": name}
    if isinstance(value, Mapping):
        return {"dict": [[pack(key, tensors), pack(item, tensors)] for key, item in value.items()]}
    if isinstance(value, tuple):
        return {"tuple": [pack(item, tensors) for item in value]}
    if isinstance(value, list):
        return [pack(item, tensors) for item in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"checkpoint: expected tensors and plain values, got {type(value).__name__}")


def unpack(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    """What :func:`pack` took."""
    if isinstance(value, list):
        return [unpack(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    [(kind, inner)] = value.items()
    if kind == "tensor":
        return tensors[inner]
    if kind == "tuple":
        return tuple(unpack(item, tensors) for item in inner)
    return {unpack(key, tensors): unpack(item, tensors) for key, item in inner}
