"""Transcripts: SubRip (.srt), WebVTT (.vtt) and plain text (.txt) → words with times."""

from __future__ import annotations

import codecs
import html
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from affectrt.errors import AffectError
from affectrt.features.text import Word, words_of

# The specs want HH:MM:SS,mmm (SubRip) and [HH:]MM:SS.mmm (WebVTT); files in the wild mix the two.
_TIME = r"(?:(\d+):)?([0-5]?\d):([0-5]?\d)[.,](\d{1,3})"
_CUE_TIMES = re.compile(rf"\s*{_TIME}\s*-->\s*{_TIME}(?:\s.*)?")
_TAGS = re.compile(r"</?[a-zA-Z][^<>]*>|</?\d[^<>]*>|\{\\[^{}]*\}")
_VTT_ASIDE = re.compile(r"(NOTE|STYLE|REGION)(\s|$)")


@dataclass(frozen=True)
class _Cue:
    line: int
    start_s: float
    end_s: float
    text: str


def read_transcript(path: str | os.PathLike[str]) -> list[Word]:
    """The words of a transcript in order of the time they end.

    A cue's words are spread evenly over its time; plain text has no times and runs from 0 at an ordinary
    pace. Tags, cue numbers, settings and comments are not words, nor are cues without a letter or digit (♪).

    Raises ``transcript.not_found``, ``transcript.unreadable``, ``transcript.format`` for another kind of
    file, ``transcript.not_text``, ``transcript.malformed``, ``transcript.empty``, and
    ``transcript.backwards_time``, with the line, when a cue ends before it starts or starts before the cue
    before it did.
    """
    path = Path(path)
    kind = path.suffix.lower()
    if kind not in (".srt", ".vtt", ".txt"):
        raise AffectError(
            "transcript.format",
            f"transcript {path}: expected a .srt, .vtt or .txt file, got '{kind or 'no ending'}'; convert or "
            f"rename it",
        )
    text = _read_text(path)
    if kind == ".txt":
        words = words_of(text, 0.0)
    else:
        words = [word for cue in _cues(path, text) for word in words_of(cue.text, cue.start_s, cue.end_s)]
    if not words:
        raise AffectError(
            "transcript.empty",
            f"transcript {path}: expected words, found none; check that it is the right file",
        )
    return sorted(words, key=lambda word: word.end_s)


def _read_text(path: Path) -> str:
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise AffectError(
            "transcript.not_found", f"transcript {path}: there is no such file; check the path"
        ) from error
    except OSError as error:
        raise AffectError(
            "transcript.unreadable", f"transcript {path}: could not be read ({error.strerror})"
        ) from error
    try:
        if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            text = data.decode("utf-16")
        else:
            text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        # Old subtitles are in their country's code page; Latin-1 reads most and never fails.
        text = data.decode("latin-1")
    if "\0" in text:
        raise AffectError(
            "transcript.not_text", f"transcript {path}: expected text, got zero bytes; give a text file"
        )
    return text


def _cues(path: Path, text: str) -> Iterator[_Cue]:
    """The cues with words in them, in the file's order."""
    # Not splitlines(): it would also split at U+2028 and form feeds, and lines are counted as editors do.
    lines = re.split(r"\r\n|\n|\r", text)
    previous_s = 0.0
    index = 0
    while index < len(lines):
        line = lines[index]
        index += 1
        if _VTT_ASIDE.match(line) and path.suffix.lower() == ".vtt":
            index = _block_end(lines, index)
            continue
        if "-->" not in line:
            # A number, a name, a header or nothing: the text of a cue is read with its times, below.
            continue
        cue_line = index
        start_s, end_s = _times(path, cue_line, line)
        if end_s < start_s:
            _refuse_times(path, cue_line, f"a cue ends at {end_s:.3f} s, before it starts at {start_s:.3f} s")
        if start_s < previous_s:
            _refuse_times(
                path, cue_line, f"a cue starts at {start_s:.3f} s, the one before it at {previous_s:.3f} s"
            )
        previous_s = start_s
        after = _block_end(lines, index)
        spoken = html.unescape(_TAGS.sub("", " ".join(lines[index:after])))
        index = after
        if any(character.isalnum() for character in spoken):
            yield _Cue(cue_line, start_s, end_s, spoken)


def _block_end(lines: list[str], index: int) -> int:
    """Index of the blank line, the next cue's times or the end of the file, whichever comes first."""
    while index < len(lines) and lines[index].strip():
        if _CUE_TIMES.fullmatch(lines[index]):
            # A blank line is missing: what stands above these times is the next cue's number.
            return index - 1 if lines[index - 1].strip().isdigit() else index
        index += 1
    return index


def _times(path: Path, line_number: int, line: str) -> tuple[float, float]:
    match = _CUE_TIMES.fullmatch(line)
    if match is None:
        raise AffectError(
            "transcript.malformed",
            f"transcript {path}, line {line_number}: expected times such as 00:00:01,000 --> 00:00:02,500, "
            f"got '{line.strip()[:60]}'; mend the line",
        )
    parts = match.groups()
    start_s, end_s = (
        int(hours or 0) * 3600 + int(minutes) * 60 + int(seconds) + float(f"0.{fraction}")
        for hours, minutes, seconds, fraction in (parts[:4], parts[4:])
    )
    return start_s, end_s


def _refuse_times(path: Path, line_number: int, what: str) -> NoReturn:
    raise AffectError(
        "transcript.backwards_time",
        f"transcript {path}, line {line_number}: {what}; times must run forwards, mend the line",
    )
