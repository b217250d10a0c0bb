"""Data sets in ``.npz`` files: an array a modality, one of labels, and words in a JSON file beside it.

Arrays are found by the beginning of their names: ``text`` or ``glove``, ``audio`` or ``acoustic``,
``vision`` or ``visual``; ``sentiment``, ``label`` or ``y``; ``id``; ``split``; ``group``. Features are
(N, T, D), padded with zero rows at either end; (sum of T, D) with ``offsets`` (N + 1,); or (N, D), one row an
example. An array of strings under a text name holds what was said.
"""

from __future__ import annotations

import json
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from affectrt.affect import MODALITIES, Modality
from affectrt.errors import AffectError
from affectrt_training.data.assemble import Array, Assembly, Reading, Stream, label_vector, split_name
from affectrt_training.data.dataset import Dataset

PREFIXES: Mapping[Modality, tuple[str, ...]] = {
    "text": ("text", "glove"),
    "audio": ("audio", "acoustic"),
    "vision": ("vision", "visual"),
}
LABELS = ("sentiment", "label", "y")
"""Names of labels begin so, the most telling first."""


def read_npz(path: Path, reading: Reading) -> Dataset:
    """Raises ``data.unreadable``, ``data.keys``, ``data.shape``, ``data.label_column``."""
    arrays = _load(path)
    found = {m: key for m in MODALITIES if (key := _one(path, arrays, PREFIXES[m], numbers=True))}
    spoken = _one(path, arrays, PREFIXES["text"], numbers=False)
    if not found and not spoken:
        raise AffectError(
            "data.keys",
            f"{path}: expected arrays whose names begin with text, audio (acoustic) or vision (visual), got "
            f"{', '.join(arrays) or 'none'}",
        )
    offsets = arrays.get("offsets")
    streams = {m: _stream(path, key, arrays[key], offsets) for m, key in found.items()}
    counts = [len(stream.rows) for stream in streams.values()] or [len(arrays[spoken or ""])]
    ids = [str(i) for i in arrays["id"]] if "id" in arrays else [str(i) for i in range(counts[0])]
    words = _words_beside(path, ids)
    if words is None and spoken:
        words = [str(text).split() for text in arrays[spoken]]
    sentiment = _labels(path, arrays, reading)
    groups = [str(g) for g in arrays["group"]] if "group" in arrays else None
    assembly = Assembly(str(path))
    splits = np.array([split_name(str(s)) for s in arrays["split"]]) if "split" in arrays else None
    if splits is None:
        assembly.add("all", ids, streams, words=words, sentiment=sentiment, groups=groups)
        return assembly.dataset(path.stem, "NumPy arrays")
    if len(splits) != len(ids):
        raise AffectError("data.shape", f"{path}: expected {len(ids)} names in split, got {len(splits)}")
    for name in dict.fromkeys(splits.tolist()):
        chosen = np.flatnonzero(splits == name).tolist()
        assembly.add(
            name,
            [ids[i] for i in chosen],
            {m: Stream(_chosen(s.rows, chosen), s.padded) for m, s in streams.items()},
            words=None if words is None else [words[i] for i in chosen],
            sentiment=None if sentiment is None else [sentiment[i] for i in chosen],
            groups=None if groups is None else [groups[i] for i in chosen],
        )
    return assembly.dataset(path.stem, "NumPy arrays")


def _chosen(rows: Sequence[Array] | Array, chosen: list[int]) -> Sequence[Array] | Array:
    return rows[chosen] if isinstance(rows, np.ndarray) else [rows[i] for i in chosen]


def _load(path: Path) -> dict[str, Array]:
    try:
        # Opened here: numpy leaves a broken file open.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            return {key: arrays[key] for key in arrays.files}
    except (ValueError, OSError, EOFError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise AffectError(
            "data.unreadable",
            f"{path}: expected a whole .npz file of plain arrays; reading it failed: {error}; fetch it anew",
        ) from error


def _one(path: Path, arrays: Mapping[str, Array], prefixes: tuple[str, ...], *, numbers: bool) -> str | None:
    """The array whose name begins so, an exact name first. Raises ``data.keys`` when several do."""
    keys = [
        key
        for key, array in arrays.items()
        if key.startswith(prefixes)
        and (array.dtype.kind == "f" and array.ndim >= 2 if numbers else array.dtype.kind in "US")
    ]
    exact = [key for key in keys if key in prefixes]
    if len(exact) == 1:
        return exact[0]
    if len(keys) > 1:
        raise AffectError(
            "data.keys",
            f"{path}: expected one array, got {' and '.join(keys)}; keep one or name it {prefixes[0]}",
        )
    return keys[0] if keys else None


def _stream(path: Path, key: str, array: Array, offsets: Array | None) -> Stream:
    if array.ndim == 3:
        return Stream(array)
    if array.ndim == 2 and offsets is None:
        return Stream(array[:, None, :])
    if array.ndim == 2 and offsets is not None:
        edges = np.asarray(offsets)
        if (
            edges.ndim != 1
            or edges.dtype.kind not in "iu"
            or edges[0] != 0
            or edges[-1] != len(array)
            or (np.diff(edges) < 0).any()
        ):
            raise AffectError(
                "data.shape",
                f"{path}: expected offsets that rise from 0 to the {len(array)} rows of {key}, got "
                f"{edges.ravel()[:3].tolist()} … {edges.ravel()[-1:].tolist()}",
            )
        return Stream(np.split(array, edges[1:-1]), padded=False)
    raise AffectError("data.shape", f"{path}: expected {key} as (N, T, D) or (N, D), got {array.shape}")


def _labels(path: Path, arrays: Mapping[str, Array], reading: Reading) -> list[float | None] | None:
    """The labels that are asked for by name or column, or the usual ones."""
    label = reading.label
    if label is not None and not label.isdecimal():
        if label not in arrays:
            raise AffectError(
                "data.label_column", f"{path}: expected an array '{label}' of labels, got {', '.join(arrays)}"
            )
        return label_vector(arrays[label], reading, f"{path}: {label}")
    candidates = sorted(
        (key for key, a in arrays.items() if key.startswith(LABELS[:2]) or key == LABELS[2]),
        key=lambda key: [key.startswith(prefix) for prefix in LABELS].index(True),
    )
    if label is not None:
        # A column is asked for: of the array that has columns.
        candidates = [key for key in candidates if arrays[key].ndim > 1] or candidates
    if not candidates:
        return None
    return label_vector(arrays[candidates[0]], reading, f"{path}: {candidates[0]}", label)


def _words_beside(path: Path, ids: list[str]) -> list[list[str]] | None:
    """The words of ``NAME.json`` or ``NAME_words.json``: a list of lists, or of objects with ``words``."""
    for beside in (path.with_suffix(".json"), path.with_name(f"{path.stem}_words.json")):
        if not beside.is_file():
            continue
        try:
            entries = json.loads(beside.read_text(encoding="utf-8"))
            found = [entry["words"] if isinstance(entry, dict) else entry for entry in entries]
            words = [w.split() if isinstance(w, str) else [str(word) for word in w] for w in found]
        except (ValueError, KeyError, TypeError) as error:
            raise AffectError(
                "data.unreadable",
                f"{beside}: expected a JSON list of words an example; reading it failed: {error!r}",
            ) from error
        named = [str(entry["id"]) for entry in entries if isinstance(entry, dict) and "id" in entry]
        if len(words) != len(ids) or (named and named != ids):
            raise AffectError(
                "data.shape",
                f"{beside}: expected words of the {len(ids)} examples of {path.name} in their order, got "
                f"{len(words)}" + (" under other ids" if len(words) == len(ids) else ""),
            )
        return words
    return None
