"""Your own capture: raw 16-bit mono samples at 16 kHz from a pipe, and words typed by whoever takes notes.

arecord -q -f S16_LE -r 16000 -t raw | python examples/push.py
"""

import sys
from typing import BinaryIO

import numpy as np

import affectrt
from affectrt.cli.bundles import find_bundle

BLOCK = 1600


def tell(affect: affectrt.Affect) -> None:
    """Called in the stream's thread with each result; quick, or results wait."""
    print(f"{affect.time_s:6.1f} s  {affect.sentiment:+.2f}  {sorted(affect.present)}", flush=True)
    for event in affect.events:
        print(f"          {event.code}: {event.message}", flush=True)


def main(pipe: BinaryIO, said: str = "") -> None:
    """Sound carries its own time here, so that a pipe that comes in bursts makes no gaps."""
    with affectrt.load(find_bundle(None)).stream(hop_s=0.5, on_result=tell) as stream:
        samples = 0
        if said:
            stream.push_text(said, start_s=0.0)
        while data := pipe.read(2 * BLOCK):
            pcm = np.frombuffer(data, "<i2")
            stream.push_audio(pcm, 16_000, start_s=samples / 16_000)
            samples += len(pcm)
        stream.flush()


if __name__ == "__main__":
    main(sys.stdin.buffer, " ".join(sys.argv[1:]))
