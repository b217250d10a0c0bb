"""A camera or a file, and how sure the result is: python examples/camera.py [0 | URL | clip.mp4]"""

import sys

import cv2

import affectrt
from affectrt.cli.bundles import find_bundle


def show(affect: affectrt.Affect) -> None:
    """Called in the stream's thread with each result; quick, or results wait."""
    low, high = affect.interval
    told = f"{affect.sentiment:+.2f} ({low:+.2f} … {high:+.2f})" if affect.present else "no face"
    print(f"{affect.time_s:6.1f} s  {told}", flush=True)


def main(source: str = "0") -> None:
    """Pushing never waits for the model, so the camera is read as fast as it delivers."""
    with affectrt.load(find_bundle(None)).stream(hop_s=0.2, on_result=show) as stream:
        camera = cv2.VideoCapture(int(source) if source.isdecimal() else source)
        while camera.isOpened():
            there, frame = camera.read()
            if not there:
                break
            stream.push_frame(frame)  # without a time: captured now
        camera.release()
        stream.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
