"""``affectrt live``: a camera, a microphone, and how the person before them feels, now."""

from __future__ import annotations

import argparse
from contextlib import ExitStack
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING

from affectrt.affect import Modality
from affectrt.cli import Command
from affectrt.cli.bundles import add_backend_option, add_bundle_option, add_mode_option, find_bundle
from affectrt.errors import AffectError
from affectrt.features.text import Word

if TYPE_CHECKING:
    from affectrt.live import Live, Replay
    from affectrt.manifest import Manifest
    from affectrt.model import Model
    from affectrt.outputs.output import Output
    from affectrt.sources.source import Capture

OFF = "off"


def _run(args: argparse.Namespace) -> int:
    from affectrt.cli.live_view import view_for

    _check(args)
    with ExitStack() as stack:
        try:
            outputs, goes_to = _outputs(args, stack)
            feed = _feed(args, outputs)
            # Told before anything is sensed.
            view = stack.enter_context(view_for(feed, [_notice(args, feed), goes_to], as_json=args.json))
            stack.enter_context(feed)
            for item in feed.results(args.seconds):
                view.show(item)
        except KeyboardInterrupt:
            # How a live command is meant to end.
            pass
    return 0


def _check(args: argparse.Namespace) -> None:
    """Refuse what contradicts itself."""
    wrong = None
    devices = args.camera is not None or args.microphone is not None
    if args.replay is not None and (devices or args.file or args.asr or args.transcript or args.record):
        wrong = "--replay shows what was recorded; leave out what senses, --transcript, --asr and --record"
    elif args.file is not None and devices:
        wrong = "--file stands for camera and microphone; leave these out"
    elif args.transcript is not None and args.file is None:
        wrong = "--transcript goes with --file: nobody knows yet what will be said"
    elif args.replay is not None and args.mode != "window":
        wrong = "--replay computes nothing anew; leave out --mode"
    elif args.mode == "incremental" and args.window is not None:
        wrong = "--mode incremental looks back as far as its model learned; leave out --window"
    elif args.transcript is not None and args.asr is not None:
        wrong = "--transcript and --asr both tell what is said; choose one"
    if wrong is not None:
        raise AffectError("cli.usage", f"live: {wrong}")


def _feed(args: argparse.Namespace, outputs: list[Output]) -> Live | Replay:
    from affectrt.live import Live, Replay

    if args.replay is not None:
        return Replay(args.replay, outputs)
    from affectrt.model import load

    if args.asr is not None:
        from affectrt.listening import recogniser_of

        recogniser = recogniser_of(args.asr)
    else:
        recogniser = None
    words = _words(args)
    model = load(find_bundle(args.bundle), backend=args.backend)
    sources = _sources(args, model, words)
    for source in sources:
        source.check()
    return Live(
        model,
        sources,
        outputs,
        hop_s=args.every,
        window_s=args.window,
        mode=args.mode,
        recogniser=recogniser,
    )


def _words(args: argparse.Namespace) -> list[Word]:
    """Of the transcript that was named, or of subtitles that lie beside the file."""
    from affectrt.transcript import read_transcript

    if args.transcript is not None:
        return read_transcript(args.transcript)
    if args.file is not None and args.asr is None:
        for suffix in (".srt", ".vtt"):
            if args.file.with_suffix(suffix).is_file():
                return read_transcript(args.file.with_suffix(suffix))
    return []


def _sources(args: argparse.Namespace, model: Model, words: list[Word]) -> list[Capture]:
    """What was asked for, as far as the model can make something of it: nothing is sensed for nothing."""
    hears, sees = model.manifest.extracts("audio"), model.manifest.extracts("vision")
    if args.file is not None:
        from affectrt.sources.file import FileSource

        if not (hears or sees):
            raise model.manifest.no_extractor("vision")
        rate_hz = model.encoders.frame_rate_hz
        return [FileSource(args.file, words, audio=hears, video=sees, max_video_rate_hz=rate_hz)]
    camera = _wanted(args.camera, "0", model.manifest, "vision")
    by_network = camera is not None and "://" in camera
    # A network camera has a microphone of its own.
    microphone = _wanted(args.microphone, OFF if by_network else "default", model.manifest, "audio")
    found: list[Capture] = []
    if camera is not None:
        found.append(_camera(camera, audio=hears and args.microphone is None))
    if microphone is not None:
        from affectrt.sources.microphone import Microphone

        found.append(Microphone(microphone))
    if not found:
        raise AffectError(
            "live.nothing",
            "live: camera and microphone are both off, or of no use to this model; turn one on",
        )
    return found


def _wanted(asked: str | None, default: str, manifest: Manifest, modality: Modality) -> str | None:
    """The device to use, if any. Raises ``model.no_extractor`` when one is asked for in vain."""
    if asked == OFF or (asked is None and default == OFF):
        return None
    if not manifest.extracts(modality):
        if asked is None:
            return None
        raise manifest.no_extractor(modality)
    return asked or default


def _camera(asked: str, *, audio: bool) -> Capture:
    if "://" in asked:
        from affectrt.sources.network import NetworkSource

        return NetworkSource(asked, audio=audio)
    if not asked.isdecimal():
        raise AffectError(
            "cli.usage", f"live: expected --camera with a number, a URL or off, got '{asked}'; files: --file"
        )
    from affectrt.sources.camera import Camera

    return Camera(int(asked))


def _outputs(args: argparse.Namespace, stack: ExitStack) -> tuple[list[Output], str]:
    """Where results go, and that in words."""
    found: list[Output] = []
    if args.osc is not None:
        from affectrt.outputs.osc import OscOutput, address

        found.append(OscOutput(*address(args.osc)))
        stack.callback(found[-1].close)
    if args.lsl is not None:
        from affectrt.outputs.lsl import LslOutput

        found.append(LslOutput(args.lsl, args.every))
        stack.callback(found[-1].close)
    if args.record is not None:
        from affectrt.outputs.recording import Recording

        found.append(Recording(args.record))
        stack.callback(found[-1].close)
    if not found:
        return found, "Nothing is stored, nothing leaves this device. Ctrl-C ends it."
    names = ", ".join(output.name for output in found)
    return found, f"Results go to {names}; sound, pictures and words are not stored. Ctrl-C ends it."


def _notice(args: argparse.Namespace, feed: Live | Replay) -> str:
    """What is sensed."""
    if args.replay is not None:
        return f"A replay of {args.replay}: nothing is sensed."
    if args.file is not None:
        return f"{feed.sources[0].name}, as if it were happening now."
    names = " and ".join(source.name for source in feed.sources)
    return f"Sensing how a person appears to feel, by {names}: only of people who agreed."


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not (isfinite(value) and value > 0.0):
        raise argparse.ArgumentTypeError(f"expected a number of seconds above 0, got '{text}'")
    return value


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add_bundle_option(parser)
    add_backend_option(parser)
    parser.add_argument(
        "--camera", metavar="N|URL|off", help="number of a camera, or rtsp://… (default: 0, when none is off)"
    )
    parser.add_argument(
        "--microphone",
        metavar="NAME|off",
        help="part of its name, its number, or default (default: default; off for the sound of a camera URL)",
    )
    parser.add_argument(
        "--file", metavar="CLIP", type=Path, help="a file instead, as if it were happening now"
    )
    parser.add_argument(
        "--transcript",
        metavar="FILE",
        type=Path,
        help="what is said in --file (default: the .srt or .vtt beside it)",
    )
    parser.add_argument(
        "--asr",
        metavar="pocketsphinx|sherpa:DIR",
        help="understand what is said, on this machine: English, or the sherpa-onnx model in DIR",
    )
    parser.add_argument(
        "--every",
        metavar="S",
        type=_seconds,
        default=0.5,
        help="seconds from result to result (default: 0.5)",
    )
    parser.add_argument(
        "--window", metavar="S", type=_seconds, help="seconds each result rests on (default: the model's own)"
    )
    add_mode_option(parser)
    parser.add_argument("--seconds", metavar="N", type=_seconds, help="end after so long (default: Ctrl-C)")
    parser.add_argument("--json", action="store_true", help="JSON lines on stdout, for pipes")
    parser.add_argument(
        "--record", metavar="OUT.jsonl", type=Path, help="write the results, and nothing else, to a file"
    )
    parser.add_argument(
        "--replay", metavar="OUT.jsonl", type=Path, help="show a recording at its pace; nothing is sensed"
    )
    parser.add_argument("--osc", metavar="HOST:PORT", help="send results by Open Sound Control, too")
    parser.add_argument("--lsl", metavar="NAME", help="send results to the Lab Streaming Layer, too")


COMMAND = Command(
    summary="Read how the person before camera and microphone feels, now; nothing is stored.",
    add_arguments=_add_arguments,
    run=_run,
    examples="""\
examples:
  affectrt live
  affectrt live --camera rtsp://192.168.1.20/stream --asr pocketsphinx
  affectrt live --camera off --microphone USB --json | jq .sentiment
  affectrt live --mode incremental --every 0.1
  affectrt live --file demo/clip.mp4 --record out.jsonl
  affectrt live --replay out.jsonl --osc 127.0.0.1:9000
""",
)
