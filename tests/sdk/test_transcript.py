"""Subtitles as they are found in the wild."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from affectrt.errors import AffectError
from affectrt.features.text import Word
from affectrt.transcript import read_transcript

SRT = """1
00:00:01,000 --> 00:00:03,000
Hello there

2
00:01:00,500 --> 01:00:01,000 X1:40 X2:600
<i>Two</i> lines
{\\an8}of <font color="#fff">text</font> &amp; more
"""

VTT = """WEBVTT - a title

STYLE
::cue { color: red }

NOTE
a comment --> with an arrow

intro
00:01.000 --> 00:02.000 align:start position:0%
<v Roger Bingham>We <c.loud>are</c> <00:00:01.500>here

1:00:00.000 --> 1:00:01.000
♪ ♪
"""


def read(tmp_path: Path, name: str, content: str | bytes) -> list[Word]:
    path = tmp_path / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return read_transcript(path)


def refused(tmp_path: Path, name: str, content: str | bytes) -> AffectError:
    with pytest.raises(AffectError) as caught:
        read(tmp_path, name, content)
    assert "\n" not in caught.value.message
    return caught.value


def test_srt(tmp_path: Path) -> None:
    words = read(tmp_path, "a.srt", SRT)
    assert [w.text for w in words] == ["Hello", "there", "Two", "lines", "of", "text", "&", "more"]
    assert words[:2] == [Word("Hello", 1.0, 2.0), Word("there", 2.0, 3.0)]
    assert (words[2].start_s, words[-1].end_s) == (60.5, 3601.0)


def test_vtt(tmp_path: Path) -> None:
    words = read(tmp_path, "a.vtt", VTT)
    assert [w.text for w in words] == ["We", "are", "here"]
    assert (words[0].start_s, words[-1].end_s) == (1.0, 2.0)


@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_line_ends_and_byte_order_marks(tmp_path: Path, newline: str, encoding: str) -> None:
    data = SRT.replace("\n", newline).encode(encoding)
    assert read(tmp_path, "a.srt", data) == read(tmp_path, "b.srt", SRT)


def test_old_code_page(tmp_path: Path) -> None:
    words = read(tmp_path, "a.srt", "1\n00:00:01,000 --> 00:00:02,000\ncafé\n".encode("latin-1"))
    assert words == [Word("café", 1.0, 2.0)]


def test_plain_text(tmp_path: Path) -> None:
    words = read(tmp_path, "a.TXT", "\ufeffIt was\r\ngreat -->")
    assert [w.text for w in words] == ["It", "was", "great", "-->"]
    assert [w.end_s for w in words] == pytest.approx([0.4, 0.8, 1.2, 1.6])


def test_overlapping_cues_are_merged_by_time(tmp_path: Path) -> None:
    words = read(
        tmp_path, "a.srt", "00:00:00,000 --> 00:00:04,000\na b\n\n00:00:00,000 --> 00:00:03,000\nc\n"
    )
    assert [w.text for w in words] == ["a", "c", "b"]


def test_missing_blank_line_and_missing_numbers(tmp_path: Path) -> None:
    text = "1\n00:01 --> 00:02\n"
    assert refused(tmp_path, "a.srt", text).code == "transcript.malformed"
    words = read(
        tmp_path,
        "b.srt",
        "1\n00:00:01,0 --> 00:00:02,0\none 99\n"
        "2\n00:00:02,0 --> 00:00:03,0\ntwo\n"
        "00:00:03,0 --> 00:00:04,0\nthree",
    )
    assert [(w.text, w.start_s) for w in words] == [("one", 1.0), ("99", 1.5), ("two", 2.0), ("three", 3.0)]


def test_cue_without_duration(tmp_path: Path) -> None:
    assert read(tmp_path, "a.vtt", "WEBVTT\n\n00:01.000 --> 00:01.000\nhi\n") == [Word("hi", 1.0, 1.0)]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("1\n00:00:03,000 --> 00:00:01,000\nx\n", 2),
        ("1\n00:00:03,000 --> 00:00:04,000\nx\n\n2\n00:00:01,000 --> 00:00:02,000\ny\n", 6),
        ("\ufeff\r\n1\r\n00:00:03,000 --> 00:00:01,000\r\nx\r\n", 3),
    ],
)
def test_backwards_times(tmp_path: Path, text: str, line: int) -> None:
    error = refused(tmp_path, "a.srt", text)
    assert error.code == "transcript.backwards_time"
    assert f"line {line}:" in error.message


@pytest.mark.parametrize("cue", ["00:00:01 --> 00:00:02", "0:61:00,000 --> 0:62:00,000", "a --> b", "-->"])
def test_malformed_times(tmp_path: Path, cue: str) -> None:
    error = refused(tmp_path, "a.srt", f"1\n{cue}\nx\n")
    assert error.code == "transcript.malformed"
    assert "line 2:" in error.message


@pytest.mark.parametrize("name", ["a.srt", "a.vtt", "a.txt"])
def test_empty(tmp_path: Path, name: str) -> None:
    for text in ("", "\ufeff", " \n\n"):
        assert refused(tmp_path, name, text).code == "transcript.empty"
    assert refused(tmp_path, "b.vtt", "WEBVTT\n\n00:01.000 --> 00:02.000\n♪\n").code == "transcript.empty"


def test_other_files(tmp_path: Path) -> None:
    assert refused(tmp_path, "a.doc", "x").code == "transcript.format"
    assert refused(tmp_path, "a", "x").code == "transcript.format"
    assert refused(tmp_path, "a.txt", b"\x00\x01\x02").code == "transcript.not_text"
    with pytest.raises(AffectError) as caught:
        read_transcript(tmp_path / "none.srt")
    assert caught.value.code == "transcript.not_found"
    (tmp_path / "folder.srt").mkdir()
    with pytest.raises(AffectError) as caught:
        read_transcript(tmp_path / "folder.srt")
    assert caught.value.code == "transcript.unreadable"


@given(
    content=st.one_of(st.text(), st.text(alphabet="0123:,.->\n\r ax<>{}&;")),
    kind=st.sampled_from(["srt", "vtt"]),
)
def test_any_text_gives_words_or_a_code(
    tmp_path_factory: pytest.TempPathFactory, content: str, kind: str
) -> None:
    path = tmp_path_factory.getbasetemp() / f"fuzz.{kind}"
    path.write_text(content, encoding="utf-8", newline="")
    try:
        words = read_transcript(path)
    except AffectError as error:
        assert error.code.startswith("transcript.")
    else:
        assert words == sorted(words, key=lambda w: w.end_s)
        assert all(word.text.strip() == word.text != "" for word in words)
