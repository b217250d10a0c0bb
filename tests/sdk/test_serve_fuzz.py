"""Seconds of what ``python -m benchmarks.fuzz_protocol`` does for minutes, and what hypothesis finds."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

import affectrt
from affectrt.errors import AffectError
from affectrt.serving import protocol
from affectrt.serving.jpeg import decode_jpeg
from benchmarks.fuzz_protocol import Fuzzer, binary_message, text_message
from tests.sdk.serving import jpeg_of

JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=4,
)


def refused(parse: Callable[[Any], object], data: Any) -> bool:
    """Whether it is, with a code; anything else than an AffectError fails the test."""
    try:
        parse(data)
    except AffectError as error:
        assert error.code.split(".")[0] in ("protocol", "vision")
        return True
    return False


def test_conversations_leave_the_others_alone(tiny_model: affectrt.Model) -> None:
    fuzzer = Fuzzer(tiny_model)
    fuzzer.run(0, lambda number: number < 25)
    assert fuzzer.messages > 200
    assert {"protocol.json", "protocol.field", "protocol.version"} <= fuzzer.codes.keys()


def test_most_fuzzed_messages_come_past_the_parser() -> None:
    chance = random.Random(0)
    told = [refused(protocol.parse_binary, binary_message(chance)) for _ in range(300)]
    assert 0.1 < sum(told) / len(told) < 0.7
    told = [refused(protocol.parse_json, text_message(chance)) for _ in range(300)]
    assert 0.1 < sum(told) / len(told) < 0.9


@settings(max_examples=300)
@given(data=st.binary(max_size=100))
def test_any_bytes_are_a_message_or_refused(data: bytes) -> None:
    refused(protocol.parse_binary, data)
    protocol.sequence_of(data)


@settings(max_examples=60)
@given(text=st.text() | JSON.map(str), kind=st.sampled_from(["text", "hello", "flush"]), value=JSON)
def test_any_text_is_a_message_or_refused(text: str, kind: str, value: object) -> None:
    refused(protocol.parse_json, text)
    for field in ("text", "version", "start_s", "token"):
        refused(protocol.parse_json, json.dumps({"type": kind, field: value}))


@settings(max_examples=150)
@given(cut=st.integers(0, 2000), place=st.integers(0, 1500), put=st.binary(max_size=8))
def test_any_picture_is_decoded_or_refused(cut: int, place: int, put: bytes) -> None:
    whole = jpeg_of()
    bent = whole[:place] + put + whole[place + len(put) :]
    for data in (whole[:cut], bent):
        if not refused(decode_jpeg, data):
            assert decode_jpeg(data).ndim == 3
