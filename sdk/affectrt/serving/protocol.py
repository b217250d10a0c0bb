"""What goes over the WebSocket, version 1. ``docs/protocol.md`` is its specification.

Binary messages are a header of 24 bytes, little-endian, and sound or a picture; everything else is JSON.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import isfinite
from typing import Any, Literal, NoReturn, cast, get_args

import numpy as np
import numpy.typing as npt

from affectrt.errors import AffectError
from affectrt.streaming.mode import StreamMode

VERSION = 1
SUBPROTOCOL = f"affectrt.v{VERSION}"

MAX_MESSAGE_BYTES = 2 * 2**20
"""Of one message; a longer one ends the connection."""
MAX_JSON_BYTES = 64 * 2**10
MAX_TEXT_CHARS = 4000
MAX_TIME_S = 1e10
"""Times lie within ± this, which has room for seconds since 1970."""

HEADER = struct.Struct("<BBHIdII")
"""Kind, version, channels, sequence, time in seconds (NaN: now), sample rate in Hz, zero."""

PCM_S16, PCM_F32, JPEG = 1, 2, 3
_SAMPLES: Mapping[int, np.dtype[Any]] = {PCM_S16: np.dtype("<i2"), PCM_F32: np.dtype("<f4")}
MAX_CHANNELS = 8

# How the server ends a connection; 1000, 1009 and 1012 are the WebSocket's own.
CLOSE_PROTOCOL, CLOSE_TOKEN, CLOSE_SLOW, CLOSE_IDLE, CLOSE_FULL = 4000, 4001, 4002, 4003, 4004


@dataclass(frozen=True)
class Hello:
    """The first message of a client."""

    token: str | None
    hop_s: float | None
    """Seconds from result to result; None: the server's own."""
    window_s: float | None
    """Seconds that a result rests on; None: the model's own."""
    mode: StreamMode
    """How results are computed."""


@dataclass(frozen=True)
class Words:
    """Something that was said."""

    text: str
    start_s: float | None
    end_s: float | None


@dataclass(frozen=True)
class Control:
    """Something for the stream to do."""

    name: Literal["flush", "reset"]


@dataclass(frozen=True)
class Sound:
    """Samples, as they came."""

    pcm: npt.NDArray[np.generic]
    """(N, channels), int16 or float32."""
    sample_rate: int
    """In Hz."""
    time_s: float | None
    """Of the first sample; None: it was heard until now."""


@dataclass(frozen=True)
class Picture:
    """A picture, not decoded yet."""

    jpeg: bytes
    time_s: float | None
    """When it was captured; None: now."""


Message = Hello | Words | Control | Sound | Picture


def _refuse(code: str, expected: str, got: object) -> NoReturn:
    raise AffectError(f"protocol.{code}", f"protocol: expected {expected}, got {got}; see docs/protocol.md")


def sequence_of(data: bytes) -> int | None:
    """The number that the client gave a binary message, if it has a header."""
    return HEADER.unpack_from(data)[3] if len(data) >= HEADER.size else None


def parse_binary(data: bytes) -> Sound | Picture:
    """Raises ``protocol.header``, ``protocol.version``, ``protocol.kind``, ``protocol.time``,
    ``protocol.payload``."""
    if len(data) < HEADER.size:
        _refuse("header", f"a header of {HEADER.size} bytes", f"{len(data)} bytes")
    kind, version, channels, _, time, sample_rate, zero = HEADER.unpack_from(data)
    if version != VERSION:
        _refuse("version", f"version {VERSION}", version)
    # NaN alone stands for "now"; infinity is a mistake.
    time_s = None if time != time else time
    if time_s is not None and not abs(time_s) <= MAX_TIME_S:
        _refuse("time", f"a time within ±{MAX_TIME_S:.0e} s, or NaN for now", time_s)
    if zero:
        _refuse("header", "zero in the last four bytes of the header", zero)
    payload = memoryview(data)[HEADER.size :]
    if kind == JPEG:
        if channels or sample_rate:
            _refuse("header", "neither channels nor a sample rate with a picture", (channels, sample_rate))
        return Picture(bytes(payload), time_s)
    if kind not in _SAMPLES:
        _refuse("kind", f"kind {PCM_S16}, {PCM_F32} or {JPEG}", kind)
    if not 1 <= channels <= MAX_CHANNELS:
        _refuse("header", f"1 to {MAX_CHANNELS} channels", channels)
    row_bytes = _SAMPLES[kind].itemsize * channels
    if not payload or len(payload) % row_bytes:
        _refuse("payload", f"a positive multiple of {row_bytes} bytes of samples", f"{len(payload)} bytes")
    pcm = np.frombuffer(payload, _SAMPLES[kind]).reshape(-1, channels)
    return Sound(pcm, sample_rate, time_s)


def pack(
    kind: int,
    payload: bytes,
    *,
    sequence: int = 0,
    time_s: float | None = None,
    sample_rate: int = 0,
    channels: int = 0,
) -> bytes:
    """A binary message, for clients in Python."""
    time = float("nan") if time_s is None else time_s
    return HEADER.pack(kind, VERSION, channels, sequence % 2**32, time, sample_rate, 0) + payload


def parse_json(text: str) -> Hello | Words | Control:
    """Raises ``protocol.json``, ``protocol.type``, ``protocol.field``, ``protocol.version``."""
    if len(text) > MAX_JSON_BYTES:
        _refuse("json", f"JSON of at most {MAX_JSON_BYTES} characters", len(text))
    try:
        fields = json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise AffectError("protocol.json", f"protocol: this is no JSON: {error}") from error
    if not isinstance(fields, dict):
        _refuse("json", "a JSON object", type(fields).__name__)
    name = fields.pop("type", None)
    parse = _PARSERS.get(name) if isinstance(name, str) else None
    if parse is None:
        _refuse("type", f"type {', '.join(_PARSERS)}", _shown(name))
    message = parse(fields)
    if fields:
        _refuse("field", f"no more fields in {name}", _shown(next(iter(fields))))
    return message


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _shown(value: object) -> str:
    text = ascii(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _number(fields: dict[str, Any], name: str) -> float | None:
    value = fields.pop(name, None)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        _refuse("field", f"a number as {name}", _shown(value))
    if not (abs(value) <= MAX_TIME_S and isfinite(value)):
        _refuse("field", f"{name} within ±{MAX_TIME_S:.0e}", _shown(value))
    return float(value)


def _string(fields: dict[str, Any], name: str, limit: int) -> str | None:
    value = fields.pop(name, None)
    if value is None:
        return None
    if not isinstance(value, str) or len(value) > limit:
        _refuse("field", f"{name} to be a string of at most {limit} characters", type(value).__name__)
    if any("\ud800" <= letter <= "\udfff" for letter in value):
        _refuse("field", f"{name} to be Unicode text", "half a surrogate pair")
    return value


def _hello(fields: dict[str, Any]) -> Hello:
    version = fields.pop("version", None)
    if version != VERSION or isinstance(version, bool):
        _refuse("version", f"version {VERSION}", _shown(version))
    token = _string(fields, "token", 1000)
    mode = _string(fields, "mode", 20) or "window"
    if mode not in get_args(StreamMode):
        _refuse("field", "mode to be window or incremental", _shown(mode))
    hello = Hello(token, _number(fields, "hop_s"), _number(fields, "window_s"), cast(StreamMode, mode))
    if mode == "incremental" and hello.window_s is not None:
        _refuse("field", "no window_s with mode incremental, which has its own", _shown(hello.window_s))
    return hello


def _words(fields: dict[str, Any]) -> Words:
    text = _string(fields, "text", MAX_TEXT_CHARS)
    if text is None:
        _refuse("field", "text", "none")
    return Words(text, _number(fields, "start_s"), _number(fields, "end_s"))


_PARSERS: Mapping[str, Callable[[dict[str, Any]], Hello | Words | Control]] = {
    "hello": _hello,
    "text": _words,
    "flush": lambda _: Control("flush"),
    "reset": lambda _: Control("reset"),
}


def error_message(error: AffectError, *, fatal: bool, sequence: int | None = None) -> dict[str, object]:
    """What the client is told; ``fatal``: the connection ends after it."""
    told: dict[str, object] = {"type": "error", "code": error.code, "message": error.message, "fatal": fatal}
    return told if sequence is None else {**told, "sequence": sequence}
