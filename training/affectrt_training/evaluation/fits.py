"""The fits of a comparison: each trained on one thread, judged at once, and kept on disk as predictions."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import re
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from pathlib import Path
from time import process_time
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

import affectrt
from affectrt.errors import AffectError
from affectrt_training.data.dataset import Dataset, Example, collate
from affectrt_training.encoders.text import weights_hash
from affectrt_training.evaluation.attention_maps import attention_maps
from affectrt_training.evaluation.plan import Entry, Part, only
from affectrt_training.evaluation.robustness import conditions, spread
from affectrt_training.fit.checkpoint import Fitted as Trained
from affectrt_training.fit.predict import predict
from affectrt_training.fit.run import fit_run
from affectrt_training.fit.settings import RunConfig
from affectrt_training.fit.storage import read_tensors, write_tensors

FORMAT = 1
"""Part of every fit's key: count up when the same settings give other predictions than before."""

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Fit:
    """One training: a row of the table, a part of the data, a seed."""

    entry: Entry
    dataset: Dataset
    """Its name and widths; the examples come from the part."""
    part: Part
    seed: int
    path: Path
    """Where its predictions lie."""

    @property
    def config(self) -> RunConfig:
        """The row's settings with this seed."""
        return replace(self.entry.config, training=replace(self.entry.config.training, seed=self.seed))

    def key(self) -> str:
        """Changes with all that decides what comes out."""
        text = self.entry.config.text
        parts = {
            "format": FORMAT,
            "versions": [affectrt.__version__, torch.__version__],
            "config": self.config.to_dict(),
            "encoder": weights_hash(text) if text.tuning != "frozen" else "",
            "modalities": self.entry.modalities,
            "stressed": self.entry.stressed,
            "data": [self.part.digest, [len(x) for x in (self.part.train, self.part.valid)]],
        }
        return hashlib.sha256(json.dumps(parts, default=str, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Attention:
    """Who looked at whom in one example, in the last layer that pairs them."""

    example: str
    """Its id."""
    pairs: Sequence[tuple[str, str]]
    """Who asks, who answers."""
    weights: Sequence[Array]
    """(1 + Tα, 1 + Tβ) of each pair, null slots first, mean over heads."""


@dataclass(frozen=True)
class Fitted:
    """What is kept of a fit. N held-out and n validation examples, C conditions."""

    arrays: dict[str, Array]
    """``held/sentiment`` (N,), ``held/probabilities`` (N, 7), ``valid/…`` likewise, and for stressed rows
    ``worse/sentiment`` (C, N) and ``worse/emotion`` (C, N), class indices."""
    conditions: Sequence[str]
    """Names of the C conditions, as :func:`robustness.conditions` gives them."""
    best_epoch: int
    train_s: float
    """Seconds of one core: what else the machine does counts little."""
    parameters: int
    """Of the fusion model."""
    attention: Attention | None = None
    """Stressed rows that attend: of the first held-out example with most modalities."""


def path_of(folder: Path, label: str, part: str, seed: int) -> Path:
    """A file name that says what it is; labels that differ never share one."""
    slug = re.sub(r"[^a-z0-9]+", "-", label.lower()).strip("-")[:60]
    tail = hashlib.sha256(label.encode()).hexdigest()[:6]
    return folder / f"{slug}-{tail}" / f"{part}-seed{seed}.safetensors"


def load(fit: Fit) -> Fitted | None:
    """A finished fit; None: there is none, it is damaged, or something that decides it has changed."""
    try:
        tensors, info = read_tensors(fit.path)
    except AffectError:
        return None
    if not isinstance(info, dict) or info.get("key") != fit.key():
        return None
    arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
    attention = None
    if info["attention"] is not None:
        example, pairs = info["attention"]
        weights = [arrays.pop(f"attention/{p}") for p in range(len(pairs))]
        attention = Attention(example, [(asking, answering) for asking, answering in pairs], weights)
    return Fitted(
        arrays, info["conditions"], info["best_epoch"], info["train_s"], info["parameters"], attention
    )


def run(fit: Fit) -> None:
    """Train, judge, keep. A fault names the fit."""
    part = only(fit.part, fit.entry.modalities)
    splits = {"train": part.train, "valid": part.valid, "held": part.held}
    begin = process_time()
    try:
        fitted = fit_run(fit.config, replace(fit.dataset, splits=splits), None, progress=False)
    except AffectError as error:
        where = f"'{fit.entry.label}', {fit.part.name}, seed {fit.seed}"
        raise AffectError(error.code, f"{where}: {error.message}") from error
    train_s = process_time() - begin
    arrays: dict[str, Array] = {}
    for name, examples in (("held", part.held), ("valid", part.valid)):
        found = predict(fitted, examples)
        arrays[f"{name}/sentiment"] = np.asarray(found.sentiment, np.float32)
        arrays[f"{name}/probabilities"] = np.asarray(found.probabilities, np.float32)
    names: list[str] = []
    attention = None
    if fit.entry.stressed:
        attention = _attention(fitted, part.held)
        for p, weights in enumerate(attention.weights if attention else ()):
            arrays[f"attention/{p}"] = weights
        worse = conditions(part.held, spread(part.train))
        results = [predict(fitted, examples) for examples in worse.values()]
        names = list(worse)
        arrays["worse/sentiment"] = np.array([r.sentiment for r in results], np.float32)
        arrays["worse/emotion"] = np.array([r.probabilities.argmax(1) for r in results], np.uint8)
    info = {
        "key": fit.key(),
        "conditions": names,
        "best_epoch": fitted.best_epoch,
        "train_s": round(train_s, 3),
        "parameters": sum(p.numel() for p in fitted.model.parameters()),
        "attention": attention and (attention.example, list(attention.pairs)),
    }
    write_tensors(fit.path, {name: torch.from_numpy(array) for name, array in arrays.items()}, info)


def _attention(fitted: Trained, examples: Sequence[Example]) -> Attention | None:
    """None where the model doesn't attend, or where a tuned encoder reads the words."""
    if fitted.encoder is not None:
        return None
    example = max(examples, key=lambda e: len(e.rows))  # the first of those with most modalities
    device = next(fitted.model.parameters()).device
    batch = {key: tensor.to(device) for key, tensor in collate([example], fitted.dims).items()}
    try:
        maps = attention_maps(fitted.model, batch)
    except AffectError:
        return None
    last = {(m.asking, m.answering): m.weights[0].mean(0).float().cpu().numpy() for m in maps}
    return Attention(example.id, list(last), list(last.values()))


def run_all(fits: Sequence[Fit], jobs: int, tell: Callable[[float], None]) -> list[Fitted]:
    """All fits in order, those that are not kept yet trained first, ``jobs`` at a time.

    Every fit runs on one thread, so that its numbers don't depend on ``jobs``. ``tell`` hears how many fits
    are there. What is finished stays when another fit fails or the process is killed. Raises the fault of a
    fit, and ``compare.worker_died``.
    """
    waiting = [fit for fit in fits if load(fit) is None]
    done = len(fits) - len(waiting)
    tell(done)
    if jobs == 1 or len(waiting) == 1:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            for fit in waiting:
                run(fit)
                done += 1
                tell(done)
        finally:
            torch.set_num_threads(threads)
    elif waiting:
        _run_in_processes(waiting, jobs, lambda finished: tell(done + finished))
    found = [load(fit) for fit in fits]
    return [fitted for fitted in found if fitted is not None]


_fits: Sequence[Fit] = ()
"""Of a worker process: handed over once, not with every task."""


def _begin(fits: Sequence[Fit]) -> None:
    global _fits
    _fits = fits
    torch.set_num_threads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A worker whose comparison was killed would else finish the training that it holds, for nobody."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _run_one(index: int) -> None:
    run(_fits[index])


def _run_in_processes(fits: Sequence[Fit], jobs: int, tell: Callable[[int], None]) -> None:
    # spawn: a fork of a process that has used torch's threads may hang.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(min(jobs, len(fits)), context, _begin, (list(fits),))
    try:
        pending: list[Future[None]] = [pool.submit(_run_one, index) for index in range(len(fits))]
        for count, future in enumerate(as_completed(pending), 1):
            future.result()
            tell(count)
    except BrokenProcessPool as error:
        raise AffectError(
            "compare.worker_died",
            "a training process died, perhaps for want of memory; run the same command again with fewer "
            "--jobs: what is finished is kept",
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)
