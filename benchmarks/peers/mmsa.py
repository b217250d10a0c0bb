"""MMSA beside ours: its data format, its environment, and a process that trains one job after another."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Literal

import numpy as np
import torch

from affectrt.affect import MODALITIES, Modality
from affectrt.errors import AffectError
from affectrt_training.data.dataset import Example
from affectrt_training.evaluation.plan import Part

VERSION = "2.2.1"
"""Of MMSA: the one whose code was read."""
LIBRARIES = ("pandas", "scikit-learn", "easydict", "nvidia-ml-py", "tqdm", "transformers")
"""What it imports beside torch and numpy. ``nvidia-ml-py`` is where ``pynvml`` lives today."""
MODELS = {
    "LF_DNN": "lf-lstm",
    "TFN": "tfn",
    "LMF": "lmf",
    "MFN": "mfn",
    "Graph_MFN": "mfn",
    "MULT": "mult",
}
"""What MMSA calls them → the system of ours that is nearest."""
PATIENCE_S = 30.0
"""After its last job a process gets this long to end by itself."""
LEAST_STEPS = 5
"""MULT's convolutions are five steps wide and don't pad."""

Padding = Literal["front", "behind"]
Json = dict[str, Any]

_WORKER = Path(__file__).with_name("mmsa_worker.py")
_SPLITS = {"train": "train", "valid": "valid", "held": "test"}


def to_mmsa(part: Part, dims: Mapping[Modality, int], padding: Padding) -> dict[str, Json]:
    """A part of a comparison as MMSA's pickles have it: held-out rows are its split ``test``.

    Rows are padded with zeros to the longest of the whole part, because MMSA takes lengths from ``train``
    alone. A modality that an example lacks is all zero. Lengths count rows from the first on, padding in
    front included; none of the models trained here reads them. Raises ``peers.data`` where a modality or a
    sentiment is missing, and where there are emotion labels, which MMSA doesn't learn.
    """
    splits: dict[str, Sequence[Example]] = {name: getattr(part, ours) for ours, name in _SPLITS.items()}
    everyone = [example for examples in splits.values() for example in examples]
    if lacking := [m for m in MODALITIES if m not in dims]:
        raise AffectError("peers.data", f"MMSA needs all three modalities; the data have no {lacking[0]}")
    if any(e.sentiment is None or e.emotion is not None for e in everyone):
        raise AffectError(
            "peers.data", "MMSA learns sentiment alone: expected a sentiment and no emotion for every example"
        )
    steps = {m: max([LEAST_STEPS, *(len(e.rows[m]) for e in everyone if m in e.rows)]) for m in MODALITIES}
    return {name: _split(examples, dims, steps, padding) for name, examples in splits.items()}


def _split(
    examples: Sequence[Example], dims: Mapping[Modality, int], steps: Mapping[Modality, int], padding: Padding
) -> Json:
    content: Json = {
        "id": [e.id for e in examples],
        "raw_text": [" ".join(e.words) for e in examples],
        "regression_labels": np.array([e.sentiment for e in examples], np.float32),
    }
    for m in MODALITIES:
        rows = np.zeros((len(examples), steps[m], dims[m]), np.float32)
        lengths = []
        for i, example in enumerate(examples):
            own = example.rows.get(m, rows[i, :0])
            begin = steps[m] - len(own) if padding == "front" and len(own) else 0
            rows[i, begin : begin + len(own)] = own
            lengths.append(begin + len(own))
        content[m], content[f"{m}_lengths"] = rows, lengths
    return content


def write_pickle(part: Part, dims: Mapping[Modality, int], padding: Padding, path: Path) -> None:
    """:func:`to_mmsa` on disk."""
    with path.open("wb") as file:
        pickle.dump(to_mmsa(part, dims, padding), file, protocol=4)


def environment(folder: Path) -> Path:
    """The Python of an environment with MMSA; made in ``folder`` where there is none.

    Packages that MMSA doesn't bring come from the environment of this process, by a ``.pth`` file: torch is
    the very same, and nothing is stored twice. What is installed there hides what is here, and nothing
    that is installed there can change what is here. Raises ``peers.environment``.
    """
    python = folder / "bin" / "python"
    if not python.exists():
        print(f"making an environment for MMSA {VERSION} in {folder}", file=sys.stderr)
        venv.create(folder, with_pip=True)
        packages = _run(python, "import sysconfig; print(sysconfig.get_path('purelib'))").strip()
        shared = sorted({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")})
        (Path(packages) / "shared.pth").write_text("\n".join(shared) + "\n")
    if _version(python) is None:
        # MMSA's own list of requirements holds a package that no longer installs.
        for wanted in (LIBRARIES, ("--no-deps", f"MMSA=={VERSION}")):
            command = [str(python), "-m", "pip", "install", "--quiet", *wanted]
            if subprocess.run(command, check=False).returncode:
                raise AffectError(
                    "peers.environment",
                    f"{folder}: installing {' '.join(wanted)} failed; see above, or pass with --env an "
                    f"environment that has MMSA {VERSION}",
                )
    if (found := _version(python)) != VERSION:
        raise AffectError(
            "peers.environment", f"{folder}: expected MMSA {VERSION}, got {found}; pass another --env"
        )
    return python


def _version(python: Path) -> str | None:
    code = (
        "from importlib.metadata import distributions as d; "
        "print(next((x.version for x in d(name='MMSA')), ''))"
    )
    return _run(python, code).strip() or None


def _run(python: Path, code: str) -> str:
    done = subprocess.run([str(python), "-I", "-c", code], capture_output=True, text=True, check=False)
    if done.returncode:
        raise AffectError("peers.environment", f"{python}: it doesn't run: {done.stderr.strip()[-300:]}")
    return done.stdout


class Worker:
    """A process with MMSA, on one thread; it starts with the first job, and again when it has died."""

    def __init__(self, python: Path, log: Path) -> None:
        """``log``: where what MMSA prints goes."""
        self._command = [str(python), "-I", str(_WORKER)]
        self._log = log
        self._process: subprocess.Popen[str] | None = None

    def ask(self, job: Json) -> Json:
        """The answer to a job, see :mod:`benchmarks.peers.mmsa_worker`; ``error`` when the process dies.

        Raises ``peers.environment`` when it doesn't even start, or has another torch.
        """
        if self._process is None:
            self._process = self._start()
            hello = self._read()
            if hello.get("torch") != torch.__version__:
                raise AffectError(
                    "peers.environment",
                    f"MMSA's process: expected torch {torch.__version__}, as here, got "
                    f"{hello.get('torch', 'no answer')}:\n{self._last_words()}",
                )
        return self._write_and_read(job)

    def _start(self) -> subprocess.Popen[str]:
        # One thread, no bars, no GPU, and nothing that looks for weights elsewhere.
        alone = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TQDM_DISABLE": "1"}
        env = {**os.environ, **alone, "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
        with self._log.open("w") as log:
            return subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=env,
            )

    def _write_and_read(self, job: Json) -> Json:
        try:
            stdin = self._pipe("stdin")
            stdin.write(json.dumps(job) + "\n")
            stdin.flush()
            answer = self._read()
        except BrokenPipeError:
            answer = {}
        if not answer:
            code = self.close()
            return {"error": f"MMSA's process died ({code}): {self._last_words()}"}
        return answer

    def _read(self) -> Json:
        """Empty when there is nothing more."""
        line = self._pipe("stdout").readline()
        answer: Json = json.loads(line) if line else {}
        return answer

    def _pipe(self, name: str) -> IO[str]:
        pipe: IO[str] = getattr(self._process, name)
        return pipe

    def _last_words(self) -> str:
        return self._log.read_text(errors="replace").strip()[-400:]

    def close(self) -> int | None:
        """End the process; returns its exit status."""
        process, self._process = self._process, None
        if process is None or process.stdin is None:
            return None
        with process:  # which closes the pipes and waits
            with suppress(BrokenPipeError):
                process.stdin.close()  # it ends when there are no more jobs
            try:
                process.wait(PATIENCE_S)
            except subprocess.TimeoutExpired:
                process.kill()
        return process.returncode

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
