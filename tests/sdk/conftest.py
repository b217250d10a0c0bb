"""Fixtures of the SDK's tests.

A bundle that the native backend can run is the tiny one with the weights of a random GHRNN-CMA. Its encoders
and its fusion graph are the tiny bundle's; the graph computes something else.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from safetensors.numpy import save

from affectrt.affect import MODALITIES
from affectrt.bundle import Bundle
from affectrt.cli.equations import random_weights
from affectrt.manifest import CausalSpec, Manifest

SHAPE = {"heads": 3, "model_dim": 12, "hidden_dim": 10, "fused_dim": 9}
"""Of ``random_weights``, with heads that divide it."""


@pytest.fixture(scope="session")
def ghrnn_weights(tiny_manifest: Manifest) -> dict[str, npt.NDArray[np.float32]]:
    """Random weights for the tiny bundle's features; three heads. Don't change them: copy."""
    return random_weights(5, dims=[tiny_manifest.dim(m) for m in MODALITIES])


@pytest.fixture(scope="session")
def make_ghrnn(
    make_bundle: Callable[..., Path],
    tiny_manifest: Manifest,
    ghrnn_weights: dict[str, npt.NDArray[np.float32]],
) -> Callable[..., Path]:
    """Writes a ``ghrnn-cma`` bundle, with changed weights, other settings or some members changed."""

    def make(
        weights: dict[str, npt.NDArray[np.float32]] | None = None,
        members: dict[str, bytes] | None = None,
        **config: Any,
    ) -> Path:
        manifest = replace(tiny_manifest, family="ghrnn-cma", config={**SHAPE, **config})
        data = save(ghrnn_weights if weights is None else weights)
        return make_bundle(manifest, {tiny_manifest.fusion.weights: data, **(members or {})})

    return make


@pytest.fixture(scope="session")
def ghrnn_bundle(make_ghrnn: Callable[..., Path]) -> Path:
    """Path of such a bundle. Don't change the file: copy it."""
    return make_ghrnn()


CAUSAL = {"heads": SHAPE["heads"], "window_s": 2}


@pytest.fixture(scope="session")
def make_causal(
    make_bundle: Callable[..., Path],
    ghrnn_weights: dict[str, npt.NDArray[np.float32]],
    tiny_manifest: Manifest,
) -> Callable[..., Bundle]:
    """A bundle with a causal model beside the other one; changed weights (None: left out) or settings."""
    no_word = np.random.default_rng(1).standard_normal(tiny_manifest.dim("text")).astype(np.float32)

    def make(changes: Mapping[str, Any] | None = None, **config: Any) -> Bundle:
        weights = {**ghrnn_weights, "no_word": no_word, **(changes or {})}
        weights = {name: value for name, value in weights.items() if value is not None}
        spec = CausalSpec("causal.safetensors", {**CAUSAL, **config}, 0.1, 0, tiny_manifest.calibration)
        return Bundle.open(
            make_bundle(replace(tiny_manifest, causal=spec), {"causal.safetensors": save(weights)})
        )

    return make


@pytest.fixture(scope="session")
def causal_bundle(make_causal: Callable[..., Bundle]) -> Bundle:
    """Such a bundle."""
    return make_causal()


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], Path]:
    """Records a distribution with one module as pip does, in a folder where Python looks first.

    Returns its ``.dist-info``; what else it has, goes beside and into it.
    """
    folder = tmp_path / "installed"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))

    def record(name: str, module: str) -> Path:
        info = folder / f"{name.replace('-', '_')}-9.9.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {name}\nVersion: 9.9\n", encoding="utf-8"
        )
        (info / "top_level.txt").write_text(f"{module}\n", encoding="utf-8")
        importlib.invalidate_caches()
        return info

    return record
