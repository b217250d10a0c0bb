"""The model bundle: one file that carries everything the device must know about a model.

``name.affect`` is a zip archive of stored members: ``manifest.json`` and what it names. Nothing in
it is ever unpickled. :meth:`Bundle.open` reads the file once and checks archive, names, schema, sizes and
every hash before it hands out a byte; what was verified is what is used, whatever happens to the file later.

The archive's comment is the *seal*: the SHA-256 of all bytes before it. Zip repeats itself (times, sizes and
names stand in two places) and readers disagree on which copy counts; the seal leaves no byte of ours unread.
A bundle that another tool packed again has no seal and rests on the member hashes alone.
"""

from __future__ import annotations

import hashlib
import os
import struct
import tempfile
import zipfile
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from io import BytesIO
from pathlib import Path, PurePosixPath

from affectrt.errors import AffectError
from affectrt.manifest import SCHEMA, Manifest, Member

__all__ = ["MANIFEST_NAME", "SCHEMA", "Bundle", "Manifest", "Member", "write_bundle"]

MANIFEST_NAME = "manifest.json"

_SEAL = b"affect-seal:"
_END_RECORD = struct.Struct("<4s4H2LH")
_END_SIGNATURE = b"PK\x05\x06"
_MEMBER_SIGNATURE = b"PK\x03\x04"
_DAMAGE = (zipfile.BadZipFile, EOFError, OSError, NotImplementedError, ValueError, struct.error)
"""What zipfile raises on bytes that no writer wrote."""
_ENCRYPTED = 0x1
_EPOCH = (1980, 1, 1, 0, 0, 0)


class Bundle:
    """A verified bundle in memory. Immutable."""

    def __init__(self, manifest: Manifest, members: Mapping[str, bytes], sha256: str) -> None:
        """Use :meth:`open`."""
        self._manifest = manifest
        self._members = dict(members)
        self._sha256 = sha256

    @property
    def manifest(self) -> Manifest:
        """What the bundle says about itself."""
        return self._manifest

    @property
    def sha256(self) -> str:
        """Hash of the whole file, in hex: names this very bundle, for caches beside it."""
        return self._sha256

    def read(self, name: str) -> bytes:
        """The bytes of a member that the manifest lists. Raises ``bundle.member_missing``."""
        if name not in self._members:
            raise AffectError(
                "bundle.member_missing",
                f"bundle {self._manifest.name}: no member '{name}', only {', '.join(sorted(self._members))}",
            )
        return self._members[name]

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Bundle:
        """Read and verify a bundle.

        Raises ``bundle.not_found``, ``bundle.unreadable``, ``bundle.not_zip``, ``bundle.truncated``,
        ``bundle.path_escape``, ``bundle.duplicate``, ``bundle.compressed``, ``bundle.encrypted``,
        ``bundle.manifest``, ``bundle.schema_newer``, ``bundle.member_missing``, ``bundle.member_extra`` or
        ``bundle.hash_mismatch``.
        """
        path = Path(path)
        data = _read_file(path)
        seal = _check_frame(path, data)
        try:
            with zipfile.ZipFile(BytesIO(data)) as archive:
                infos = archive.infolist()
                _check_entries(path, infos)
                manifest = Manifest.from_json(_read_manifest(path, archive), str(path))
                _check_names(path, manifest.members, (info.filename for info in infos))
                members = {name: archive.read(name) for name in manifest.members}
        except _DAMAGE as error:
            raise AffectError(
                "bundle.hash_mismatch",
                f"bundle {path}: the archive is damaged ({error}); copy or download the file again",
            ) from error
        for name, member in manifest.members.items():
            _check_hash(path, name, member, members[name])
        if seal is not None:
            covered, expected = seal
            if _sha256(data[:covered]) != expected:
                raise AffectError(
                    "bundle.hash_mismatch",
                    f"bundle {path}: the file differs from what was sealed (SHA-256 of its first {covered} "
                    f"bytes); copy or download the file again",
                )
        return cls(manifest, members, _sha256(data))


def write_bundle(path: str | os.PathLike[str], manifest: Manifest, members: Mapping[str, bytes]) -> Manifest:
    """Write a bundle and return its manifest with ``members`` (sizes, hashes) filled in.

    The same input gives the same bytes. The file appears whole or not at all. Raises ``bundle.path_escape``,
    ``bundle.manifest``, ``bundle.unwritable`` and, when the manifest names other members than those given,
    ``bundle.member_missing`` or ``bundle.member_extra``.
    """
    path = Path(path)
    for name in members:
        _check_member_name(path, name)
    manifest = replace(
        manifest, members={name: Member(_sha256(data), len(data)) for name, data in sorted(members.items())}
    )
    manifest.check(str(path))
    named = set(manifest.named_members())
    for code, names in (
        ("bundle.member_missing", named - set(members)),
        ("bundle.member_extra", set(members) - named),
    ):
        if names:
            raise AffectError(
                code,
                f"bundle {path}: the manifest names {', '.join(sorted(named))}, got "
                f"{', '.join(sorted(members))}; mend '{min(names)}'",
            )
    buffer = BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, data in [(MANIFEST_NAME, manifest.to_json().encode()), *sorted(members.items())]:
            info = zipfile.ZipInfo(name, _EPOCH)
            info.create_system = 3  # zipfile would write the platform's, and other bytes on Windows
            info.external_attr = 0o644 << 16
            archive.writestr(info, data)
        # The comment's length is part of what is sealed, so it is written first and the digest filled in.
        archive.comment = _SEAL + b"0" * 64
    data = buffer.getvalue()[:-64]
    _write_atomically(path, data + _sha256(data).encode())
    return manifest


def _read_file(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise AffectError(
            "bundle.not_found", f"bundle {path}: there is no such file; check the path"
        ) from error
    except OSError as error:
        raise AffectError(
            "bundle.unreadable", f"bundle {path}: could not be read ({error.strerror}); check the path"
        ) from error


def _check_frame(path: Path, data: bytes) -> tuple[int, str] | None:
    """Check that ``data`` is one whole archive. Returns the seal: bytes covered, SHA-256; None without."""
    if not data.startswith((_MEMBER_SIGNATURE, _END_SIGNATURE)):
        raise AffectError(
            "bundle.not_zip",
            f"bundle {path}: expected a zip archive, got a file of {len(data)} bytes that begins with "
            f"{data[:4]!r}; give the path of a .affect file",
        )
    start = data.rfind(_END_SIGNATURE)
    end = data[start : start + _END_RECORD.size]
    if start < 0 or len(end) < _END_RECORD.size:
        raise AffectError(
            "bundle.truncated",
            f"bundle {path}: the file ends after {len(data)} bytes, before the archive's directory; copy or "
            f"download the file again",
        )
    comment = data[start + _END_RECORD.size :]
    if len(comment) != _END_RECORD.unpack(end)[-1]:
        raise AffectError(
            "bundle.truncated",
            f"bundle {path}: {_END_RECORD.unpack(end)[-1]} bytes should follow the archive's directory, got "
            f"{len(comment)}; copy or download the file again",
        )
    if not comment:
        return None
    digest = comment[len(_SEAL) :]
    if not comment.startswith(_SEAL) or len(digest) != 64:
        raise AffectError(
            "bundle.hash_mismatch",
            f"bundle {path}: expected the archive's comment to be a seal, got {comment[:32]!r}; copy or "
            f"download the file again",
        )
    return len(data) - len(digest), digest.decode("latin-1")


def _check_entries(path: Path, infos: list[zipfile.ZipInfo]) -> None:
    seen: set[str] = set()
    for info in infos:
        _check_member_name(path, info.orig_filename)
        if info.filename in seen:
            raise AffectError(
                "bundle.duplicate",
                f"bundle {path}: member '{info.filename}' is there twice; get the file from its maker again",
            )
        seen.add(info.filename)
        if info.flag_bits & _ENCRYPTED:
            raise AffectError(
                "bundle.encrypted", f"bundle {path}: member '{info.filename}' is encrypted; bundles never are"
            )
        if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size:
            raise AffectError(
                "bundle.compressed",
                f"bundle {path}: member '{info.filename}' is compressed, members must be stored; pack the "
                f"bundle without compression",
            )


def _check_member_name(path: Path, name: str) -> None:
    pure = PurePosixPath(name)
    plain = name.isprintable() and not any(character in name for character in '\\:*?"<>|')
    if not plain or pure.is_absolute() or str(pure) != name or ".." in pure.parts or not pure.parts:
        raise AffectError(
            "bundle.path_escape",
            f"bundle {path}: member name {name!r} is not a plain relative path inside the bundle; don't use "
            f"this file",
        )


def _read_manifest(path: Path, archive: zipfile.ZipFile) -> bytes:
    if MANIFEST_NAME not in archive.namelist():
        raise AffectError(
            "bundle.manifest",
            f"bundle {path}: has no {MANIFEST_NAME}, so this is another kind of zip file; give the path of a "
            f".affect file",
        )
    return archive.read(MANIFEST_NAME)


def _check_names(path: Path, listed: Mapping[str, Member], stored: Iterable[str]) -> None:
    names = set(stored) - {MANIFEST_NAME}
    for code, verb, differing in (
        ("bundle.member_missing", "lacks", set(listed) - names),
        ("bundle.member_extra", "holds, unlisted in its manifest,", names - set(listed)),
    ):
        if differing:
            raise AffectError(
                code,
                f"bundle {path}: {verb} {', '.join(sorted(differing))}; get the file from its maker again",
            )


def _check_hash(path: Path, name: str, member: Member, data: bytes) -> None:
    if len(data) != member.bytes or _sha256(data) != member.sha256:
        raise AffectError(
            "bundle.hash_mismatch",
            f"bundle {path}: member '{name}' should be {member.bytes} bytes with SHA-256 "
            f"{member.sha256[:12]}…, got {len(data)} bytes with {_sha256(data)[:12]}…; copy or download the "
            f"file again",
        )


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _write_atomically(path: Path, data: bytes) -> None:
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:
        raise AffectError(
            "bundle.unwritable", f"bundle {path}: could not be written ({error.strerror}); check the folder"
        ) from error
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except BaseException as error:
        with suppress(FileNotFoundError):
            Path(temporary).unlink()
        if isinstance(error, OSError):
            raise AffectError(
                "bundle.unwritable", f"bundle {path}: could not be written ({error.strerror}); check the disk"
            ) from error
        raise
