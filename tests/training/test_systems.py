"""What every system of the registry owes: lengths obeyed, absent modalities stood for, weights that keep."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from affectrt.affect import EMOTIONS, MODALITIES, Modality
from affectrt.errors import AffectError
from affectrt_training.models.fusion import FusionModel
from affectrt_training.models.registry import SYSTEMS, create, find_system

DIMS: dict[Modality, int] = {"text": 10, "audio": 7, "vision": 6}
SMALL: dict[str, dict[str, object]] = {
    "tfn": {"text_out_dim": 16, "audio_out_dim": 8, "vision_out_dim": 8},
    "mulg": {"layers": 1},
    "mult": {"layers": 1, "self_layers": 1},
    "cm-msf": {"transformer_layers": 1, "cascade": 1},
    "bert-inception": {"text_layers": 1},
}
"""Settings of those that would take long as they are; the others are tested with their defaults."""

CLIPS = [
    (4, 9, 5),
    (6, 3, 7),
    (0, 9, 5),
    (4, 0, 5),
    (4, 9, 0),
    (3, 0, 0),
    (0, 4, 0),
    (0, 0, 2),
    (0, 0, 0),
    (1, 1, 1),
]
"""Rows of text, audio and vision."""

Inputs = list[Tensor]


def make(name: str) -> FusionModel:
    return create(name, DIMS, SMALL.get(name, {}))


@pytest.fixture(scope="module", params=SYSTEMS)
def system(request: pytest.FixtureRequest) -> Iterator[tuple[str, FusionModel]]:
    """Each system's name and one model of it, in eval mode; tests don't change it."""
    torch.manual_seed(3)
    yield request.param, make(request.param).eval()


@pytest.fixture(scope="module")
def clips() -> list[list[Tensor]]:
    """The rows (T, D) of each of CLIPS."""
    generator = torch.Generator().manual_seed(5)
    return [
        [
            torch.randn(length, DIMS[m], generator=generator)
            for m, length in zip(MODALITIES, clip, strict=True)
        ]
        for clip in CLIPS
    ]


def padded(clips: list[list[Tensor]], value: float = float("nan")) -> Inputs:
    """What a model takes; rows past the lengths hold ``value``."""
    inputs: Inputs = []
    for m in range(3):
        lengths = torch.tensor([len(clip[m]) for clip in clips])
        rows = torch.full((len(clips), max(1, int(lengths.max())), clips[0][m].shape[1]), value)
        for row, clip in zip(rows, clips, strict=True):
            row[: len(clip[m])] = clip[m]
        inputs += [rows, lengths]
    return inputs


def loss(outputs: tuple[Tensor, Tensor]) -> Tensor:
    """A sum over clips, to which both outputs of each contribute."""
    sentiment, logits = outputs
    return sentiment.sum() + (logits * torch.arange(1.0, 8.0)).sum()


def gradients(model: FusionModel) -> dict[str, Tensor]:
    """Those that backward left; zeros where it left none."""
    return {
        name: torch.zeros_like(p) if p.grad is None else p.grad.clone()
        for name, p in model.named_parameters()
    }


def test_the_twelve_are_there() -> None:
    papers = {"inpnrln-md", "ghrnn-cma", "mulg", "cm-msf", "tmsam", "bert-inception"}
    assert {s.name for s in SYSTEMS.values() if s.kind == "paper"} == papers
    peers = {"ef-lstm", "lf-lstm", "tfn", "lmf", "mfn", "mult"}
    assert {s.name for s in SYSTEMS.values() if s.kind == "peer"} == peers


@torch.no_grad()
def test_a_clip_alone_is_a_clip_in_a_batch(
    system: tuple[str, FusionModel], clips: list[list[Tensor]]
) -> None:
    """Beside longer ones, with NaN for padding; every modality absent once, and all of them."""
    _, model = system
    sentiment, logits = together = model(*padded(clips))
    assert sentiment.shape == (len(clips),) and logits.shape == (len(clips), len(EMOTIONS))
    assert sentiment.isfinite().all() and logits.isfinite().all() and sentiment.abs().max() <= 3
    again = model(*padded(clips))
    assert torch.equal(again[0], sentiment) and torch.equal(again[1], logits), "eval mode is deterministic"
    for i, clip in enumerate(clips):
        alone = model(*padded([clip], value=7.0))
        for name, one, many in zip(("sentiment", "logits"), alone, together, strict=True):
            assert torch.allclose(one[0], many[i], atol=1e-5, rtol=1e-5), f"{name} of {CLIPS[i]}"


@torch.no_grad()
def test_every_modality_is_heard(system: tuple[str, FusionModel], clips: list[list[Tensor]]) -> None:
    """Each alone moves the answer, and so does each beside the other two."""
    name, model = system
    full, nothing = clips[0], [rows[:0] for rows in clips[0]]
    for m in range(3 if find_system(name).kind != "baseline" else 1):
        alone = [rows if k == m else nothing[k] for k, rows in enumerate(full)]
        without = [nothing[k] if k == m else rows for k, rows in enumerate(full)]
        _, logits = model(*padded([nothing, alone, full, without]))
        assert (logits[1] - logits[0]).abs().max() > 1e-5, f"{MODALITIES[m]} alone"
        assert (logits[2] - logits[3]).abs().max() > 1e-5, f"without {MODALITIES[m]}"


def test_gradients_come_from_valid_rows_alone(
    system: tuple[str, FusionModel], clips: list[list[Tensor]]
) -> None:
    """Those of a padded batch are the sum of those of its clips, and padding gets exactly none."""
    name, shared = system
    model = deepcopy(shared)
    for clip in clips:
        torch.autograd.backward(loss(model(*padded([clip]))))
    want = gradients(model)
    model.zero_grad()
    inputs = padded(clips)
    for rows in inputs[::2]:
        rows.requires_grad_()
    torch.autograd.backward(loss(model(*inputs)))
    for key, got in gradients(model).items():
        scale = max(1.0, float(want[key].abs().max()))
        assert (got - want[key]).abs().max() <= 2e-5 * scale, f"{name}: {key}"
    for rows, lengths in zip(inputs[::2], inputs[1::2], strict=True):
        if rows.grad is not None:  # the text baseline looks at one modality only
            past = torch.arange(rows.shape[1]) >= lengths[:, None]
            assert not rows.grad[past].any(), "padding got a gradient"


def test_every_parameter_learns(system: tuple[str, FusionModel], clips: list[list[Tensor]]) -> None:
    """From clips that have all modalities; in training mode nothing goes wrong with NaN for padding."""
    name, shared = system
    model = deepcopy(shared)
    given = clips[:2] if find_system(name).kind != "baseline" else [*clips[:2], clips[-2]]
    torch.autograd.backward(loss(model(*padded(given))))
    assert [key for key, gradient in gradients(model).items() if not gradient.any()] == []
    model.train().zero_grad()
    torch.autograd.backward(loss(model(*padded(clips))))
    assert [key for key, gradient in gradients(model).items() if not gradient.isfinite().all()] == []


@torch.no_grad()
def test_weights_keep(system: tuple[str, FusionModel], clips: list[list[Tensor]], tmp_path: Path) -> None:
    name, model = system
    save_file(model.state_dict(), tmp_path / "weights.safetensors")
    other = make(name).eval()
    other.load_state_dict(load_file(tmp_path / "weights.safetensors"))
    for got, want in zip(other(*padded(clips)), model(*padded(clips)), strict=True):
        assert torch.equal(got, want)


def test_unknown_settings_are_refused(system: tuple[str, FusionModel]) -> None:
    name, _ = system
    with pytest.raises(AffectError, match="model: unknown key 'dropuot'") as caught:
        create(name, DIMS, {"dropuot": 0.1})
    assert caught.value.code == "config.unknown_key" and "dropout'?" in caught.value.message


def test_unknown_systems_are_refused_with_the_nearest() -> None:
    with pytest.raises(AffectError, match="did you mean 'ghrnn-cma'") as caught:
        create("ghrnn_cma", DIMS)
    assert caught.value.code == "model.unknown"
