"""A light that follows a mood, by OSC as Max or Unity read it: python examples/osc.py clip.mp4 [HOST:PORT]"""

import sys
import threading
from pathlib import Path

from pythonosc.dispatcher import Dispatcher
from pythonosc.osc_server import ThreadingOSCUDPServer

import affectrt
from affectrt.cli.bundles import find_bundle
from affectrt.live import Live
from affectrt.outputs.osc import OscOutput, address
from affectrt.sources.file import FileSource


def light(where: str, sentiment: float, low: float, high: float) -> None:
    """Yellow for good, blue for bad, and white while it isn't sure which."""
    hue = "yellow" if low > 0 else "blue" if high < 0 else "white"
    print(f"{where} {sentiment:+.2f}: the light is {hue}", flush=True)


def main(clip: str, to: str = "127.0.0.1:9000") -> None:
    """Camera() and Microphone() of affectrt.sources take the place of the file."""
    dispatcher = Dispatcher()
    dispatcher.map("/affectrt/sentiment", light)
    with ThreadingOSCUDPServer(address(to), dispatcher) as receiver:
        threading.Thread(target=receiver.serve_forever, daemon=True).start()
        model = affectrt.load(find_bundle(None))
        with Live(model, [FileSource(Path(clip))], [OscOutput(*address(to))], hop_s=0.5) as live:
            for _ in live.results():
                pass  # they go to the outputs by themselves
        receiver.shutdown()


if __name__ == "__main__":
    main(*sys.argv[1:])
