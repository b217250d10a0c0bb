"""Reading files: times, channels, rotation, and an honest word about every kind of damage."""

from __future__ import annotations

import itertools
import os
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import numpy.typing as npt
import pytest

from affectrt.errors import AffectError
from affectrt.media import AudioChunk, Media, VideoFrame, read_audio, read_image

RATE_HZ = 16_000


def tone(seconds: float, rate_hz: int = RATE_HZ) -> npt.NDArray[np.float32]:
    return (0.5 * np.sin(2 * np.pi * 440 * np.arange(round(seconds * rate_hz)) / rate_hz)).astype(np.float32)


def write_clip(
    path: Path,
    *,
    seconds: float = 2.0,
    fps: int = 25,
    size: tuple[int, int] = (64, 48),
    channels: npt.NDArray[np.float32] | None = None,
    rotation_deg: int | None = None,
    faststart: bool = True,
    audio_first: bool = False,
) -> Path:
    """A clip whose left half brightens with time; ``channels`` (C, N) is its sound, at RATE_HZ."""
    options = {"movflags": "faststart"} if faststart and path.suffix in (".mp4", ".mov") else {}
    with av.open(str(path), "w", options=options) as container:
        video = container.add_stream("mpeg4", rate=fps, options={"g": "5"})
        video.width, video.height, video.pix_fmt = *size, "yuv420p"
        video.time_base = Fraction(1, fps)
        if rotation_deg is not None:
            video.set_display_rotation(rotation_deg)
        audio = None
        if channels is not None:
            layout = {1: "mono", 2: "stereo"}[len(channels)]
            audio = container.add_stream("aac", rate=RATE_HZ, layout=layout)

        def put_video() -> None:
            for index in range(round(seconds * fps)):
                picture = np.zeros((size[1], size[0], 3), np.uint8)
                picture[:, : size[0] // 2] = 50 + 4 * (index % 50)
                frame = av.VideoFrame.from_ndarray(picture, "bgr24")
                frame.pts = index
                container.mux(video.encode(frame))
            container.mux(video.encode(None))

        def put_audio() -> None:
            if audio is None or channels is None:
                return
            for start in range(0, channels.shape[1], 1024):
                part = np.ascontiguousarray(channels[:, start : start + 1024])
                frame = av.AudioFrame.from_ndarray(part, "fltp", layout)
                frame.sample_rate, frame.pts = RATE_HZ, start
                container.mux(audio.encode(frame))
            container.mux(audio.encode(None))

        for put in (put_audio, put_video) if audio_first else (put_video, put_audio):
            put()
    return path


def write_wav(path: Path, samples: npt.NDArray[np.float32], rate_hz: int = RATE_HZ) -> Path:
    """Float samples (C, N)."""
    layout = {1: "mono", 2: "stereo"}[len(samples)]
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_f32le", rate=rate_hz, layout=layout)
        frame = av.AudioFrame.from_ndarray(samples.T.reshape(1, -1).copy(), "flt", layout)
        frame.sample_rate = rate_hz
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


@pytest.mark.parametrize("audio_first", [False, True])
def test_frames_and_samples_come_in_time_order(tmp_path: Path, audio_first: bool) -> None:
    # Written one stream after the other: the worst interleaving there is.
    clip = write_clip(tmp_path / "clip.mp4", channels=tone(2.0)[np.newaxis], audio_first=audio_first)
    with Media.open(clip) as media:
        items = list(media)
        assert (media.kind, media.has_audio, media.has_video) == ("video", True, True)
        assert media.duration_s == pytest.approx(2.0, abs=0.1)
        assert media.warnings == []
    times = [item.time_s for item in items]
    assert times == sorted(times)
    frames = [item for item in items if isinstance(item, VideoFrame)]
    assert [frame.time_s for frame in frames] == pytest.approx(np.arange(50) / 25)
    assert frames[0].bgr.shape == (48, 64, 3)
    assert frames[40].bgr[:, :24].mean() > frames[0].bgr[:, :24].mean() + 100
    # Interleaved, not one after the other.
    kinds = [kind for kind, _ in itertools.groupby(type(item) for item in items)]
    assert len(kinds) > 20
    chunks = [item for item in items if isinstance(item, AudioChunk)]
    assert all(chunk.pcm.dtype == np.float32 and chunk.sample_rate_hz == RATE_HZ for chunk in chunks)
    heard_s = np.cumsum([0.0] + [len(chunk.pcm) / RATE_HZ for chunk in chunks])
    assert [chunk.time_s for chunk in chunks] == pytest.approx(heard_s[:-1], abs=1e-3)


def test_a_rate_limit_leaves_frames_out_evenly(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.mp4")
    with Media.open(clip, max_video_rate_hz=10) as media:
        times = [item.time_s for item in media]
    assert len(times) == 20
    assert np.diff(times).max() <= 0.121


def test_rotation_in_the_file_is_applied(tmp_path: Path) -> None:
    upright = write_clip(tmp_path / "a.mp4")
    turned = write_clip(tmp_path / "b.mp4", rotation_deg=90)
    pictures = []
    for path in (upright, turned):
        with Media.open(path) as media:
            item = next(iter(media))
            assert isinstance(item, VideoFrame)
            pictures.append(item.bgr)
    assert pictures[1].shape == (64, 48, 3)
    # A quarter turn counterclockwise brings the bright left half to the bottom.
    assert np.abs(pictures[1].astype(int) - np.rot90(pictures[0]).astype(int)).mean() < 1
    assert pictures[1][48:].mean() > pictures[1][:16].mean() + 40


def test_channels_are_averaged(tmp_path: Path) -> None:
    left = tone(0.5, 44_100)
    path = write_wav(tmp_path / "stereo.wav", np.stack([left, np.zeros_like(left)]), 44_100)
    pcm, rate_hz = read_audio(path)
    assert rate_hz == 44_100
    assert pcm.dtype == np.float32
    np.testing.assert_allclose(pcm, left / 2, atol=1e-7)


def test_audio_only_and_video_only(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.mkv", channels=tone(2.0)[np.newaxis])
    with Media.open(clip, video=False) as media:
        assert (media.kind, media.has_video) == ("audio", False)
        assert all(isinstance(item, AudioChunk) for item in media)
        assert media.warnings == []
    silent = write_clip(tmp_path / "silent.mp4")
    with pytest.raises(AffectError, match="expected audio, found none") as caught:
        read_audio(silent)
    assert caught.value.code == "media.no_streams"


@pytest.mark.parametrize("suffix", ["mp4", "mov", "mkv", "avi"])
def test_a_clip_cut_short_is_read_as_far_as_it_goes(tmp_path: Path, suffix: str) -> None:
    whole = write_clip(tmp_path / f"whole.{suffix}", seconds=4, channels=tone(4.0)[np.newaxis])
    if suffix in ("mp4", "mov"):  # interleave: a muxer writes one stream after the other as it got them
        whole = remux(whole, tmp_path / f"interleaved.{suffix}")
    cut = tmp_path / f"cut.{suffix}"
    cut.write_bytes(whole.read_bytes()[: int(whole.stat().st_size * 0.6)])
    with Media.open(cut) as media:
        items = list(media)
    assert len(items) > 10
    assert 0.5 < max(item.time_s for item in items) < 3.9
    assert any("cut short" in warning for warning in media.warnings), media.warnings


def remux(source: Path, target: Path) -> Path:
    with av.open(str(source)) as old, av.open(str(target), "w", options={"movflags": "faststart"}) as new:
        streams = {stream.index: new.add_stream_from_template(stream) for stream in old.streams}
        packets = sorted(
            (packet for packet in old.demux() if packet.dts is not None),
            key=lambda packet: float(packet.dts * packet.time_base),
        )
        for packet in packets:
            packet.stream = streams[packet.stream.index]
            new.mux_one(packet)
    return target


def test_a_wav_cut_short_says_so(tmp_path: Path) -> None:
    whole = write_wav(tmp_path / "whole.wav", tone(2.0)[np.newaxis])
    cut = tmp_path / "cut.wav"
    cut.write_bytes(whole.read_bytes()[:-40_000])
    with Media.open(cut) as media:
        seconds = sum(len(item.pcm) for item in media if isinstance(item, AudioChunk)) / RATE_HZ
    assert seconds == pytest.approx(2.0 - 10_000 / RATE_HZ, abs=0.01)
    assert media.warnings == [
        f"{cut}: 40000 bytes of what its header announces are missing: the file was cut short"
    ]
    with Media.open(whole) as media:
        list(media)
    assert media.warnings == []


def test_damage_inside_is_skipped_with_a_warning(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.mp4", seconds=4, size=(320, 240))
    data = bytearray(clip.read_bytes())
    start = data.index(b"mdat") + 2000
    data[start : start + 3000] = np.random.default_rng(0).bytes(3000)
    clip.write_bytes(data)
    with Media.open(clip) as media:
        times = [item.time_s for item in media]
    assert times[-1] > 3.5
    assert len(times) >= 50


def broken(kind: str, folder: Path) -> Path:
    path = folder / f"{kind}.mp4"
    if kind == "directory":
        path.mkdir()
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "text":
        path.write_text("It was a dark and stormy night.\n" * 40)
    elif kind == "plain text":
        path = folder / "notes.txt"
        path.write_text("It was a dark and stormy night.\n" * 40)
    elif kind == "noise":
        path.write_bytes(np.random.default_rng(0).bytes(20_000))
    elif kind == "one byte":
        path.write_bytes(b"\0")
    elif kind == "no index":
        write_clip(path, faststart=False)
        path.write_bytes(path.read_bytes()[:-3000])
    elif kind == "subtitles":
        path.write_text("1\n00:00:00,000 --> 00:00:02,000\nhello\n\n")
    elif kind == "picture":
        path = folder / "picture.png"
        cv2.imwrite(str(path), np.zeros((40, 40, 3), np.uint8))
    elif kind == "strip":
        write_clip(path, size=(2048, 8))
    return path


@pytest.mark.parametrize(
    ("kind", "code", "says"),
    [
        ("missing", "media.not_found", "no such file"),
        ("directory", "media.not_a_file", "expected a file"),
        ("empty", "media.empty", "empty"),
        ("text", "media.undecodable", "expected an audio or video file"),
        ("plain text", "media.undecodable", "text or data"),
        ("noise", "media.undecodable", "expected an audio or video file"),
        ("one byte", "media.undecodable", "expected an audio or video file"),
        ("no index", "media.undecodable", "index is missing"),
        ("subtitles", "media.no_streams", "expected audio or video"),
        ("picture", "media.image", "still image"),
        ("strip", "media.frame_size", "2048×8"),
    ],
)
def test_what_cannot_be_read_is_refused_with_a_reason(
    tmp_path: Path, kind: str, code: str, says: str, capfd: pytest.CaptureFixture[str]
) -> None:
    path = broken(kind, tmp_path)
    with pytest.raises(AffectError, match=says) as caught:
        Media.open(path)
    assert caught.value.code == code
    assert "\n" not in caught.value.message
    assert str(path) in caught.value.message
    # FFmpeg must not write to the terminal behind our back.
    assert capfd.readouterr().err == ""


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root reads everything")
def test_a_file_without_permission_is_unreadable(tmp_path: Path) -> None:
    path = write_wav(tmp_path / "a.wav", tone(0.1)[np.newaxis])
    path.chmod(0)
    with pytest.raises(AffectError, match="can't be read") as caught:
        Media.open(path)
    assert caught.value.code == "media.unreadable"


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_sample_that_is_not_finite_is_named(tmp_path: Path, bad: float) -> None:
    samples = tone(1.0)
    samples[12_000] = bad
    path = write_wav(tmp_path / "nan.wav", samples[np.newaxis])
    with Media.open(path) as media, pytest.raises(AffectError, match=r"at 0\.750 s") as caught:
        list(media)
    assert caught.value.code == "audio.not_finite"


def test_a_strip_of_video_is_left_out_but_its_sound_is_heard(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "strip.mp4", size=(2048, 8), channels=tone(2.0)[np.newaxis])
    with Media.open(clip) as media:
        assert (media.has_audio, media.has_video) == (True, False)
        assert "2048×8" in media.warnings[0]


def test_names_that_look_like_protocols_are_files(tmp_path: Path) -> None:
    path = write_wav(tmp_path / "http:a?b.wav", tone(0.2)[np.newaxis])
    assert len(read_audio(path)[0]) == 3200


def test_read_image(tmp_path: Path) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (30, 20, 3), np.uint8)
    path = tmp_path / "a.png"
    cv2.imwrite(str(path), picture)
    np.testing.assert_array_equal(read_image(path), picture)
    (tmp_path / "b.png").write_text("not a picture")
    with pytest.raises(AffectError, match="expected an image") as caught:
        read_image(tmp_path / "b.png")
    assert caught.value.code == "media.undecodable"
