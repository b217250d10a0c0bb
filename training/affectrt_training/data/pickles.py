"""The field's pickles: MMSA's, with what was said, and MulT's, with word vectors.

MMSA: ``{train, valid, test} → {raw_text, text (N, T, D), text_bert (N, 3, T), audio, vision,
regression_labels, id[, audio_lengths, vision_lengths]}``; MulT: ``→ {text, audio, vision, labels (N, 1, 1),
id}``. ``text_bert`` holds the token ids of one encoder's vocabulary: its mask tells the text's length, the
ids themselves are not kept, because every text encoder makes its own from ``raw_text``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from affectrt.affect import MODALITIES, Modality
from affectrt.errors import AffectError
from affectrt_training.data.assemble import Array, Assembly, Reading, Stream, label_vector, split_name
from affectrt_training.data.cleaning import groups_of
from affectrt_training.data.dataset import Dataset
from affectrt_training.data.unpickle import load_pickle

SPLITS = ("train", "valid", "test")
LABELS = ("regression_labels", "labels")
"""Where sentiment is, in MMSA's and in MulT's."""

_MASK_ROW = 1  # of text_bert: ids, mask, segments


def read_pickle(path: Path, reading: Reading) -> Dataset:
    """Raises as :func:`load_pickle`; ``data.keys``, ``data.shape``, ``data.label``, ``data.label_column``."""
    content = load_pickle(path)
    splits = _splits(path, content)
    assembly = Assembly(str(path))
    for name, part in splits.items():
        where = f"{path}: {name}"
        streams = {m: _stream(where, part, m) for m in MODALITIES if m in part}
        said = part.get("raw_text")
        if not streams and said is None:
            raise AffectError(
                "data.keys",
                f"{where}: expected text, audio, vision or raw_text, got {', '.join(map(str, part))}",
            )
        counts = [len(s.rows) for s in streams.values()] or [len(said)]  # type: ignore[arg-type]
        ids, groups = _ids(where, part, name, counts[0])
        assembly.add(
            name,
            ids,
            streams,
            words=None if said is None else [_text(text).split() for text in said],
            sentiment=_labels(where, part, reading),
            groups=groups,
        )
    of_mmsa = any("raw_text" in part or LABELS[0] in part for part in splits.values())
    return assembly.dataset(path.stem, "MMSA pickle" if of_mmsa else "MulT pickle")


def _splits(path: Path, content: object) -> dict[str, Mapping[str, Any]]:
    found = {
        split_name(key): part
        for key, part in (content.items() if isinstance(content, dict) else ())
        if isinstance(key, str) and isinstance(part, dict) and split_name(key) in SPLITS
    }
    if not found:
        got = (
            f"keys {', '.join(map(repr, list(content)[:5]))}" if isinstance(content, dict) else type(content)
        )
        raise AffectError(
            "data.keys",
            f"{path}: expected a pickled dictionary with train, valid and test as in MMSA's, got {got}",
        )
    return {name: found[name] for name in SPLITS if name in found}


def _stream(where: str, part: Mapping[str, Any], modality: Modality) -> Stream:
    """Rows of one modality: a padded array (N, T, D), or a list of arrays (T, D) of their own lengths."""
    rows = part[modality]
    if isinstance(rows, list) or (isinstance(rows, np.ndarray) and rows.dtype == object):
        return Stream([np.asarray(r) for r in rows], padded=False)
    if not isinstance(rows, np.ndarray) or rows.ndim not in (2, 3):
        shape = getattr(rows, "shape", type(rows).__name__)
        raise AffectError("data.shape", f"{where}: expected {modality} rows (N, T, D), got {shape}")
    if rows.ndim == 2:
        return Stream(rows[:, None, :])
    lengths = part.get(f"{modality}_lengths")
    if lengths is None and modality == "text":
        lengths = _mask_lengths(part.get("text_bert"), rows)
    if lengths is None:
        return Stream(rows)
    steps = np.asarray(lengths).reshape(-1)
    if len(steps) != len(rows) or steps.dtype.kind not in "iuf" or (steps < 0).any():
        raise AffectError(
            "data.shape",
            f"{where}: expected {len(rows)} {modality} lengths from 0 on, got {len(steps)} of {steps.dtype}",
        )
    return Stream(rows, lengths=steps.astype(int).tolist())


def _mask_lengths(text_bert: Any, rows: Array) -> Sequence[int] | None:
    """Valid tokens of each text, where the ids belong to the rows."""
    if not isinstance(text_bert, np.ndarray) or text_bert.shape != (len(rows), 3, rows.shape[1]):
        return None
    return [int(n) for n in text_bert[:, _MASK_ROW].sum(axis=-1)]


def _labels(where: str, part: Mapping[str, Any], reading: Reading) -> list[float | None] | None:
    wanted = reading.label
    named = wanted is not None and not wanted.isdecimal()
    key = wanted if named else next((key for key in LABELS if key in part), None)
    if key is None or key not in part:
        if not reading.strict:
            return None
        raise AffectError(
            "data.keys",
            f"{where}: expected labels under {key or ' or '.join(LABELS)}, got {', '.join(map(str, part))}",
        )
    return label_vector(np.asarray(part[key]), reading, f"{where}: {key}", None if named else wanted)


def _text(value: object) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _ids(where: str, part: Mapping[str, Any], split: str, count: int) -> tuple[list[str], list[str] | None]:
    """Ids, and groups: MulT names an example by its video, begin and end."""
    if "id" not in part:
        return [f"{split}-{i}" for i in range(count)], None
    named = [np.asarray(name).reshape(-1).tolist() for name in part["id"]]
    if len(named) != count:
        raise AffectError("data.shape", f"{where}: expected {count} ids, got {len(named)}")
    ids = ["_".join(_text(piece) for piece in pieces) for pieces in named]
    if all(len(pieces) > 1 for pieces in named):
        return ids, [_text(pieces[0]) for pieces in named]
    return ids, groups_of(ids)
