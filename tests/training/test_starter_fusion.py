"""The fusion stage on synthetic features whose emotions can be told apart."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from affectrt.affect import EMOTIONS, MODALITIES
from affectrt.calibration import PRESENCE_KEYS, presence_key
from affectrt_training.models.ghrnn_cma import GhrnnCma, GhrnnCmaConfig
from affectrt_training.recipes.starter.banks import Item, Sample
from affectrt_training.recipes.starter.calibrate import (
    calibrate,
    composed,
    fit_temperature,
    half_width,
    only,
    patterns,
)
from affectrt_training.recipes.starter.compose import (
    VALENCE,
    Mixture,
    Sources,
    cast,
    collate,
    sample_of,
)
from affectrt_training.recipes.starter.fusion import FusionRecipe, predict, score, train_fusion, worst_gain
from affectrt_training.recipes.starter.weights import fill

CONFIG = GhrnnCmaConfig(
    text_dim=8, audio_dim=7, vision_dim=9, model_dim=16, heads=2, hidden_dim=8, fused_dim=16, dropout=0.0
)
DIMS = {"text": 8, "audio": 7, "vision": 9}


def _items(
    modality: str, count: int, generator: np.random.Generator, rated: bool = False
) -> list[Item[Tensor]]:
    """Noisy rows with one feature per emotion; rated ones carry its sentiment instead of its name."""
    items = []
    for index in range(count):
        emotion = index % len(EMOTIONS)
        rows = torch.from_numpy(generator.normal(0, 0.6, (int(generator.integers(1, 5)), DIMS[modality])))
        rows[:, emotion] += 1.1
        low, high = VALENCE.get(EMOTIONS[emotion], (-3.0, 3.0))
        label = torch.zeros(7) if rated else torch.eye(7)[emotion]
        items.append(Item([rows.half()], label, (low + high) / 2 if rated else float("nan"), "mosi"))
    return items


@pytest.fixture(scope="module")
def sources() -> Sources[Tensor]:
    generator = np.random.default_rng(0)
    return Sources(
        named_text=_items("text", 70, generator),
        rated_text=[
            *_items("text", 70, generator, rated=True),
            *(
                Item(i.versions, i.emotion, i.sentiment, "sst")
                for i in _items("text", 14, generator, rated=True)
            ),
        ],
        voices=_items("audio", 70, generator),
        faces=_items("vision", 70, generator),
    )


def test_composed_people_have_what_was_asked_for(sources: Sources[Tensor]) -> None:
    generator = np.random.default_rng(1)
    for present in patterns()[1:]:
        for emotion in range(7):
            sample = sample_of(cast(sources, emotion, present, generator), generator)
            assert frozenset(sample.rows) == present
            assert sample.emotion.argmax() == emotion
            assert all(rows.shape[1] == DIMS[m] for m, rows in sample.rows.items())


def test_rated_sentences_match_the_emotions_valence(sources: Sources[Tensor]) -> None:
    generator = np.random.default_rng(2)
    joy = EMOTIONS.index("joy")
    people = [cast(sources, joy, frozenset(MODALITIES), generator, rated=1.0) for _ in range(20)]
    assert all(1.0 <= person.sentiment <= 3.0 for person in people)


def test_collate_marks_absent_modalities_with_length_zero() -> None:
    batch = collate([Sample({"audio": torch.ones(3, 7)}, torch.zeros(7), float("nan"))], DIMS)  # type: ignore[arg-type]
    assert [batch[f"{m}_lengths"].tolist() for m in MODALITIES] == [[0], [3], [0]]
    assert [tuple(batch[m].shape) for m in MODALITIES] == [(1, 1, 8), (1, 3, 7), (1, 1, 9)]


def test_fusion_learns_and_agreeing_modalities_help(sources: Sources[Tensor], tmp_path: Path) -> None:
    people = composed(sources, sample_of, rated=0.0, seed=3)
    recipe = FusionRecipe(
        model=CONFIG,
        mixture=Mixture(mosi=30, sst=30, named_text=100, voices=100, faces=100, clips=10, composed=400),
        epochs=8,
        lr=1e-2,
    )
    clips = only(people[:20], frozenset({"audio", "vision"}))
    best = train_fusion(sources, clips, {"composed text+audio+vision": people}, tmp_path, recipe, seed=0)
    model = GhrnnCma(CONFIG)
    fill(model, load_file(best), "fusion")
    model.eval()
    accuracy = {
        presence_key(some): score(s, predict(model, s))["accuracy"]
        for some in patterns()[1:]
        for s in [only(people, some)]
    }
    assert accuracy["text+audio+vision"] > 0.7
    assert (
        accuracy["text+audio+vision"] >= max(accuracy["text"], accuracy["audio"], accuracy["vision"]) - 0.02
    )

    calibration = calibrate(partial(predict, model), sources, sample_of, named={}, rated={}, seed=0)
    assert set(calibration["temperature"]) == set(calibration["interval_half_width"]) == set(PRESENCE_KEYS)  # type: ignore[call-overload]


def test_padding_and_batching_change_nothing() -> None:
    generator = torch.Generator().manual_seed(0)
    samples = [
        Sample(
            {m: torch.randn(2 + 3 * len(m), DIMS[m], generator=generator) for m in MODALITIES if m in some},
            torch.zeros(7),
            0.0,
        )
        for some in (("text", "audio", "vision"), ("audio",), ("vision",), (), ("text",))
    ]
    model = GhrnnCma(CONFIG).eval()
    together = predict(model, samples)
    for index, sample in enumerate(samples):
        alone = predict(model, [sample])
        torch.testing.assert_close(together.logits[index], alone.logits[0], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(together.sentiment[index], alone.sentiment[0], atol=1e-5, rtol=1e-5)


def test_temperature_undoes_overconfidence() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4000, 7, generator=generator) * 1.5
    truth = torch.multinomial(logits.softmax(-1), 1, generator=generator).squeeze(1)
    assert fit_temperature(logits * 3, truth) == pytest.approx(3.0, rel=0.15)


def test_half_width_is_the_conformal_quantile() -> None:
    residuals = torch.arange(1, 20) / 10  # 19 of them: ceil(20 * 0.9) = the 18th
    assert half_width(residuals, torch.zeros(19)) == pytest.approx(1.8)
    assert not math.isnan(half_width(torch.ones(2), torch.zeros(2)))


def test_worst_gain_is_over_the_best_alone() -> None:
    accuracy = {"composed text": 0.4, "composed audio": 0.6, "composed vision": 0.7}
    assert worst_gain({**accuracy, "composed text+audio": 0.65}) == pytest.approx(0.05)
    both = {**accuracy, "composed text+audio": 0.65, "composed text+vision": 0.68}
    assert worst_gain(both) == pytest.approx(-0.02)
    assert worst_gain(accuracy) == 0.0


def test_misleading_people_still_carry_their_label(sources: Sources[Tensor]) -> None:
    generator = np.random.default_rng(4)
    joy = EMOTIONS.index("joy")
    everything = frozenset(MODALITIES)
    always = dict.fromkeys(MODALITIES, 1.0)
    people = [
        sample_of(cast(sources, joy, everything, generator, misleading=always), generator) for _ in range(40)
    ]
    assert all(person.emotion.argmax() == joy for person in people)
    # The features show the emotion that was drawn: mostly not joy.
    shown = [int(person.rows["audio"].float().mean(0).argmax()) for person in people]
    assert sum(s == joy for s in shown) < 15
