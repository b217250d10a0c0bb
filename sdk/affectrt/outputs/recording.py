"""Results in a file, one JSON object a line (``Affect.to_dict``), and back. No sound, no picture, no word."""

from __future__ import annotations

import json
from collections.abc import Iterator
from math import isfinite, nextafter
from pathlib import Path
from typing import Any

from affectrt.affect import EMOTIONS, MODALITIES, Affect, Event
from affectrt.errors import AffectError


class Recording:
    """An output to a file, line by line, so that a killed process leaves whole results.

    An older recording there goes with the first result, not before: a run that comes to nothing costs none.
    """

    def __init__(self, path: Path) -> None:
        """Raises ``output.unwritable``."""
        self.name = f"recording {path}"
        try:
            self._file = path.open("a", encoding="utf-8", buffering=1)
            self._older = path.is_file()
        except OSError as error:
            raise AffectError(
                "output.unwritable",
                f"can't write the recording '{path}' ({error.strerror}); check that its folder exists and is "
                f"yours",
            ) from error

    def send(self, affect: Affect) -> None:
        """As :meth:`affectrt.outputs.output.Output.send`."""
        if self._older:
            self._file.truncate(0)
            self._older = False
        self._file.write(json.dumps(affect.to_dict()) + "\n")

    def close(self) -> None:
        """As :meth:`affectrt.outputs.output.Output.close`."""
        self._file.close()


def read_recording(path: Path) -> Iterator[Affect]:
    """The results of a recording, in its order.

    Raises ``recording.unreadable``, and ``recording.malformed`` with the line that isn't a result.
    """
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                try:
                    yield _affect(json.loads(line))
                except (ValueError, KeyError, TypeError, AttributeError) as error:
                    raise AffectError(
                        "recording.malformed",
                        f"recording {path}, line {number}: expected a result as --record writes it "
                        f"({error!r}); remove the line or record again",
                    ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise AffectError("recording.unreadable", f"recording {path}: can't be read ({error})") from error


def _affect(told: dict[str, Any]) -> Affect:
    low, high = told["interval"]
    emotions = {name: _number(told["emotions"][name]) for name in EMOTIONS}
    top = told["emotion"]
    if max(emotions, key=emotions.__getitem__) != top:
        # Equal once they were rounded for the file; which was greater is told by "emotion".
        emotions[top] = nextafter(emotions[top], 2.0)
    contributions = {m: _number(told["contributions"][m]) for m in MODALITIES if m in told["contributions"]}
    return Affect(
        time_s=_number(told["time_s"]),
        sentiment=_number(told["sentiment"]),
        interval=(_number(low), _number(high)),
        emotions=emotions,
        contributions=contributions,
        present=frozenset(m for m in MODALITIES if m in told["present"]),
        latency_ms=_number(told["latency_ms"]),
        events=tuple(
            Event(_number(event["time_s"]), str(event["code"]), str(event["message"]))
            for event in told["events"]
        ),
    )


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not isfinite(value):
        raise ValueError(f"expected a number, got {value!r}")
    return float(value)
