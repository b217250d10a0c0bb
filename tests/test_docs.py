"""The documents stay true: their links, commands, options, fields and error codes exist."""

from __future__ import annotations

import argparse
import re
from dataclasses import fields
from importlib import metadata
from pathlib import Path

import pytest

from affectrt import manifest
from affectrt.cli import Command

ROOT = Path(__file__).parent.parent
DOCUMENTS = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
COMMANDS = sorted(metadata.entry_points(group="affectrt.commands"), key=lambda entry: entry.name)


def _text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


@pytest.mark.parametrize("path", DOCUMENTS, ids=[str(path.relative_to(ROOT)) for path in DOCUMENTS])
def test_links_lead_somewhere(path: Path) -> None:
    targets = re.findall(r"\]\((?!https?://|#)([^)#\s]+)", path.read_text(encoding="utf-8"))
    assert [target for target in targets if not (path.parent / target).exists()] == []


def test_every_make_target_named_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", _text("Makefile"), re.MULTILINE))
    named = {
        target
        for path in DOCUMENTS
        for target in re.findall(r"(?:`|^\$ )make ([a-z-]+)", path.read_text(encoding="utf-8"), re.MULTILINE)
    }
    assert {"demo", "test", "lint", "bench"} <= named
    assert named <= targets


@pytest.mark.parametrize("entry", COMMANDS, ids=[entry.name for entry in COMMANDS])
def test_every_option_is_documented(entry: metadata.EntryPoint) -> None:
    command: Command = entry.load()
    parser = argparse.ArgumentParser(add_help=False)
    command.add_arguments(parser)
    section = re.search(rf"^## affectrt {entry.name}$(.*?)(?=^## |\Z)", _text("docs/cli.md"), re.M | re.S)
    assert section, f"docs/cli.md has no section on affectrt {entry.name}"
    options = {option for action in parser._actions for option in action.option_strings}
    assert {option for option in options if option not in section[1]} == set()
    shown = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", section[1]))
    assert shown - {"--help"} <= options, "documented options that are not there"


def test_the_command_table_of_the_readme_is_complete() -> None:
    assert set(re.findall(r"^\| `affectrt ([a-z-]+)", _text("README.md"), re.M)) == {e.name for e in COMMANDS}


def test_the_table_of_systems_says_what_they_cost() -> None:
    from affectrt_training.commands.systems import describe

    told = describe({"text": 384, "audio": 43, "vision": 41}, steps=20)["systems"]
    assert isinstance(told, list)
    rows = re.findall(
        r"^\| `([a-z-]+)` \| [^|]+ \| ([\d,]+) \| ([\d.]+) \| ([^|]+) \|", _text("docs/training.md"), re.M
    )
    assert rows == [
        (s["name"], f"{s['parameters']:,}", f"{s['flops'] / 1e6:.1f}", s["stated"] or "–") for s in told
    ]


def test_every_manifest_field_is_documented() -> None:
    specs = (
        manifest.Manifest,
        manifest.TextSpec,
        manifest.AudioSpec,
        manifest.VisionSpec,
        manifest.FusionSpec,
    )
    names = {field.name for spec in specs for field in fields(spec)}
    names |= {field.name for spec in (manifest.Metric, manifest.Member) for field in fields(spec)}
    page = _text("docs/bundle-format.md")
    assert {name for name in names if f"`{name}`" not in page} == set()


def test_every_error_code_of_a_bundle_is_documented_and_real() -> None:
    source = "".join(_text(f"sdk/affectrt/{name}.py") for name in ("bundle", "manifest", "weights"))
    raised = set(re.findall(r"\"(bundle\.[a-z_]+)\"", source)) - {"bundle.unwritable"}
    named = set(re.findall(r"`(bundle\.[a-z_]+)`", _text("docs/bundle-format.md")))
    assert named == raised


def test_the_changelog_knows_this_version() -> None:
    version = metadata.version("affectrt")
    assert re.search(rf"^## \[{re.escape(version)}\]", _text("CHANGELOG.md"), re.MULTILINE)
