"""MMSA's trainings: rows of a comparison, trained in its environment and kept in the same files as ours."""

from __future__ import annotations

import hashlib
import json
import sys
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from affectrt.affect import EMOTIONS
from affectrt.errors import AffectError
from affectrt_training.evaluation.fits import Fit, Fitted, load
from affectrt_training.evaluation.plan import Entry
from affectrt_training.fit.settings import RunConfig
from affectrt_training.fit.storage import write_tensors
from benchmarks.peers import mmsa
from benchmarks.peers.mmsa import Json, Padding

FORMAT = 1
"""Part of every fit's key: count up when the same settings give other predictions than before."""


@dataclass(frozen=True)
class Peer:
    """One row: a system of MMSA's."""

    label: str
    model: str
    """MMSA's name of it."""
    settings: Mapping[str, Any]
    """Changes to MMSA's own hyper-parameters."""

    def entry(self, like: Entry) -> Entry:
        """A row as comparisons have them, of the data that another row reads.

        The system is the nearest of ours, as reports look their rows' systems up; the report puts
        MMSA's own source and settings in its place.
        """
        config = RunConfig(mmsa.MODELS[self.model], text=like.config.text)
        return Entry(self.label, config, "peer")


@dataclass(frozen=True)
class PeerFit(Fit):
    """One training of MMSA's, kept in the same files as ours."""

    peer: Peer
    padding: Padding
    epochs_cap: int | None

    def key(self) -> str:
        """Changes with all that decides what comes out."""
        parts = {
            "format": FORMAT,
            "versions": [mmsa.VERSION, str(torch.__version__)],
            "model": self.peer.model,
            "settings": dict(self.peer.settings),
            "padding": self.padding,
            "epochs_cap": self.epochs_cap,
            "seed": self.seed,
            "data": [self.part.digest, [len(x) for x in (self.part.train, self.part.valid)]],
        }
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def peers_of(models: str, variants: Sequence[str]) -> list[Peer]:
    """Rows from ``--peers`` and ``--peer-variant``. Raises ``peers.model``, ``peers.variant``."""
    found = [Peer(f"MMSA {name}", _model(name), {}) for name in models.replace(",", " ").split()]
    for text in variants:
        label, colon, changes = (part.strip() for part in text.partition(":"))
        pairs = [change.partition("=") for change in changes.split()]
        if len(label.split()) < 2 or not colon or not pairs or not all(value for _, _, value in pairs):
            raise AffectError(
                "peers.variant",
                "--peer-variant: expected a system of MMSA's, what is other about it, a colon and settings, "
                f"such as 'MULT every batch: update_epochs=1', got '{text}'",
            )
        settings = {key: _value(value) for key, _, value in pairs}
        found.append(Peer(f"MMSA {label}", _model(label.split()[0]), settings))
    return found


def _model(name: str) -> str:
    if name not in mmsa.MODELS:
        raise AffectError("peers.model", f"expected some of {', '.join(mmsa.MODELS)}, got '{name}'")
    return name


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def train(
    fits: Sequence[PeerFit], jobs: int, environment: Path, logs: Path, tell: Callable[[int], None]
) -> list[Fitted | None]:
    """All fits in order, those that aren't kept yet trained first; None for those that failed.

    What a failed one said goes to stderr, all that MMSA says to ``logs``. Raises ``peers.environment`` and
    ``peers.data``.
    """
    waiting = [fit for fit in fits if load(fit) is None]
    done = len(fits) - len(waiting)
    tell(done)
    if waiting:
        python = mmsa.environment(environment)
        logs.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            folder = Path(stack.enter_context(TemporaryDirectory()))
            data = _pickles(waiting, folder)
            idle = deque(
                stack.enter_context(mmsa.Worker(python, logs / f"mmsa-{number}.log"))
                for number in range(min(jobs, len(waiting)))
            )

            def one(fit: PeerFit) -> None:
                worker = idle.popleft()
                try:
                    _fit(fit, worker, data[fit.part.digest], folder / f"{fit.key()}.pth")
                finally:
                    idle.append(worker)

            # As many threads as processes, which they wait for.
            threads = ThreadPoolExecutor(len(idle))
            try:
                pending = [threads.submit(one, fit) for fit in waiting]
                for count, future in enumerate(as_completed(pending), 1):
                    future.result()
                    tell(done + count)
            finally:
                threads.shutdown(cancel_futures=True)
    return [load(fit) for fit in fits]


def _pickles(fits: Sequence[PeerFit], folder: Path) -> dict[str, Path]:
    """A file for every part of the data."""
    found: dict[str, Path] = {}
    for fit in fits:
        if fit.part.digest not in found:
            path = found[fit.part.digest] = folder / f"{fit.part.name}.pkl"
            mmsa.write_pickle(fit.part, fit.dataset.dims, fit.padding, path)
    return found


def _fit(fit: PeerFit, worker: mmsa.Worker, data: Path, scratch: Path) -> None:
    answer = worker.ask(
        {
            "model": fit.peer.model.lower(),
            "seed": fit.seed,
            "data": str(data),
            "settings": dict(fit.peer.settings),
            "epochs_cap": fit.epochs_cap,
            "scratch": str(scratch),
        }
    )
    fault = answer.get("error") or keep(fit, answer)
    if fault:
        print(f"{fit.peer.label}, {fit.part.name}, seed {fit.seed}: {fault}", file=sys.stderr)


def keep(fit: PeerFit, answer: Json) -> str:
    """Store a fit's predictions; returns what is wrong with them, then nothing is stored."""
    arrays = {}
    for name, examples in (("held", fit.part.held), ("valid", fit.part.valid)):
        said = answer[name]
        if said.keys() != {e.id for e in examples}:
            return f"expected predictions of {len(examples)} examples ({name}), got others: {len(said)}"
        values = np.array([said[e.id] for e in examples], np.float32)
        if not np.isfinite(values).all():
            return f"predicted NaN or infinity ({name})"
        if len(values) > 1 and np.ptp(values) == 0:
            return f"predicted {values[0]:g} for every example ({name})"
        arrays[f"{name}/sentiment"] = values
        # It knows no emotions; nor have the data any.
        arrays[f"{name}/probabilities"] = np.full((len(values), len(EMOTIONS)), 1 / len(EMOTIONS), np.float32)
    info = {
        "key": fit.key(),
        "conditions": [],
        "best_epoch": answer["best_epoch"],
        "train_s": round(answer["train_s"], 3),
        "parameters": answer["parameters"],
        "attention": None,
        "settings": answer["settings"],
    }
    write_tensors(fit.path, {name: torch.from_numpy(array) for name, array in arrays.items()}, info)
    return ""
