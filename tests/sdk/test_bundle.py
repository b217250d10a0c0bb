"""The model bundle: what is written can be read, whatever was changed since is refused with its own code."""

from __future__ import annotations

import json
import os
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from affectrt.bundle import MANIFEST_NAME, SCHEMA, Bundle, write_bundle
from affectrt.calibration import PRESENCE_KEYS
from affectrt.errors import AffectError
from affectrt.manifest import Manifest


def refused(path: Path) -> AffectError:
    with pytest.raises(AffectError) as caught:
        Bundle.open(path)
    assert "\n" not in str(caught.value)
    assert str(path) in caught.value.message
    return caught.value


def contents(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def repack(path: Path, members: list[tuple[str, bytes]], method: int = zipfile.ZIP_STORED) -> Path:
    """As another tool packs it: no seal."""
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in members:
            archive.writestr(name, data)
    return path


def with_manifest(source: Path, target: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    members = contents(source)
    manifest = json.loads(members[MANIFEST_NAME])
    change(manifest)
    members[MANIFEST_NAME] = json.dumps(manifest).encode()
    return repack(target, list(members.items()))


def test_what_is_written_is_read(
    tiny_bundle: Path, tiny_manifest: Manifest, tiny_members: dict[str, bytes]
) -> None:
    bundle = Bundle.open(tiny_bundle)
    assert {name: bundle.read(name) for name in bundle.manifest.members} == tiny_members
    assert replace(bundle.manifest, members={}) == tiny_manifest
    assert len(bundle.sha256) == 64


def test_reading_goes_on_after_the_file_is_gone(tiny_bundle: Path, tmp_path: Path) -> None:
    path = Path(shutil.copy(tiny_bundle, tmp_path))
    bundle = Bundle.open(path)
    path.unlink()
    assert bundle.read("tokenizer.json").startswith(b"{")


def test_same_input_same_bytes(
    tiny_manifest: Manifest, tiny_members: dict[str, bytes], tmp_path: Path, tiny_bundle: Path
) -> None:
    backwards = dict(reversed(tiny_members.items()))
    write_bundle(tmp_path / "again.affect", tiny_manifest, backwards)
    assert (tmp_path / "again.affect").read_bytes() == tiny_bundle.read_bytes()
    assert [p.name for p in tmp_path.iterdir()] == ["again.affect"]


def test_a_failed_write_leaves_the_old_file(
    tiny_manifest: Manifest, tiny_members: dict[str, bytes], tmp_path: Path
) -> None:
    path = tmp_path / "model.affect"
    path.write_bytes(b"old")
    for members, code in (
        ({**tiny_members, "../evil": b""}, "bundle.path_escape"),
        ({**tiny_members, "extra.bin": b""}, "bundle.member_extra"),
        ({"text.onnx": b""}, "bundle.member_missing"),
    ):
        with pytest.raises(AffectError) as caught:
            write_bundle(path, tiny_manifest, members)
        assert caught.value.code == code
    with pytest.raises(AffectError) as caught:
        write_bundle(tmp_path / "nowhere" / "model.affect", tiny_manifest, tiny_members)
    assert caught.value.code == "bundle.unwritable"
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["model.affect"]


def test_members_are_stored_at_plain_offsets(tiny_bundle: Path) -> None:
    with zipfile.ZipFile(tiny_bundle) as archive:
        assert archive.testzip() is None
        assert {info.compress_type for info in archive.infolist()} == {zipfile.ZIP_STORED}
        assert archive.namelist()[0] == MANIFEST_NAME


def test_bundle_packed_by_another_tool_opens(tiny_bundle: Path, tmp_path: Path) -> None:
    path = repack(tmp_path / "m.affect", list(contents(tiny_bundle).items()))
    assert Bundle.open(path).manifest == Bundle.open(tiny_bundle).manifest


def test_not_found_not_a_file_not_zip(tmp_path: Path) -> None:
    assert refused(tmp_path / "none.affect").code == "bundle.not_found"
    assert refused(tmp_path).code == "bundle.unreadable"
    for data in (b"", b"hello", b"\x00" * 1000):
        (tmp_path / "m.affect").write_bytes(data)
        assert refused(tmp_path / "m.affect").code == "bundle.not_zip"


def test_another_kind_of_zip(tmp_path: Path) -> None:
    error = refused(repack(tmp_path / "m.affect", [("readme.txt", b"hi")]))
    assert error.code == "bundle.manifest"


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.999])
def test_truncated(tiny_bundle: Path, tmp_path: Path, share: float) -> None:
    data = tiny_bundle.read_bytes()
    (tmp_path / "m.affect").write_bytes(data[: int(len(data) * share)])
    assert refused(tmp_path / "m.affect").code == "bundle.truncated"


def test_bytes_after_the_end(tiny_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "m.affect").write_bytes(tiny_bundle.read_bytes() + b"!")
    assert refused(tmp_path / "m.affect").code == "bundle.truncated"


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_flipped_byte_is_refused(tiny_bundle: Path, tmp_path: Path, data: st.DataObject) -> None:
    original = tiny_bundle.read_bytes()
    # Half of the draws near the end, where the archive's directory, its end record and the seal are.
    near = st.integers(len(original) - 1200, len(original) - 1)
    place = data.draw(st.one_of(st.integers(0, len(original) - 1), near))
    change = data.draw(st.integers(1, 255))
    broken = bytearray(original)
    broken[place] ^= change
    (tmp_path / "m.affect").write_bytes(broken)
    refused(tmp_path / "m.affect")


def test_every_byte_of_the_directory_is_guarded(tiny_bundle: Path, tmp_path: Path) -> None:
    original = tiny_bundle.read_bytes()
    path = tmp_path / "m.affect"
    for place in range(len(original) - 600, len(original), 3):
        broken = bytearray(original)
        broken[place] ^= 0x20
        path.write_bytes(broken)
        refused(path)


def test_flipped_byte_in_a_graph_says_so(
    tiny_bundle: Path, tmp_path: Path, tiny_members: dict[str, bytes]
) -> None:
    broken = bytearray(tiny_bundle.read_bytes())
    place = broken.index(tiny_members["fusion.onnx"]) + 100
    broken[place] ^= 1
    (tmp_path / "m.affect").write_bytes(broken)
    assert refused(tmp_path / "m.affect").code == "bundle.hash_mismatch"


def test_wrong_hash_with_a_right_checksum(tiny_bundle: Path, tmp_path: Path) -> None:
    members = contents(tiny_bundle)
    members["tokenizer.json"] = members["tokenizer.json"].replace(b"happy", b"yppah")
    error = refused(repack(tmp_path / "m.affect", list(members.items())))
    assert error.code == "bundle.hash_mismatch"
    assert "tokenizer.json" in error.message


@pytest.mark.parametrize(
    "name", ["../evil", "/etc/passwd", "a/../b", "C:\\evil", "a\\b", "./text.onnx", "a//b", "a\nb", "dir/"]
)
def test_path_escape(tiny_bundle: Path, tmp_path: Path, name: str) -> None:
    members = [*contents(tiny_bundle).items(), (name, b"x")]
    assert refused(repack(tmp_path / "m.affect", members)).code == "bundle.path_escape"


def test_appended_member(tiny_bundle: Path, tmp_path: Path) -> None:
    path = Path(shutil.copy(tiny_bundle, tmp_path))
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("more.bin", b"x")
    assert refused(path).code == "bundle.member_extra"


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_duplicate_member(tiny_bundle: Path, tmp_path: Path) -> None:
    members = [*contents(tiny_bundle).items(), ("text.onnx", b"x")]
    assert refused(repack(tmp_path / "m.affect", members)).code == "bundle.duplicate"


def test_compressed_member(tiny_bundle: Path, tmp_path: Path) -> None:
    members = list(contents(tiny_bundle).items())
    path = repack(tmp_path / "m.affect", members, zipfile.ZIP_DEFLATED)
    assert refused(path).code == "bundle.compressed"


@pytest.mark.parametrize("name", ["text.onnx", "fusion.onnx", "fusion.safetensors", "tokenizer.json"])
def test_missing_member(tiny_bundle: Path, tmp_path: Path, name: str) -> None:
    members = contents(tiny_bundle)
    del members[name]
    error = refused(repack(tmp_path / "m.affect", list(members.items())))
    assert error.code == "bundle.member_missing"
    assert name in error.message


def test_member_that_is_used_but_not_listed(tiny_bundle: Path, tmp_path: Path) -> None:
    path = with_manifest(tiny_bundle, tmp_path / "m.affect", lambda m: m["members"].pop("audio.onnx"))
    assert refused(path).code == "bundle.member_missing"


def test_newer_schema_is_told_before_anything_else(tiny_bundle: Path, tmp_path: Path) -> None:
    def change(manifest: dict[str, Any]) -> None:
        manifest.clear()
        manifest.update(schema=SCHEMA + 1, surprise=[1, 2, 3])

    error = refused(with_manifest(tiny_bundle, tmp_path / "m.affect", change))
    assert error.code == "bundle.schema_newer"
    assert "upgrade" in error.message


def _set(*path: str | int, to: Any) -> Callable[[dict[str, Any]], None]:
    def change(manifest: Any) -> None:
        for step in path[:-1]:
            manifest = manifest[step]
        manifest[path[-1]] = to

    return change


@pytest.mark.parametrize(
    "change",
    [
        _set("schema", to="1"),
        _set("schema", to=True),
        _set("schema", to=0),
        _set("schema", to=None),
        _set("surprise", to=1),
        lambda m: m.pop("licence"),
        lambda m: m["audio"].pop("n_mels"),
        _set("audio", "gain", to=1.0),
        _set("audio", "n_mels", to=64.0),
        _set("audio", "n_mels", to=True),
        _set("audio", "n_mels", to=0),
        _set("audio", "hop_s", to=-0.01),
        _set("window_s", to="4"),
        _set("window_s", to=0),
        _set("name", to=7),
        _set("text", to=[]),
        _set("config", to=None),
        _set("labels", to=["joy"]),
        _set("metrics", to={}),
        _set("metrics", 0, "value", to=None),
        _set("calibration", "temperature", "text", to=0.0),
        _set("calibration", "temperature", to={}),
        _set("calibration", "interval_half_width", "none", to=-1.0),
        _set("calibration", "coverage", to=1.5),
        _set("members", "text.onnx", "sha256", to="abc"),
        _set("members", "text.onnx", "bytes", to="12"),
    ],
)
def test_strict_manifest(tiny_bundle: Path, tmp_path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    assert refused(with_manifest(tiny_bundle, tmp_path / "m.affect", change)).code == "bundle.manifest"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{",
        '{"schema": 1, "schema": 1}',
        '{"schema": NaN}',
        "[" * 100_000,
        "\xff\xfe",
        '{"schema": 1}',
    ],
)
def test_manifest_that_is_no_manifest(tiny_bundle: Path, tmp_path: Path, text: str) -> None:
    members = contents(tiny_bundle) | {MANIFEST_NAME: text.encode("latin-1")}
    assert refused(repack(tmp_path / "m.affect", list(members.items()))).code == "bundle.manifest"


def test_infinite_number_in_a_manifest(tiny_bundle: Path, tmp_path: Path) -> None:
    members = contents(tiny_bundle)
    text = members[MANIFEST_NAME].decode()
    assert '"window_s": 4.0' in text
    members[MANIFEST_NAME] = text.replace('"window_s": 4.0', '"window_s": 1e999').encode()
    assert refused(repack(tmp_path / "m.affect", list(members.items()))).code == "bundle.manifest"


def test_whole_numbers_pass_as_floats(tiny_manifest: Manifest) -> None:
    data = asdict(tiny_manifest)
    members = {name: {"sha256": "0" * 64, "bytes": 1} for name in tiny_manifest.named_members()}
    parsed = Manifest.from_json(json.dumps(data | {"window_s": 4, "members": members}), "here")
    assert parsed.window_s == 4.0
    assert isinstance(parsed.window_s, float)
    assert set(parsed.calibration.temperature) == set(PRESENCE_KEYS)


def test_read_of_unknown_member(tiny_bundle: Path) -> None:
    with pytest.raises(AffectError) as caught:
        Bundle.open(tiny_bundle).read("../text.onnx")
    assert caught.value.code == "bundle.member_missing"


def test_a_pickle_is_never_loaded(tiny_bundle: Path, tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
            return os.mkdir, (str(tmp_path / "exploded"),)

    import pickle

    (tmp_path / "m.affect").write_bytes(pickle.dumps(Bomb()))
    assert refused(tmp_path / "m.affect").code == "bundle.not_zip"
    members = contents(tiny_bundle) | {MANIFEST_NAME: pickle.dumps(Bomb())}
    assert refused(repack(tmp_path / "n.affect", list(members.items()))).code == "bundle.manifest"
    assert not (tmp_path / "exploded").exists()
