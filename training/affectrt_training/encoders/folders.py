"""Pretrained encoders in folders of Hugging Face's layout: read whole, from safetensors alone, or refused."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from affectrt.errors import AffectError


def read_config(folder: Path, who: str, families: Collection[str]) -> dict[str, Any]:
    """The folder's ``config.json``; ``who`` names the encoder in messages.

    Raises ``encoder.folder`` where there is none, ``encoder.unsupported`` when its ``model_type`` isn't one
    of ``families``.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise AffectError(
            "encoder.folder",
            f"{who} {folder}: expected a folder with config.json and model.safetensors, found no "
            "config.json; nothing is downloaded: give a folder on this machine",
        )
    try:
        config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        kind = config["model_type"]
    except (ValueError, KeyError, TypeError) as error:
        raise AffectError(
            "encoder.folder",
            f"{who} {path}: expected a JSON object with a model_type ({error!r}); save the model again",
        ) from error
    if kind not in families:
        raise AffectError(
            "encoder.unsupported",
            f"{who} {folder}: expected a model_type among {', '.join(families)}, got '{kind}'; "
            "choose a model of such a family",
        )
    return config


def weight_files(folder: Path, who: str) -> list[Path]:
    """The folder's safetensors. Raises ``encoder.folder`` where there are none."""
    found = sorted(folder.glob("model*.safetensors"))
    if not found:
        raise AffectError(
            "encoder.folder",
            f"{who} {folder}: expected weights in model.safetensors, found none; pickled weights "
            "(pytorch_model.bin) are not read: load and save the model with safetensors once",
        )
    return found


def hash_of(files: Collection[Path]) -> str:
    """SHA-256 of the files' content, one after the other."""
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def pretrained(folder: Path, who: str, **options: object) -> nn.Module:
    """The model of a folder with all of its weights: transformers itself fills gaps with random numbers.

    Raises ``encoder.folder`` for weights that are missing, damaged or of other shapes.
    """
    from safetensors import SafetensorError
    from transformers import AutoModel

    try:
        with quietly():
            model, found = AutoModel.from_pretrained(
                folder, local_files_only=True, use_safetensors=True, output_loading_info=True, **options
            )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise AffectError(
            "encoder.folder",
            f"{who} {folder}: expected readable weights of config.json's shapes: {error}; copy it again",
        ) from error
    if missing := sorted(found["missing_keys"]):
        raise AffectError(
            "encoder.folder",
            f"{who} {folder}: expected weights for every layer of config.json, {len(missing)} are missing, "
            f"among them {missing[0]}; copy it again",
        )
    loaded: nn.Module = model
    return loaded


@contextmanager
def quietly() -> Iterator[None]:
    """Without the libraries' progress bars and notes to each other, which no user of ours can act on."""
    from transformers.utils import logging as hf_logging

    logger = hf_logging.get_logger("transformers")
    level, bars = logger.level, hf_logging.is_progress_bar_enabled()
    logger.setLevel(hf_logging.ERROR)
    hf_logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*")
            yield
    finally:
        logger.setLevel(level)
        if bars:
            hf_logging.enable_progress_bar()
