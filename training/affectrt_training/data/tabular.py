"""CSV tables: sentences with labels, and manifests of raw clips.

Columns, in any order: ``text`` (what was said), ``audio``, ``video``, ``image`` (paths relative to the
table); ``sentiment`` or a column that begins with ``label``, ``emotion``; ``split``, ``id``, and a group:
``group``, ``video_id``, ``speaker`` or ``actor``. Others are ignored. An empty cell is an absent modality or
label.
"""

from __future__ import annotations

import csv
from difflib import get_close_matches
from pathlib import Path

import numpy as np

from affectrt.affect import Modality
from affectrt.errors import AffectError
from affectrt_training.data.assemble import Assembly, Reading, Stream, split_name
from affectrt_training.data.dataset import RAW_CLIPS, Dataset, FloatMatrix
from affectrt_training.labels import emotion_index

FILE_COLUMNS = ("audio", "video", "image")
GROUP_COLUMNS = ("group", "video_id", "speaker", "actor")
COARSE = frozenset({"negative", "neutral", "positive"})
"""A sentiment in words, as MELD has it, is no number on a scale."""

Cells = dict[str, str]


def read_table(path: Path, reading: Reading) -> Dataset:
    """Raises ``data.unreadable``, ``data.keys``, ``data.row``, ``data.label``, ``data.label_column`` and
    ``data.file_missing``."""
    rows = _rows(path)
    columns = list(rows[0]) if rows else []
    files = [column for column in FILE_COLUMNS if column in columns]
    assembly = Assembly(str(path))
    sentiment = _sentiment(path, rows, _label_column(path, columns, reading), assembly)
    emotion = [_emotion(path, number, row.get("emotion", "")) for number, row in enumerate(rows, 1)]
    group = next((column for column in GROUP_COLUMNS if column in columns), None)
    streams: list[dict[Modality, FloatMatrix]] = [{} for _ in rows]
    if files:
        from affectrt_training.data.raw import clip_rows

        paths = [_files(path, number, row, files) for number, row in enumerate(rows, 1)]
        if reading.media:
            streams = clip_rows(paths, reading.cache, assembly)
        else:
            counts = ", ".join(f"{sum(c in p for p in paths)} {c}" for c in files)
            assembly.notes.append(
                f"names raw clips ({counts}): their features are computed when they are needed"
            )
    ids = [row.get("id") or str(number) for number, row in enumerate(rows, 1)]
    splits = [split_name(row.get("split") or "all") for row in rows]
    for name in dict.fromkeys(splits):
        chosen = [i for i, split in enumerate(splits) if split == name]
        present: list[Modality] = [m for m in ("audio", "vision") if any(m in s for s in streams)]
        widths = {m: next(s[m].shape[1] for s in streams if m in s) for m in present}
        assembly.add(
            name,
            [ids[i] for i in chosen],
            {
                m: Stream([streams[i].get(m, _nothing(widths[m])) for i in chosen], padded=False)
                for m in present
            },
            words=[rows[i].get("text", "").split() for i in chosen],
            sentiment=[sentiment[i] for i in chosen],
            emotion=[emotion[i] for i in chosen],
            groups=[rows[i][group] for i in chosen] if group else None,
        )
    return assembly.dataset(path.stem, RAW_CLIPS if files else "table of sentences")


def _nothing(dim: int) -> FloatMatrix:
    return np.zeros((0, dim), np.float32)


def _rows(path: Path) -> list[Cells]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file, strict=True)
            header = [name.strip().lower() for name in next(reader, [])]
            rows = []
            for cells in reader:
                if not any(map(str.strip, cells)):
                    continue
                if len(cells) != len(header):
                    raise AffectError(
                        "data.row",
                        f"{path}: line {reader.line_num}: expected {len(header)} cells as in the header, got "
                        f"{len(cells)}; put quotes around cells that hold commas",
                    )
                rows.append({name: cell.strip() for name, cell in zip(header, cells, strict=True)})
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise AffectError(
            "data.unreadable", f"{path}: expected a CSV table in UTF-8; reading it failed: {error}"
        ) from error
    if not {"text", *FILE_COLUMNS} & set(header):
        raise AffectError(
            "data.keys",
            f"{path}: expected a column text, audio, video or image, got {', '.join(header) or 'none'}",
        )
    return rows


def _label_column(path: Path, columns: list[str], reading: Reading) -> str | None:
    if reading.label is not None:
        if reading.label.lower() in columns:
            return reading.label.lower()
        near = get_close_matches(reading.label, columns, n=1)
        raise AffectError(
            "data.label_column",
            f"{path}: expected a column '{reading.label}' of labels, got {', '.join(columns)}"
            + (f"; did you mean '{near[0]}'?" if near else ""),
        )
    named = [c for c in columns if c.startswith("label")]
    if "sentiment" in columns or not named:
        return "sentiment" if "sentiment" in columns else None
    if len(named) > 1 and reading.strict:
        raise AffectError(
            "data.label_column",
            f"{path}: expected one column of labels, got {', '.join(named)}; choose with --label",
        )
    return named[0] if len(named) == 1 else None


def _sentiment(path: Path, rows: list[Cells], column: str | None, assembly: Assembly) -> list[float | None]:
    if column is None:
        return [None] * len(rows)
    cells = [row[column] for row in rows]
    if {cell.lower() for cell in cells if cell} <= COARSE:
        if any(cells):
            assembly.notes.append(f"column {column} names a sentiment in words and is not used")
        return [None] * len(rows)
    found: list[float | None] = []
    for number, cell in enumerate(cells, 1):
        try:
            found.append(float(cell) if cell else None)
        except ValueError:
            raise AffectError(
                "data.label",
                f"{path}: row {number}: expected a number as {column}, got '{cell}'; mend or empty the cell",
            ) from None
    return found


def _emotion(path: Path, number: int, cell: str) -> int | None:
    try:
        return emotion_index(cell) if cell else None
    except AffectError as error:
        raise AffectError("data.label", f"{path}: row {number}: {error.message}") from error


def _files(path: Path, number: int, row: Cells, columns: list[str]) -> dict[str, Path]:
    found = {column: path.parent / row[column] for column in columns if row[column]}
    for column, file in found.items():
        if not file.is_file():
            raise AffectError(
                "data.file_missing", f"{path}: row {number}: {column} file '{file}' doesn't exist"
            )
    return found
