"""The CSV that ``affectrt evaluate`` scores: inputs and labels, one example a row.

Columns, in any order and any subset: ``text`` (the words themselves), ``audio``, ``video``, ``image`` (paths
relative to the CSV's folder), and the labels ``sentiment`` (a number in [-3, 3]) and ``emotion`` (a name that
:mod:`affectrt_training.labels` knows). Others are ignored. An empty cell is an absent modality or label.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

from affectrt.affect import SENTIMENT_LIMIT
from affectrt.errors import AffectError
from affectrt_training.labels import emotion_index

FILE_COLUMNS = ("audio", "video", "image")
INPUT_COLUMNS = ("text", *FILE_COLUMNS)
LABEL_COLUMNS = ("sentiment", "emotion")


@dataclass(frozen=True)
class Row:
    """One example."""

    number: int
    """1 for the first row below the header."""
    line: int
    """Line of the CSV on which the row ends, for editors."""
    text: str | None
    """What was said."""
    audio: Path | None
    """A file with sound."""
    video: Path | None
    """A file with moving pictures, and sound if it has any."""
    image: Path | None
    """A still."""
    sentiment: float | None
    """Truth in [-3, 3]."""
    emotion: int | None
    """Truth as an index into ``EMOTIONS``."""

    @property
    def has_input(self) -> bool:
        """Whether any modality is there."""
        return any(value is not None for value in (self.text, self.audio, self.video, self.image))

    @property
    def has_label(self) -> bool:
        """Whether there is anything to score against."""
        return self.sentiment is not None or self.emotion is not None


def read_manifest(path: Path) -> list[Row]:
    """Rows of the manifest at ``path``, every one checked before the first is used.

    Raises ``manifest.not_found``, ``manifest.unreadable``, ``manifest.columns``, ``manifest.row``,
    ``manifest.file_missing`` (both naming the row) and ``manifest.empty``.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file, strict=True)
            header = [name.strip().lower() for name in next(reader, [])]
            _check_header(path, header)
            rows = [
                _row(path, header, cells, number, reader.line_num)
                for number, cells in enumerate(
                    (cells for cells in reader if any(map(str.strip, cells))), start=1
                )
            ]
    except FileNotFoundError:
        raise AffectError("manifest.not_found", f"{path}: no such manifest") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise AffectError(
            "manifest.unreadable", f"{path}: expected a CSV file in UTF-8; reading it failed: {reason}"
        ) from error
    if not rows:
        raise AffectError("manifest.empty", f"{path}: the manifest has a header but no rows")
    return rows


def _check_header(path: Path, header: list[str]) -> None:
    twice = sorted({name for name in header if name and header.count(name) > 1})
    if twice:
        raise AffectError("manifest.columns", f"{path}: column '{twice[0]}' is there twice; keep one")
    for kind, known in (("input", INPUT_COLUMNS), ("label", LABEL_COLUMNS)):
        if not set(header) & set(known):
            raise AffectError(
                "manifest.columns",
                f"{path}: expected at least one {kind} column of {', '.join(known)}; got "
                f"{', '.join(filter(None, header)) or 'no columns'}",
            )


def _row(path: Path, header: list[str], cells: list[str], number: int, line: int) -> Row:
    where = f"{path}: row {number} (line {line})"
    if len(cells) != len(header):
        raise AffectError(
            "manifest.row",
            f"{where}: expected {len(header)} cells as in the header, got {len(cells)}; put quotes around "
            f"cells that hold commas",
        )
    filled = {name: cell.strip() for name, cell in zip(header, cells, strict=True) if cell.strip()}
    files = {column: path.parent / filled[column] for column in FILE_COLUMNS if column in filled}
    for column, file in files.items():
        if not file.is_file():
            raise AffectError("manifest.file_missing", f"{where}: {column} file '{file}' doesn't exist")
    return Row(
        number=number,
        line=line,
        text=filled.get("text"),
        audio=files.get("audio"),
        video=files.get("video"),
        image=files.get("image"),
        sentiment=_sentiment(where, filled["sentiment"]) if "sentiment" in filled else None,
        emotion=_emotion(where, filled["emotion"]) if "emotion" in filled else None,
    )


def _sentiment(where: str, cell: str) -> float:
    try:
        value = float(cell)
    except ValueError:
        value = float("nan")
    if not -SENTIMENT_LIMIT <= value <= SENTIMENT_LIMIT:
        raise AffectError(
            "manifest.row",
            f"{where}: expected a sentiment in [-{SENTIMENT_LIMIT:g}, {SENTIMENT_LIMIT:g}], got '{cell}'; "
            f"rescale the column or leave the cell empty",
        )
    return value


def _emotion(where: str, cell: str) -> int:
    try:
        return emotion_index(cell)
    except AffectError as error:
        raise AffectError("manifest.row", f"{where}: {error.message}") from error
