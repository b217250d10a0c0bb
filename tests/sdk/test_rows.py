"""Models whose bundle has no extractor for a modality, or doesn't know it; rows of words."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import affectrt
from affectrt.calibration import Calibration, presence_keys
from affectrt.cli import main
from affectrt.errors import AffectError
from affectrt.features.sequence import FeatureSequence
from affectrt.features.text import TextFeatures, Tokenizer, Word, words_of
from affectrt.manifest import Manifest, RowsSpec, TextSpec


@pytest.fixture(scope="module")
def rows_only(
    make_bundle: Callable[..., Path],
    tiny_manifest: Manifest,
    tiny_members: dict[str, bytes],
    tmp_path_factory: Any,
) -> Path:
    """The tiny bundle whose application brings sound and faces; its fusion weights left out."""
    from affectrt.bundle import write_bundle

    manifest = replace(
        tiny_manifest,
        audio=RowsSpec(tiny_manifest.dim("audio")),
        vision=RowsSpec(tiny_manifest.dim("vision")),
        fusion=replace(tiny_manifest.fusion, weights=None),
    )
    kept = ("text.onnx", "tokenizer.json", "fusion.onnx")
    path: Path = tmp_path_factory.mktemp("rows") / "rows.affect"
    write_bundle(path, manifest, {name: tiny_members[name] for name in kept})
    return path


def test_rows_that_the_application_brings_count_as_the_extractors_would(
    rows_only: Path, tiny_model: affectrt.Model
) -> None:
    model = affectrt.load(rows_only, threads=1)
    values = np.random.default_rng(0).normal(size=(5, model.manifest.dim("audio"))).astype(np.float32)
    heard = FeatureSequence("audio", values, np.linspace(0.0, 90.0, 5), "COVAREP")
    one, other = (m.predict(text="i love it", features={"audio": heard}) for m in (model, tiny_model))
    assert one.sentiment == pytest.approx(other.sentiment, abs=1e-6)
    assert one.present == {"text", "audio"}
    # 90 s of rows without media are still one window.
    whole = {"text": model.encoders.text.extract(words_of("i love it", 0.0, 90.0)), "audio": heard}
    assert one.sentiment == pytest.approx(model.fuse(whole, 90.0, 0.0).sentiment, abs=1e-6)  # type: ignore[arg-type]
    with model.stream() as stream:
        stream.push_features(heard)
        assert stream.flush()[-1].present == {"audio"}


@pytest.mark.parametrize(
    "given",
    [
        {"audio": (np.zeros(16_000, np.float32), 16_000)},
        {"audio": "sound.wav"},
        {"video": "clip.mp4"},
        {"image": np.zeros((48, 48), np.uint8)},
    ],
)
def test_sound_and_pictures_are_refused_with_what_to_pass_instead(
    rows_only: Path, given: dict[str, Any]
) -> None:
    with pytest.raises(AffectError, match=r"rows of \d+ features .* features=\{'(audio|vision)'") as caught:
        affectrt.load(rows_only).predict(**given)
    assert caught.value.code == "model.no_extractor"


def test_streams_refuse_at_the_push(rows_only: Path) -> None:
    with affectrt.load(rows_only).stream() as stream:
        pushes: list[Callable[[], object]] = [
            lambda: stream.push_audio(np.zeros(160, np.float32), 16_000),
            lambda: stream.push_frame(np.zeros((48, 48), np.uint8)),
        ]
        for push in pushes:
            with pytest.raises(AffectError) as caught:
                push()
            assert caught.value.code == "model.no_extractor"


def test_a_model_may_know_words_alone(
    tiny_manifest: Manifest, tiny_members: dict[str, bytes], tmp_path: Path
) -> None:
    """Its calibration has no pattern of what it doesn't know."""
    keys = presence_keys(["text"])
    assert keys == ("text", "none")
    calibration = Calibration(0.9, dict.fromkeys(keys, 1.0), dict.fromkeys(keys, 1.0))
    manifest = replace(tiny_manifest, audio=None, vision=None, calibration=calibration)
    assert manifest.modalities == ("text",) and manifest.dim("audio") == 1
    manifest.check("here")
    again = Manifest.from_json(replace(manifest, members=_members(manifest)).to_json(), "here")
    assert replace(again, members={}) == manifest
    with pytest.raises(AffectError, match="calibration: expected constants for text, got 'text\\+audio"):
        replace(manifest, calibration=tiny_manifest.calibration).check("here")
    error = manifest.no_extractor("audio")
    assert error.code == "model.no_modality" and "leave it out" in error.message


def _members(manifest: Manifest) -> Any:
    from affectrt.manifest import Member

    return {name: Member("0" * 64, 0) for name in manifest.named_members()}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("audio", {"dim": 0}),
        ("audio", {"dim": 3, "hop_s": 0.1}),
        ("audio", "rows"),
        ("text", {"dim": 2.5}),
        ("fusion", {"graph": "fusion.onnx", "weights": 3}),
    ],
)
def test_a_manifest_that_is_neither_is_refused(tiny_manifest: Manifest, field: str, value: object) -> None:
    data = json.loads(replace(tiny_manifest, members=_members(tiny_manifest)).to_json())
    data[field] = value
    with pytest.raises(AffectError, match=rf"{field}(\.\w+)?: expected") as caught:
        Manifest.from_json(json.dumps(data), "here")
    assert caught.value.code == "bundle.manifest"


def test_info_and_doctor_tell_of_them(rows_only: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", str(rows_only)]) == 0
    told = capsys.readouterr().out
    assert "audio    10 features a row, which the application makes" in told
    assert "text     12 features a token, at most 32 tokens" in told
    main(["doctor", str(rows_only)])
    assert "the application makes audio rows" in capsys.readouterr().out


# --- Rows of words ---------------------------------------------------------------------------------


class Counting:
    """A graph whose state of a token is its id, and that remembers how much it was given."""

    def __init__(self) -> None:
        self.lengths: list[int] = []

    def __call__(self, **inputs: Any) -> tuple[Any, ...]:
        ids = inputs["input_ids"]
        self.lengths.append(ids.shape[1])
        return (ids[..., None].astype(np.float32),)


@pytest.mark.parametrize("per_row", [1, 3])
@pytest.mark.parametrize("count", [0, 1, 7, 40])
def test_a_row_is_the_mean_of_its_words_tokens_however_long_the_text(
    per_row: int, count: int, tiny_members: dict[str, bytes]
) -> None:
    tokenizer, graph = Tokenizer.from_json(tiny_members["tokenizer.json"], 12), Counting()
    features = TextFeatures(tokenizer, graph, 1, per_row)
    texts = (["i", "love", "xyz", "the", "film", "happyhappy"] * 7)[:count]
    words = [Word(text, float(k), k + 0.5) for k, text in enumerate(texts)]
    found = features.extract(words[::-1])  # in any order
    assert features.fits(words)
    assert len(found) == -(-count // per_row)
    assert all(length <= 12 for length in graph.lengths)
    for row in range(len(found)):
        own = texts[row * per_row : (row + 1) * per_row]
        ids = np.concatenate([tokenizer.encode([Word(text, 0.0, 0.0)]).ids[1:-1] for text in own])
        assert found.values[row, 0] == pytest.approx(ids.mean(), rel=1e-6)
        assert found.times_s[row] == min((row + 1) * per_row, count) - 0.5


def test_text_spec_says_how_many_words_a_row_is(tiny_manifest: Manifest) -> None:
    text = tiny_manifest.text
    assert isinstance(text, TextSpec)
    replace(tiny_manifest, text=replace(text, words_per_row=16)).check("here")
    with pytest.raises(AffectError, match=r"text\.words_per_row: expected 0 or more"):
        replace(tiny_manifest, text=replace(text, words_per_row=-1)).check("here")
