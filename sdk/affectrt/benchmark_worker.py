"""One candidate of :mod:`affectrt.benchmark` in a process of its own: loads a model, does what it is told.

Alone, because peak memory, the time to load and a library's number of threads belong to a process. Commands
come as lines on stdin, answers go as lines of JSON to stdout.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from time import perf_counter
from typing import Any, NoReturn

from affectrt.affect import Affect
from affectrt.errors import AffectError
from affectrt.profiling import StageTimer


class Worker:
    """A candidate's process, as the one that orders sees it."""

    def __init__(self, order: Mapping[str, object]) -> None:
        """Load it and compute a first window. Raises what that raises there, and ``bench.worker``."""
        self._name = f"{order['path']} on {order['backend']}"
        self._process = subprocess.Popen(
            [sys.executable, "-m", "affectrt.benchmark_worker", json.dumps(order)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            encoding="utf-8",
            env={**os.environ, "PYTHONSAFEPATH": "1"},  # no module from the folder that it runs in
            start_new_session=True,  # Ctrl-C is ours
        )
        try:
            hello = self._answer()
            if (error := hello.get("error")) is not None:
                raise AffectError(error["code"], error["message"])
        except BaseException:
            self.close()
            raise
        self.load_s = float(hello["load_s"])
        self.note = str(hello["note"])
        said = hello["affect"]
        self.affect = Affect(0.0, said["sentiment"], (0.0, 0.0), said["emotions"], {}, frozenset(), 0.0)

    def ask(self, command: str) -> Any:
        """Its answer to a command."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(command + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            self._fail()
        return self._answer()

    def close(self) -> None:
        """End it."""
        self._process.kill()
        try:
            self._process.communicate()
        except BrokenPipeError:  # a command that it no longer read
            self._process.wait()

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._fail()
        return json.loads(line)

    def _fail(self) -> NoReturn:
        raise AffectError(
            "bench.worker",
            f"{self._name}: its process ended with status {self._process.wait()} before it answered; what it "
            f"printed tells why",
        )


def main() -> None:
    """``python -m affectrt.benchmark_worker ORDER``; the order is JSON: the candidate and its input."""
    # What a library prints must not get between the answers.
    with os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1) as answers:
        os.dup2(2, 1)
        try:
            _serve(json.loads(sys.argv[1]), answers)
        except AffectError as error:
            _answer(answers, error={"code": error.code, "message": error.message})


def _serve(order: dict[str, Any], answers: Any) -> None:
    start = perf_counter()
    from affectrt.model import load

    model = load(order["path"], backend=order["backend"], threads=order["threads"])
    load_s = perf_counter() - start
    from affectrt.trial import ClipWindow, MadeUpWindow, Trial

    clip, transcript = order["clip"], order["transcript"]
    trial: Trial
    if clip is None:
        trial = MadeUpWindow(model)
    else:
        trial = ClipWindow(model, Path(clip), None if transcript is None else Path(transcript))
    affect = trial.run(StageTimer.off())
    said = {"sentiment": affect.sentiment, "emotions": dict(affect.emotions)}
    _answer(answers, load_s=load_s, note=trial.note, affect=said)
    off = StageTimer.off()
    for line in sys.stdin:
        command, _, argument = line.strip().partition(" ")
        if command == "window":
            timer, start = StageTimer(), perf_counter()
            trial.run(timer)
            _answer(answers, whole_s=perf_counter() - start, stages_s=timer.seconds)
        elif command == "busy":
            count, start = 0, perf_counter()
            while perf_counter() - start < float(argument):
                trial.run(off)
                count += 1
            _answer(answers, windows=count)
        else:
            _answer(answers, peak_bytes=peak_bytes())


def peak_bytes() -> int:
    """The most memory that this process has held at once."""
    status = Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    import resource

    # Linux would count here what the process held that this one was forked from; macOS doesn't, in bytes.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _answer(answers: Any, **fields: object) -> None:
    answers.write(json.dumps(fields) + "\n")


if __name__ == "__main__":
    main()
