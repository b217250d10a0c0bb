"""Right first, then how fast: contenders take turns, and a speed is a ratio of times within a round.

Whatever else the machine does falls on all contenders of a round alike; so a ratio is steadier than a time,
and the median of the rounds' ratios, with their quartiles, is what gets reported.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter

import numpy as np
import numpy.typing as npt
import torch

Arrays = Sequence[npt.NDArray[np.generic]]

TOLERANCE = 1e-5
"""How far float32 may be from float64, as a share of the largest value where that is above 1."""
ROUND_S = 0.02
"""How long each contender runs, at least, within a round."""
WARM_S = 0.002
"""How long it runs before its clock starts: caches fill, its threads wake and those of others fall asleep."""


@dataclass(frozen=True)
class Contender:
    """One implementation, bound to its inputs; layouts and types are converted outside the clock."""

    name: str
    run: Callable[[], object]
    """What is timed."""
    difference: Callable[[], float] | None
    """How far it is from the reference in float64; None where it computes something else on purpose."""
    target: float | None = None
    """How many times ours this peer should take, at least."""


@dataclass(frozen=True)
class Case:
    """One problem, what we run for it and what others run."""

    operator: str
    shape: str
    threads: int
    """Of the peers, and of ours where it can share its work."""
    ours: Contender
    peers: Sequence[Contender]
    ours_threads: int


@dataclass(frozen=True)
class Result:
    """One peer's line; the fields are the keys of ``--json``."""

    operator: str
    shape: str
    threads: int
    peer: str
    ratio: float
    """The peer's time over ours, median of the rounds."""
    spread: tuple[float, float]
    """Quartiles of the rounds' ratios."""
    correct: bool | None
    """Null: other mathematics, not to be compared."""
    ours_threads: int
    ours_us: float
    """Median of the rounds, microseconds."""
    peer_us: float
    target: float | None

    @property
    def verdict(self) -> str:
        """The target in words, empty without one."""
        if self.target is None:
            return ""
        return f"≥ {self.target:g}: {'met' if self.ratio >= self.target else 'missed'}"


def difference(got: Arrays, want: Arrays) -> float:
    """Largest difference of any value, as a share of the largest wanted one where that is above 1."""
    if len(got) != len(want):
        raise ValueError(f"difference: expected {len(want)} arrays, got {len(got)}")
    largest = 0.0
    for some, other in zip(got, want, strict=True):
        if some.shape != other.shape:
            raise ValueError(f"difference: expected shape {other.shape}, got {some.shape}")
        wide, truth = some.astype(np.float64), other.astype(np.float64)
        # np.maximum keeps NaN, where max() may drop it
        largest = float(np.maximum(largest, np.abs(wide - truth).max() / max(1.0, np.abs(truth).max())))
    return largest


def difference_of(
    run: Callable[[], object], outputs: Callable[[], Arrays], truth: Arrays
) -> Callable[[], float]:
    """For contenders that leave their results in place: run, then compare ``outputs``."""

    def run_and_compare() -> float:
        run()
        return difference(outputs(), truth)

    return run_and_compare


def wrong(cases: Iterable[Case]) -> list[str]:
    """The gate: a line for each contender that differs too much. If there is one, nothing may be timed."""
    found = []
    for case in cases:
        with _threads(case.threads):
            for contender in (case.ours, *case.peers):
                if contender.difference is None:
                    continue
                off = contender.difference()
                if not off <= TOLERANCE:  # NaN is wrong as well
                    where = f"{case.operator} {case.shape}, threads {case.threads}: {contender.name}"
                    found.append(f"{where} differs from float64 by {off:.1e}, allowed {TOLERANCE:.0e}")
    return found


def measure(case: Case, rounds: int) -> list[Result]:
    """Let all take turns for ``rounds`` rounds, in a new order each, after ``wrong`` had nothing to say."""
    everyone = (case.ours, *case.peers)
    order = np.random.default_rng(0)
    with _threads(case.threads):
        repeats = [max(1, round(ROUND_S / _seconds(contender, 1))) for contender in everyone]
        taken = np.empty((rounds, len(everyone)))
        for row in taken:
            for index in order.permutation(len(everyone)):
                row[index] = _seconds(everyone[index], repeats[index])
    results = []
    ours_us, *peers_us = (np.median(taken, 0) * 1e6).tolist()
    for index, peer in enumerate(case.peers):
        low, median, high = np.percentile(taken[:, 1 + index] / taken[:, 0], [25, 50, 75]).tolist()
        results.append(
            Result(
                operator=case.operator,
                shape=case.shape,
                threads=case.threads,
                peer=peer.name,
                ratio=round(median, 3),
                spread=(round(low, 3), round(high, 3)),
                correct=None if peer.difference is None else True,
                ours_threads=case.ours_threads,
                ours_us=round(ours_us, 2),
                peer_us=round(peers_us[index], 2),
                target=peer.target,
            )
        )
    return results


def _seconds(contender: Contender, repeats: int) -> float:
    """Seconds per run, once warm."""
    warm_at = perf_counter() + WARM_S
    contender.run()
    while perf_counter() < warm_at:
        contender.run()
    start = perf_counter()
    for _ in range(repeats):
        contender.run()
    return (perf_counter() - start) / repeats


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """PyTorch takes its number of threads from the process; all others are told their own."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
