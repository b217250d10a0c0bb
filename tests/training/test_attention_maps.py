"""Attention maps: the weights that the operator used, from every module that ran, and their picture."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from affectrt.errors import AffectError
from affectrt_kernels import reference
from affectrt_training.evaluation.attention_maps import (
    AttentionMap,
    attention_maps,
    attention_weights,
    plot_attention_map,
)
from affectrt_training.models.mulg import MulG, MulGConfig
from affectrt_training.models.parts import PairwiseAttention

CONFIG = MulGConfig(text_dim=6, audio_dim=5, vision_dim=4, model_dim=8, heads=2, hidden_dim=7)
TEXT_LENGTHS, AUDIO_LENGTHS, VISION_LENGTHS = [4, 0, 2], [5, 3, 0], [1, 2, 0]


def batch() -> dict[str, Tensor]:
    made = {}
    for name, dim, lengths in (
        ("text", 6, TEXT_LENGTHS),
        ("audio", 5, AUDIO_LENGTHS),
        ("vision", 4, VISION_LENGTHS),
    ):
        made[name] = torch.randn(3, max(lengths), dim)
        made[f"{name}_lengths"] = torch.tensor(lengths)
    return {**made, "sentiment": torch.zeros(3)}


@pytest.mark.parametrize("windowed", [False, True])
def test_weights_times_values_are_what_the_operator_gives(windowed: bool) -> None:
    torch.manual_seed(1)
    lengths = torch.tensor([[4, 0, 2], [6, 3, 0]])
    q, k, v = torch.randn(3, 5, 2, 8), torch.randn(3, 7, 2, 8), torch.randn(3, 7, 2, 8)
    windows = None
    if windowed:
        first = torch.randint(1, 5, (3, 5, 1))
        windows = [torch.cat([first, first + 2], -1)]
    [want], _ = reference.pairwise_attention([q], [k], [v], [(0, 1)], lengths, windows)
    for b in range(3):
        q[b, lengths[0, b] + 1 :] = torch.nan
        k[b, lengths[1, b] + 1 :] = torch.nan
    weights = attention_weights(q, k, lengths[0], lengths[1], None if windows is None else windows[0])
    torch.testing.assert_close(torch.einsum("bnij,bjnd->bind", weights, v), want, rtol=0, atol=1e-6)
    for b in range(3):
        asked, answered = lengths[0, b] + 1, lengths[1, b] + 1
        torch.testing.assert_close(weights[b, :, :asked, :answered].sum(-1), torch.ones(2, int(asked)))
        assert not weights[b, :, asked:].any() and not weights[b, :, :, answered:].any()


def test_every_layer_and_direction_of_a_model_is_found_and_explains_what_it_gave() -> None:
    torch.manual_seed(2)
    model, given = MulG(CONFIG).train(), batch()
    seen: list[tuple[Tensor, Tensor]] = []

    def keep(_: nn.Module, args: tuple[Any, ...], outputs: list[Tensor]) -> None:
        seen.extend(zip(args[2], outputs, strict=True))

    for module in model.modules():
        if isinstance(module, PairwiseAttention):
            module.register_forward_hook(keep)
    found = attention_maps(model, given)

    assert [(m.module, m.asking, m.answering) for m in found] == [
        (f"transformers.layers.{layer}.attention", asking, answering)
        for layer in range(2)
        for asking, answering in (
            ("text", "audio"),
            ("text", "vision"),
            ("audio", "text"),
            ("audio", "vision"),
            ("vision", "text"),
            ("vision", "audio"),
        )
    ]
    for one, (v, output) in zip(found, seen, strict=True):
        torch.testing.assert_close(torch.einsum("bnij,bjnd->bind", one.weights, v), output)
        assert one.asking_lengths.equal(given[f"{one.asking}_lengths"])
        assert one.answering_lengths.equal(given[f"{one.answering}_lengths"])
    # Vision is absent from the last row: all that looks at it falls on its null slot.
    text_to_vision = found[1].weights[2]
    assert text_to_vision[:, :3, 0].eq(1).all()
    assert model.training, "left as it was"
    with torch.no_grad():
        model(**{name: rows for name, rows in given.items() if name != "sentiment"})
    assert len(seen) == 2 * len(found) and len(found) == 12, "nothing is watched any longer"


def test_a_module_that_is_called_twice_gives_numbered_calls() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = PairwiseAttention()

        def forward(self, text: Tensor, text_lengths: Tensor, **others: Tensor) -> None:
            rows, lengths = text.reshape(3, -1, 2, 3), (text_lengths[None] - 1).clamp(min=0)
            for _ in range(2):
                self.attention([rows], [rows], v=[rows], pairs=[(0, 0)], lengths=lengths)

    found = attention_maps(Twice(), batch())
    assert [(m.call, m.asking, m.answering) for m in found] == [(0, "row 0", "row 0"), (1, "row 0", "row 0")]


def test_a_model_without_attention_is_refused() -> None:
    model = MulG(MulGConfig(text_dim=6, audio_dim=5, vision_dim=4, model_dim=8, heads=2, attention="none"))
    with pytest.raises(AffectError, match="got MulG") as refused:
        attention_maps(model, batch())
    assert refused.value.code == "model.no_attention"


def _map(asking: int, answering: int) -> AttentionMap:
    weights = torch.rand(2, 3, asking + 3, answering + 2).softmax(-1)
    lengths = torch.tensor([asking, asking + 2]), torch.tensor([answering, answering + 1])
    return AttentionMap("text", "audio", "layers.0.attention", 0, weights, *lengths)


def test_the_picture_shows_the_valid_part_with_words_and_null_slots(tmp_path: Path) -> None:
    found, path, words = _map(3, 5), tmp_path / "map.png", ["I", "loved", "$it$"]
    figure = plot_attention_map(found, 0, path, head=1, asking_labels=words)
    assert path.read_bytes().startswith(b"\x89PNG")
    axes = figure.axes[0]
    shown = torch.from_numpy(axes.images[0].get_array().data)
    torch.testing.assert_close(shown, found.weights[0, 1, :4, :6])
    assert [label.get_text() for label in axes.get_yticklabels()] == ["∅", *words]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["∅", "1", "2", "3", "4", "5"]
    mean = plot_attention_map(found, 1).axes[0].images[0].get_array().data
    torch.testing.assert_close(torch.from_numpy(mean), found.weights[1].mean(0))
    assert "matplotlib.pyplot" not in sys.modules or not sys.modules["matplotlib.pyplot"].get_fignums()


def test_long_axes_are_numbered_at_intervals() -> None:
    axes = plot_attention_map(_map(0, 200), 0).axes[0]
    assert list(axes.get_xticks())[:4] == [0, 1, 11, 21] and len(axes.get_xticks()) == 21
    assert list(axes.get_yticks()) == [0]


def test_labels_must_be_one_for_each_step() -> None:
    with pytest.raises(AffectError, match=r"expected 3 labels.*got 2") as refused:
        plot_attention_map(_map(3, 5), 0, asking_labels=["I", "loved"])
    assert refused.value.code == "plot.labels"
