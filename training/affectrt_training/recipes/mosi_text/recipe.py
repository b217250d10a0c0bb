"""MiniLM learns what phrases feel like, then how CMU-MOSI rates utterances, several times over.

1. **read**: an adapter on MiniLM learns the treebank's phrase labels, from single words to whole
   sentences, written as transcripts are, and the emotions of MELD's turns. Most of what MOSI asks is learnt
   here.
2. **rate**: from there, MOSI's own utterances, once for each of several orders.
3. The weights of all of them are averaged (arXiv:2203.05482): one model as good as their ensemble, at the
   price of one.

Every run is a run folder of :mod:`affectrt_training.fit`; so is the result.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from affectrt_training.data import text as corpora
from affectrt_training.data.dataset import Dataset, Example
from affectrt_training.data.text import Sentence, spoken
from affectrt_training.encoders.text import LoraSettings, TextSettings
from affectrt_training.fit.checkpoint import ENCODER, Fitted, begin_run, finish_run, is_finished
from affectrt_training.fit.predict import predict
from affectrt_training.fit.run import fit_run
from affectrt_training.fit.score import Truth, score
from affectrt_training.fit.settings import RunConfig, TrainingConfig
from affectrt_training.fit.storage import write_tensors
from affectrt_training.losses import LossConfig

NEUTRAL = 0.1
"""Phrases rated nearer to 0 than this are neutral: most of the treebank."""

EMOTION_WEIGHT = 0.2
"""Few examples of a batch have an emotion, and the loss is their mean."""

RATING_WEIGHT = 0.5
"""Of naming the sentiment's class beside its value while reading; while rating only the value counts."""

SHORT = 3
"""Words of a short phrase."""


@dataclass(frozen=True)
class MosiTextRecipe:
    """How the encoder is taught."""

    text: TextSettings = field(
        default_factory=lambda: TextSettings(
            tuning="lora", lora=LoraSettings(rank=32, alpha=64.0, dropout=0.0), dropout=0.0, max_tokens=96
        )
    )
    """MiniLM (22.7 M parameters) with an adapter on every linear layer."""
    read: TrainingConfig = field(
        default_factory=lambda: TrainingConfig(
            epochs=1, batch_size=64, lr=1e-3, encoder_lr=8e-4, layer_decay=0.9, warmup=0.06,
            schedule="linear", precision="bf16-mixed", modality_dropout=0.0,
        )
    )  # fmt: skip
    """Of the first stage."""
    rate: TrainingConfig = field(
        default_factory=lambda: TrainingConfig(
            epochs=6, patience=6, batch_size=32, lr=4e-4, encoder_lr=4e-4, layer_decay=0.9, warmup=0.06,
            schedule="linear", precision="bf16-mixed", modality_dropout=0.0,
        )
    )  # fmt: skip
    """Of the second."""
    rates: int = 5
    """Runs of the second stage whose weights are averaged."""
    neutral_kept: tuple[float, float] = (0.3, 0.65)
    """Share of the neutral phrases that are read, of short and of longer ones: they are two in three, and say
    least."""
    bare: float = 0.5
    """Share of phrases and turns that lose their apostrophes: CMU-MOSI's transcripts have none."""


def train_mosi_text(
    data: Path, folder: Path, seed: int = 0, recipe: MosiTextRecipe | None = None
) -> dict[str, dict[str, float]]:
    """Train, or go on with a training that was interrupted; the result lies in ``folder``, a run folder.

    Returns the metrics of MOSI's validation split. Raises ``data.not_found`` and what training raises.
    """
    recipe = recipe or MosiTextRecipe()
    mosi = Dataset(
        "CMU-MOSI",
        {split: _examples(corpora.mosi(data, split)) for split in ("train", "valid")},
        {},
    )
    reading = Dataset(
        "SST phrases and MELD",
        {"train": _examples(_to_read(data, recipe, seed)), "valid": mosi.split("valid")},
        {},
    )
    stages = folder / "stages"
    read = fit_run(
        _config(recipe, replace(recipe.read, seed=seed), RATING_WEIGHT), reading, stages / "read", resume=True
    )
    rated = [
        fit_run(
            _config(recipe, replace(recipe.rate, seed=seed + number), 0.0),
            mosi,
            stages / f"rate-{number}",
            resume=True,
            start=read,
        )
        for number in range(recipe.rates)
    ]
    return _keep_average(rated, mosi, folder)


def _config(recipe: MosiTextRecipe, training: TrainingConfig, rating_weight: float) -> RunConfig:
    loss = LossConfig(emotion_weight=EMOTION_WEIGHT, rating_weight=rating_weight)
    return RunConfig("text-mean", model={"ratings": True}, text=recipe.text, training=training, loss=loss)


def _to_read(data: Path, recipe: MosiTextRecipe, seed: int) -> list[Sentence]:
    """Phrases, sentences and turns as spoken, some of them as CMU-MOSI writes what is spoken."""
    luck = random.Random(seed)
    short, longer = recipe.neutral_kept
    phrases = [
        phrase
        for phrase in corpora.sst_phrases(data)
        if abs(phrase.sentiment or 0.0) >= NEUTRAL
        or luck.random() < (short if len(phrase.text.split()) <= SHORT else longer)
    ]
    sentences = [
        replace(sentence, text=text)
        for sentence in (*corpora.sst5(data, "train"), *corpora.meld(data, "train"))
        if (text := spoken(sentence.text))
    ]
    return [
        replace(s, text=s.text.replace("'", "")) if luck.random() < recipe.bare else s
        for s in (*phrases, *sentences)
    ]


def _examples(sentences: Sequence[Sentence]) -> list[Example]:
    return [
        Example(str(number), {}, words=tuple(s.text.split()), sentiment=s.sentiment, emotion=s.emotion)
        for number, s in enumerate(sentences)
    ]


def _keep_average(rated: Sequence[Fitted], mosi: Dataset, folder: Path) -> dict[str, dict[str, float]]:
    """Write the average of runs of one model as a run of its own, and measure it."""
    average = rated[0]
    assert average.encoder is not None
    encoders = [fitted.encoder.adapter() for fitted in rated if fitted.encoder is not None]
    # In half precision, as it is kept: it comes with the package, and the figures are of what comes.
    adapter = {k: torch.stack([e[k] for e in encoders]).mean(0).half() for k in encoders[0]}
    average.encoder.load_adapter(adapter)
    models = [fitted.model.state_dict() for fitted in rated]
    average.model.load_state_dict({k: torch.stack([m[k] for m in models]).mean(0) for k in models[0]})

    valid = mosi.split("valid")
    said = predict(average, valid)
    truth = Truth([e.sentiment for e in valid], [e.emotion for e in valid])
    metrics = score(truth, said.sentiment, said.probabilities)
    if not is_finished(folder):
        described = {"config": average.config.to_dict(), "dims": average.dims, "text_from": average.text_from}
        begin_run(folder, {**described, "data": average.data}, resume=False)
    finish_run(folder, replace(average, metrics=metrics))
    write_tensors(folder / ENCODER, adapter)
    return {"CMU-MOSI valid": {k: v for k, v in metrics.items() if isinstance(v, float)}}
