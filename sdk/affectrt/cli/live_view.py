"""How ``affectrt live`` shows itself: a dashboard on a terminal, else lines or JSON."""

from __future__ import annotations

import json
import sys
from collections import deque
from collections.abc import Sequence
from time import monotonic
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol

from affectrt.affect import EMOTIONS, MODALITIES, SENTIMENT_LIMIT, Affect, Event
from affectrt.cli import render
from affectrt.cli.output import warn
from affectrt.errors import require
from affectrt.streaming.statistics import StreamStatistics

if TYPE_CHECKING:
    from affectrt.sources.source import Source

SENSED_BY = {"text": "words", "audio": "voice", "vision": "face"}

_HISTORY = 56
_EVENTS = 4
_PAUSE_S = 0.1
_BAR = 24
_STEPS = "▁▂▃▄▅▆▇█"
_HUES = {"on": "bold green", "waiting": "yellow", "lost": "bold red", "over": "dim", "off": "dim"}


class Shown(Protocol):
    """What a view asks."""

    @property
    def sources(self) -> Sequence[Source]:
        """What is sensing."""

    def statistics(self) -> StreamStatistics | None:
        """How it goes."""


class View(Protocol):
    """Shows a run. A context manager."""

    def __enter__(self) -> View: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def show(self, item: Affect | Event) -> None:
        """The next thing that came."""


class Lines:
    """One line a result on stdout; events on stderr."""

    def __init__(self, *, as_json: bool) -> None:
        self._as_json = as_json

    def __enter__(self) -> Lines:
        if not self._as_json:
            print(render.heading(), flush=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return

    def show(self, item: Affect | Event) -> None:
        """As :meth:`View.show`. Flushed: who reads a pipe reads now."""
        if isinstance(item, Event):
            warn(f"{render.clock(item.time_s)} {item.code}: {item.message}")
        else:
            print(json.dumps(item.to_dict()) if self._as_json else render.table_row(item), flush=True)


class Dashboard:
    """A full picture that is drawn anew with what comes, ten times a second at most."""

    def __init__(self, shown: Shown, notice: Sequence[str]) -> None:
        """``notice``: what is sensed and where it goes, one line each. Raises ``extra.missing``."""
        self._shown = shown
        self._notice = notice
        self._affect: Affect | None = None
        self._history: deque[float | None] = deque(maxlen=_HISTORY)
        self._events: deque[Event] = deque(maxlen=_EVENTS)
        self._drawn_at = 0.0
        # Drawn here, not by rich's own thread, which would outlive the stream.
        self._live: Any = require("rich.live", "live").Live(get_renderable=self.frame, auto_refresh=False)

    def __enter__(self) -> Dashboard:
        self._live.start(refresh=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def show(self, item: Affect | Event) -> None:
        """As :meth:`View.show`."""
        if isinstance(item, Event):
            self._events.append(item)
        else:
            self._affect = item
            self._history.append(item.sentiment if item.present else None)
        if monotonic() >= self._drawn_at + _PAUSE_S:
            self._drawn_at = monotonic()
            self._live.refresh()

    def frame(self) -> Any:
        """The picture now, for rich."""
        text: Any = require("rich.text", "live").Text
        lines = [self._sensing(text), *(text(line, style="dim") for line in self._notice), text("")]
        lines += self._result(text, self._affect)
        lines += [text(""), text(self._numbers(), style="dim")]
        lines += [
            text(f"{render.clock(event.time_s):>9}  {event.code}: {event.message}", style="yellow")
            for event in self._events
        ]
        for line in lines:
            line.no_wrap, line.overflow = True, "ellipsis"
        return require("rich.console", "live").Group(*lines)

    def _sensing(self, text: Any) -> Any:
        if not self._shown.sources:
            return text("○ nothing is sensed", style="bold")
        found = text("")
        on = any(source.state == "on" for source in self._shown.sources)
        found.append("● SENSING" if on else "○ not sensing", style="bold red" if on else "bold")
        for source in self._shown.sources:
            found.append(f"  {source.name} ")
            found.append(source.state, style=_HUES[source.state])
        return found

    def _result(self, text: Any, affect: Affect | None) -> list[Any]:
        if affect is None:
            return [text("waiting for the first result …")]
        if not affect.present:
            head = text(f"{render.clock(affect.time_s):>9}  nothing sensed: no words, no voice, no face")
        else:
            low, high = affect.interval
            head = text(
                f"{render.clock(affect.time_s):>9}  sentiment {affect.sentiment:+.2f}  "
                f"{low:+.2f} … {high:+.2f}  {render.sentiment_bar(affect.sentiment, affect.interval)}",
                style="bold",
            )
        lamps = text("           present  ")
        for modality in MODALITIES:
            there = modality in affect.present
            lamps.append(f"{'●' if there else '○'} {SENSED_BY[modality]}  ", "green" if there else "dim")
        lines = [head, text(f"           so far   {history(self._history)}"), lamps, text("")]
        for name in EMOTIONS:
            share = affect.emotions[name] if affect.present else 0.0
            style = "bold" if affect.present and name == affect.emotion else ""
            lines.append(text(f"{name:>19}  {'█' * round(share * _BAR):<{_BAR}} {share:>4.0%}", style=style))
        return lines

    def _numbers(self) -> str:
        told = self._shown.statistics()
        if told is None:
            return "           a replay: nothing is computed"
        latency = "–"
        if told.latency is not None:
            latency = f"p50 {told.latency.p50_ms:.0f} ms, p95 {told.latency.p95_ms:.0f} ms"
        dropped = sum(told.dropped.values())
        return (
            f"           latency {latency} · {told.results} results · dropped: {dropped} inputs, "
            f"{told.dropped_results} results"
        )


def history(sentiments: Sequence[float | None]) -> str:
    """A line of blocks, from very negative to very positive; ``·`` where nothing was sensed."""

    def block(sentiment: float) -> str:
        share = (sentiment + SENTIMENT_LIMIT) / (2 * SENTIMENT_LIMIT)
        return _STEPS[min(int(share * len(_STEPS)), len(_STEPS) - 1)]

    return "".join("·" if s is None else block(s) for s in sentiments)


def view_for(shown: Shown, notice: Sequence[str], *, as_json: bool) -> View:
    """A dashboard on a terminal; else lines, with the notice on stderr."""
    if sys.stdout.isatty() and not as_json:
        return Dashboard(shown, notice)
    print(*(f"affectrt: {line}" for line in notice), sep="\n", file=sys.stderr, flush=True)
    return Lines(as_json=as_json)
