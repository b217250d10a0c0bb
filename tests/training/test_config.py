"""Settings from YAML, from ``--set`` and from mappings: taken as typed, or refused by name."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from affectrt.errors import AffectError
from affectrt_training.config import build, read_settings
from affectrt_training.fit.settings import RunConfig


@dataclass(frozen=True)
class _Inner:
    width: int = 3
    share: float = 0.5

    def __post_init__(self) -> None:
        if self.share > 1:
            raise ValueError(f"share: expected at most 1, got {self.share}")


@dataclass(frozen=True)
class _Outer:
    name: str = "x"
    inner: _Inner = field(default_factory=_Inner)
    kind: Literal["a", "b"] = "a"
    pairs: tuple[str, ...] = ()
    size: tuple[int, int] = (1, 1)
    limit: float | None = None
    open: Mapping[str, object] = field(default_factory=dict)
    quiet: bool = False


def test_a_file_and_changes_on_top(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("name: trial\ninner:\n  width: 8\n  share: 1e-3\npairs: [at, vt]\nlimit: 2\n")
    settings = read_settings(path, ["inner.width=16", "open.deep.key=-2.5e+1", "quiet=true", "limit=null"])
    found = build(_Outer, settings, where="run")
    assert found == _Outer(
        name="trial",
        inner=_Inner(16, 0.001),
        pairs=("at", "vt"),
        limit=None,
        open={"deep": {"key": -25.0}},
        quiet=True,
    )


def test_no_file_and_an_empty_file_are_no_settings(tmp_path: Path) -> None:
    (tmp_path / "empty.yaml").write_text("# nothing yet\n")
    assert read_settings(None, []) == read_settings(tmp_path / "empty.yaml", []) == {}


@pytest.mark.parametrize(
    ("settings", "code", "message"),
    [
        ({"nmae": "x"}, "config.unknown_key", "run: unknown key 'nmae'; did you mean 'name'"),
        ({"inner": {"widht": 1}}, "config.unknown_key", "run.inner: .*'widht'; did you mean 'width'"),
        ({"zzz": 1}, "config.unknown_key", "expected one of inner, kind, limit"),
        ({"inner": {"width": "8"}}, "config.value", "run.inner.width: expected int, got '8'"),
        ({"inner": {"width": True}}, "config.value", "expected int, got True"),
        ({"inner": 3}, "config.value", "run.inner: expected a mapping, got 3"),
        ({"inner": {"share": 2}}, "config.value", "run.inner: share: expected at most 1, got 2.0"),
        ({"kind": "c"}, "config.value", "run.kind: expected one of a, b, got 'c'"),
        ({"size": [1, 2, 3]}, "config.value", "a list of 2"),
        ({"pairs": "at"}, "config.value", "run.pairs: expected a list"),
        ({"open": 1}, "config.value", "run.open: expected a mapping, got 1"),
    ],
)
def test_wrong_settings_are_refused(settings: dict[str, object], code: str, message: str) -> None:
    with pytest.raises(AffectError, match=message) as caught:
        build(_Outer, settings, where="run")
    assert caught.value.code == code


@pytest.mark.parametrize(
    ("content", "changes", "code", "message"),
    [
        (None, ["training.lr"], "config.change", "KEY=VALUE"),
        (None, ["=1"], "config.change", "KEY=VALUE"),
        (None, ["a..b=1"], "config.change", "KEY=VALUE"),
        ("name: x\n", ["name.first=1"], "config.change", "name is 'x'"),
        (None, ["a=[1"], "config.unreadable", "expected YAML"),
        ("a: [1\n", [], "config.unreadable", "run.yaml: expected YAML"),
        ("- a\n- b\n", [], "config.unreadable", "got a list"),
        ("a: !!python/object/apply:os.getcwd []\n", [], "config.unreadable", "could not determine"),
    ],
)
def test_wrong_files_and_changes_are_refused(
    tmp_path: Path, content: str | None, changes: list[str], code: str, message: str
) -> None:
    path = tmp_path / "run.yaml"
    if content is not None:
        path.write_text(content)
    with pytest.raises(AffectError, match=message) as caught:
        read_settings(None if content is None else path, changes)
    assert caught.value.code == code


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(AffectError, match=r"none\.yaml") as caught:
        read_settings(tmp_path / "none.yaml", [])
    assert caught.value.code == "config.not_found"


def test_the_settings_of_a_run_survive_json() -> None:
    changes = [
        "system=mulg", "model.layers=1", "training.select=acc7", "text.tuning=lora", "text.lora.rank=4",
        "loss.emotion_weight=0",
    ]  # fmt: skip
    config = build(RunConfig, read_settings(None, changes), where="run")
    assert (config.system, config.model, config.text.lora.rank) == ("mulg", {"layers": 1}, 4)
    assert build(RunConfig, json.loads(json.dumps(config.to_dict())), where="run") == config
    with pytest.raises(AffectError, match=r"run.training: unknown key 'learning_rate'") as caught:
        build(RunConfig, {"system": "mulg", "training": {"learning_rate": 1}}, where="run")
    assert caught.value.code == "config.unknown_key"
