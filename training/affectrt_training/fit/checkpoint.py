"""Run folders: ``config.json``, ``model.safetensors``, ``calibration.json``, ``metrics.json`` and ``.csv``.

A run with a tuned text encoder has ``encoder.safetensors``, too: its adapter, or all of it.
"""

from __future__ import annotations

import csv
import platform
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from affectrt.affect import MODALITIES, Modality
from affectrt.calibration import Calibration
from affectrt.errors import AffectError
from affectrt_training.config import build
from affectrt_training.encoders.text import TextEncoder
from affectrt_training.fit.calibrate import FILE as CALIBRATION
from affectrt_training.fit.calibrate import read_calibration, write_calibration
from affectrt_training.fit.course import HISTORY, STATE, differences
from affectrt_training.fit.prepare import Reader, TextFrom
from affectrt_training.fit.settings import RunConfig
from affectrt_training.fit.storage import read_json, read_tensors, write_json, write_tensors
from affectrt_training.models.fusion import FusionModel
from affectrt_training.models.registry import create

SCHEMA = 1
"""Of ``config.json``; counted up when older readers would misread it."""

CONFIG, MODEL, ENCODER, METRICS = "config.json", "model.safetensors", "encoder.safetensors", "metrics.json"


@dataclass(frozen=True)
class Fitted:
    """What a training leaves behind."""

    model: FusionModel
    """With the weights of its best epoch, in evaluation mode."""
    config: RunConfig
    dims: Mapping[Modality, int]
    """Features per row of all three modalities; 1 for one that the data didn't have."""
    best_epoch: int
    """From 1."""
    history: Sequence[Mapping[str, float | int | None]]
    """A row an epoch: ``epoch``, ``lr``, ``loss`` and validation metrics."""
    metrics: Mapping[str, object]
    """Validation metrics of the best epoch, as :func:`affectrt_training.fit.score.score` names them."""
    text_from: TextFrom = "rows"
    """Where its text rows come from."""
    encoder: TextEncoder | None = None
    """The text encoder, if it was tuned along."""
    data: Mapping[str, Any] = field(default_factory=dict)
    """What it was trained on: ``name``; ``splits`` and ``sha256`` by split; ``label_range``; ``modalities``
    that occur; ``rows``, what those of each modality are like; ``clips``, which extractor made the rows of
    raw clips, null where the data brought theirs."""
    calibration: Calibration | None = None
    """How far it may be trusted, from its validation split; None unless it was kept in a folder."""

    @property
    def reader(self) -> Reader:
        """How it reads examples."""
        return Reader(self.text_from, self.config.text, self.dims)


def begin_run(folder: Path, description: Mapping[str, Any], *, resume: bool) -> None:
    """Write ``config.json``, or compare with the one that is there. Raises ``checkpoint.mismatch``."""
    path = folder / CONFIG
    if not resume or not path.exists():
        for name in (METRICS, MODEL, ENCODER, HISTORY, CALIBRATION):
            (folder / name).unlink(missing_ok=True)
        shutil.rmtree(folder / STATE.parent, ignore_errors=True)
        write_json(path, {"schema": SCHEMA, **description, "versions": _versions()})
        return
    before = read_json(path)
    if before.get("data", {}).get("sha256") != description["data"]["sha256"]:
        raise AffectError(
            "checkpoint.mismatch",
            f"{folder}: the run was begun on other data; give it the same, or begin again in another folder",
        )
    for part in ("config", "dims"):
        if changed := differences(before.get(part, {}), description[part]):
            raise AffectError(
                "checkpoint.mismatch",
                f"{folder}: the run was begun with other settings ({'; '.join(changed)}); resume it with the "
                f"same, or begin again in another folder",
            )


def _versions() -> dict[str, str]:
    names = ("affectrt", "torch", "lightning", "transformers")
    return {**{name: metadata.version(name) for name in names}, "python": platform.python_version()}


def finish_run(folder: Path, fitted: Fitted) -> None:
    """Write weights and metrics, then remove the state; ``metrics.json`` comes last and says it is done."""
    write_tensors(folder / MODEL, fitted.model.state_dict())
    if fitted.encoder is not None:
        write_tensors(folder / ENCODER, fitted.encoder.adapter())
    if fitted.calibration is not None:
        write_calibration(folder, fitted.calibration)
    select = {"best_epoch": fitted.best_epoch, "epochs": len(fitted.history)}
    write_json(folder / METRICS, {**select, "valid": fitted.metrics})
    shutil.rmtree(folder / STATE.parent, ignore_errors=True)


def is_finished(folder: Path) -> bool:
    """Whether a training came to its end there."""
    return (folder / METRICS).is_file()


def load_run(folder: Path) -> Fitted:
    """A finished run.

    Raises ``checkpoint.not_found``, ``checkpoint.unfinished``, ``checkpoint.corrupt``,
    ``checkpoint.mismatch`` and ``checkpoint.schema``.
    """
    described = read_json(folder / CONFIG)
    if described.get("schema") != SCHEMA:
        raise AffectError(
            "checkpoint.schema",
            f"{folder}: expected a run of schema {SCHEMA}, got {described.get('schema')}; "
            f"use the version of affectrt that trained it, or train again",
        )
    if not is_finished(folder):
        raise AffectError(
            "checkpoint.unfinished", f"{folder}: its training isn't over; finish it with --resume"
        )
    try:
        dims: dict[Modality, int] = {m: int(described["dims"][m]) for m in MODALITIES}
        config, source, data = described["config"], described["text_from"], described["data"]
    except (KeyError, TypeError, ValueError) as error:
        raise AffectError(
            "checkpoint.corrupt", f"{folder / CONFIG}: no {error} in it; train again"
        ) from error
    run = build(RunConfig, config, where=str(folder / CONFIG))
    metrics = read_json(folder / METRICS)
    if not {"best_epoch", "valid"} <= metrics.keys():
        raise AffectError(
            "checkpoint.corrupt", f"{folder / METRICS}: expected best_epoch and valid; train again"
        )
    model = create(run.system, dims, run.model)
    _fill(model, read_tensors(folder / MODEL)[0], folder / MODEL)
    encoder = None
    if Reader(source, run.text, dims).tunes:
        encoder = TextEncoder(run.text)
        weights, _ = read_tensors(folder / ENCODER)
        try:
            encoder.load_adapter(weights)
        except AffectError as error:
            raise AffectError("checkpoint.mismatch", f"{folder / ENCODER}: {error.message}") from error
        encoder.eval()
    return Fitted(
        model=model.eval(),
        config=run,
        dims=dims,
        best_epoch=int(metrics["best_epoch"]),
        history=_read_history(folder / HISTORY),
        metrics=metrics["valid"],
        text_from=source,
        encoder=encoder,
        data=data,
        calibration=read_calibration(folder),
    )


def _fill(module: nn.Module, weights: Mapping[str, Tensor], path: Path) -> None:
    try:
        module.load_state_dict(dict(weights))
    except RuntimeError as error:
        raise AffectError(
            "checkpoint.mismatch",
            f"{path}: its weights don't fit the model that {CONFIG} describes: {error}; train again",
        ) from error


def _read_history(path: Path) -> list[dict[str, float | int | None]]:
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    try:
        return [
            {key: int(cell) if key == "epoch" else float(cell) if cell else None for key, cell in row.items()}
            for row in rows
        ]
    except (TypeError, ValueError) as error:
        raise AffectError(
            "checkpoint.corrupt", f"{path}: expected a number or nothing in every cell: {error}"
        ) from error
