"""How fast bundles run on backends, compared fairly: right first, then timed in turns.

Every candidate, a bundle on a backend, has a process of its own. In each round all compute one window, one
after the other in a new order, so that whatever else the machine does falls on all alike; a comparison is the
median of the rounds' ratios. Nothing is timed that disagrees with the other backends of its bundle.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import numpy as np

from affectrt import machine
from affectrt.benchmark_gate import Candidate, Refused, check, chosen
from affectrt.benchmark_worker import Worker
from affectrt.bundle import Bundle
from affectrt.energy import Meter, find_meters
from affectrt.errors import AffectError

WARM_UPS = 3
"""Windows of each candidate before the first round."""

LEAST_ROUNDS = 5
"""However little time there is."""

ENERGY_S = 3.0
"""How long a candidate runs alone for its energy: counters tick every 1 to 100 ms."""

_LOADING, _TIMING = 0.1, 0.8
"""Shares of the whole, for progress."""

Progress = Callable[[float], None]


@dataclass(frozen=True)
class Latency:
    """How long one thing took, over all rounds."""

    p50_ms: float
    """Median, milliseconds."""
    p95_ms: float
    p99_ms: float
    per_s: float
    """How many a second one caller gets through, one after the other."""
    ratio: float | None
    """Over the first candidate's of the same round, median; None where that has no such stage."""
    ratio_quartiles: tuple[float, float] | None
    """Of the rounds' ratios."""
    times_ms: tuple[float, ...]
    """One for each round."""


@dataclass(frozen=True)
class Measured:
    """A bundle on a backend."""

    bundle: str
    """Its path, as it was given."""
    backend: str
    precision: Mapping[str, str]
    """Graph → number format."""
    bundle_bytes: int
    """Size of the file."""
    window: str
    """What one window is."""
    load_s: float
    """From a fresh interpreter to a model that is ready, libraries included."""
    peak_bytes: int
    """The most memory that its process held at once, interpreter and libraries included."""
    compared_with: str | None
    """The backend that its results were held to; None for that one itself."""
    difference: float | None
    """How far sentiment and probabilities were from that one's, at most; None for that one itself."""
    joules: Mapping[str, float]
    """Meter → energy of a window; empty where this machine doesn't tell."""
    whole: Latency
    """Of a window, everything included."""
    stages: Mapping[str, Latency]
    """Of its stages, in the order in which they run."""


@dataclass(frozen=True)
class Benchmark:
    """All of a run."""

    machine: tuple[str, ...]
    """The machine, versions and date, and a warning if it was busy at the start."""
    threads: int
    """Of each graph."""
    rounds: int
    measured: tuple[Measured, ...]
    """In the order of bundles, then backends; ratios are to the first."""
    refused: tuple[Refused, ...]
    """Those that differ from the others or can't be loaded."""


def measure(
    paths: Sequence[str | os.PathLike[str]],
    *,
    backends: Sequence[str] | None = None,
    threads: int = 1,
    seconds: float = 10.0,
    rounds: int | None = None,
    clip: str | os.PathLike[str] | None = None,
    transcript: str | os.PathLike[str] | None = None,
    progress: Progress = lambda share: None,
) -> Benchmark:
    """Check, then time, each bundle on each backend.

    ``backends``: None for all that can run the bundle here. ``seconds``: per candidate; ``rounds`` bounds the
    run instead. The input is made up, or the first 20 s of ``clip`` with its ``transcript``; decoding isn't
    timed. ``progress`` is told the share that is done.

    Raises as :meth:`Bundle.open` and what stands in a named backend's way
    (:func:`affectrt.backends.choice.obstacle`); ``bench.settings`` without a bundle, for a transcript without
    a clip and for numbers below 1; ``bench.worker`` when a candidate's process ends before its time,
    ``bench.nothing_sensed`` for a clip without words, voice and face, and what reading it raises.
    """
    _check_settings(len(paths), threads, rounds, clip, transcript)
    head = machine.lines()  # first: the load is that of others
    plan: dict[str, tuple[Bundle, list[str]]] = {}
    for path in dict.fromkeys(map(str, paths)):
        bundle = Bundle.open(path)
        plan[path] = bundle, chosen(bundle, backends)
    candidates = sum(len(names) for _, names in plan.values())
    with ExitStack() as stack:
        given = {"clip": clip and str(clip), "transcript": transcript and str(transcript), "threads": threads}

        def start(path: str, backend: str) -> Worker:
            worker = Worker({"path": path, "backend": backend, **given})
            stack.callback(worker.close)
            return worker

        right: list[Candidate] = []
        refused: list[Refused] = []
        for path, (bundle, names) in plan.items():
            some, others = check(start, path, bundle, names)
            right += some
            refused += others
            progress(_LOADING * (len(right) + len(refused)) / candidates)
        if not right:
            return Benchmark(head, threads, 0, (), tuple(refused))
        taken = _take_turns([one.worker for one in right], seconds, rounds, progress)
        energy = _energy([one.worker for one in right], find_meters(), progress)
        first = taken[0]
        measured = tuple(
            Measured(
                bundle=one.path,
                backend=one.backend,
                precision=dict(one.bundle.manifest.precision),
                bundle_bytes=Path(one.path).stat().st_size,
                window=one.worker.note or f"made-up input of {one.bundle.manifest.window_s:g} s",
                load_s=one.worker.load_s,
                peak_bytes=int(one.worker.ask("peak")["peak_bytes"]),
                compared_with=one.compared_with,
                difference=one.difference,
                joules=joules,
                whole=_latency(times[_WHOLE], first[_WHOLE]),
                stages={name: _latency(of, first.get(name)) for name, of in times.items() if name != _WHOLE},
            )
            for one, times, joules in zip(right, taken, energy, strict=True)
        )
    progress(1.0)
    return Benchmark(head, threads, len(first[_WHOLE]), measured, tuple(refused))


def _check_settings(bundles: int, threads: int, rounds: int | None, clip: object, transcript: object) -> None:
    for what, got in (("bundles", bundles), ("threads", threads), ("rounds", rounds)):
        if got is not None and got < 1:
            raise AffectError("bench.settings", f"bench: {what}: expected at least 1, got {got}")
    if transcript is not None and clip is None:
        raise AffectError("bench.settings", "bench: a transcript goes with a clip, got it alone; give both")


_WHOLE = ""
"""The key of a window's whole time, among the stages'."""

Times = Mapping[str, Sequence[float]]
"""Stage → seconds, one for each round."""


def _take_turns(
    workers: Sequence[Worker], seconds: float, rounds: int | None, progress: Progress
) -> list[Times]:
    """A window of each in turn, in a new order each round."""
    for worker in workers:
        for _ in range(WARM_UPS):
            worker.ask("window")
    taken: list[dict[str, list[float]]] = [{} for _ in workers]
    order = np.random.default_rng(0)
    budget_s, start, done = seconds * len(workers), perf_counter(), 0
    while True:
        for index in order.permutation(len(workers)):
            told = workers[index].ask("window")
            for name, took_s in {_WHOLE: told["whole_s"], **told["stages_s"]}.items():
                taken[index].setdefault(name, []).append(took_s)
        done += 1
        elapsed_s = perf_counter() - start
        share = elapsed_s / budget_s if rounds is None else done / rounds
        progress(_LOADING + _TIMING * min(1.0, share))
        if done >= (LEAST_ROUNDS if rounds is None else rounds) and share >= 1.0:
            return list(taken)


def _energy(workers: Sequence[Worker], meters: Sequence[Meter], progress: Progress) -> list[dict[str, float]]:
    """Meter → joules a window, of each candidate running alone."""
    found: list[dict[str, float]] = []
    for index, worker in enumerate(workers):
        told: dict[str, float] = {}
        if meters:
            for meter in meters:
                meter.start()
            windows = worker.ask(f"busy {ENERGY_S}")["windows"]
            used = {meter.name: meter.stop() for meter in meters}
            told = {name: joules / windows for name, joules in used.items() if joules is not None}
            progress(_LOADING + _TIMING + (1.0 - _LOADING - _TIMING) * (index + 1) / len(workers))
        found.append(told)
    return found


def _latency(times_s: Sequence[float], first_s: Sequence[float] | None) -> Latency:
    """Of the same rounds."""
    times = np.asarray(times_s)
    p50, p95, p99 = np.percentile(times * 1e3, [50, 95, 99]).tolist()
    ratio, quartiles = None, None
    if first_s is not None and len(first_s) == len(times):
        low, ratio, high = np.percentile(times / np.asarray(first_s), [25, 50, 75]).tolist()
        quartiles = (low, high)
    return Latency(
        p50_ms=p50,
        p95_ms=p95,
        p99_ms=p99,
        per_s=float(1.0 / times.mean()),
        ratio=ratio,
        ratio_quartiles=quartiles,
        times_ms=tuple((times * 1e3).tolist()),
    )
