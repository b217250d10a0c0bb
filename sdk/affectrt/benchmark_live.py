"""What live streams cost: in real time, several at once, or one as fast as it goes for hours of media.

Each stream has a thread that pushes as a camera and a microphone would: 25 pictures of 512 × 512 a second,
40 ms of sound with each of them, words as they end. What is pushed was decoded or made up beforehand, so the
processor time is that of pushing and of the streams.
"""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter, process_time, sleep
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from affectrt import machine
from affectrt.affect import Affect, Modality
from affectrt.errors import AffectError, require
from affectrt.features.text import Word, words_of
from affectrt.model import load
from affectrt.streaming.statistics import Quantiles, quantiles
from affectrt.transcript import read_transcript
from affectrt.trial import WORDS

if TYPE_CHECKING:
    from affectrt.encoders import Encoders
    from affectrt.model import Model
    from affectrt.stream import Stream
    from affectrt.streaming.mode import StreamMode

FRAMES_PER_S = 25
SIDE_PX = 512
RATE_HZ = 16_000
SCENE_S = 8.0
"""So much of a clip is decoded, and comes again and again."""

WARM_UP_S = 2.0
"""Before anything is measured: windows fill, libraries allocate."""

Progress = Callable[[float], None]


@dataclass(frozen=True)
class Scene:
    """What a stream is shown and told."""

    pictures: tuple[npt.NDArray[np.uint8], ...]
    """(SIDE_PX, SIDE_PX, 3) BGR, :data:`FRAMES_PER_S` a second."""
    sound: npt.NDArray[np.float32]
    """Of :data:`RATE_HZ`, as long as the pictures."""
    words: tuple[Word, ...]
    """In order of their ends."""
    note: str
    """What it is, for people."""

    @property
    def chunk(self) -> int:
        """Samples that go with a picture."""
        return RATE_HZ // FRAMES_PER_S

    def push(self, stream: Stream, encoders: Encoders, slot: int, time_s: float | None = None) -> None:
        """What belongs to picture number ``slot``, live or from ``time_s`` on."""
        manifest, count = encoders.manifest, len(self.pictures)
        at = slot % count
        if manifest.extracts("vision"):
            stream.push_frame(self.pictures[at], time_s)
        if manifest.extracts("audio"):
            stream.push_audio(self.sound[at * self.chunk : (at + 1) * self.chunk], RATE_HZ, time_s)
        if manifest.extracts("text"):
            start_s, end_s = at / FRAMES_PER_S, (at + 1) / FRAMES_PER_S
            for word in self.words:
                if start_s < word.end_s <= end_s:
                    stream.push_text(word.text, time_s, None if time_s is None else time_s + end_s - start_s)


@dataclass(frozen=True)
class LiveBenchmark:
    """Streams in real time."""

    machine: tuple[str, ...]
    """The machine, versions and date, and a warning if it was busy at the start."""
    backend: str
    scene: str
    """What was pushed."""
    streams: int
    mode: StreamMode
    hop_s: float
    """From result to result that was asked for."""
    seconds: float
    """Measured, after the warm-up."""
    cores_per_stream: float
    """Processor time over time over streams: 1.0 is one core."""
    results_per_s: tuple[float, ...]
    """Of each stream."""
    latency: Quantiles
    """From the capture of the newest input to the result, over all streams."""
    stages: Mapping[str, Quantiles]
    """Stage → time per result, of the first stream."""
    events: Mapping[str, int]
    """Code → how often, over all streams."""


@dataclass(frozen=True)
class Soaked:
    """One step of a soak."""

    media_s: float
    """How much of the person's life has been pushed."""
    rss_bytes: int
    """Memory of the whole process."""
    result_ms: float
    """Time per result in this step, pushing included."""


def measure_live(
    path: str | os.PathLike[str],
    *,
    streams: int = 1,
    seconds: float = 10.0,
    hop_s: float = 0.1,
    mode: StreamMode = "window",
    backend: str | None = None,
    threads: int = 1,
    clip: str | os.PathLike[str] | None = None,
    transcript: str | os.PathLike[str] | None = None,
    progress: Progress = lambda share: None,
) -> LiveBenchmark:
    """Run ``streams`` at once in real time for ``seconds``; ``clip`` instead of made-up input.

    Raises as :func:`affectrt.load`, what reading the clip raises, ``model.no_extractor`` for a model whose
    rows the application makes and ``stream.config``.
    """
    head = machine.lines()
    model = load(path, backend=backend, threads=threads)
    scene = _scene(model, clip, transcript)
    seen: list[list[tuple[float, Affect]]] = [[] for _ in range(streams)]
    over = threading.Event()
    with ExitStack() as stack:
        opened = [
            stack.enter_context(model.stream(hop_s=hop_s, mode=mode, on_result=_keep(to))) for to in seen
        ]
        players = [
            threading.Thread(target=_play, args=(stream, model.encoders, scene, over)) for stream in opened
        ]
        for player in players:
            player.start()
        try:
            sleep(WARM_UP_S)
            start, start_cpu_s = perf_counter(), process_time()
            while (left_s := start + seconds - perf_counter()) > 0.0:
                progress(1.0 - left_s / seconds)
                sleep(min(left_s, 0.5))
            end, cpu_s = perf_counter(), process_time() - start_cpu_s
        finally:
            over.set()
            for player in players:
                player.join()
        stages = opened[0].statistics().stages
    measured = [[affect for at, affect in to if start <= at <= end] for to in seen]
    latencies = [affect.latency_ms for affects in measured for affect in affects]
    if not latencies:
        raise AffectError(
            "bench.nothing", f"bench: no result came within {seconds:g} s; measure longer, or a shorter hop"
        )
    progress(1.0)
    return LiveBenchmark(
        machine=head,
        backend=model.backend,
        scene=scene.note,
        streams=streams,
        mode=mode,
        hop_s=hop_s,
        seconds=end - start,
        cores_per_stream=cpu_s / (end - start) / streams,
        results_per_s=tuple(len(affects) / (end - start) for affects in measured),
        latency=quantiles(latencies),
        stages=stages,
        events=dict(Counter(e.code for affects in measured for affect in affects for e in affect.events)),
    )


def soak(
    path: str | os.PathLike[str],
    *,
    minutes: float,
    steps: int = 12,
    hop_s: float = 0.1,
    mode: StreamMode = "window",
    backend: str | None = None,
    threads: int = 1,
    clip: str | os.PathLike[str] | None = None,
    transcript: str | os.PathLike[str] | None = None,
    progress: Progress = lambda share: None,
) -> list[Soaked]:
    """Push ``minutes`` of media through one stream as fast as it computes them: what it holds, step by step.

    Raises as :func:`measure_live`.
    """
    model = load(path, backend=backend, threads=threads)
    scene = _scene(model, clip, transcript)
    slots = max(steps, round(minutes * 60.0 * FRAMES_PER_S))
    found: list[Soaked] = []
    with model.stream(hop_s=hop_s, mode=mode) as stream:
        results, told_s, told = iter(stream), 0.0, 0
        start = perf_counter()
        for slot in range(slots):
            scene.push(stream, model.encoders, slot, slot / FRAMES_PER_S)
            # Reading what is due keeps pushing at the pace of computing: nothing waits, nothing is dropped.
            while told_s + hop_s <= slot / FRAMES_PER_S:
                told_s, told = next(results).time_s, told + 1
            if (slot + 1) * steps // slots > len(found):
                took_s = perf_counter() - start
                rss = rss_bytes()
                found.append(Soaked((slot + 1) / FRAMES_PER_S, rss, 1e3 * took_s / max(1, told)))
                progress(len(found) / steps)
                start, told = perf_counter(), 0
    return found


def rss_bytes() -> int:
    """Memory that this process holds now; 0 where the system doesn't tell."""
    statm = Path("/proc/self/statm")
    if not statm.is_file():
        return 0
    return int(statm.read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _keep(seen: list[tuple[float, Affect]]) -> Callable[[Affect], object]:
    return lambda affect: seen.append((perf_counter(), affect))


def _play(stream: Stream, encoders: Encoders, scene: Scene, over: threading.Event) -> None:
    """Push in real time until it is over."""
    start, slot = perf_counter(), 0
    while not over.wait(max(0.0, start + slot / FRAMES_PER_S - perf_counter())):
        scene.push(stream, encoders, slot)
        slot += 1


def _scene(
    model: Model, clip: str | os.PathLike[str] | None, transcript: str | os.PathLike[str] | None
) -> Scene:
    encoders = model.encoders
    needs: dict[Modality, Callable[[], object]] = {
        "text": lambda: encoders.text,
        "audio": lambda: encoders.audio_graph,
        "vision": lambda: encoders.vision_graph,
    }
    read = [m for m in model.manifest.modalities if model.manifest.extracts(m)]
    if not read:
        raise model.manifest.no_extractor(model.manifest.modalities[0])
    for modality in read:
        needs[modality]()  # a stream would go on without it
    return _made_up() if clip is None else _of_clip(Path(clip), transcript)


def _made_up() -> Scene:
    """Syllables, noise for pictures, in which no face is found: the whole of each is searched."""
    rng = np.random.default_rng(0)
    count = round(SCENE_S * FRAMES_PER_S)
    pictures = tuple(rng.integers(0, 256, (SIDE_PX, SIDE_PX, 3), np.uint8) for _ in range(8))
    t = np.arange(count * RATE_HZ // FRAMES_PER_S) / RATE_HZ
    buzz = np.sin(2 * np.pi * 140 * t) + np.sin(2 * np.pi * 420 * t) / 3
    sound = 0.2 * buzz * np.clip(np.sin(2 * np.pi * 2.5 * t), 0.0, None) ** 2 + rng.normal(0, 1e-4, len(t))
    words = words_of(" ".join([WORDS] * 2), 0.0)
    return Scene(
        tuple(pictures[k % len(pictures)] for k in range(count)),
        sound.astype(np.float32),
        tuple(word for word in words if word.end_s <= SCENE_S),
        "made up: a buzz, words, and noise in which there is no face; --clip shows one",
    )


def _of_clip(path: Path, transcript: str | os.PathLike[str] | None) -> Scene:
    """Its first seconds; pictures cut to a square and scaled."""
    from affectrt.features.log_mel import as_mono
    from affectrt.media import AudioChunk, Media

    cv2: Any = require("cv2", "media")
    soxr: Any = require("soxr", "media")
    pictures: list[npt.NDArray[np.uint8]] = []
    sound: list[npt.NDArray[np.float32]] = []
    rate_hz = RATE_HZ
    with Media.open(path, max_video_rate_hz=FRAMES_PER_S) as media:
        for item in media:
            if item.time_s >= SCENE_S:
                break
            if isinstance(item, AudioChunk):
                rate_hz = item.sample_rate_hz
                sound.append(as_mono(item.pcm))
                continue
            height, width = item.bgr.shape[:2]
            side = min(height, width)
            top, left = (height - side) // 2, (width - side) // 2
            square = np.ascontiguousarray(item.bgr[top : top + side, left : left + side])
            picture = np.asarray(cv2.resize(square, (SIDE_PX, SIDE_PX)), np.uint8)
            # A slower camera's pictures are shown again.
            pictures += [picture] * (round((item.time_s + 1e-6) * FRAMES_PER_S) + 1 - len(pictures))
    if not pictures:
        raise AffectError("bench.settings", f"bench: {path} has no pictures; give a video with a face")
    pcm = np.zeros(len(pictures) * RATE_HZ // FRAMES_PER_S, np.float32)
    if sound:
        heard = soxr.resample(np.concatenate(sound), rate_hz, RATE_HZ)[: len(pcm)]
        pcm[: len(heard)] = heard
    words = [] if transcript is None else read_transcript(Path(transcript))
    length_s = len(pictures) / FRAMES_PER_S
    told = tuple(word for word in words if word.end_s <= length_s)
    note = f"the first {length_s:.0f} s of {path.name}, again and again, {len(told)} words"
    return Scene(tuple(pictures), pcm, told, note)
