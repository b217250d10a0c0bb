"""Timelines as text and pictures."""

from __future__ import annotations

import csv
import io
import json

import cv2
import numpy as np
import numpy.typing as npt
import pytest

from affectrt.affect import EMOTIONS, Affect, Modality
from affectrt.cli.plot import COLOURS, timeline_png
from affectrt.cli.render import BAR_WIDTH, clock, csv_text, jsonl, sentiment_bar, table

ALL: tuple[Modality, ...] = ("text", "audio", "vision")


def _row(
    time_s: float,
    sentiment: float = 1.0,
    half: float = 0.5,
    present: tuple[Modality, ...] = ALL,
    top: str = "joy",
) -> Affect:
    return Affect(
        time_s=time_s,
        sentiment=sentiment,
        interval=(max(-3.0, sentiment - half), min(3.0, sentiment + half)),
        emotions={name: 0.64 if name == top else 0.06 for name in EMOTIONS},
        contributions=dict.fromkeys(present, 0.25),
        present=frozenset(present),
        latency_ms=12.0,
    )


ROWS = [_row(1.0), _row(2.0, -2.5, 1.0, ("audio",), "sadness"), _row(3.0, present=()), _row(3.4, 0.1)]


def test_jsonl_is_one_object_a_row() -> None:
    objects = [json.loads(line) for line in jsonl(ROWS).splitlines()]
    assert objects == [row.to_dict() for row in ROWS]
    assert objects[1]["present"] == ["audio"]


def test_csv_reads_back() -> None:
    rows = list(csv.DictReader(io.StringIO(csv_text(ROWS))))
    assert [float(row["time_s"]) for row in rows] == [1.0, 2.0, 3.0, 3.4]
    assert rows[0]["present"] == "text+audio+vision"
    assert (rows[1]["contribution_text"], rows[1]["contribution_audio"]) == ("", "0.2500")
    assert rows[2]["present"] == ""
    assert float(rows[1]["sadness"]) == 0.64
    assert (float(rows[1]["interval_low"]), float(rows[1]["interval_high"])) == (-3.0, -1.5)


def test_table_says_what_the_rows_say() -> None:
    lines = table(ROWS, title="clip.mp4").splitlines()
    assert lines[0] == "clip.mp4"
    first, second, third = lines[3:6]
    assert "0:01.0" in first and "+1.00" in first and "+0.50 … +1.50" in first
    assert "joy" in first and "64%" in first and first.endswith("T A V")
    assert "sadness" in second and second.endswith("· A ·")
    # Nothing was sensed: the model's prior is not this person's mood.
    assert "nothing sensed" in third and "+1.00" not in third and "joy" not in third
    assert third.endswith("· · ·")
    assert any("mostly joy" in line and "T 50%  A 75%  V 50%" in line for line in lines)


def test_table_fits_80_columns_and_lines_up() -> None:
    rows = [*ROWS, _row(9 * 3600.0, -3.0, 6.0, top="surprise"), _row(9 * 3600.0 + 1, 3.0, 6.0)]
    lines = table(rows, title="").splitlines()
    assert max(map(len, lines)) <= 80
    assert len({len(line) for line in lines[3 : 3 + len(rows)]}) == 1


def test_table_of_nothing_says_so() -> None:
    assert "nothing was sensed" in table([_row(1.0, present=())], title="")


def test_colour_marks_only_intervals_on_one_side_of_zero() -> None:
    lines = table([_row(1.0, 1.0), _row(2.0, 0.2), _row(3.0, -1.0)], title="", colour=True).splitlines()[3:6]
    assert "\x1b[32m" in lines[0]
    assert "\x1b[" not in lines[1]
    assert "\x1b[31m" in lines[2]


@pytest.mark.parametrize(
    ("sentiment", "interval", "bar"),
    [
        (0.0, (0.0, 0.0), "··········●··········"),
        (-3.0, (-3.0, -3.0), "●·········│··········"),
        (3.0, (-3.0, 3.0), "──────────┼─────────●"),
        (1.5, (0.3, 2.1), "··········│────●──···"),
    ],
)
def test_sentiment_bar(sentiment: float, interval: tuple[float, float], bar: str) -> None:
    assert sentiment_bar(sentiment, interval) == bar
    assert len(bar) == BAR_WIDTH


@pytest.mark.parametrize(
    ("time_s", "shown"), [(0.0, "0:00.0"), (59.96, "1:00.0"), (75.25, "1:15.2"), (3600.0, "1:00:00.0")]
)
def test_clock(time_s: float, shown: str) -> None:
    assert clock(time_s) == shown


def _decode(png: bytes) -> npt.NDArray[np.uint8]:
    image = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_COLOR)
    assert image is not None
    return np.asarray(image, np.uint8)


def _share(image: npt.NDArray[np.uint8], colour: str) -> float:
    """How much of the picture has a colour."""
    bgr = np.array([int(colour[k : k + 2], 16) for k in (5, 3, 1)], np.int16)
    return float((np.abs(image.astype(np.int16) - bgr).max(axis=2) <= 3).mean())


def test_plot_shows_the_emotions_by_their_probability() -> None:
    image = _decode(
        timeline_png([_row(k + 1.0) for k in range(9)], title=f"a $b_{{c}}$ 映画 {'x' * 200}", every_s=1.0)
    )
    assert image.shape[1] >= 1200
    shares = {name: _share(image, colour) for name, colour in COLOURS.items()}
    assert set(shares) == set(EMOTIONS)
    assert shares["joy"] > 0.1
    assert shares["joy"] / shares["anger"] == pytest.approx(0.64 / 0.06, rel=0.25)


def test_plot_leaves_out_what_rests_on_nothing() -> None:
    whole = _decode(timeline_png([_row(k + 1.0) for k in range(8)], title="", every_s=1.0))
    present = [ALL if k % 2 else () for k in range(8)]
    half = _decode(
        timeline_png([_row(k + 1.0, present=p) for k, p in enumerate(present)], title="", every_s=1.0)
    )
    assert _share(half, COLOURS["joy"]) / _share(whole, COLOURS["joy"]) == pytest.approx(0.5, abs=0.1)
    none = _decode(timeline_png([_row(1.0, present=())], title="", every_s=1.0))
    assert _share(none, COLOURS["joy"]) < 0.01
