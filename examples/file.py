"""How the person in a file feels, second by second: python examples/file.py clip.mp4 [clip.srt]"""

import sys
from pathlib import Path

import affectrt
from affectrt.cli.bundles import find_bundle
from affectrt.media import AudioChunk, Media
from affectrt.streaming.core import StreamCore
from affectrt.transcript import read_transcript


def main(clip: str, transcript: str | None = None) -> None:
    """Files need no thread and drop nothing: StreamCore computes when it is polled."""
    model = affectrt.load(find_bundle(None))  # $AFFECTRT_BUNDLE, runs/starter.affect …
    stream = StreamCore(model, window_s=None, hop_s=1.0)
    words = read_transcript(transcript) if transcript else []
    with Media.open(Path(clip), max_video_rate_hz=model.encoders.frame_rate_hz) as media:
        for item in media:
            while words and words[0].end_s <= item.time_s:
                stream.push_word(words.pop(0))
            if isinstance(item, AudioChunk):
                stream.push_audio(item.pcm, item.sample_rate_hz, item.time_s)
            else:
                stream.push_frame(item.bgr, item.time_s)
            for affect in stream.poll():
                print(f"{affect.time_s:6.1f} s  {affect.sentiment:+.2f}  {affect.emotion}")


if __name__ == "__main__":
    main(*sys.argv[1:])
