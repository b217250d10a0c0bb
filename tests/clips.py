"""Parts of the demo clip, where the whole of it shows nothing more."""

from __future__ import annotations

from pathlib import Path

import av

DEMO = Path(__file__).parent.parent / "demo"


def beginning(target: Path, length_s: float) -> Path:
    """The first seconds of the demo clip, written to ``target`` as they are: the face speaks."""
    with av.open(str(DEMO / "clip.mp4")) as original, av.open(str(target), "w") as part:
        streams = {s.index: part.add_stream_from_template(s) for s in original.streams}
        for packet in original.demux():
            if packet.dts is not None and packet.pts * packet.time_base < length_s:
                packet.stream = streams[packet.stream.index]
                part.mux(packet)
    return target
