"""Stage 1: MiniLM learns sentiment (MOSI, SST-5) and emotion (MELD) from sentences."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Sampler

from affectrt.affect import EMOTIONS
from affectrt.features.text import Tokenizer, words_of
from affectrt_training.data import text as corpora
from affectrt_training.data.text import Sentence
from affectrt_training.encoders.text import LoraSettings, TextEncoder, TextSettings, mean_pool, minilm_folder
from affectrt_training.losses import class_weights, masked_cross_entropy, masked_l1
from affectrt_training.metrics import emotion_metrics, sentiment_metrics
from affectrt_training.recipes.starter.fit import SCORE, Stage, fit, trainable, warmup_cosine


@dataclass(frozen=True)
class TextRecipe:
    """How the text encoder is adapted."""

    lora: LoraSettings = field(default_factory=lambda: LoraSettings(rank=16, alpha=32.0, dropout=0.1))
    """The adapter."""
    epochs: int = 5
    """Passes over the mixed corpora."""
    batch_size: int = 32
    """Sentences per step."""
    adapter_lr: float = 8e-4
    """Peak learning rate of the adapter."""
    head_lr: float = 2e-3
    """Peak learning rate of the two heads, which stay behind after this stage."""
    mosi_repeats: int = 3
    """MOSI is small and is what sentiment is measured on: it is seen this often per epoch."""
    max_tokens: int = 96
    """Longer sentences lose their oldest words."""
    emotion_weight: float = 0.7
    """Weight of the emotion cross-entropy beside the sentiment's absolute error."""
    class_weight_power: float = 0.35
    """MELD's classes weigh (1 / frequency) to this power: 0 ignores rarity, 1 levels it out."""


class Tokenized(torch.utils.data.Dataset[tuple[Tensor, Sentence]]):
    """Sentences as token ids."""

    def __init__(self, sentences: list[Sentence], tokenizer: Tokenizer) -> None:
        self.sentences = sentences
        self.ids = [torch.from_numpy(tokenizer.encode(words_of(s.text, 0.0)).ids) for s in sentences]

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> tuple[Tensor, Sentence]:
        return self.ids[index], self.sentences[index]


class LengthBuckets(Sampler[list[int]]):
    """Shuffled batches of sentences of like length, so that little of a batch is padding."""

    def __init__(self, lengths: list[int], batch_size: int, seed: int, pool: int = 50) -> None:
        self.lengths, self.batch_size, self.pool = lengths, batch_size, pool
        self.random = random.Random(seed)

    def __len__(self) -> int:
        return -(-len(self.lengths) // self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        order = list(range(len(self.lengths)))
        self.random.shuffle(order)
        chunk = self.batch_size * self.pool
        batches = []
        for start in range(0, len(order), chunk):
            part = sorted(order[start : start + chunk], key=self.lengths.__getitem__)
            batches += [part[i : i + self.batch_size] for i in range(0, len(part), self.batch_size)]
        self.random.shuffle(batches)
        return iter(batches)


def collate(items: list[tuple[Tensor, Sentence]]) -> dict[str, Tensor]:
    """Pad ids to (B, T); a missing label is NaN (sentiment) or -1 (emotion)."""
    ids = nn.utils.rnn.pad_sequence([i for i, _ in items], batch_first=True)
    lengths = torch.tensor([len(i) for i, _ in items])
    return {
        "ids": ids,
        "mask": (torch.arange(ids.shape[1]) < lengths[:, None]).long(),
        "sentiment": torch.tensor([float("nan") if s.sentiment is None else s.sentiment for _, s in items]),
        "emotion": torch.tensor([-1 if s.emotion is None else s.emotion for _, s in items]),
    }


class TextStage(Stage):
    """Mean-pooled token states, a linear head per task."""

    def __init__(self, recipe: TextRecipe, class_weights: Tensor, total_steps: int) -> None:
        super().__init__()
        self.recipe, self.total_steps = recipe, total_steps
        self.encoder = TextEncoder(TextSettings(tuning="lora", lora=recipe.lora))
        self.dropout = nn.Dropout(0.1)
        self.sentiment = nn.Linear(self.encoder.dim, 1)
        self.emotion = nn.Linear(self.encoder.dim, len(EMOTIONS))
        self.class_weights: Tensor
        self.register_buffer("class_weights", class_weights, persistent=False)
        self.seen: list[dict[str, Tensor]] = []

    def forward(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        pooled = self.dropout(mean_pool(self.encoder(ids, mask), mask))
        return self.sentiment(pooled).squeeze(-1).float(), self.emotion(pooled).float()

    def training_step(self, batch: dict[str, Tensor], _: int) -> Tensor:
        sentiment, logits = self(batch["ids"], batch["mask"])
        loss = masked_l1(sentiment, batch["sentiment"])
        loss = loss + self.recipe.emotion_weight * masked_cross_entropy(
            logits, batch["emotion"], self.class_weights
        )
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: dict[str, Tensor], _: int) -> None:
        sentiment, logits = self(batch["ids"], batch["mask"])
        self.seen.append({**batch, "p_sentiment": sentiment, "p_emotion": logits.softmax(-1)})

    def on_validation_epoch_end(self) -> None:
        def gather(key: str) -> np.ndarray[Any, Any]:
            return torch.cat([s[key] for s in self.seen]).cpu().numpy()

        truth, emotion = gather("sentiment"), gather("emotion")
        rated, named = ~np.isnan(truth), emotion >= 0
        scores = sentiment_metrics(truth[rated], gather("p_sentiment")[rated])
        names = emotion_metrics(emotion[named], gather("p_emotion")[named])
        self.log("valid_mosi_mae", scores.mae)
        self.log("valid_mosi_acc2_non0", scores.acc2_non0 or 0.0)
        self.log("valid_meld_weighted_f1", names.weighted_f1)
        self.log(SCORE, names.weighted_f1 - scores.mae)
        self.seen.clear()

    def configure_optimizers(self) -> Any:
        heads = [*self.sentiment.parameters(), *self.emotion.parameters()]
        return warmup_cosine(
            [
                {"params": trainable(self.encoder), "lr": self.recipe.adapter_lr},
                {"params": heads, "lr": self.recipe.head_lr},
            ],
            self.total_steps,
            weight_decay=0.01,
        )

    def weights(self) -> dict[str, Tensor]:
        """The adapter; the heads are scaffolding."""
        return self.encoder.adapter()


def train_text(data: Path, folder: Path, recipe: TextRecipe, seed: int) -> Path:
    """Adapt MiniLM; returns the path of the best adapter."""
    lightning.seed_everything(seed, verbose=False)
    tokenizer = Tokenizer.from_json((minilm_folder() / "tokenizer.json").read_bytes(), recipe.max_tokens)
    emotional = corpora.meld(data, "train")
    train_set = Tokenized(
        corpora.mosi(data, "train") * recipe.mosi_repeats + corpora.sst5(data, "train") + emotional, tokenizer
    )
    valid_set = Tokenized(corpora.mosi(data, "valid") + corpora.meld(data, "valid"), tokenizer)
    sampler = LengthBuckets([len(i) for i in train_set.ids], recipe.batch_size, seed)
    stage = TextStage(
        recipe,
        class_weights([s.emotion for s in emotional if s.emotion is not None], recipe.class_weight_power),
        total_steps=recipe.epochs * len(sampler),
    )
    return fit(
        stage,
        DataLoader(train_set, batch_sampler=sampler, collate_fn=collate),
        DataLoader(valid_set, batch_size=64, collate_fn=collate),
        epochs=recipe.epochs,
        folder=folder,
        precision="bf16-mixed",
    )
