"""Measure a starter bundle on the validation data and write the figures where people look for them.

``python -m affectrt_training.recipes.starter.measure starter.affect --data DIR`` writes one manifest per
validation set, scores the bundle on each exactly as ``affectrt evaluate`` does, and puts the figures into
the weights' sidecar (from which the next export takes them into the bundle) and into the model card's table.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import combinations
from pathlib import Path

import cv2
import numpy as np

import affectrt
from affectrt.affect import EMOTIONS
from affectrt.cli.output import progress
from affectrt_training.commands.evaluate import predict, score
from affectrt_training.commands.manifest import read_manifest
from affectrt_training.data import text as corpora
from affectrt_training.data.clips import acted_clips
from affectrt_training.data.faces import ferplus
from affectrt_training.data.voice import acted_speech
from affectrt_training.recipes.starter.card import FIGURES, check_card, put_table, write_card
from affectrt_training.recipes.starter.weights import CARD, COMMITTED, write_meta

PEOPLE_PER_EMOTION = 60
"""Composed people of each emotion in the agreement test."""

SHOWN = {
    "mosi": ("mae", "r", "acc2_has0", "acc2_non0", "f1_non0", "acc7", "interval_coverage"),
    "sst5": ("mae", "r", "acc2_non0"),
    "meld": ("weighted_f1", "accuracy", "ece"),
    "ravdess": ("uar", "accuracy", "ece"),
    "emodb": ("uar", "accuracy"),
    "ferplus": ("accuracy", "uar", "ece"),
    "av_clips": ("accuracy", "uar"),
}
"""Figures that the model card prints, by validation set; all the others are in the sidecar."""

TITLES = {
    "mosi": "CMU-MOSI valid, text",
    "sst5": "SST-5 valid, text",
    "meld": "MELD valid, text",
    "ravdess": "RAVDESS actors 17–20, voice",
    "emodb": "EmoDB speakers 15 and 16, voice",
    "ferplus": "FER+ valid, face",
    "av_clips": "acted clips actors 08 and 09 (neutral, sad, happy), voice and face",
}


@dataclass(frozen=True)
class Line:
    """One row of a manifest; empty cells are absent."""

    text: str = ""
    audio: str = ""
    video: str = ""
    image: str = ""
    sentiment: str = ""
    emotion: str = ""


def write_manifest(path: Path, lines: Sequence[Line]) -> None:
    """A CSV that ``affectrt evaluate`` takes, with the columns that some line uses."""
    used = [c for c in (f.name for f in fields(Line)) if any(getattr(line, c) for line in lines)]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(used)
        writer.writerows([getattr(line, column) for column in used] for line in lines)


def write_manifests(data: Path, folder: Path) -> list[str]:
    """Write every validation set's manifest into ``folder``; returns their names."""
    folder.mkdir(parents=True, exist_ok=True)

    def relative(path: Path) -> str:
        return os.path.relpath(path, folder)

    rated = {"mosi": corpora.mosi(data, "valid"), "sst5": corpora.sst5(data, "valid")}
    sets = {
        name: [Line(text=s.text, sentiment=str(s.sentiment)) for s in some] for name, some in rated.items()
    }
    meld = [(s.text, s.emotion) for s in corpora.meld(data, "valid") if s.emotion is not None]
    sets["meld"] = [Line(text=text, emotion=EMOTIONS[emotion]) for text, emotion in meld]
    voices = acted_speech(data, "valid")
    for corpus in ("ravdess", "emodb"):
        sets[corpus] = [
            Line(audio=relative(v.path), emotion=EMOTIONS[v.emotion]) for v in voices if v.corpus == corpus
        ]
    faces = ferplus(data, "valid")
    (folder / "faces").mkdir(exist_ok=True)
    stills = []
    for index in np.flatnonzero(faces.clear):
        name = f"faces/{index:05d}.png"
        cv2.imwrite(str(folder / name), faces.images[index])
        stills.append((name, int(faces.emotions[index])))
    sets["ferplus"] = [Line(image=name, emotion=EMOTIONS[emotion]) for name, emotion in stills]
    sets["av_clips"] = [
        Line(video=relative(c.path), emotion=EMOTIONS[c.emotion]) for c in acted_clips(data, "valid")
    ]
    generator = np.random.default_rng(0)
    people = []
    for emotion, name in enumerate(EMOTIONS):
        said = [text for text, e in meld if e == emotion]
        heard = [relative(v.path) for v in voices if v.emotion == emotion]
        seen = [still for still, e in stills if e == emotion]
        for _ in range(PEOPLE_PER_EMOTION):
            text, audio, image = (pool[generator.integers(len(pool))] for pool in (said, heard, seen))
            people.append(Line(text=text, audio=audio, image=image, emotion=name))
    for count in (1, 2, 3):
        for some in combinations(("text", "audio", "image"), count):
            sets["composed_" + "+".join(some)] = [
                Line(**{column: getattr(p, column) for column in some}, emotion=p.emotion) for p in people
            ]
    for name, lines in sets.items():
        write_manifest(folder / f"{name}.csv", lines)
    return list(sets)


def measure(bundle: Path, data: Path, folder: Path) -> dict[str, dict[str, object]]:
    """Score a bundle on every validation set: set → what ``affectrt evaluate --json`` prints."""
    model = affectrt.load(bundle, threads=1)
    found = {}
    names = write_manifests(data, folder)
    with progress("measuring", len(names), "sets") as show:
        for done, name in enumerate(names, start=1):
            rows = read_manifest(folder / f"{name}.csv")
            found[name] = score(rows, predict(model, rows, jobs=os.cpu_count() or 1))
            show(done)
    return found


def table(found: dict[str, dict[str, object]]) -> str:
    """The model card's figures as Markdown."""
    lines = ["| validation set | n | figures |", "|---|---|---|"]
    for name, shown in SHOWN.items():
        figures = ", ".join(f"{metric} {found[name][metric]:.3f}" for metric in shown)
        lines.append(f"| {TITLES[name]} | {found[name]['n']} | {figures} |")
    lines += [
        "",
        f"Composed people ({found['composed_text']['n']}, as many of each emotion; text of MELD, voice of "
        "RAVDESS and EmoDB, face of FER+, all from the validation sets and with the same emotion):",
        "",
        "| modalities | accuracy | unweighted recall |",
        "|---|---|---|",
    ]
    for name, figures_of in found.items():
        if name.startswith("composed_"):
            some = name.removeprefix("composed_").replace("audio", "voice").replace("image", "face")
            lines.append(f"| {some} | {figures_of['accuracy']:.3f} | {figures_of['uar']:.3f} |")
    return "\n".join(lines)


def metrics_of(found: dict[str, dict[str, object]]) -> list[dict[str, object]]:
    """The manifest's "metrics": every figure with its data set and modalities."""
    modalities = {"mosi": "text", "sst5": "text", "meld": "text", "ravdess": "audio", "emodb": "audio"}
    modalities |= {"ferplus": "vision", "av_clips": "audio+vision"}
    return [
        {
            "name": metric,
            "value": value,
            "dataset": TITLES[name].split(",")[0],
            "modalities": modalities[name],
        }
        for name in TITLES
        for metric, value in found[name].items()
        if isinstance(value, float)
    ]


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and record."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundle", type=Path, help="a starter bundle")
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="folder of the data sets")
    parser.add_argument(
        "--manifests", type=Path, default=Path("runs/valid"), metavar="DIR", help="where the manifests go"
    )
    parser.add_argument(
        "--weights",
        type=Path,
        default=COMMITTED,
        metavar="FILE",
        help="whose sidecar and card get the figures",
    )
    args = parser.parse_args(argv)
    beside = args.weights.with_name(CARD)
    card = (beside if beside.is_file() else COMMITTED.with_name(CARD)).read_text(encoding="utf-8")
    check_card(card)
    found = measure(args.bundle, args.data, args.manifests)
    meta = json.loads(args.weights.with_suffix(".json").read_text(encoding="utf-8"))
    write_meta({**meta, "metrics": metrics_of(found)}, args.weights)
    write_card(args.weights, put_table(card, FIGURES, table(found)))
    print(table(found))


if __name__ == "__main__":
    main()
