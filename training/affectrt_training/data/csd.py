"""Computational sequences of CMU-MultimodalSDK: one HDF5 file a stream, ``data/<id>/{features, intervals}``.

One of the files holds labels: its rows, each with an interval in seconds, are the utterances, named
``id[0]``, ``id[1]`` … as the SDK names them. Of every other stream an utterance gets the rows whose interval
overlaps its own. Streams keep their own rates: aligning them to words is the SDK's business. A file that the
SDK has aligned already (ids like ``id[3]``) is taken as it is. Pauses (``sp``) are no words.

The SDK keeps the standard folds in its code. A ``splits.json`` in the folder, ``{"train": [video ids], …}``,
gives them here.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Any, Literal

import numpy as np

from affectrt.affect import MODALITIES, Modality
from affectrt.errors import AffectError, require
from affectrt_training.data.assemble import Array, Assembly, Reading, Stream, label_vector, split_name
from affectrt_training.data.dataset import Dataset

Role = Literal["text", "audio", "vision", "words", "label"]

NAMES: Mapping[Role, tuple[str, ...]] = {
    "label": ("label", "opinion"),
    "text": ("glove", "bert", "word2vec", "text", "language", "word", "transcript"),
    "audio": ("covarep", "opensmile", "acoustic", "audio", "mfcc", "voice"),
    "vision": ("facet", "openface", "visual", "vision", "face", "video"),
}
"""What a stream is, by what its name contains; a text stream of strings holds words."""

PAUSES = frozenset({"sp", ""})
SPLITS_FILE = "splits.json"


@dataclass(frozen=True)
class Opened:
    """One open file."""

    name: str
    path: Path
    data: Any
    """HDF5 group: id → features and intervals."""
    columns: Sequence[str]
    """Names of the features, where the metadata tell them."""


def read_csd(paths: Sequence[Path], reading: Reading) -> Dataset:
    """Raises ``data.unreadable``, ``data.keys``, ``data.shape`` and ``data.label_column``."""
    h5py: Any = require("h5py", "train")
    files = [file for path in paths for file in (sorted(path.glob("*.csd")) if path.is_dir() else [path])]
    folder = paths[0] if paths[0].is_dir() else paths[0].parent
    with ExitStack() as stack:
        try:
            opened = [_open(stack.enter_context(h5py.File(file, "r")), file) for file in files]
            return _dataset(opened, folder, files, reading)
        except OSError as error:
            raise AffectError(
                "data.unreadable",
                f"{folder}: expected whole .csd files (HDF5); reading failed: {error}; fetch them anew",
            ) from error


def _open(file: Any, path: Path) -> Opened:
    """Both layouts that occur: the groups at the root, or below one named after the sequence."""
    root, name = file, path.stem
    if "data" not in file and len(file) == 1:
        name = next(iter(file))
        root = file[name]
    if not hasattr(root, "keys") or "data" not in root:
        raise AffectError(
            "data.keys",
            f"{path}: expected a computational sequence with a group 'data', got {', '.join(file)}",
        )
    return Opened(name, path, root["data"], _columns(root.get("metadata")))


def _columns(metadata: Any) -> list[str]:
    """The metadata's dimension names; they are JSON, or Python's way to write a list, or missing."""
    try:
        value = metadata["dimension names"][0]
        names = json.loads(value.decode() if isinstance(value, bytes) else value)
        return [str(name) for name in names] if isinstance(names, list) else []
    except (TypeError, KeyError, ValueError, AttributeError):
        return []


def _role(sequence: Opened) -> Role | None:
    name = f"{sequence.name} {sequence.path.stem}".lower()
    role = next((role for role, parts in NAMES.items() if any(part in name for part in parts)), None)
    if role == "text" and (first := next(iter(sequence.data), None)) is not None:
        return "words" if _features(sequence, first).dtype.kind in "SOU" else "text"
    return role


def _features(sequence: Opened, key: str) -> Any:
    """The HDF5 array of one id. Raises ``data.keys``."""
    entry = sequence.data[key]
    if not hasattr(entry, "keys") or "features" not in entry:
        raise AffectError("data.keys", f"{sequence.path}: {key}: expected 'features' and 'intervals'")
    return entry["features"]


def _intervals(sequence: Opened, key: str) -> Array:
    entry = sequence.data[key]
    rows = len(_features(sequence, key))
    intervals = np.asarray(entry["intervals"]) if "intervals" in entry else np.zeros(0)
    if intervals.shape != (rows, 2):
        raise AffectError(
            "data.shape",
            f"{sequence.path}: {key}: expected intervals ({rows}, 2), got {intervals.shape}",
        )
    return intervals


@dataclass(frozen=True)
class Utterance:
    """A labelled stretch of a video."""

    key: str
    """Id in the label file."""
    index: int
    """Row in the label file."""
    begin_s: float
    end_s: float

    @property
    def is_whole(self) -> bool:
        """Whether the SDK has cut it out already."""
        return self.key.endswith("]")

    @property
    def id(self) -> str:
        """As the SDK names it."""
        return self.key if self.is_whole else f"{self.key}[{self.index}]"

    @property
    def video(self) -> str:
        """Which video it is of."""
        return self.key.partition("[")[0]


def _dataset(opened: Sequence[Opened], folder: Path, files: Sequence[Path], reading: Reading) -> Dataset:
    streams: dict[Role, Opened] = {}
    assembly = Assembly(str(folder))
    for sequence in opened:
        role = _role(sequence)
        if role is None:
            assembly.notes.append(f"{sequence.path.name} is of no known kind and is not used")
        elif role in streams:
            raise AffectError(
                "data.keys",
                f"{folder}: both {streams[role].path.name} and {sequence.path.name} hold {role}; pass the "
                f"files to use instead of the folder",
            )
        else:
            streams[role] = sequence
    labels = streams.pop("label", None)
    if labels is None and reading.strict:
        raise AffectError(
            "data.keys",
            f"{folder}: expected a .csd file of labels beside {', '.join(f.name for f in files)}, got none",
        )
    if not streams:
        raise AffectError(
            "data.keys", f"{folder}: expected .csd files of features or words, got labels alone"
        )
    if labels is None:
        # Whole videos, as far as they go.
        utterances = [Utterance(key, 0, -inf, inf) for key in next(iter(streams.values())).data]
    else:
        utterances = list(_utterances(labels))
    sentiment = None if labels is None else _sentiments(labels, utterances, reading)
    rows: dict[Modality, list[Array]] = {
        m: [_rows(streams[m], u) for u in utterances] for m in MODALITIES if m in streams
    }
    spoken = streams.get("words")
    words = None if spoken is None else [_words(_rows(spoken, u)) for u in utterances]
    for name, chosen in _splits(folder, utterances).items():
        assembly.add(
            name,
            [utterances[i].id for i in chosen],
            {m: Stream([r[i] for i in chosen], padded=False) for m, r in rows.items()},
            words=None if words is None else [words[i] for i in chosen],
            sentiment=None if sentiment is None else [sentiment[i] for i in chosen],
            groups=[utterances[i].video for i in chosen],
        )
    return assembly.dataset(folder.name, "CMU-MultimodalSDK sequences")


def _utterances(sequence: Opened) -> Iterator[Utterance]:
    """Every row of the labels; what the SDK has cut out already is one utterance however many rows it has."""
    for key in sequence.data:
        for index, (begin, end) in enumerate(_intervals(sequence, key).tolist()):
            yield Utterance(key, index, begin, end)
            if key.endswith("]"):
                break


def _sentiments(labels: Opened, utterances: Sequence[Utterance], reading: Reading) -> list[float | None]:
    values = np.stack([np.asarray(_features(labels, u.key))[u.index].reshape(-1) for u in utterances])
    column = reading.label
    if column is not None and column in labels.columns:
        column = str(list(labels.columns).index(column))
    where = f"{labels.path}" + (f" ({', '.join(labels.columns)})" if len(labels.columns) > 1 else "")
    return label_vector(values, reading, where, column)


def _rows(sequence: Opened, utterance: Utterance) -> Array:
    """Rows of an utterance; none where the stream doesn't know it."""
    if utterance.id in sequence.data:
        return np.asarray(_features(sequence, utterance.id))
    if utterance.key not in sequence.data:
        first = next(iter(sequence.data))
        return np.asarray(_features(sequence, first)[:0])
    intervals = _intervals(sequence, utterance.key)
    begin, end = intervals[:, 0], intervals[:, 1]
    # A row that is a moment rather than a stretch counts where it begins.
    inside = (begin < utterance.end_s) & ((end > utterance.begin_s) | (begin >= utterance.begin_s))
    return np.asarray(_features(sequence, utterance.key))[inside]


def _words(rows: Array) -> list[str]:
    told = [
        word.decode("utf-8", "replace") if isinstance(word, bytes) else str(word) for word in rows.ravel()
    ]
    return [word for word in told if word not in PAUSES]


def _splits(folder: Path, utterances: Sequence[Utterance]) -> dict[str, list[int]]:
    path = folder / SPLITS_FILE
    if not path.is_file():
        return {"all": list(range(len(utterances)))}
    try:
        named = json.loads(path.read_text(encoding="utf-8"))
        split_of = {str(video): split_name(split) for split, videos in named.items() for video in videos}
    except (ValueError, AttributeError, TypeError) as error:
        raise AffectError(
            "data.unreadable", f"{path}: expected a JSON object of split → list of video ids; got: {error}"
        ) from error
    found: dict[str, list[int]] = {}
    for i, utterance in enumerate(utterances):
        if utterance.video in split_of:
            found.setdefault(split_of[utterance.video], []).append(i)
    return found
