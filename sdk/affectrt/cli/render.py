"""A timeline as text: a table for people, JSON lines and CSV for programs. Pure functions over rows."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence

from affectrt.affect import EMOTIONS, MODALITIES, SENTIMENT_LIMIT, Affect

BAR_WIDTH = 21
"""Characters of the sentiment bar: odd, so that zero has a column of its own."""

LAMPS = {"text": "T", "audio": "A", "vision": "V"}

CSV_COLUMNS = (
    "time_s",
    "sentiment",
    "interval_low",
    "interval_high",
    "emotion",
    *EMOTIONS,
    *(f"contribution_{modality}" for modality in MODALITIES),
    "present",
    "latency_ms",
)

_GREEN, _RED, _DIM, _BOLD = "32", "31", "2", "1"


def jsonl(rows: Sequence[Affect]) -> str:
    """One JSON object per line: ``Affect.to_dict``."""
    return "".join(json.dumps(row.to_dict()) + "\n" for row in rows)


def csv_text(rows: Sequence[Affect]) -> str:
    """CSV with :data:`CSV_COLUMNS`: ``present`` joined by "+", contributions of absent modalities empty."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    for row in rows:
        writer.writerow(
            [
                f"{row.time_s:.3f}",
                f"{row.sentiment:.4f}",
                *(f"{bound:.4f}" for bound in row.interval),
                row.emotion,
                *(f"{row.emotions[name]:.4f}" for name in EMOTIONS),
                *(f"{row.contributions[m]:.4f}" if m in row.contributions else "" for m in MODALITIES),
                "+".join(m for m in MODALITIES if m in row.present),
                f"{row.latency_ms:.2f}",
            ]
        )
    return out.getvalue()


def table(rows: Sequence[Affect], *, title: str, colour: bool = False) -> str:
    """A table of at most 80 columns: time, sentiment with interval and bar, top emotion, what was present.

    A row that rests on nothing shows dashes: its numbers would be the model's prior, not this person.
    """
    paint = _paint if colour else _plain
    lines = [paint(title, _BOLD), "", heading(colour=colour)]
    lines += [table_row(row, colour=colour) for row in rows]
    lines += ["", *_summary(rows, paint)]
    return "\n".join(lines) + "\n"


def clock(time_s: float) -> str:
    """Seconds as ``m:ss.s`` or ``h:mm:ss.s``."""
    tenths = round(time_s * 10)
    minutes, tenths = divmod(tenths, 600)
    hours, minutes = divmod(minutes, 60)
    seconds = f"{tenths // 10:02d}.{tenths % 10}"
    return f"{hours}:{minutes:02d}:{seconds}" if hours else f"{minutes}:{seconds}"


def sentiment_bar(sentiment: float, interval: tuple[float, float]) -> str:
    """The scale from -3 to +3 as characters: ``─`` the interval, ``●`` the value, ``│`` zero."""
    low, value, high = (_column(x) for x in (interval[0], sentiment, interval[1]))
    cells = ["─" if low <= k <= high else "·" for k in range(BAR_WIDTH)]
    cells[BAR_WIDTH // 2] = "┼" if low <= BAR_WIDTH // 2 <= high else "│"
    cells[value] = "●"
    return "".join(cells)


def _column(sentiment: float) -> int:
    share = (sentiment + SENTIMENT_LIMIT) / (2 * SENTIMENT_LIMIT)
    return min(max(round(share * (BAR_WIDTH - 1)), 0), BAR_WIDTH - 1)


def heading(*, colour: bool = False) -> str:
    """What stands above rows."""
    scale = (
        f"{-SENTIMENT_LIMIT:g}".ljust(BAR_WIDTH // 2) + "0" + f"{SENTIMENT_LIMIT:+g}".rjust(BAR_WIDTH // 2)
    )
    return (_paint if colour else _plain)(
        f"{'time':>9}  sentiment  90 % interval  {scale}  emotion       now", _DIM
    )


def table_row(row: Affect, *, colour: bool = False) -> str:
    """One result as a line of at most 80 columns."""
    paint = _paint if colour else _plain
    time = f"{clock(row.time_s):>9}"
    if not row.present:
        return paint(f"{time}  {'—':>9}  {'—':^13}  {'nothing sensed':·^{BAR_WIDTH}}  {'—':<13} · · ·", _DIM)
    low, high = row.interval
    hue = _GREEN if row.sentiment > 0 else _RED
    # A colour only where the interval is on one side of zero: otherwise the sign isn't known.
    bar = sentiment_bar(row.sentiment, row.interval)
    bar = paint(bar, hue) if low > 0 or high < 0 else bar
    lamps = " ".join(LAMPS[m] if m in row.present else "·" for m in MODALITIES)
    return (
        f"{time}  {row.sentiment:>+9.2f}  {low:+.2f} … {high:+.2f}  {bar}  "
        f"{row.emotion:<8} {row.emotions[row.emotion]:>4.0%} {lamps}"
    )


def _summary(rows: Sequence[Affect], paint: _Painter) -> list[str]:
    sensed = [row for row in rows if row.present]
    legend = paint("T words  A voice  V face.  ● sentiment, ─ its 90 % interval.", _DIM)
    if not sensed:
        return ["overall   nothing was sensed: no words, no voice, no face", legend]
    mean = sum(row.sentiment for row in sensed) / len(sensed)
    emotions = {name: sum(row.emotions[name] for row in sensed) / len(sensed) for name in EMOTIONS}
    top = max(emotions, key=emotions.__getitem__)
    shares = "  ".join(
        f"{LAMPS[m]} {sum(m in row.present for row in rows) / len(rows):.0%}" for m in MODALITIES
    )
    return [f"overall   sentiment {mean:+.2f}, mostly {top} ({emotions[top]:.0%}); present: {shares}", legend]


class _Painter:
    """Wraps text in an ANSI style, or doesn't."""

    def __init__(self, *, colour: bool) -> None:
        self._colour = colour

    def __call__(self, text: str, style: str) -> str:
        return f"\x1b[{style}m{text}\x1b[0m" if self._colour else text


_paint, _plain = _Painter(colour=True), _Painter(colour=False)
