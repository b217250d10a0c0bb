"""The rules of the house: who may import whom, commands that load at once, a device without torch."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
PACKAGES = {
    "affectrt": ROOT / "sdk",
    "affectrt_kernels": ROOT / "kernels",
    "affectrt_export": ROOT / "export",
    "affectrt_training": ROOT / "training",
}
HEAVY = ("onnxruntime", "torch", "cv2", "av")
COMMANDS = sorted(metadata.entry_points(group="affectrt.commands"), key=lambda entry: entry.name)


# --- Who may import whom ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Rule:
    """What one package may import. The standard library and the package itself always are allowed."""

    house: frozenset[str]
    """Modules of our other packages, each with everything below it."""
    libraries: frozenset[str] | None
    """Top-level names of other projects; None: any."""


RULES = {
    "affectrt": Rule(
        house=frozenset({"affectrt_kernels._native"}),
        libraries=frozenset(
            {
                "av",
                "cuda",
                "cv2",
                "kaldi_native_fbank",
                "matplotlib",
                "numpy",
                "onnxruntime",
                "pocketsphinx",
                "prometheus_client",
                "pylsl",
                "pynvml",
                "pythonosc",
                "rich",
                "sherpa_onnx",
                "sounddevice",
                "soxr",
                "starlette",
                "tensorrt",
                "tokenizers",
                "uvicorn",
            }
        ),
    ),
    "affectrt_kernels": Rule(house=frozenset(), libraries=frozenset({"numpy", "torch", "triton"})),
    "affectrt_training": Rule(house=frozenset({"affectrt", "affectrt_kernels"}), libraries=None),
    "affectrt_export": Rule(
        house=frozenset({"affectrt", "affectrt_kernels", "affectrt_training"}), libraries=None
    ),
}
IMPORTING_CALLS = {"import_module", "__import__", "require"}


@dataclass(frozen=True)
class Import:
    """One import, by ``import``, ``from … import`` or a call that names a module."""

    module: str
    line: int
    lazy: bool
    """Inside a function, so it runs only when that is called."""


def imports_of(source: str, module: str, *, is_package: bool) -> Iterator[Import]:
    """Every import in ``source``, wherever it stands, also below ``if TYPE_CHECKING``."""

    def visit(node: ast.AST, lazy: bool) -> Iterator[Import]:
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name, node.lineno, lazy)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                package = module.split(".") if is_package else module.split(".")[:-1]
                parents = package[: len(package) - node.level + 1]
                base = ".".join(filter(None, [*parents, base]))
            for alias in node.names:
                yield Import(f"{base}.{alias.name}", node.lineno, lazy)
        elif isinstance(node, ast.Call):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called in IMPORTING_CALLS and node.args and isinstance(node.args[0], ast.Constant):
                yield Import(str(node.args[0].value), node.lineno, lazy)
        inside = lazy or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for child in ast.iter_child_nodes(node):
            yield from visit(child, inside)

    yield from visit(ast.parse(source), False)


def _is_below(module: str, parent: str) -> bool:
    return module == parent or module.startswith(f"{parent}.")


def violations(source: str, module: str, *, is_package: bool = False) -> list[str]:
    """What in one module breaks the rules, one line each."""
    package = module.split(".")[0]
    rule = RULES[package]
    found = list(imports_of(source, module, is_package=is_package))
    broken = []
    for item in found:
        top = item.module.split(".")[0]
        if top == package or top in sys.stdlib_module_names:
            continue
        if top in PACKAGES:
            if not any(_is_below(item.module, allowed) for allowed in rule.house):
                broken.append(f"{module}:{item.line}: {package} may not import {item.module}")
            elif package == "affectrt" and not item.lazy:
                broken.append(f"{module}:{item.line}: {item.module} must be imported inside a function")
        elif rule.libraries is not None and top not in rule.libraries:
            broken.append(f"{module}:{item.line}: {package} may not import {item.module}")
    # TensorRT runs on a Jetson, where torch is not installed.
    if any(_is_below(item.module, "tensorrt") for item in found):
        broken += [
            f"{module}:{item.line}: a module that uses TensorRT must not import torch at its top"
            for item in found
            if _is_below(item.module, "torch") and not item.lazy
        ]
    return broken


def _modules() -> list[tuple[str, Path]]:
    return [
        (".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__"), path)
        for name, root in PACKAGES.items()
        for path in sorted((root / name).rglob("*.py"))
    ]


@pytest.mark.parametrize(
    ("module", "path"), _modules(), ids=lambda value: value if isinstance(value, str) else ""
)
def test_a_module_imports_only_what_its_package_may(module: str, path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    assert violations(source, module, is_package=path.name == "__init__.py") == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("affectrt.model", "import torch"),
        ("affectrt.model", "def f():\n    import torch.nn as nn"),
        ("affectrt.model", "from affectrt_training import models"),
        ("affectrt.model", "import_module('affectrt_export.bundle')"),
        ("affectrt.model", "require('transformers', 'train')"),
        ("affectrt.model", "from affectrt_kernels._native import ghrnn_forward"),
        ("affectrt.model", "def f():\n    from affectrt_kernels import reference"),
        ("affectrt.features.text", "from ...affectrt_kernels import ops"),
        ("affectrt_kernels.native", "from affectrt.errors import AffectError"),
        ("affectrt_kernels.native", "import onnx"),
        (
            "affectrt_training.train",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import affectrt_export",
        ),
        ("affectrt_export.engine", "import tensorrt\nimport torch"),
    ],
)
def test_the_rules_find_what_breaks_them(module: str, source: str) -> None:
    assert len(violations(source, module)) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("affectrt.model", "def f():\n    from affectrt_kernels import _native"),
        ("affectrt.model", "import json, numpy\nfrom . import errors\nfrom .features.text import Word"),
        (
            "affectrt_export.command",
            "import affectrt, affectrt_training.models, affectrt_kernels.native, onnx",
        ),
        ("affectrt_export.engine", "import tensorrt\ndef f():\n    import torch"),
    ],
)
def test_the_rules_allow_what_they_should(module: str, source: str) -> None:
    assert violations(source, module) == []


def test_a_source_root_holds_one_package_and_no_loose_modules() -> None:
    for name, root in PACKAGES.items():
        assert list(root.glob("*.py")) == [], f"{root.name}/ is a source root, not a package"
        assert [path.parent.name for path in root.glob("*/__init__.py")] == [name]


# --- Commands -------------------------------------------------------------------------------------


def test_the_commands_of_the_project_are_installed() -> None:
    assert {
        "analyze",
        "bench",
        "build-engine",
        "compare",
        "describe",
        "doctor",
        "evaluate",
        "export",
        "info",
        "live",
        "serve",
        "systems",
        "train",
    } <= {entry.name for entry in COMMANDS}


@pytest.mark.parametrize("entry", COMMANDS, ids=[entry.name for entry in COMMANDS])
def test_a_command_is_declared_without_loading_anything_heavy(entry: metadata.EntryPoint) -> None:
    code = (
        f"import sys; from {entry.module} import {entry.attr} as command; "
        "assert callable(command.add_arguments) and callable(command.run), command; "
        f"print(*sys.modules.keys() & {set(HEAVY)!r})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []


# --- What gets installed ---------------------------------------------------------------------------


def installed_closure(distribution: str, extras: frozenset[str]) -> set[str]:
    """Names of all distributions that ``distribution[extras]`` brings here, itself included."""
    closed: set[tuple[str, str]] = set()
    waiting = {(canonicalize_name(distribution), extra) for extra in {"", *extras}}
    while waiting:
        name, extra = waiting.pop()
        closed.add((name, extra))
        for line in metadata.requires(name) or []:
            needed = Requirement(line)
            if needed.marker is None or needed.marker.evaluate({"extra": extra}):
                wanted = {(canonicalize_name(needed.name), e) for e in {"", *needed.extras}}
                waiting |= wanted - closed
    return {name for name, _ in closed}


def test_the_device_install_has_no_torch() -> None:
    device = installed_closure("affectrt", frozenset({"cpu", "media"}))
    assert {"numpy", "onnxruntime", "av", "opencv-python-headless", "tokenizers"} <= device
    workstation_only = {"torch", "transformers", "lightning", "peft", "onnx", "triton"}
    assert device & workstation_only == set()
    # The same walk does find torch where it is meant to be.
    assert "torch" in installed_closure("affectrt", frozenset({"train"}))


def test_affectrt_alone_needs_numpy_only() -> None:
    assert installed_closure("affectrt", frozenset()) == {"affectrt", "numpy"}


# --- Clean files -----------------------------------------------------------------------------------

# A folder of one person's or one machine's, in text that goes to everybody.
MACHINE_PATH = re.compile(r"(?<![\w.~$}/-])/(?:home|root|work|Users|mnt)/\w")


def test_the_pattern_finds_machine_paths() -> None:
    folder = "home"
    assert MACHINE_PATH.search(f"open('/{folder}/ada/clip.mp4')")
    assert not MACHINE_PATH.search(f"https://example.org/{folder}/ada and ../{folder}/ada")


def test_tracked_files_name_no_machine_paths() -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("needs a git checkout: it reads the list of tracked files")
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    found = []
    for name in filter(None, listed.split("\0")):
        data = (ROOT / name).read_bytes() if (ROOT / name).is_file() else b""
        if b"\0" not in data and (match := MACHINE_PATH.search(data.decode("utf-8", "replace"))):
            found.append(f"{name}: {match.group()}…")
    assert found == []
