"""A real inference on every backend that can run a bundle here, and whether their results agree."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from time import perf_counter

from affectrt.affect import Affect
from affectrt.backends.choice import DEVICES, choose_backend, known_backends, obstacle
from affectrt.bundle import Bundle
from affectrt.cli.finding import Finding
from affectrt.engines import EngineCache
from affectrt.errors import AffectError
from affectrt.profiling import StageTimer
from affectrt.trial import MadeUpWindow, difference, reference_of, tolerance

_REPEATS = 5


def check_bundle(path: Path, backend: str | None = None) -> Iterator[Finding]:
    """Load a bundle and run all of it on made-up input, on the named backend or on each that can."""
    subject = str(path)
    try:
        bundle = Bundle.open(path)
    except AffectError as error:
        yield _fault(subject, error)
        return
    results: dict[str, Affect] = {}
    for name in known_backends() if backend is None else (backend,):
        found = obstacle(name, bundle)
        if found is not None and backend is None:
            if name == "tensorrt" and EngineCache().holds(bundle.sha256):
                yield Finding("note", subject, found.message, f"affectrt build-engine {path}")
            # That another can't run it is no fault, 'affectrt info' tells; that none can is.
            if name != DEVICES["cpu"][-1] or results:
                continue
        try:
            told, results[name] = _inference(path, name)
            yield Finding("ok", subject, told)
        except AffectError as error:
            yield _fault(subject, error)
    if len(results) > 1:
        yield compare(subject, results, bundle.manifest.precision.get("fusion", "fp32"))
    if backend is None and results:
        choice = choose_backend(bundle, start=partial(_check_ran, results))
        yield Finding("ok", subject, f"without a name, {choice.backend} runs it: {choice.reason}")


def _check_ran(results: Mapping[str, Affect], backend: str) -> None:
    if backend not in results:
        raise AffectError("backend.unavailable", "it doesn't run, as told above")


def compare(subject: str, results: dict[str, Affect], precision: str) -> Finding:
    """Whether all backends say what the first that runs on the processor says, of the same input.

    ``precision`` of the fusion graph.
    """
    first = reference_of(results)
    apart = {name: difference(results[first], affect) for name, affect in results.items() if name != first}
    far = [
        f"{name} by {gap:.2g}" for name, gap in apart.items() if not gap <= tolerance(first, name, precision)
    ]
    if far:
        return Finding(
            "FAULT",
            subject,
            f"backends differ from {first}: {', '.join(far)}",
            "export the bundle again, and build its engines again; a backend that still differs has a bug, "
            "please report it",
        )
    return Finding("ok", subject, f"{', '.join(results)} agree within {max(apart.values()):.1g}")


def _fault(subject: str, error: AffectError) -> Finding:
    return Finding("FAULT", subject, error.message, "mend what the message names, or export the bundle again")


def _inference(path: Path, backend: str) -> tuple[str, Affect]:
    """What a run took, and its result, which is the same for the same input."""
    from affectrt.model import load

    start = perf_counter()
    model = load(path, backend=backend)
    loaded_s = perf_counter() - start
    trial, timer = MadeUpWindow(model), StageTimer()
    affect = trial.run(StageTimer.off())  # the first run allocates
    for _ in range(_REPEATS):
        affect = trial.run(timer)
    total = sum(affect.emotions.values())
    if not abs(total - 1.0) < 1e-3:
        raise AffectError("doctor.inference", f"the emotion probabilities sum to {total:.3f} instead of 1")
    times = ", ".join(f"{name} {seconds / _REPEATS * 1e3:.1f} ms" for name, seconds in timer.seconds.items())
    total_ms = sum(timer.seconds.values()) / _REPEATS * 1e3
    told = (
        f"runs on {model.backend}; loads in {loaded_s:.2f} s; a {model.manifest.window_s:g} s window takes "
        f"{total_ms:.1f} ms ({times})"
    )
    return f"{told}; {trial.note}" if trial.note else told, affect
