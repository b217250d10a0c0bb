"""What does int8 save of the starter, from an utterance to its result?

Run from the repository root, after both exports::

    affectrt export starter --precision fp32 -o fp32.affect && affectrt export starter -o int8.affect
    python -m benchmarks.starter_int8 fp32.affect int8.affect

One thread, the utterances of ``demo/clip.mp4``. *After it ends*: words, sound and pictures are there, faces
cut out; what is timed is every encoder over the whole utterance and the fusion. *File*: ``predict`` of the
clip, decoding, face detection and log-mel included, which int8 doesn't touch. Both bundles must answer alike,
or nothing is timed and the exit status is 1. They take turns, in an order that changes; what is reported is
the median of the rounds' ratios, with quartiles.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from pathlib import Path
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

import affectrt
from affectrt.affect import Affect
from affectrt.features.text import Word
from affectrt.media import AudioChunk, Media
from affectrt.model import Model
from affectrt.timeline import Timeline
from affectrt.transcript import read_transcript
from benchmarks import machine

CLIP = Path(__file__).parents[1] / "demo" / "clip.mp4"
GAP_S = 0.5
"""A pause this long between two words ends an utterance."""
ALIKE = 0.5
"""Largest difference of sentiment, on a scale of 6, between the two."""


@dataclass(frozen=True)
class Utterance:
    """Consecutive words of the transcript."""

    start_s: float
    end_s: float


def utterances(words: Sequence[Word]) -> list[Utterance]:
    """Cut where somebody pauses."""
    found: list[Utterance] = []
    for word in words:
        if found and word.start_s - found[-1].end_s < GAP_S:
            found[-1] = Utterance(found[-1].start_s, word.end_s)
        else:
            found.append(Utterance(word.start_s, word.end_s))
    return found


def captured(model: Model, words: Sequence[Word]) -> Timeline:
    """All that capture makes of the clip: no encoder has run yet."""
    timeline = Timeline(model.encoders, window_s=inf, keep_s=inf)
    with Media.open(CLIP, max_video_rate_hz=model.encoders.frame_rate_hz) as media:
        for item in media:
            if isinstance(item, AudioChunk):
                timeline.push_audio(item.pcm, item.sample_rate_hz, item.time_s)
            else:
                timeline.push_frame(item.bgr, item.time_s)
    timeline.end_audio()
    for word in words:
        timeline.push_word(word)
    return timeline


def results(model: Model, timeline: Timeline, parts: Sequence[Utterance]) -> tuple[list[Affect], list[float]]:
    """What a model says of each utterance, and the seconds that took."""
    said, seconds = [], []
    for part in parts:
        start = perf_counter()
        said.append(model.fuse(timeline.window(part.start_s, part.end_s), part.end_s, start))
        seconds.append(perf_counter() - start)
    return said, seconds


def line(name: str, fp32: NDArray[np.float64], int8: NDArray[np.float64]) -> str:
    """Of seconds (rounds,) each: medians, and the median of the ratios with quartiles."""
    low, median, high = np.percentile(int8 / fp32, [25, 50, 75])
    times = f"{np.median(fp32) * 1e3:10.1f}{np.median(int8) * 1e3:10.1f}"
    return f"{name:34}{times}{median:8.2f} ({low:.2f}–{high:.2f})"


def main() -> int:
    """Check, time, print a table."""
    parser = argparse.ArgumentParser(description="The starter at int8 over fp32: an utterance, a file.")
    parser.add_argument("fp32", type=Path, help="bundle of 'affectrt export starter --precision fp32'")
    parser.add_argument("int8", type=Path, help="bundle of 'affectrt export starter'")
    parser.add_argument("--rounds", type=int, default=11, help="turns each bundle takes (default: 11)")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    words = read_transcript(CLIP.with_suffix(".srt"))
    parts = utterances(words)
    models = [affectrt.load(path, threads=1) for path in (args.fp32, args.int8)]
    answers = [results(model, captured(model, words), parts)[0] for model in models]
    differences = [abs(a.sentiment - b.sentiment) for a, b in zip(*answers, strict=True)]
    if max(differences) > ALIKE:
        print(f"sentiments differ by up to {max(differences):.2f}: no speed is reported", file=sys.stderr)
        return 1
    order = np.random.default_rng(0)
    spoken = np.zeros((args.rounds, len(models), len(parts)))
    whole = np.zeros((args.rounds, len(models)))
    for index in range(args.rounds):
        for which in order.permutation(len(models)):
            model = models[which]
            spoken[index, which] = results(model, captured(model, words), parts)[1]
            start = perf_counter()
            model.predict(video=CLIP, text=words)
            whole[index, which] = perf_counter() - start
    print("\n".join(machine.lines()))
    print(f"one thread, fusion on {models[1].backend}; sentiments differ by up to {max(differences):.3f}\n")
    print(f"{'ms':34}{'fp32':>10}{'int8':>10}{'ratio':>8}")
    for k, (part, affect) in enumerate(zip(parts, answers[0], strict=True)):
        name = f"utterance of {part.end_s - part.start_s:.1f} s, {'+'.join(sorted(affect.present))}"
        print(line(name, spoken[:, 0, k], spoken[:, 1, k]))
    print(line("all utterances, after they end", spoken[:, 0].sum(1), spoken[:, 1].sum(1)))
    print(line("the file, capture included", whole[:, 0], whole[:, 1]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
