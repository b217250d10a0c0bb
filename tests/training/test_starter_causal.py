"""The causal stage: features as on the device, labels of every tick, and what the shipped weights do."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from affectrt.affect import EMOTIONS, MODALITIES, Modality
from affectrt.features.causal_audio import CausalAudioFeatures
from affectrt.features.log_mel import AudioConfig, log_mel
from affectrt.features.sequence import FloatArray
from affectrt.features.text import WORDS_PER_SECOND, TextFeatures, Tokenizer, words_of
from affectrt_training.data.text import Sentence
from affectrt_training.encoders.face import FaceEncoder
from affectrt_training.encoders.text import TextEncoder, minilm_folder
from affectrt_training.encoders.voice import VoiceEncoder, VoiceEncoderConfig
from affectrt_training.models.ghrnn_cma import GhrnnCmaConfig
from affectrt_training.models.ghrnn_cma_causal import CausalGhrnnCma
from affectrt_training.recipes.starter.banks import Encoders, Item
from affectrt_training.recipes.starter.calibrate import AT_ONCE, calibrate_on
from affectrt_training.recipes.starter.causal import (
    CausalRecipe,
    inputs,
    predict,
    see,
    train_causal,
)
from affectrt_training.recipes.starter.compose import Mixture, Person, Sources
from affectrt_training.recipes.starter.courses import Courses, lay
from affectrt_training.recipes.starter.fusion import Predictions, dims, score
from affectrt_training.recipes.starter.moments import (
    SETTLED_S,
    TICK_S,
    Course,
    Moment,
    collate,
    tick_at,
    tick_labels,
)
from affectrt_training.recipes.starter.tracks import Track, cut, follow_voice, text_tracks
from affectrt_training.recipes.starter.weights import (
    Starter,
    fill,
    load_starter,
    read_kept,
    save_weights,
)

CONFIG = GhrnnCmaConfig(
    text_dim=8,
    audio_dim=7,
    vision_dim=9,
    model_dim=16,
    heads=2,
    hidden_dim=16,
    fused_dim=16,
    dropout=0.0,
    causal=True,
    window_s=4.0,
)
SILENCE_SENTIMENT, SILENCE_PROBABILITY = 0.1, 0.12
"""How far ten minutes of nothing may move the shipped model's answer to what comes then."""

JOY, ANGER = EMOTIONS.index("joy"), EMOTIONS.index("anger")


@pytest.fixture(scope="module")
def encoders() -> Encoders:
    torch.manual_seed(0)
    tokenizer = Tokenizer.from_json((minilm_folder() / "tokenizer.json").read_bytes(), 128)
    voice = VoiceEncoder(VoiceEncoderConfig(channels=(4, 4, 4), dim=6)).eval()
    text = TextEncoder().eval()
    return Encoders(text, voice, FaceEncoder().eval(), tokenizer)


# --- Tracks ----------------------------------------------------------------------------------------


def test_words_are_read_as_on_the_device(encoders: Encoders) -> None:
    sentences = [
        Sentence("I loved every minute of it, really!", sentiment=2.0),
        Sentence("no", emotion=ANGER),
        Sentence("what a terrible, unforgettable thing to say", emotion=ANGER),
    ]
    seed = 3
    items = text_tracks(encoders, sentences, "mosi", 1, np.random.default_rng(seed), batch_size=4)

    def graph(**given: Any) -> tuple[Any, ...]:
        with torch.no_grad():
            return (encoders.text(*(torch.from_numpy(x) for x in given.values())).numpy(),)

    device = TextFeatures(encoders.tokenizer, graph, encoders.text.dim)
    generator = np.random.default_rng(seed)
    for item, sentence in zip(items, sentences, strict=True):
        words = words_of(sentence.text, 0.0)
        ends = cut(len(words), generator)
        assert ends[-1] == len(words) and all(0 < b - a <= 3 for a, b in pairwise([0, *ends]))
        groups, whole = item.versions
        for row, begin, end in zip(groups.rows, [0, *ends], ends, strict=False):
            _same(row, device.newest(words[:end], end - begin))
        _same(whole.rows[0], device.newest(words, len(words)))
        assert groups.times_s.tolist() == [end / WORDS_PER_SECOND for end in ends]
        assert whole.times_s.tolist() == [len(words) / WORDS_PER_SECOND]
    assert items[0].sentiment == 2.0 and items[1].emotion[ANGER] == 1.0


def _same(row: Tensor, expected: FloatArray | None) -> None:
    assert expected is not None
    np.testing.assert_allclose(row.float(), expected, atol=2e-3)


def test_a_voice_is_followed_as_on_the_device(encoders: Encoders) -> None:
    rate = 16_000
    time = np.arange(3 * rate) / rate
    pcm = 0.3 * np.sin(2 * np.pi * 220 * time) * (np.sin(2 * np.pi * 3 * time) > 0) * (time > 0.6)
    pcm = (pcm + 1e-3 * np.random.default_rng(0).normal(size=len(pcm))).astype(np.float32)

    def graph(**given: Any) -> tuple[Any, ...]:
        with torch.no_grad():
            return (encoders.voice(torch.from_numpy(given["log_mel"])).numpy(),)

    device = CausalAudioFeatures(AudioConfig(), graph, 6, VoiceEncoder.CONTEXT_ROWS)
    known = []
    for start in range(0, len(pcm), 1600):
        device.push_audio(pcm[start : start + 1600], rate, start / rate)
        known.append(device.until((start + 1600) / rate))
    track = follow_voice(encoders, log_mel(pcm, rate))
    assert len(track.rows) > 10
    np.testing.assert_allclose(track.rows.float(), np.concatenate([k.values for k in known]), atol=2e-3)
    np.testing.assert_allclose(track.times_s, np.concatenate([k.times_s for k in known]), atol=1e-9)


# --- Moments ---------------------------------------------------------------------------------------


def _moment(modality: Modality, times: list[float], emotion: int, sentiment: float = 1.0) -> Moment:
    dim = dims(CONFIG)[modality]
    rows = torch.ones(len(times), dim)
    return Moment(
        {modality: rows}, {modality: torch.tensor(times, dtype=torch.float64)}, _named(emotion), sentiment
    )


def _named(emotion: int) -> Tensor:
    return torch.eye(len(EMOTIONS))[emotion]


@pytest.mark.parametrize(("time_s", "tick"), [(0.0, 0), (0.1, 0), (0.1001, 1), (0.3, 2), (1.0, 9)])
def test_a_tick_knows_what_has_come_until_it(time_s: float, tick: int) -> None:
    assert tick_at(time_s) == tick
    assert TICK_S * (tick + 1) >= time_s - 1e-9


def test_labels_follow_the_moments() -> None:
    first, second = _moment("text", [0.5, 0.8, 1.0], JOY), _moment("audio", [1.6, 2.0], ANGER, float("nan"))
    emotion, sentiment, weight = tick_labels(Course([first, second], 2.6), 30)
    # Before the first evidence it is to be guessed; a pause still belongs to the moment before it.
    assert emotion.argmax(-1)[:26].tolist() == [JOY] * 15 + [ANGER] * 11
    assert sentiment[:15].tolist() == [1.0] * 15 and bool(sentiment[15:].isnan().all())
    assert float(weight[:4].sum()) == pytest.approx(0.1)
    for start, last, stop in ((4, 9, 15), (15, 19, 26)):
        assert float(weight[start:stop].sum()) == pytest.approx(1.0)
        assert bool((weight[start:last].diff() > 0).all()) and bool((weight[last:stop].diff() < 0).all())
    assert not weight[26:].any()


def test_a_batch_holds_what_has_come() -> None:
    said = _moment("text", [0.11, 0.19, 0.45], JOY)
    said.rows["text"][1] = 3.0
    batch = collate([Course([said], 1.0), Course([_moment("vision", [0.2, 0.3], ANGER)], 0.6)], dims(CONFIG))
    assert batch["lengths"].tolist() == [10, 6]
    assert batch["spoken"][0].nonzero().flatten().tolist() == [1, 4] and not batch["spoken"][1].any()
    assert batch["text"][0, 1].tolist() == [2.0] * 8  # words of one tick are averaged
    assert batch["audio_lengths"].tolist() == [0, 0] and batch["audio"].shape == (2, 1, 7)
    assert batch["vision_lengths"].tolist() == [0, 2]
    torch.testing.assert_close(batch["tick_times"][0], TICK_S * torch.arange(1.0, 11.0, dtype=torch.float64))
    sentiment, logits = CausalGhrnnCma(CONFIG).eval()(**inputs(batch))
    assert sentiment.shape == (2, 10) and logits.shape == (2, 10, 7)


# --- The stage -------------------------------------------------------------------------------------


def _track(modality: Modality, emotion: int, count: int, generator: np.random.Generator) -> Track:
    rows = torch.from_numpy(generator.normal(0, 0.3, (count, dims(CONFIG)[modality])))
    rows[:, emotion] += 2.0
    return Track(rows.half(), 0.2 * torch.arange(1, count + 1, dtype=torch.float64))


def _items(modality: Modality, corpus: str, generator: np.random.Generator) -> list[Item[Track]]:
    items = []
    for index in range(42):
        emotion = index % len(EMOTIONS)
        count = 1 if modality == "vision" else int(generator.integers(1, 6))
        track = _track(modality, emotion, count, generator)
        versions = [track, Track(track.rows[-1:], track.times_s[-1:])] if modality == "text" else [track]
        rated = corpus in ("mosi", "sst")
        label = torch.zeros(7) if rated else _named(emotion)
        valence = {"joy": 2.0, "neutral": 0.0}.get(EMOTIONS[emotion], -2.0)
        items.append(Item(versions, label, valence if rated else float("nan"), corpus))
    return items


@pytest.fixture(scope="module")
def sources() -> Sources[Track]:
    generator = np.random.default_rng(0)
    return Sources(
        named_text=_items("text", "meld", generator),
        rated_text=[*_items("text", "mosi", generator), *_items("text", "sst", generator)],
        voices=_items("audio", "ravdess", generator),
        faces=_items("vision", "ferplus", generator),
    )


def _clips(sources: Sources[Track]) -> list[Person[Track]]:
    generator = np.random.default_rng(1)
    return [
        Person(
            {
                "audio": [Item([_track("audio", e, 4, generator)], _named(e), float("nan"), "clips")],
                "vision": [Item([_track("vision", e, 6, generator)], _named(e), float("nan"), "clips")],
            },
            _named(e),
            float("nan"),
        )
        for e in range(len(EMOTIONS))
    ]


MIXTURE = Mixture(mosi=10, sst=5, named_text=15, voices=150, faces=20, clips=10, composed=50)


def test_courses_are_streams(sources: Sources[Track]) -> None:
    courses = Courses(sources, _clips(sources), MIXTURE, 16, dims(CONFIG), seed=0)
    drawn = [courses.draw(kind) for kind in sorted(set(courses.kinds)) for _ in range(12)]
    assert {len(course.moments) for course in drawn} == {1, 2}
    for course in drawn:
        for first, second in pairwise(course.moments):
            assert second.begins_s >= first.ends_s
            assert float(first.emotion @ second.emotion) < 0.5
        for moment in course.moments:
            assert all(bool((t.diff() >= 0).all()) for t in moment.times_s.values())
    batches = list(courses)
    assert len(batches) == len(courses) == ceil(sum(vars(MIXTURE).values()) / 16)
    assert sum(len(batch["lengths"]) for batch in batches) == sum(vars(MIXTURE).values())


def test_now_and_then_nothing_lasts_long(sources: Sources[Track]) -> None:
    """As docs/starter.md says: up to two seconds or twelve before, one and a half or six in between.

    Evidence comes a little later: modalities begin within half a second, and a word is known when it is over.
    """
    courses = Courses(sources, _clips(sources), MIXTURE, 16, dims(CONFIG), seed=0)
    drawn = [courses.draw("faces").moments for _ in range(600)]
    before = np.array([first.begins_s for first, *_ in drawn])
    between = np.array([b.begins_s - a.ends_s for a, b in (m for m in drawn if len(m) == 2)])
    for nothing, mostly, most, share in ((before, 2.5, 12.5, 0.05), (between, 2.5, 8.5, 0.15)):
        longer = (nothing > mostly).mean()
        assert share / 4 < longer < 2 * share and nothing.max() < most
    assert before.max() > 9.0 and between.max() > 5.0 and 0.4 < len(between) / len(drawn) < 0.6


def test_who_feels_but_one_thing_is_not_followed(sources: Sources[Track]) -> None:
    joyful = [item for item in sources.voices if item.emotion[JOY] == 1.0]
    only = Mixture(mosi=0, sst=0, named_text=0, voices=9, faces=0, clips=0, composed=0)
    some = Sources(sources.named_text, sources.rated_text, joyful, sources.faces)
    courses = Courses(some, [], only, 3, dims(CONFIG), seed=0)
    assert {len(courses.draw("voices").moments) for _ in range(9)} == {1}
    # Nor does anyone of whom nothing is known stop the drawing.
    silent = [
        Item([Track(torch.zeros(0, 7), torch.zeros(0, dtype=torch.float64))], _named(JOY), 0.0, "ravdess")
    ]
    courses = Courses(
        Sources(sources.named_text, sources.rated_text, silent, sources.faces),
        [],
        only,
        3,
        dims(CONFIG),
        seed=0,
    )
    assert all(bool(torch.isfinite(batch["weight"]).all()) for batch in courses)


def test_a_face_is_seen_for_as_long_as_the_voice_is_heard(sources: Sources[Track]) -> None:
    generator = np.random.default_rng(2)
    voice = Item([_track("audio", JOY, 20, generator)], _named(JOY), float("nan"), "ravdess")
    moment = lay(Person({"audio": [voice], "vision": [sources.faces[JOY]]}, _named(JOY), 0.0), 1.0, generator)
    assert 1.0 <= moment.begins_s <= 1.7
    assert float(moment.times_s["vision"][-1]) == pytest.approx(float(moment.times_s["audio"][-1]), abs=0.11)
    assert moment.only(frozenset({"audio"})).rows.keys() == {"audio"}


def test_the_stage_learns_and_lets_go(sources: Sources[Track], tmp_path: Path) -> None:
    recipe = CausalRecipe(model=CONFIG, mixture=MIXTURE, epochs=5, batch_size=5, lr=6e-3)
    generator = np.random.default_rng(3)
    heard = [see(Person({"audio": [i]}, i.emotion, i.sentiment), generator) for i in sources.voices]
    best = train_causal(sources, _clips(sources), {"ravdess": heard}, tmp_path, recipe, seed=0)
    model = CausalGhrnnCma(CONFIG)
    fill(model, load_file(best), "causal")
    model.eval()
    assert score(heard, predict(model, heard))["accuracy"] > 0.7
    # Someone angry right after someone happy.
    happy, angry = (_track("audio", e, 8, generator) for e in (JOY, ANGER))
    first = Moment({"audio": happy.rows}, {"audio": happy.times_s}, _named(JOY), float("nan"))
    second = Moment({"audio": angry.rows}, {"audio": angry.times_s + 2.5}, _named(ANGER), float("nan"))
    with torch.no_grad():
        _, logits = model(**inputs(collate([Course([first, second], 5.0)], dims(CONFIG))))
    said = logits[0].argmax(-1)
    assert int(said[tick_at(first.ends_s + SETTLED_S)]) == JOY and int(said[-1]) == ANGER


def test_padding_and_batching_change_nothing(sources: Sources[Track]) -> None:
    generator = np.random.default_rng(4)
    people = [
        lay(Person({"text": [t], "audio": [v], "vision": [f]}, v.emotion, 0.0), 0.3, generator)
        for t, v, f in zip(sources.named_text[:4], sources.voices, sources.faces, strict=False)
    ]
    people += [people[0].only(frozenset({"audio"})), people[1].only(frozenset())]
    torch.manual_seed(0)
    model = CausalGhrnnCma(CONFIG).eval()
    together = predict(model, people)
    for index, moment in enumerate(people):
        torch.testing.assert_close(
            together.logits[index], predict(model, [moment]).logits[0], atol=1e-5, rtol=0
        )


def test_confidence_rests_on_words_as_they_come_and_at_once(sources: Sources[Track]) -> None:
    def rated(sentiment: float) -> list[Moment]:
        return [_moment("text", [0.5], JOY, sentiment)] * 10

    heard, seen = ([_moment(m, [0.5], JOY)] for m in MODALITIES[1:])
    words = {"mosi": rated(1.0), "meld": rated(1.0)}
    sets = {**words, "ravdess": heard, "emodb": heard, "ferplus": seen}

    def says_nothing(moments: list[Moment]) -> Predictions:
        return Predictions(torch.zeros(len(moments)), torch.zeros(len(moments), len(EMOTIONS)))

    found = calibrate_on(sets, says_nothing, sources, see, seed=0)
    assert found["interval_half_width"]["text"] == found["interval_half_width"]["none"] == 1.0  # type: ignore[index]
    found = calibrate_on({**sets, "mosi" + AT_ONCE: rated(2.5)}, says_nothing, sources, see, seed=0)
    assert found["interval_half_width"]["text"] == 2.5  # type: ignore[index]


# --- Weights ---------------------------------------------------------------------------------------


def test_kept_parts_come_back_byte_for_byte(tmp_path: Path) -> None:
    whole = tmp_path / "whole.safetensors"
    parts = {
        name: {"weight": torch.randn(3, 2).half()} for name in ("text", "voice", "face", "fusion", "causal")
    }
    save_weights(parts, {"metrics": [1.0], "int8_gate": {"a": 1}}, whole)
    kept = read_kept(whole)
    assert kept.meta["int8_gate"] == {"a": 1} and kept.meta["metrics"] == [1.0]
    again = tmp_path / "again.safetensors"
    save_weights(kept.parts, kept.meta, again)
    assert again.read_bytes() == whole.read_bytes()
    assert again.with_suffix(".json").read_text() == whole.with_suffix(".json").read_text()


@pytest.fixture(scope="module")
def shipped() -> Starter:
    return load_starter()


@pytest.fixture(scope="module")
def says(shipped: Starter) -> Callable[[str, float], Moment]:
    """Words that end one after the other from some time on, as the shipped encoder reads them."""
    tokenizer = Tokenizer.from_json(shipped.tokenizer_json, 128)

    def graph(**given: Any) -> tuple[Any, ...]:
        with torch.no_grad():
            states = shipped.text_encoder(**{name: torch.from_numpy(x) for name, x in given.items()})
        return (states.last_hidden_state.numpy(),)

    features = TextFeatures(tokenizer, graph, shipped.causal.config.text_dim)

    def say(text: str, start_s: float) -> Moment:
        words = words_of(text, start_s)
        read = [features.newest(words[: k + 1], 1) for k in range(len(words))]
        rows = [row for row in read if row is not None]
        times = torch.tensor([word.end_s for word in words], dtype=torch.float64)
        return Moment({"text": torch.from_numpy(np.stack(rows))}, {"text": times}, torch.zeros(7), 0.0)

    return say


def _answers(model: CausalGhrnnCma, *moments: Moment) -> tuple[float, Tensor]:
    """Sentiment and probabilities half a second after the last evidence."""
    with torch.no_grad():
        course = Course(moments, moments[-1].ends_s + SETTLED_S)
        sentiment, logits = model(**inputs(collate([course], dims(model.config))))
    return float(sentiment[0, -1]), logits[0, -1].softmax(-1)


PRAISE = "I loved every minute of it, this is wonderful!"
ABUSE = "I hate you, you make me sick, get out of my house!"


@pytest.mark.parametrize("text", [PRAISE, ABUSE, "the train leaves at five"])
def test_ten_minutes_of_nothing_change_little(
    shipped: Starter, says: Callable[[str, float], Moment], text: str
) -> None:
    soon, late = (_answers(shipped.causal, says(text, start_s)) for start_s in (1.0, 600.0))
    assert abs(soon[0] - late[0]) <= SILENCE_SENTIMENT
    assert float((soon[1] - late[1]).abs().max()) <= SILENCE_PROBABILITY


def test_what_was_felt_before_is_let_go(shipped: Starter, says: Callable[[str, float], Moment]) -> None:
    praise = says(PRAISE, 1.0)
    abuse = says(ABUSE, praise.ends_s + 1.0)
    happy, angry = _answers(shipped.causal, praise), _answers(shipped.causal, praise, abuse)
    assert happy[0] > 1.0 and int(happy[1].argmax()) == JOY
    assert angry[0] < -1.0 and float(angry[1][JOY]) < 0.1
