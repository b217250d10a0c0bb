"""Kernels compiled ahead of time: what is written, what the manifest says of it, and what is refused."""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from affectrt_kernels import aot, triton_jobs

SMALL = {"hidden_dim": 16, "model_dim": 32, "heads": 4}
WIDTHS = {"*": ".u64", "i": ".u32"}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Writes a bundle with nothing but a manifest."""

    def write(config: dict[str, Any], family: str = "ghrnn-cma") -> Path:
        path = tmp_path_factory.mktemp("bundle") / "small.affect"
        with zipfile.ZipFile(path, "w") as file:
            file.writestr("manifest.json", json.dumps({"family": family, "config": config}))
        return path

    return write


@pytest.fixture(scope="module")
def compiled(bundle: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with all kernels of a small model for one architecture."""
    out = tmp_path_factory.mktemp("aot")
    assert aot.main(["--arch", "87", "--out", str(out), "--bundle", str(bundle(SMALL))]) == 0
    return out


def entries(out: Path) -> list[dict[str, Any]]:
    kernels = json.loads((out / "manifest.json").read_text(encoding="utf-8"))["kernels"]
    assert isinstance(kernels, list)
    return kernels


def test_every_kernel_is_there(compiled: Path) -> None:
    names = {entry["name"] for entry in entries(compiled)}
    assert names == {
        *(
            f"gated_rnn_{way}_1_row_h16_{dtype}"
            for way in ("forward", "backward")
            for dtype in ("fp32", "fp16")
        ),
        *(f"gated_rnn_{way}_16_rows_h16_fp16" for way in ("forward", "backward")),
        *(
            f"attention_{way}_{rows}_d8_{dtype}"
            for way in ("forward", "backward_queries", "backward_keys")
            for rows, dtype in (("16_rows", "fp32"), ("16_rows", "fp16"), ("64_rows", "fp16"))
        ),
    }
    for entry in entries(compiled):
        assert (compiled / entry["cubin"]).read_bytes()[:4] == b"\x7fELF"
        assert f".entry {entry['entry']}(" in (compiled / entry["ptx"]).read_text(encoding="utf-8")


def test_what_the_manifest_says_is_what_was_written(compiled: Path) -> None:
    for entry in entries(compiled):
        ptx = (compiled / entry["ptx"]).read_text(encoding="utf-8")
        assert f".version {entry['ptx_version']}\n" in ptx
        assert entry["ptx_version"] == "8.5"  # what CUDA 12.6 reads
        assert f".target {entry['target']}\n" in ptx
        assert f".reqntid {entry['block'][0]}" in ptx
        widths = [WIDTHS[argument["type"][0]] for argument in entry["arguments"]]
        assert re.findall(r"\.param (\.u\d+)", ptx) == [*widths, *[".u64"] * len(entry["scratch"])]
        assert [part["bytes"] for part in entry["scratch"]] == [0, 0]
        assert 16 < entry["registers"] <= 255
        assert entry["spill_stores_bytes"] == entry["spill_loads_bytes"] == 0
        assert entry["portable"]
        assert str(Path(aot.__file__).parent) not in ptx  # no folders of the machine that compiled


def test_pointers_read_come_first_then_integers_then_pointers_written(compiled: Path) -> None:
    order = ["read", "value", "read, write", "write"]
    for entry in entries(compiled):
        places = [order.index(argument["access"]) for argument in entry["arguments"]]
        assert places == sorted(places), entry["name"]
        names = [argument["name"] for argument in entry["arguments"]]
        assert len(set(names)) == len(names)
        assert not {*names} & ({*entry["constants"]} | {*entry["absent"]})


def test_one_entry_in_full(compiled: Path) -> None:
    entry = next(
        entry for entry in entries(compiled) if entry["name"] == "gated_rnn_forward_16_rows_h16_fp16"
    )
    assert [tuple(argument.values()) for argument in entry["arguments"]] == [
        ("sums", "*fp32", "read", 16),
        ("w_h", "*fp16", "read", 2),
        ("lengths", "*i64", "read", 16),
        ("h0", "*fp16", "read", 16),
        ("batch", "i32", "value", 1),
        ("steps", "i32", "value", 1),
        ("y", "*fp16", "write", 16),
        ("h_n", "*fp16", "write", 16),
    ]
    assert entry["constants"] == {
        "GATES": 1, "REVERSE": False, "H": 16, "HP": 16, "ROWS": 16, "LANES": 1, "BLOCK": 16
    }  # fmt: skip
    assert entry["grid"] == "(ceil(batch / 16), streams, 1)"
    assert entry["block"] == [128, 1, 1]


def test_rows_that_are_no_multiple_of_sixteen_promise_no_such_strides() -> None:
    def strides(row: int) -> set[int]:
        shapes = triton_jobs.Shapes(hidden=16, dim=row // 4, row=row, pairs=((0, 1),), windowed=True)
        job = next(job for job in triton_jobs.jobs([shapes]) if job.name.startswith("attention_forward"))
        assert "windows[0]" in [argument.name for argument in job.arguments()]
        return {argument.divisible_by for argument in job.arguments() if "_time" in argument.name}

    assert strides(64) == {16}
    assert strides(40) == {1}


def test_too_much_ends_in_status_1_with_a_line_for_each(
    bundle: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(aot.ARCHITECTURES, 87, aot.Architecture(shared_bytes=100, ptx_version=85))
    monkeypatch.delitem(triton_jobs.DTYPES, "fp16")
    assert aot.main(["--arch", "87", "--out", str(tmp_path), "--bundle", str(bundle(SMALL))]) == 1
    lines = capsys.readouterr().err.splitlines()
    too_large = [entry for entry in entries(tmp_path) if entry["shared_bytes"] > 100]
    shared = "shared memory: expected at most 100 bytes a block, got"
    assert lines == [f"aot: sm_87 {entry['name']}: {shared} {entry['shared_bytes']}" for entry in too_large]
    assert len(lines) == 3  # attention


def test_every_limit_is_held() -> None:
    good: dict[str, Any] = {
        "name": "k", "arch": 89, "block": [256, 1, 1], "registers": 255, "shared_bytes": 99 * 1024,
        "spill_stores_bytes": 0, "spill_loads_bytes": 0, "may_spill": False,
    }  # fmt: skip
    assert list(aot.violations(good)) == []
    assert list(aot.violations({**good, "may_spill": True, "spill_loads_bytes": 4})) == []
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"spill_loads_bytes": 4}, "sm_89 k: spills: expected none, got 0 bytes stored and 4 loaded"),
        ({"block": [512, 1, 1], "registers": 129}, "registers: expected at most 65536 a block, got 69632"),
        ({"shared_bytes": 101377}, "shared memory: expected at most 101376 bytes a block, got 101377"),
    ]
    for change, message in wrong:
        (found,) = aot.violations({**good, **change})
        assert message in found
    assert list(aot.violations({**good, "arch": 90, "shared_bytes": 227 * 1024})) == []


@pytest.mark.parametrize(
    ("config", "family", "message"),
    [
        (SMALL, "mean", "expected a model of the family ghrnn-cma, got 'mean'"),
        ({**SMALL, "heads": 0}, "ghrnn-cma", "heads: expected an integer of 1 or more, got 0"),
        (
            {**SMALL, "hidden_dim": "16"},
            "ghrnn-cma",
            "hidden_dim: expected an integer of 1 or more, got '16'",
        ),
        ({**SMALL, "heads": 5}, "ghrnn-cma", "heads: expected a divisor of model_dim"),
    ],
)
def test_an_unfit_bundle_is_refused(
    bundle: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    config: dict[str, Any],
    family: str,
    message: str,
) -> None:
    path = bundle(config, family)
    assert aot.main(["--arch", "87", "--out", str(tmp_path), "--bundle", str(path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"aot: --bundle {path}: ")
    assert message in error
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_bundle_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = tmp_path / "text.affect"
    text.write_text("no zip")
    for path in (text, tmp_path / "missing.affect", tmp_path):
        assert aot.main(["--arch", "87", "--out", str(tmp_path / "out"), "--bundle", str(path)]) == 2
        error = capsys.readouterr().err
        assert "expected a model bundle, got: " in error
        assert "affectrt export" in error


def test_an_output_that_is_no_folder_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    taken = tmp_path / "taken"
    taken.write_text("")
    assert aot.main(["--arch", "87", "--out", str(taken)]) == 2
    assert f"--out {taken}: expected a folder to write to" in capsys.readouterr().err


def test_an_unknown_architecture_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        aot.main(["--arch", "75", "--out", str(tmp_path)])
    assert "invalid choice: 75 (choose from 87, 89, 90, 120)" in capsys.readouterr().err


def test_help_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        aot.main(["--help"])
    text = capsys.readouterr().out
    assert "examples:" in text and "manifest.json" in text and "Exit status" in text
