"""``affectrt analyze``: a video, sound or text file in, an emotion timeline out."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from math import floor, isfinite
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

from affectrt.affect import Affect
from affectrt.cli import Command, render
from affectrt.cli.bundles import add_backend_option, add_bundle_option, find_bundle
from affectrt.cli.output import output_file, progress, wants_colour, warn
from affectrt.cli.profile import LOADING, profile_text
from affectrt.errors import AffectError
from affectrt.features.text import Word, words_of
from affectrt.profiling import StageTimer
from affectrt.streaming.core import StreamCore
from affectrt.streaming.watch import STATES

if TYPE_CHECKING:
    from affectrt.media import Media
    from affectrt.model import Model


FORMATS = ("table", "jsonl", "csv", "png")
TEXT_SUFFIXES = (".txt", ".srt", ".vtt")
ASR_ENGINES = ("pocketsphinx",)

SHORTEST_S = 0.01
"""Rows closer than this, or over less than this, say nothing about a person."""

_POLL_S = 1.0
"""Results are computed at least this often in media time, so that little is ever buffered."""
_SLACK_S = 0.1
"""How far reading goes past a result before computing it: sound and pictures come in chunks, not in step."""


@dataclass(frozen=True)
class Analysis:
    """What came of a file."""

    rows: list[Affect]
    """The timeline."""
    duration_s: float
    """How much of the file there was."""
    elapsed_s: float
    """How long it took, without loading the model."""
    warnings: list[str]
    """What is wrong with the file, one line each."""
    backend: str
    """What ran the fusion model."""


def analyze_media(
    model: Model,
    path: Path,
    words: Callable[[Media], Sequence[Word]],
    *,
    every_s: float,
    window_s: float | None,
    timer: StageTimer,
) -> Analysis:
    """The timeline of a video or sound file. ``words`` yields what is said in it, in order of time."""
    from affectrt.media import AudioChunk, Media

    start = perf_counter()
    rows: list[Affect] = []
    with ExitStack() as stack:
        sound, rate_hz = model.manifest.extracts("audio"), model.encoders.frame_rate_hz
        if not sound and rate_hz is None:
            raise model.manifest.no_extractor("vision")
        media = stack.enter_context(
            Media.open(path, max_video_rate_hz=rate_hz, audio=sound, video=rate_hz is not None)
        )
        waiting = list(words(media))
        stream = StreamCore(model, window_s, every_s, timer=timer)
        update = stack.enter_context(progress(path.name, media.duration_s, "s"))
        items = iter(media)
        end_s, polled = 0.0, 0
        while True:
            with timer.stage("decode"):
                item = next(items, None)
            if item is None:
                break
            waiting = _push_until(stream, waiting, item.time_s)
            if isinstance(item, AudioChunk):
                stream.push_audio(item.pcm, item.sample_rate_hz, item.time_s)
                end_s = max(end_s, item.time_s + len(item.pcm) / item.sample_rate_hz)
            else:
                stream.push_frame(item.bgr, item.time_s)
                end_s = max(end_s, item.time_s)
            slot = floor((item.time_s - _SLACK_S) / min(every_s, _POLL_S))
            if slot > polled:
                polled = slot
                rows += stream.poll()
                update(item.time_s)
        # A word that ends a little after the sound was still said in it.
        late = [word for word in waiting if word.start_s >= end_s]
        _push_until(stream, waiting[: len(waiting) - len(late)], float("inf"))
        rows += stream.flush()
        warnings = list(media.warnings) + _faults(rows, stream)
    if late:
        warnings.append(f"{len(late)} words of the transcript come after the end of {path} and are left out")
    return Analysis(rows, end_s, perf_counter() - start, warnings, model.backend)


def analyze_words(
    model: Model, words: Sequence[Word], *, every_s: float, window_s: float | None, timer: StageTimer
) -> Analysis:
    """The timeline of a text."""
    start = perf_counter()
    rows: list[Affect] = []
    end_s = max((word.end_s for word in words), default=0.0)
    stream = StreamCore(model, window_s, every_s, timer=timer)
    with progress("text", end_s, "s") as update:
        for word in words:
            stream.push_word(word)
            rows += stream.poll()
            update(word.end_s)
        rows += stream.flush()
    return Analysis(rows, end_s, perf_counter() - start, _faults(rows, stream), model.backend)


def _faults(rows: Sequence[Affect], stream: StreamCore) -> list[str]:
    """What went wrong; that somebody falls silent or a track ends early is seen in the rows."""
    events = [*(event for row in rows for event in row.events), *stream.untold]
    return [event.message for event in events if event.code not in STATES]


def _push_until(stream: StreamCore, words: Sequence[Word], time_s: float) -> list[Word]:
    """Push the words that end by ``time_s``; return the others."""
    for k, word in enumerate(words):
        if word.end_s > time_s:
            return list(words[k:])
        stream.push_word(word)
    return []


def render_rows(form: str, analysis: Analysis, *, title: str, every_s: float, colour: bool) -> bytes:
    """The timeline in one of :data:`FORMATS`."""
    if form == "png":
        from affectrt.cli.plot import timeline_png

        return timeline_png(analysis.rows, title=title, every_s=every_s)
    if form == "table":
        return render.table(analysis.rows, title=title, colour=colour).encode()
    return (render.jsonl if form == "jsonl" else render.csv_text)(analysis.rows).encode()


def _form(args: argparse.Namespace) -> tuple[str, Path | None]:
    """Format and output file: each can tell the other."""
    form, output = args.format, args.output
    if form is None:
        suffix = output.suffix.lower().lstrip(".") if output is not None else ""
        form = suffix if suffix in FORMATS else "table"
    if form == "png" and output is None:
        output = Path(f"{args.file.stem}.affect.png")
    return form, output


def _run(args: argparse.Namespace) -> int:
    is_text = args.file.suffix.lower() in TEXT_SUFFIXES
    if is_text and (args.transcript or args.asr):
        raise AffectError(
            "cli.usage", f"{args.file} is itself the text; --transcript and --asr go with media"
        )
    form, output = _form(args)
    timer = StageTimer(enabled=args.profile)
    with ExitStack() as stack:
        write = stack.enter_context(output_file(output)) if output is not None else None
        analysis = _analyze(args, timer, is_text=is_text)
        for warning in analysis.warnings:
            warn(warning)
        if not analysis.rows:
            raise AffectError("analyze.nothing", f"{args.file}: there is nothing in it to analyse")
        title = f"{args.file.name} · {analysis.duration_s:.1f} s"
        colour = write is None and wants_colour()
        data = render_rows(form, analysis, title=title, every_s=args.every, colour=colour)
        if write is not None:
            write(data)
        else:
            print(data.decode(), end="")
    if output is not None:
        print(f"affectrt: wrote {output}", file=sys.stderr)
    if args.profile:
        # Beside the table it is read by the same person; other formats are read by programs.
        on_stdout = form == "table" and output is None
        print(
            profile_text(timer, analysis.elapsed_s, analysis.duration_s, analysis.backend),
            file=sys.stdout if on_stdout else sys.stderr,
        )
    return 0


def _analyze(args: argparse.Namespace, timer: StageTimer, *, is_text: bool) -> Analysis:
    from affectrt.model import load
    from affectrt.transcript import read_transcript

    words: list[Word] = []
    if is_text or args.transcript:
        words = read_transcript(args.file if is_text else args.transcript)
    bundle = find_bundle(args.bundle)
    with timer.stage(LOADING):
        model = load(bundle, backend=args.backend)
    _require_encoders(model, text=bool(words or args.asr), media=not is_text)
    if is_text:
        return analyze_words(model, words, every_s=args.every, window_s=args.window, timer=timer)

    def words_in(media: Media) -> list[Word]:
        if args.asr:
            with timer.stage("speech recognition"):
                return _recognise(media)
        if args.transcript and args.transcript.suffix.lower() == ".txt" and media.duration_s:
            # Plain text tells no times: it is spread over the recording.
            return words_of(" ".join(word.text for word in words), 0.0, media.duration_s)
        return words

    return analyze_media(model, args.file, words_in, every_s=args.every, window_s=args.window, timer=timer)


def _require_encoders(model: Model, *, text: bool, media: bool) -> None:
    """A stream would go on without what is missing; who names a file wants to know before it is read."""
    encoders = model.encoders
    if media:
        _ = encoders.audio_graph, encoders.vision_graph
    if text:
        _ = encoders.text


def _recognise(media: Media) -> list[Word]:
    """What is said in the sound of ``media``; no sound, no words."""
    from affectrt.asr import transcribe
    from affectrt.media import read_audio

    return transcribe(*read_audio(media.path)) if media.has_audio else []


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not (isfinite(value) and value >= SHORTEST_S):
        raise argparse.ArgumentTypeError(f"expected a number of seconds from {SHORTEST_S:g}, got '{text}'")
    return value


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "file", metavar="FILE", type=Path, help="a video, a sound file or a text (.txt, .srt, .vtt)"
    )
    add_bundle_option(parser)
    add_backend_option(parser)
    words = parser.add_mutually_exclusive_group()
    words.add_argument(
        "--transcript",
        metavar="FILE",
        type=Path,
        help="what is said: .srt or .vtt with times, or plain .txt, spread over the recording",
    )
    words.add_argument("--asr", choices=ASR_ENGINES, help="recognise what is said, on this machine (English)")
    parser.add_argument(
        "--format", choices=FORMATS, help="default: what the ending of --output says, else table"
    )
    parser.add_argument(
        "-o", "--output", metavar="OUT", type=Path, help="write there (png without it: FILE.affect.png here)"
    )
    parser.add_argument(
        "--every", metavar="S", type=_seconds, default=1.0, help="seconds from row to row (default: 1)"
    )
    parser.add_argument(
        "--window", metavar="S", type=_seconds, help="seconds each row rests on (default: the model's own)"
    )
    parser.add_argument("--profile", action="store_true", help="tell where the time goes, stage by stage")


COMMAND = Command(
    summary="Read how a person in a video, sound or text file feels, moment by moment.",
    add_arguments=_add_arguments,
    run=_run,
    examples="""\
examples:
  affectrt analyze interview.mp4
  affectrt analyze interview.mp4 --transcript interview.srt -o interview.png
  affectrt analyze call.wav --asr pocketsphinx --format jsonl | jq .sentiment
  affectrt analyze interview.mp4 --profile
""",
)
