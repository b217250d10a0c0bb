"""Encoders that aren't built like BERT: transformers itself writes their masks and positions."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from torch import nn
from transformers import DistilBertConfig, DistilBertModel, MPNetConfig, MPNetModel

from affectrt_export import graphs, parity
from affectrt_export.half import to_half

TOKENS, DIM, LONGEST = 60, 16, 24


def distilbert() -> nn.Module:
    config = DistilBertConfig(
        vocab_size=TOKENS, dim=DIM, n_layers=1, n_heads=2, hidden_dim=16, max_position_embeddings=LONGEST,
        initializer_range=0.3,
    )  # fmt: skip
    model: nn.Module = DistilBertModel(config)
    return model


def mpnet() -> nn.Module:
    """Its positions are relative, and count from beyond the padding's index besides."""
    config = MPNetConfig(
        vocab_size=TOKENS, hidden_size=DIM, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=LONGEST + 2, initializer_range=0.3,
    )  # fmt: skip
    model: nn.Module = MPNetModel(config, add_pooling_layer=False)
    return model


def texts() -> Iterator[parity.Case]:
    """Of every length, alone and with shorter ones; 1 is MPNet's padding, so no token."""
    ids = np.random.default_rng(0).integers(4, TOKENS, (3, LONGEST))
    for length in range(1, LONGEST + 1):
        for lengths in ([length], [length, (length + 1) // 2, 1]):
            mask = (np.arange(length) < np.array(lengths)[:, None]).astype(np.int64)
            given = {"input_ids": np.where(mask, ids[: len(lengths), :length], 1), "attention_mask": mask}
            yield parity.Case(f"{lengths} tokens", given, mask.astype(bool))


@pytest.mark.parametrize("make", [distilbert, mpnet])
def test_encoders_of_other_build_export_too(make: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    module = make().eval().requires_grad_(False)
    made = graphs.text_graph(module, DIM)
    assert parity.check_parity("text", made.graph, module, ("states",), texts(), made.program) < 1e-5
    assert parity.check_parity("text", to_half(made.graph), made.graph, ("states",), texts()) > 0
