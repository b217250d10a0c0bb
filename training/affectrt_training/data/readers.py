"""Every data set that can be trained on, read by what it is rather than by what it is called."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from affectrt.affect import MODALITIES, Modality
from affectrt.errors import AffectError
from affectrt_training.data.assemble import Reading
from affectrt_training.data.cleaning import Range, to_sentiment_scale
from affectrt_training.data.dataset import Dataset, Example

PathLike = str | os.PathLike[str]

_ZIP, _HDF5, _PICKLE, _NPY = b"PK\x03\x04", b"\x89HDF\r\n\x1a\n", b"\x80", b"\x93NUMPY"
_FORMATS = "an MMSA or MulT pickle, .csd files or their folder, an .npz file, or a CSV table"


def read_dataset(
    path: PathLike | Sequence[PathLike],
    *,
    label_range: Range | None = None,
    label: str | int | None = None,
    cache: Path | None = None,
) -> Dataset:
    """Read a data set, its sentiment mapped from ``label_range`` to [-3, 3].

    ``path`` may be several files: the .csd files of one data set, or parts of one that are put together; a
    part is put into a split by ``split=path``. ``label`` is the name or the column of the sentiment label
    where there are several. ``cache`` holds the features of raw clips.

    What becomes of broken values and of padding says :mod:`affectrt_training.data.cleaning`. Raises
    ``data.not_found``, ``data.format``, ``data.unreadable``, ``data.keys``, ``data.shape``, ``data.empty``,
    ``data.label``, ``data.label_column``, ``data.label_range``, and for pickles ``data.pickle_class``.
    """
    reading = Reading(label=None if label is None else str(label), cache=cache)
    return to_sentiment_scale(read_as_is(path, reading), label_range)


def read_as_is(path: PathLike | Sequence[PathLike], reading: Reading) -> Dataset:
    """As :func:`read_dataset`, with labels on the source's own scale, broken ones included."""
    named = [path] if isinstance(path, str | os.PathLike) else list(path)
    if not named:
        raise AffectError("data.not_found", "expected the path of a data set, got none")
    parts = [_split_and_path(os.fspath(name)) for name in named]
    for _, file in parts:
        if not file.exists():
            raise AffectError("data.not_found", f"expected a data set at {file}, where there is nothing")
    if all(split is None and _is_csd(file) for split, file in parts):
        from affectrt_training.data.csd import read_csd

        return read_csd([file for _, file in parts], reading)
    found = [_in_split(_read_one(file, reading), split) for split, file in parts]
    return found[0] if len(found) == 1 else _together(found)


def _split_and_path(name: str) -> tuple[str | None, Path]:
    """``valid=file`` → its split and path; a file that is called so is meant itself."""
    split, equals, rest = name.partition("=")
    if equals and split.isidentifier() and not Path(name).exists():
        return split, Path(rest)
    return None, Path(name)


def _head(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(64)
    except OSError as error:
        raise AffectError("data.unreadable", f"{path}: can't be read: {error.strerror}") from error


def _is_csd(path: Path) -> bool:
    return any(path.glob("*.csd")) if path.is_dir() else _head(path).startswith(_HDF5)


def _read_one(path: Path, reading: Reading) -> Dataset:
    if path.is_dir():
        if _is_csd(path):
            from affectrt_training.data.csd import read_csd

            return read_csd([path], reading)
        raise AffectError("data.format", f"{path}: expected {_FORMATS}; got a folder without .csd files")
    head = _head(path)
    if head.startswith(_HDF5):
        from affectrt_training.data.csd import read_csd

        return read_csd([path], reading)
    if head.startswith(_ZIP):
        from affectrt_training.data.arrays import read_npz

        return read_npz(path, reading)
    if head.startswith(_PICKLE) or path.suffix.lower() in (".pkl", ".pickle"):
        from affectrt_training.data.pickles import read_pickle

        return read_pickle(path, reading)
    if head.startswith(_NPY) or b"\0" in head or not head.strip():
        raise AffectError("data.format", f"{path}: expected {_FORMATS}; got something else")
    from affectrt_training.data.tabular import read_table

    return read_table(path, reading)


def _in_split(dataset: Dataset, split: str | None) -> Dataset:
    """The data set, all of it in one split where one is named."""
    if split is None:
        return dataset
    return replace(dataset, splits={split: [e for examples in dataset.splits.values() for e in examples]})


def _together(parts: Sequence[Dataset]) -> Dataset:
    """One data set of several files. Raises ``data.shape`` when they differ in width."""
    dims: dict[Modality, int] = {}
    for part in parts:
        for modality, dim in part.dims.items():
            if dims.setdefault(modality, dim) != dim:
                raise AffectError(
                    "data.shape",
                    f"{part.name}: expected {dims[modality]} {modality} features a row as in the files "
                    f"before, got {dim}; only files of the same features go together",
                )
    ids = [e.id for part in parts for examples in part.splits.values() for e in examples]
    clash = len(set(ids)) < len(ids)
    splits: dict[str, list[Example]] = {}
    for part in parts:
        for name, examples in part.splits.items():
            splits.setdefault(name, []).extend(
                replace(e, id=f"{part.name}/{e.id}") if clash else e for e in examples
            )
    return Dataset(
        "+".join(part.name for part in parts),
        splits,
        {m: dims[m] for m in MODALITIES if m in dims},
        notes=tuple(f"{part.name}: {note}" for part in parts for note in part.notes),
        format=", ".join(dict.fromkeys(part.format for part in parts)),
        cleared={m: sum(part.cleared.get(m, 0) for part in parts) for m in dims},
    )
