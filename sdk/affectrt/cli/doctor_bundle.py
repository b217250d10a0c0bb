"""A real inference on every backend that can run a bundle here, and whether their results agree."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from affectrt.affect import EMOTIONS, Affect, Modality
from affectrt.backends.choice import BACKENDS, DEVICES, choose_backend, obstacle
from affectrt.bundle import Bundle
from affectrt.cli.finding import Finding
from affectrt.engines import EngineCache
from affectrt.errors import AffectError
from affectrt.features.sequence import FeatureSequence
from affectrt.manifest import AudioSpec, TextSpec, VisionSpec
from affectrt.profiling import StageTimer

TOLERANCE, GPU_TOLERANCE = 1e-4, 1e-2
"""How far sentiment and probabilities may lie apart: on processors, and where a GPU is one of the two, which
adds in another order and in tf32 or fp16 keeps fewer digits."""

_REPEATS = 5
_MADE_UP_ROWS = 40


def check_bundle(path: Path, backend: str | None = None) -> Iterator[Finding]:
    """Load a bundle and run all of it on made-up input, on the named backend or on each that can."""
    subject = str(path)
    try:
        bundle = Bundle.open(path)
    except AffectError as error:
        yield _fault(subject, error)
        return
    results: dict[str, Affect] = {}
    for name in BACKENDS if backend is None else (backend,):
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
        yield compare(subject, results)
    if backend is None and results:
        choice = choose_backend(bundle, start=partial(_check_ran, results))
        yield Finding("ok", subject, f"without a name, {choice.backend} runs it: {choice.reason}")


def _check_ran(results: Mapping[str, Affect], backend: str) -> None:
    if backend not in results:
        raise AffectError("backend.unavailable", "it doesn't run, as told above")


def compare(subject: str, results: dict[str, Affect]) -> Finding:
    """Whether all backends say what the first that runs on the processor says, of the same input."""
    first = next((name for name in results if name in DEVICES["cpu"]), next(iter(results)))
    apart = {name: difference(results[first], affect) for name, affect in results.items() if name != first}
    far = [
        f"{name} by {gap:.2g}"
        for name, gap in apart.items()
        if not gap <= (TOLERANCE if {first, name} <= set(DEVICES["cpu"]) else GPU_TOLERANCE)
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


def difference(a: Affect, b: Affect) -> float:
    """The largest, of sentiment and probabilities."""
    gaps = [abs(a.emotions[name] - b.emotions[name]) for name in EMOTIONS]
    return float(np.max([abs(a.sentiment - b.sentiment), *gaps]))


def _fault(subject: str, error: AffectError) -> Finding:
    return Finding("FAULT", subject, error.message, "mend what the message names, or export the bundle again")


def _inference(path: Path, backend: str) -> tuple[str, Affect]:
    """What a run took, and its result, which is the same for the same input."""
    from affectrt.features.text import words_of
    from affectrt.model import load

    start = perf_counter()
    model = load(path, backend=backend)
    loaded_s = perf_counter() - start
    manifest, encoders = model.manifest, model.encoders
    rng = np.random.default_rng(0)
    words = words_of("it was a wonderful evening and we are so happy about it", 0.0)

    def rows(modality: Modality, states: Any) -> FeatureSequence:
        return FeatureSequence(modality, states, np.linspace(0.0, manifest.window_s, len(states)), "doctor")

    stages: dict[Modality, Callable[[], FeatureSequence]] = {}
    if isinstance(manifest.text, TextSpec):
        stages["text"] = lambda: encoders.text.extract(words)
    if isinstance(audio := manifest.audio, AudioSpec):
        log_mel = rng.standard_normal((1, round(manifest.window_s / audio.hop_s), audio.n_mels), np.float32)
        stages["audio"] = lambda: rows("audio", encoders.audio_graph(log_mel=log_mel)[0][0])
    if isinstance(vision := manifest.vision, VisionSpec):
        count = round(manifest.window_s * vision.rate_hz)
        faces = rng.random((count, vision.crop_px, vision.crop_px), np.float32)
        stages["vision"] = lambda: rows("vision", encoders.vision_graph(faces=faces)[0])
    timer = StageTimer()
    missing = {m: f"the application makes {m} rows" for m in manifest.modalities if m not in stages}
    for repeat in range(1 + _REPEATS):
        clock = timer if repeat else StageTimer.off()  # the first run allocates
        sequences = {}
        for modality in manifest.modalities:
            if modality not in missing:
                try:
                    with clock.stage(modality):
                        sequences[modality] = stages[modality]()
                    continue
                except AffectError as error:
                    if error.code != "extra.missing":
                        raise
                    missing[modality] = error.message
            made_up = rng.standard_normal((_MADE_UP_ROWS, manifest.dim(modality)), np.float32)
            sequences[modality] = rows(modality, made_up)
        with clock.stage("fusion"):
            affect = model.fuse(sequences, manifest.window_s, perf_counter())
    total = sum(affect.emotions.values())
    if not abs(total - 1.0) < 1e-3:
        raise AffectError("doctor.inference", f"the emotion probabilities sum to {total:.3f} instead of 1")
    times = ", ".join(f"{name} {seconds / _REPEATS * 1e3:.1f} ms" for name, seconds in timer.seconds.items())
    total_ms = sum(timer.seconds.values()) / _REPEATS * 1e3
    told = (
        f"runs on {model.backend}; loads in {loaded_s:.2f} s; a {manifest.window_s:g} s window takes "
        f"{total_ms:.1f} ms ({times})"
    )
    if missing:
        told += (
            f"; made-up features stand for {', '.join(missing)}: {'; '.join(dict.fromkeys(missing.values()))}"
        )
    return told, affect
