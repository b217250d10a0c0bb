"""A client of ``affectrt serve`` in Python: sends a WAV file as a microphone would, prints what comes back.

    affectrt serve                                   # in another terminal
    python examples/serve_client.py speech.wav --text "that was great"

It needs ``pip install websockets`` and nothing of affectrt: docs/protocol.md is all there is to know.
"""

from __future__ import annotations

import argparse
import json
import os
import struct
import threading
import time
import wave
from pathlib import Path

from websockets.sync.client import ClientConnection, connect

HEADER = struct.Struct("<BBHIdII")  # kind, version, channels, sequence, time (NaN: now), rate, zero
PCM_S16 = 1
CHUNK_S = 0.05


def send_all(socket: ClientConnection, path: Path, text: str | None, pace: float) -> None:
    """The file's samples with their times, and the words; ``pace`` 1 is as fast as it was spoken."""
    with wave.open(str(path)) as file:
        if file.getsampwidth() != 2:
            raise SystemExit(f"{path}: expected 16-bit samples")
        rate, channels = file.getframerate(), file.getnchannels()
        step = round(CHUNK_S * rate)
        for sequence in range(-(-file.getnframes() // step)):
            time_s = sequence * step / rate
            if text and file.tell() + step >= file.getnframes():  # the words are known when they were said
                socket.send(json.dumps({"type": "text", "text": text, "start_s": 0.0, "end_s": time_s}))
            header = HEADER.pack(PCM_S16, 1, channels, sequence, time_s, rate, 0)
            socket.send(header + file.readframes(step))
            time.sleep(CHUNK_S / pace)
    socket.send(json.dumps({"type": "flush"}))


def main() -> None:
    """Connect, say hello, send, print results until all is computed."""
    parser = argparse.ArgumentParser(description="Stream a WAV file to affectrt serve.")
    parser.add_argument("sound", type=Path, help="a WAV file of 16-bit samples")
    parser.add_argument("--text", help="what is said in it")
    parser.add_argument("--url", default="ws://127.0.0.1:8765/v1/stream")
    parser.add_argument("--pace", type=float, default=1.0, help="2: twice as fast as real time")
    args = parser.parse_args()

    with connect(args.url, subprotocols=["affectrt.v1"]) as socket:  # type: ignore[list-item]
        hello = {"type": "hello", "version": 1, "token": os.environ.get("AFFECTRT_TOKEN")}
        socket.send(json.dumps(hello))

        sender = threading.Thread(target=send_all, args=(socket, args.sound, args.text, args.pace))
        for data in socket:
            message = json.loads(data)
            if message["type"] == "hello":
                print(f"model {message['model']}, a result every {message['hop_s']} s")
                sender.start()
            elif message["type"] == "result":
                low, high = message["interval"]
                told = f"{message['time_s']:7.1f} s  {message['sentiment']:+.2f} ({low:+.2f} … {high:+.2f})"
                print(f"{told}  {message['emotion']}  from {', '.join(message['present']) or 'nothing'}")
            elif message["type"] == "error":
                print(f"[{message['code']}] {message['message']}")
            elif message["type"] == "done":
                break
        if sender.ident is not None:
            sender.join()


if __name__ == "__main__":
    main()
