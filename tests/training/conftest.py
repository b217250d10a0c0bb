"""Folders of tiny encoders with random weights, as Hugging Face lays them out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    BertConfig,
    BertModel,
    DistilBertConfig,
    DistilBertModel,
    RobertaConfig,
    RobertaModel,
)

FolderOf = Callable[[str], Path]

SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
POSITIONS = 16
"""Tokens that the encoders take."""
TEXTS = ["i am so happy, not sad", "it was a great film", "an awful film: hate it"]


def _word_piece() -> Tokenizer:
    letters = "abcdefghijklmnopqrstuvwxyz"
    vocabulary = [*SPECIALS, *",.:", *letters, *(f"##{c}" for c in letters), *" ".join(TEXTS).split()]
    ids = {token: index for index, token in enumerate(dict.fromkeys(vocabulary))}
    tokenizer = Tokenizer(models.WordPiece(vocab=ids, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", ids["[SEP]"]), ("[CLS]", ids["[CLS]"]))
    tokenizer.add_special_tokens(list(SPECIALS))
    return tokenizer


def _byte_level() -> Tokenizer:
    """As RoBERTa's own file has it: no space is put before a text, which words alone would need."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<s>", "<pad>", "</s>", "<unk>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    return tokenizer


def _write(folder: Path, family: str) -> None:
    torch.manual_seed(11)
    tokenizer = _byte_level() if family == "roberta" else _word_piece()
    size = tokenizer.get_vocab_size()
    tokenizer.save(str(folder / "tokenizer.json"))
    shape = {"hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    if family == "bert":
        model = BertModel(BertConfig(vocab_size=size, max_position_embeddings=POSITIONS, **shape))
    elif family == "roberta":
        # Positions count from beyond the padding's index, 1.
        config = RobertaConfig(vocab_size=size, max_position_embeddings=POSITIONS + 2, **shape)
        model = RobertaModel(config)
    else:
        config = DistilBertConfig(
            vocab_size=size, max_position_embeddings=POSITIONS, dim=12, n_layers=2, n_heads=2, hidden_dim=16
        )
        model = DistilBertModel(config)
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(0.0, 0.3)  # the library's own start makes all states alike
    model.save_pretrained(folder)


@pytest.fixture(scope="session")
def encoder_of(tmp_path_factory: pytest.TempPathFactory) -> FolderOf:
    """The folder of a ``bert``, ``roberta`` or ``distilbert``. Don't change it: copy."""
    made: dict[str, Path] = {}

    def folder(family: str) -> Path:
        if family not in made:
            path = tmp_path_factory.mktemp(family)
            _write(path, family)
            made[family] = path
        return made[family]

    return folder
