"""Energy, where the platform tells: RAPL of x86 processors, NVML of NVIDIA GPUs, ``tegrastats`` of a Jetson.

All count the whole chip or board, whoever uses it, idle share included. What is tested is RAPL's arithmetic
and how a line of ``tegrastats`` is read; neither a Jetson nor a GPU has run this yet.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from time import perf_counter
from typing import Any, Protocol

POWERCAP = Path("/sys/class/powercap")

TEGRASTATS_INTERVAL_MS = 100

_TOTALS: Sequence[tuple[str, ...]] = (
    ("VDD_IN",),
    ("POM_5V_IN",),
    ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"),
    ("VDD_GPU", "VDD_CPU_SOC_MSS", "VIN_SYS_5V0"),
)
"""Rails that make up a whole module: Orin NX and Nano, older Nano, AGX Orin, Thor."""

_RAIL = re.compile(r"\b((?:VDD|VIN|POM)_\w+) (\d+)(?:mW)?/\d+")


class Meter(Protocol):
    """Something that counts energy."""

    name: str
    """What it counts."""

    def start(self) -> None:
        """Count from here."""
        ...

    def stop(self) -> float | None:
        """Joules since the start; None when it didn't tell."""
        ...


def find_meters(powercap: Path = POWERCAP) -> list[Meter]:
    """All that can be read here, no two of the same chip."""
    if shutil.which("tegrastats"):
        return [Tegrastats()]
    return [*rapl_meters(powercap), *_gpu_meters()]


class Rapl:
    """A processor package's counter."""

    def __init__(self, zone: Path) -> None:
        """``zone``: its folder in sysfs. Raises OSError and ValueError when it can't be read."""
        self.name = (zone / "name").read_text(encoding="ascii").strip()
        self._energy = zone / "energy_uj"
        self._range_uj = int((zone / "max_energy_range_uj").read_text(encoding="ascii"))
        self._start_uj = self._read()

    def start(self) -> None:
        """As :class:`Meter`."""
        self._start_uj = self._read()

    def stop(self) -> float:
        """As :class:`Meter`, for stretches in which the counter turns over once at most: minutes."""
        used = self._read() - self._start_uj
        return (used if used >= 0 else used + self._range_uj) / 1e6

    def _read(self) -> int:
        return int(self._energy.read_text(encoding="ascii"))


def rapl_meters(powercap: Path = POWERCAP) -> list[Rapl]:
    """The packages whose counter this user may read; on most systems root alone."""
    found = []
    for zone in sorted(powercap.glob("*-rapl:*")):
        try:
            meter = Rapl(zone)
        except (OSError, ValueError):
            continue
        if meter.name.startswith("package"):  # others are parts of one, or the board with it
            found.append(meter)
    return found


class NvidiaGpu:
    """The first visible GPU's counter; from Volta on."""

    def __init__(self, nvml: Any) -> None:
        """``nvml``: the module of ``nvidia-ml-py``. Raises its ``NVMLError`` when there is no counter."""
        self._nvml = nvml
        nvml.nvmlInit()
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
        if visible.isdigit():
            self._device = nvml.nvmlDeviceGetHandleByIndex(int(visible))
        else:
            self._device = nvml.nvmlDeviceGetHandleByUUID(visible)
        name = nvml.nvmlDeviceGetName(self._device)
        self.name = name if isinstance(name, str) else name.decode()
        self._start_mj = self._read()

    def start(self) -> None:
        """As :class:`Meter`."""
        self._start_mj = self._read()

    def stop(self) -> float:
        """As :class:`Meter`."""
        return (self._read() - self._start_mj) / 1e3

    def _read(self) -> int:
        return int(self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._device))


def _gpu_meters() -> list[NvidiaGpu]:
    try:
        nvml: Any = import_module("pynvml")
    except ImportError:
        return []
    try:
        return [NvidiaGpu(nvml)]
    except nvml.NVMLError:
        return []


class Tegrastats:
    """A Jetson module: its mean power as ``tegrastats`` samples it, times the time."""

    name = "Jetson module"

    def start(self) -> None:
        """As :class:`Meter`."""
        self._start = perf_counter()
        self._process = subprocess.Popen(
            ["tegrastats", "--interval", str(TEGRASTATS_INTERVAL_MS)],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def stop(self) -> float | None:
        """As :class:`Meter`: None when no line names rails that are known."""
        elapsed_s = perf_counter() - self._start
        self._process.terminate()
        told, _ = self._process.communicate()
        watts = [power for line in told.splitlines() if (power := module_watts(line)) is not None]
        return elapsed_s * sum(watts) / len(watts) if watts else None


def module_watts(line: str) -> float | None:
    """The power of the whole module in a line of ``tegrastats``; None when it names other rails."""
    rails: Mapping[str, int] = {name: int(milliwatts) for name, milliwatts in _RAIL.findall(line)}
    for parts in _TOTALS:
        if all(part in rails for part in parts):
            return sum(rails[part] for part in parts) / 1e3
    return None
