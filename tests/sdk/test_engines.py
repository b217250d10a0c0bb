"""The cache of TensorRT engines on real files: what is handed out was stored, or there is a reason."""

from __future__ import annotations

import json
import os
import shutil
import stat
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from affectrt.engines import TIMING_BUILD, Engine, EngineBuild, EngineCache, EngineKey, Refusal
from affectrt.errors import AffectError

KEY = EngineKey("ab" * 32, "fusion", "NVIDIA Orin (nvgpu)/x", "8.7", "10.3.0", "12.6")
BUILD = EngineBuild(
    "fp32", False, {"text": ((1, 1, 8), (1, 24, 8), (8, 128, 8)), "text_lengths": ((1,),) * 3}
)
DATA = bytes(range(256)) * 40


@pytest.fixture
def cache(tmp_path: Path) -> EngineCache:
    """A cache that holds one engine."""
    cache = EngineCache(tmp_path / "engines")
    cache.store(KEY, BUILD, DATA)
    return cache


def files(cache: EngineCache) -> tuple[Path, Path]:
    return cache.folder / f"{KEY.stem}.engine", cache.folder / f"{KEY.stem}.json"


def refused(cache: EngineCache, *words: str, key: EngineKey = KEY, build: EngineBuild | None = None) -> None:
    found = cache.find(key, build)
    assert isinstance(found, Refusal), "handed out"
    assert not found.absent
    assert all(word in found.reason for word in words), found.reason


def change(path: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    """Rewrite a sidecar as somebody with a text editor would."""
    record = json.loads(path.read_text(encoding="utf-8"))
    edit(record)
    path.write_text(json.dumps(record), encoding="utf-8")


def test_what_was_stored_is_found(cache: EngineCache) -> None:
    assert cache.find(KEY) == cache.find(KEY, BUILD) == Engine(DATA, BUILD)
    engine, sidecar = files(cache)
    assert sorted(cache.folder.iterdir()) == sorted([engine, sidecar]), "nothing temporary stays"
    assert stat.S_IMODE(cache.folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in (engine, sidecar)} == {0o600}
    assert engine.name == "abababababababab-fusion-nvidia-orin-nvgpu-x-sm87.engine"


def test_the_default_folder_is_the_users_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert EngineCache().folder == tmp_path / "affectrt" / "engines"
    assert EngineCache().find(KEY) == Refusal("none was built", absent=True)
    EngineCache().store(KEY, BUILD, DATA)
    assert isinstance(EngineCache().find(KEY), Engine)
    assert EngineCache().holds(KEY.bundle_sha256) and not EngineCache().holds("cd" * 32)


def test_permissions_hold_under_any_umask(tmp_path: Path) -> None:
    for umask in (0o000, 0o077, 0o022):
        cache = EngineCache(tmp_path / f"{umask:o}")
        before = os.umask(umask)
        try:
            cache.store(KEY, BUILD, DATA)
        finally:
            os.umask(before)
        assert isinstance(cache.find(KEY), Engine)


def test_a_new_engine_takes_the_place_of_the_old(cache: EngineCache) -> None:
    other = replace(BUILD, precision="tf32")
    assert cache.store(KEY, other, b"other") == files(cache)[0]
    assert cache.find(KEY) == Engine(b"other", other)
    refused(cache, "other options", "precision tf32", build=BUILD)
    refused(cache, "other shapes", build=replace(other, profile={}))
    assert len(list(cache.folder.iterdir())) == 2


def test_the_timing_cache_is_kept_beside_the_engines(cache: EngineCache) -> None:
    cache.store(KEY.timing(), TIMING_BUILD, b"timings")
    assert cache.find(KEY.timing(), TIMING_BUILD) == Engine(b"timings", TIMING_BUILD)
    assert cache.find(replace(KEY, bundle_sha256="cd" * 32).timing()) == Engine(b"timings", TIMING_BUILD)
    assert cache.find(KEY) == Engine(DATA, BUILD)


@pytest.mark.parametrize("field", [field.name for field in fields(EngineKey)])
def test_an_engine_serves_no_other_key(cache: EngineCache, field: str) -> None:
    """Neither looked up by another key nor with its files put where that key looks for them."""
    other = replace(KEY, **{field: f"{getattr(KEY, field)}x"})
    if other.stem != KEY.stem:
        assert cache.find(other) == Refusal("none was built", absent=True)
        for path in files(cache):
            shutil.copy2(path, cache.folder / f"{other.stem}{path.suffix}")
    refused(cache, f"was built for {field.replace('_', ' ')} '{getattr(KEY, field)}'", "here is", key=other)


def test_a_foreign_gpu_and_another_tensorrt_are_named(cache: EngineCache) -> None:
    _, sidecar = files(cache)
    change(sidecar, lambda record: record["key"].update(gpu="NVIDIA H200"))
    refused(cache, "was built for gpu 'NVIDIA H200', here is 'NVIDIA Orin (nvgpu)/x'")
    change(sidecar, lambda record: record["key"].update(gpu=KEY.gpu, tensorrt="11.4.0.106"))
    refused(cache, "was built for tensorrt '11.4.0.106', here is '10.3.0'")


def test_a_version_compatible_engine_serves_later_versions_only(cache: EngineCache) -> None:
    build = replace(BUILD, version_compatible=True)
    cache.store(KEY, build, DATA)
    for later in ("10.3.0", "10.3.0.26", "10.10.0", "11.4.0.106"):
        assert cache.find(replace(KEY, tensorrt=later)) == Engine(DATA, build), later
    for no in ("10.2.9", "9.9", "8.6.1", "unknown", ""):
        refused(cache, "tensorrt '10.3.0'", key=replace(KEY, tensorrt=no))
    # Whoever builds gets an engine of this very version.
    refused(cache, "tensorrt '10.3.0'", key=replace(KEY, tensorrt="11.4.0"), build=build)
    refused(cache, "cuda '12.6'", key=replace(KEY, tensorrt="11.4.0", cuda="13.0"))


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_changed_byte_passes(cache: EngineCache, data: st.DataObject) -> None:
    """Flipped, cut, appended, replaced: an engine whose bytes differ is never handed out."""
    path, _ = files(cache)
    good = path.read_bytes()
    kind = data.draw(st.sampled_from(["flip", "cut", "append", "swap"]))
    if kind == "flip":
        position = data.draw(st.integers(0, len(good) - 1))
        flipped = good[position] ^ data.draw(st.integers(1, 255))
        bad = good[:position] + bytes([flipped]) + good[position + 1 :]
    elif kind == "cut":
        bad = good[: data.draw(st.integers(0, len(good) - 1))]
    elif kind == "append":
        bad = good + data.draw(st.binary(min_size=1, max_size=9))
    else:
        bad = data.draw(st.binary(max_size=len(good)).filter(lambda other: other != good))
    path.write_bytes(bad)
    refused(cache)
    path.write_bytes(good)
    assert cache.find(KEY) == Engine(DATA, BUILD)


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_sidecar_is_refused_or_says_the_same(cache: EngineCache, data: st.DataObject) -> None:
    """Any change to the sidecar ends in a reason, or in the engine that was stored: never in an exception."""
    _, path = files(cache)
    good = path.read_bytes()
    start = data.draw(st.integers(0, len(good)))
    stop = data.draw(st.integers(start, min(len(good), start + 40)))
    path.write_bytes(good[:start] + data.draw(st.binary(max_size=12)) + good[stop:])
    found = cache.find(KEY, BUILD)
    path.write_bytes(good)
    assert isinstance(found, Refusal) or found == Engine(DATA, BUILD)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
PATHS = [
    *[(name,) for name in ("schema", "sha256", "bytes", "key", "build")],
    *[("key", field.name) for field in fields(EngineKey)],
    *[("build", field.name) for field in fields(EngineBuild)],
    ("build", "profile", "text"),
]


@settings(max_examples=400, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(where=st.sampled_from(PATHS), value=json_values, remove=st.booleans())
def test_strange_values_in_a_sidecar(
    cache: EngineCache, where: tuple[str, ...], value: Any, remove: bool
) -> None:
    _, path = files(cache)
    good = path.read_bytes()

    def edit(record: dict[str, Any]) -> None:
        for name in where[:-1]:
            record = record[name]
        if remove:
            del record[where[-1]]
        else:
            record[where[-1]] = value

    change(path, edit)
    found = cache.find(KEY, BUILD)
    path.write_bytes(good)
    assert isinstance(found, Refusal) or found == Engine(DATA, BUILD)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"null", b"{}", b"\xff\xfe", b"[" * 60000, b"1" * 70000]
)
def test_a_sidecar_that_is_none(cache: EngineCache, content: bytes) -> None:
    files(cache)[1].write_bytes(content)
    refused(cache, "sidecar" if len(content) < 65536 else "at most 65536")


def test_a_newer_schema_is_named(cache: EngineCache) -> None:
    change(files(cache)[1], lambda record: record.update(schema=2))
    refused(cache, "schema 2, expected 1")


def test_whatever_moment_the_power_fails(cache: EngineCache, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stop a second store after each of its system calls: either engine is found, or a reason."""
    old, new = Engine(DATA, BUILD), Engine(b"new engine", replace(BUILD, precision="tf32"))

    class PowerFails(BaseException):
        pass

    calls, stop_at = 0, 0
    names = ("unlink", "open", "fchmod", "fsync", "rename")
    real = {name: getattr(os, name) for name in names}

    def dying(name: str) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            if calls == stop_at:
                raise PowerFails
            calls += 1
            return real[name](*args, **kwargs)

        return call

    outcomes = []
    for moment in range(100):
        stop_at = moment
        cache.store(KEY, old.build, old.data)
        calls, finished = 0, True
        with monkeypatch.context() as patched:
            for name in names:
                patched.setattr(os, name, dying(name))
            try:
                cache.store(KEY, new.build, new.data)
            except PowerFails:
                finished = False
        found = cache.find(KEY)
        outcomes.append(found)
        assert isinstance(found, Refusal) or found in (old, new)
        if finished:
            break
    assert finished and outcomes[0] == old and outcomes[-1] == new
    assert any(isinstance(found, Refusal) for found in outcomes), "some moment leaves no engine"


def test_half_a_pair_is_refused(cache: EngineCache) -> None:
    engine, sidecar = files(cache)
    kept = engine.read_bytes()
    engine.unlink()
    refused(cache, "its file is gone")
    engine.write_bytes(kept)
    engine.chmod(0o600)
    sidecar.unlink()
    assert cache.find(KEY) == Refusal("none was built", absent=True)


@pytest.mark.parametrize("which", [0, 1], ids=["engine", "sidecar"])
@pytest.mark.parametrize("mode", [0o644, 0o620, 0o602, 0o660, 0o777, 0o4600])
def test_a_file_that_others_may_touch_is_refused(cache: EngineCache, which: int, mode: int) -> None:
    files(cache)[which].chmod(mode)
    refused(cache, f"permissions {mode:04o}", "expected 0600")


@pytest.mark.parametrize("mode", [0o755, 0o770, 0o701, 0o1777])
def test_a_folder_that_others_may_enter_is_refused(cache: EngineCache, mode: int) -> None:
    cache.folder.chmod(mode)
    try:
        refused(cache, "the folder", f"permissions {mode:04o}")
        with pytest.raises(AffectError, match="expected 0700") as caught:
            cache.store(KEY, BUILD, DATA)
        assert caught.value.code == "engine.cache"
    finally:
        cache.folder.chmod(0o700)


def test_what_belongs_to_another_user_is_refused(cache: EngineCache, monkeypatch: pytest.MonkeyPatch) -> None:
    me = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: me + 1)
    refused(cache, f"belongs to user {me}, expected {me + 1}")


@pytest.mark.parametrize("which", [0, 1], ids=["engine", "sidecar"])
def test_links_and_pipes_are_not_followed(cache: EngineCache, tmp_path: Path, which: int) -> None:
    path = files(cache)[which]
    elsewhere = tmp_path / "elsewhere"
    path.rename(elsewhere)
    path.symlink_to(elsewhere)
    refused(cache, "could not be opened")
    path.unlink()
    os.mkfifo(path, 0o600)
    refused(cache, "is not a file")
    path.unlink()
    path.mkdir(0o700)
    refused(cache)


def test_the_folder_may_not_be_a_link(cache: EngineCache, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(cache.folder)
    linked = EngineCache(tmp_path / "link")
    refused(linked, "is a link or a file")
    with pytest.raises(AffectError, match="is a link or a file"):
        linked.store(KEY, BUILD, DATA)
    (tmp_path / "file").touch()
    refused(EngineCache(tmp_path / "file"), "is a link or a file")


def test_a_cache_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(AffectError, match="XDG_CACHE_HOME") as caught:
        EngineCache(tmp_path / "file" / "engines").store(KEY, BUILD, DATA)
    assert caught.value.code == "engine.cache"


def test_many_writers_and_readers(tmp_path: Path) -> None:
    """Whatever is found was stored by one of them, whole."""
    cache = EngineCache(tmp_path / "engines")
    stored = [Engine(bytes([n]) * (5000 + n), replace(BUILD, precision=f"{n}")) for n in range(8)]

    def write(n: int) -> None:
        for _ in range(5):
            cache.store(KEY, stored[n].build, stored[n].data)

    def read(_: int) -> bool:
        found = [cache.find(KEY) for _ in range(60)]
        return all(isinstance(each, Refusal) or each in stored for each in found)

    with ThreadPoolExecutor(12) as pool:
        writers = [pool.submit(write, n) for n in range(8)]
        assert all(pool.map(read, range(4)))
        for writer in writers:
            writer.result()
    assert not list(cache.folder.glob(".*"))


def test_the_sidecar_says_what_was_built(cache: EngineCache) -> None:
    record = json.loads(files(cache)[1].read_text(encoding="utf-8"))
    assert record["key"] == asdict(KEY) and record["bytes"] == len(DATA) and record["schema"] == 1
