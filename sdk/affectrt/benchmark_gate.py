"""Right before fast: which candidates of a benchmark may be timed.

All backends of a bundle must say the same of the same input, as far as ``affectrt doctor`` asks for it, too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from affectrt.backends.choice import DEVICES, known_backends, obstacle
from affectrt.benchmark_worker import Worker
from affectrt.bundle import Bundle
from affectrt.errors import AffectError
from affectrt.trial import difference, reference_of, tolerance

_OF_INPUT = ("media", "transcript", "bench")
"""Errors of these families aren't one candidate's."""


@dataclass(frozen=True)
class Refused:
    """A candidate without figures."""

    bundle: str
    backend: str
    code: str
    """As in :class:`~affectrt.errors.AffectError`."""
    message: str


@dataclass(frozen=True)
class Candidate:
    """One that is right."""

    path: str
    bundle: Bundle
    backend: str
    worker: Worker
    compared_with: str | None
    difference: float | None


def chosen(bundle: Bundle, named: Sequence[str] | None) -> list[str]:
    """The backends to run a bundle on."""
    if named is None:
        able = [backend for backend in known_backends() if obstacle(backend, bundle) is None]
        if able:
            return able
        named = [DEVICES["cpu"][-1]]  # which knows every model; raises what it lacks
    for backend in named:
        if (found := obstacle(backend, bundle)) is not None:
            raise found
    return list(dict.fromkeys(named))


def check(
    start: Callable[[str, str], Worker], path: str, bundle: Bundle, names: Sequence[str]
) -> tuple[list[Candidate], list[Refused]]:
    """The gate: a bundle's candidates that agree, and those without figures; ``start``: path, backend.

    One alone, or several on the GPU, are held to a backend of the processor that isn't timed. Where nobody
    agrees with that one nobody can tell who is right, and all are refused.
    """
    workers: dict[str, Worker] = {}
    refused: list[Refused] = []
    extra = [name for name in DEVICES["cpu"] if name not in names and obstacle(name, bundle) is None]
    alone = len(names) < 2 or not set(names) & set(DEVICES["cpu"])
    for name in [*names, *(extra[:1] if alone else [])]:
        try:
            workers[name] = start(path, name)
        except AffectError as error:
            if error.code.partition(".")[0] in _OF_INPUT:
                raise
            refused.append(Refused(path, name, error.code, error.message))
    reference = reference_of(workers) if workers else ""
    gaps = {name: difference(workers[reference].affect, worker.affect) for name, worker in workers.items()}
    allowed = {
        name: tolerance(reference, name, bundle.manifest.precision.get("fusion", "fp32")) for name in workers
    }
    agree = [name for name, gap in gaps.items() if gap <= allowed[name]]
    for name, gap in gaps.items():
        if name in agree and (len(agree) > 1 or len(gaps) == 1):
            continue
        told = f"{name} differs from {reference} by {gap:.2g}"
        if name == reference:
            told = f"of {', '.join(gaps)}, none agrees with {name}"
        message = (
            f"{path}: {told} on the same input, expected at most {allowed[name]:g}; wrong "
            f"numbers have no speed: see 'affectrt doctor {path}'"
        )
        refused.append(Refused(path, name, "bench.disagrees", message))
    out = {one.backend for one in refused}
    right = [
        Candidate(
            path=path,
            bundle=bundle,
            backend=name,
            worker=workers[name],
            compared_with=None if name == reference else reference,
            difference=None if name == reference else gaps[name],
        )
        for name in names
        if name not in out
    ]
    for name in set(workers) - {one.backend for one in right}:
        workers[name].close()
    return right, [one for one in refused if one.backend in names]
