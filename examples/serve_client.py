"""A client of ``affectrt serve`` that needs nothing of affectrt: sends a recording, prints what comes back.

python examples/serve_client.py clip.mp4 "that was great" [ws://HOST:PORT]
"""

import json
import struct
import sys
from threading import Thread

import av
import cv2
from websockets.sync.client import ClientConnection, connect

HEADER = struct.Struct("<BBHIdII")  # kind, version, channels, number, time in s, rate in Hz, 0


def send(socket: ClientConnection, clip: str, said: str) -> None:
    """All messages have times: they may go out as fast as the server takes them in."""
    socket.send(json.dumps({"type": "text", "text": said, "start_s": 0.0}))
    mono = av.AudioResampler("s16", "mono", 16_000)
    with av.open(clip) as file:
        for number, frame in enumerate(file.decode(*file.streams.audio, *file.streams.video)):
            if isinstance(frame, av.VideoFrame):
                _, jpeg = cv2.imencode(".jpg", frame.to_ndarray(format="bgr24"))
                socket.send(HEADER.pack(3, 1, 0, number, frame.time, 0, 0) + jpeg.tobytes())
            else:
                for s in mono.resample(frame):
                    socket.send(HEADER.pack(1, 1, 1, number, s.time, s.rate, 0) + s.to_ndarray().tobytes())
    socket.send(json.dumps({"type": "flush"}))


if __name__ == "__main__":
    clip, said, server = (*sys.argv[1:], "ws://127.0.0.1:8765")[:3]
    with connect(f"{server}/v1/stream") as socket:
        socket.send(json.dumps({"type": "hello", "version": 1}))
        Thread(target=send, args=(socket, clip, said)).start()
        while (told := json.loads(socket.recv()))["type"] != "done":
            print({k: told[k] for k in ("model", "time_s", "sentiment", "present", "message") if k in told})
