"""TensorRT engines of this machine, kept in the user's cache folder and handed out only when all is right.

TensorRT runs whatever an engine file holds and checks little, so a file is read as far as its bytes, never
deserialised, unless it is this user's alone, whole, and built from this very bundle for this very GPU by this
very TensorRT. Every refusal has a reason, and the remedy is to build it again.

An engine lies beside a *sidecar*, JSON that says what it was built from and its SHA-256. The hash finds
damage and half-written files; that nobody else wrote them is what owner and permissions (0700, 0600) are for.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from affectrt.errors import AffectError

SCHEMA = 1
TIMING = "timing"
"""What stands for the graph in the key of TensorRT's timing cache."""

_SIDECAR_LIMIT = 1 << 16
_ENGINE_LIMIT = 1 << 34
_PRIVATE_FOLDER, _PRIVATE_FILE = 0o700, 0o600

Shape = tuple[int, ...]
Profile = Mapping[str, tuple[Shape, Shape, Shape]]
"""Input → its smallest, its usual and its largest shape."""


@dataclass(frozen=True)
class EngineKey:
    """What an engine is tied to. One engine is kept for each graph of a bundle on each GPU."""

    bundle_sha256: str
    """Hash of the bundle's file; empty for the timing cache, which serves all bundles."""
    graph: str
    """``text``, ``audio``, ``vision`` or ``fusion``, or :data:`TIMING`."""
    gpu: str
    """As the driver names it."""
    compute_capability: str
    """``8.7``."""
    tensorrt: str
    """Version of TensorRT, as its bindings tell."""
    cuda: str
    """The newest CUDA that the driver knows, ``13.0``."""

    @property
    def stem(self) -> str:
        """Name of the engine's files without their ending."""
        gpu = re.sub("[^a-z0-9]+", "-", self.gpu.lower()).strip("-") or "gpu"
        bundle = f"{self.bundle_sha256[:16]}-" if self.bundle_sha256 else ""
        return f"{bundle}{self.graph}-{gpu[:48]}-sm{self.compute_capability.replace('.', '')}"

    def timing(self) -> EngineKey:
        """The key of the timing cache on the same machine."""
        return replace(self, bundle_sha256="", graph=TIMING)


@dataclass(frozen=True)
class EngineBuild:
    """How an engine was built; its user is free to choose, its reader takes what there is."""

    precision: str
    """How 32-bit matrix products are computed: ``fp32`` or ``tf32``."""
    version_compatible: bool
    """Whether later versions of TensorRT read it, too."""
    profile: Profile
    """The shapes that it takes."""
    kernels: str = ""
    """Hashes of the kernels of ours that it holds, joined by ``+``; empty: none."""


TIMING_BUILD = EngineBuild("", False, {})


@dataclass(frozen=True)
class Engine:
    """A verified engine."""

    data: bytes
    """What TensorRT serialised."""
    build: EngineBuild
    """How it was built."""


@dataclass(frozen=True)
class Refusal:
    """Why no engine is handed out."""

    reason: str
    """For people."""
    absent: bool
    """There is none, rather than one that doesn't fit."""


class EngineCache:
    """The folder of engines. Holds nothing in memory."""

    def __init__(self, folder: Path | None = None) -> None:
        """``folder``: default ``affectrt/engines`` in the user's cache folder."""
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        self.folder = base / "affectrt" / "engines" if folder is None else folder

    def find(self, key: EngineKey, build: EngineBuild | None = None) -> Engine | Refusal:
        """The engine for this key, or why there is none. With ``build``, one that was built so.

        Without ``build``, an engine that is version-compatible may come from an older TensorRT.
        """
        try:
            with self._opened() as folder:
                record = _record(_read(folder, f"{key.stem}.json", _SIDECAR_LIMIT))
                _check_key(record, key, exact=build is not None)
                found = EngineBuild(**record["build"])
                if build is not None and found != build:
                    raise _Unfit(f"was built with other options: {_difference(found, build)}")
                data = _read(folder, f"{key.stem}.engine", _ENGINE_LIMIT, record["bytes"])
        except FileNotFoundError as error:
            half = str(error.filename).endswith(".engine")
            return Refusal("its file is gone" if half else "none was built", absent=not half)
        except _Unfit as error:
            return Refusal(str(error), absent=False)
        except OSError as error:
            return Refusal(f"it could not be read ({error.strerror})", absent=False)
        if hashlib.sha256(data).hexdigest() != record["sha256"]:
            return Refusal("its bytes are not those that were written", absent=False)
        return Engine(data, found)

    def holds(self, bundle_sha256: str) -> bool:
        """Whether anything, fit or not, lies here for a bundle: a quick look before libraries are loaded."""
        return any(self.folder.glob(f"{bundle_sha256[:16]}-*.json"))

    def store(self, key: EngineKey, build: EngineBuild, data: bytes) -> Path:
        """Keep an engine in place of the one that was there, and return its path.

        The sidecar goes first and comes last: whenever power fails, what is left is refused. Raises
        ``engine.cache`` when the folder can't be written or isn't this user's alone.
        """
        record = {
            "schema": SCHEMA,
            "sha256": hashlib.sha256(data).hexdigest(),
            "bytes": len(data),
            "key": asdict(key),
            "build": asdict(build),
        }
        try:
            self.folder.mkdir(_PRIVATE_FOLDER, parents=True, exist_ok=True)
            with self._opened() as folder:
                with suppress(FileNotFoundError):
                    os.unlink(f"{key.stem}.json", dir_fd=folder)
                _write(folder, f"{key.stem}.engine", data)
                _write(folder, f"{key.stem}.json", json.dumps(record, indent=1, sort_keys=True).encode())
        except _Unfit as error:
            raise AffectError("engine.cache", f"engine cache {self.folder}: {error}") from error
        except OSError as error:
            raise AffectError(
                "engine.cache",
                f"engine cache {self.folder}: could not be written ({error.strerror}); check the disk, or "
                f"set XDG_CACHE_HOME to a folder of yours",
            ) from error
        return self.folder / f"{key.stem}.engine"

    @contextmanager
    def _opened(self) -> Iterator[int]:
        """The folder's descriptor, once it is known to be ours: what is opened by it stays in it."""
        try:
            folder = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except NotADirectoryError:
            raise _Unfit(f"{self.folder} is a link or a file, expected a folder; remove it") from None
        try:
            _check_private(os.fstat(folder), f"the folder {self.folder}", _PRIVATE_FOLDER)
            yield folder
        finally:
            os.close(folder)


class _Unfit(Exception):
    """Says why a file or folder isn't trusted."""


def _check_private(found: os.stat_result, what: str, mode: int) -> None:
    if found.st_uid != os.geteuid():
        raise _Unfit(f"{what} belongs to user {found.st_uid}, expected {os.geteuid()}; remove it")
    if stat.S_IMODE(found.st_mode) & ~mode:
        raise _Unfit(
            f"{what} has permissions {stat.S_IMODE(found.st_mode):04o}, others may have changed it; expected "
            f"{mode:04o}; remove it"
        )


def _read(folder: int, name: str, limit: int, expected: int | None = None) -> bytes:
    # A pipe under this name must not make us wait for its writer.
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
    try:
        descriptor = os.open(name, flags, dir_fd=folder)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise _Unfit(f"the file {name} could not be opened ({error.strerror})") from error
    with os.fdopen(descriptor, "rb") as file:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise _Unfit(f"{name} is not a file")
        _check_private(found, f"the file {name}", _PRIVATE_FILE)
        if found.st_size > limit or (expected is not None and found.st_size != expected):
            wanted = f"at most {limit}" if expected is None else str(expected)
            raise _Unfit(f"the file {name} has {found.st_size} bytes, expected {wanted}")
        return file.read(limit + 1)


def _write(folder: int, name: str, data: bytes) -> None:
    temporary = f".{name}.{secrets.token_hex(8)}"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(temporary, flags, _PRIVATE_FILE, dir_fd=folder)
    try:
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(descriptor, _PRIVATE_FILE)
            file.write(data)
            file.flush()
            os.fsync(descriptor)
        os.rename(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(temporary, dir_fd=folder)
        raise
    os.fsync(folder)


def _record(data: bytes) -> dict[str, Any]:
    """The sidecar, exactly as :meth:`EngineCache.store` writes it, the profile's lists as tuples."""
    try:
        record = json.loads(data)
    except (ValueError, RecursionError):
        raise _Unfit("its sidecar is not JSON") from None
    if not isinstance(record, dict) or type(record.get("schema")) is not int:
        raise _Unfit("its sidecar is none of ours")
    if record["schema"] != SCHEMA:
        raise _Unfit(f"its sidecar has schema {record['schema']}, expected {SCHEMA}")
    key: Any = record.get("key")
    build: Any = record.get("build")
    well_formed = (
        record.keys() == {"schema", "sha256", "bytes", "key", "build"}
        and isinstance(record["sha256"], str)
        and type(record["bytes"]) is int
        and isinstance(key, dict)
        and key.keys() == {field.name for field in fields(EngineKey)}
        and all(isinstance(value, str) for value in key.values())
        and isinstance(build, dict)
        and build.keys() == {field.name for field in fields(EngineBuild)}
        and isinstance(build["precision"], str)
        and isinstance(build["kernels"], str)
        and isinstance(build["version_compatible"], bool)
        and isinstance(build["profile"], dict)
        and all(map(_is_range, build["profile"].values()))
    )
    if not well_formed:
        raise _Unfit("its sidecar lacks a field or has a strange one")
    build["profile"] = {name: tuple(map(tuple, shapes)) for name, shapes in build["profile"].items()}
    return record


def _is_range(shapes: object) -> bool:
    return (
        isinstance(shapes, list)
        and len(shapes) == 3
        and all(isinstance(shape, list) and all(type(size) is int for size in shape) for shape in shapes)
    )


def _check_key(record: Mapping[str, Any], key: EngineKey, *, exact: bool) -> None:
    for name, expected in asdict(key).items():
        found = record["key"][name]
        if found == expected:
            continue
        if name == "tensorrt" and record["build"]["version_compatible"] and not exact:
            built, here = _version(found), _version(expected)
            if built is not None and here is not None and built <= here:
                continue
        raise _Unfit(f"was built for {name.replace('_', ' ')} '{found}', here is '{expected}'")


def _version(text: str) -> tuple[int, ...] | None:
    match = re.match(r"\d+(\.\d+)*", text)
    return tuple(map(int, match[0].split("."))) if match else None


def _difference(found: EngineBuild, wanted: EngineBuild) -> str:
    names = [field.name for field in fields(EngineBuild)]
    others = {"profile": "other shapes", "kernels": "other kernels"}
    return ", ".join(
        others.get(name) or f"{name} {getattr(found, name)}"
        for name in names
        if getattr(found, name) != getattr(wanted, name)
    )
