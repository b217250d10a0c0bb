"""Words, tokens with times, and token states."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from affectrt.backends.onnx_runtime import OnnxGraph
from affectrt.errors import AffectError
from affectrt.features.text import WORDS_PER_SECOND, TextFeatures, Tokenizer, Word, words_of

MAX_TOKENS = 32


@pytest.fixture(scope="module")
def tokenizer(tiny_members: dict[str, bytes]) -> Tokenizer:
    return Tokenizer.from_json(tiny_members["tokenizer.json"], MAX_TOKENS)


@pytest.fixture(scope="module")
def features(tiny_members: dict[str, bytes], tokenizer: Tokenizer) -> TextFeatures:
    return TextFeatures(tokenizer, OnnxGraph(tiny_members["text.onnx"], threads=1), 12)


def test_words_are_spread_evenly() -> None:
    assert words_of(" so\thappy\n ", 1.0, 3.0) == [Word("so", 1.0, 2.0), Word("happy", 2.0, 3.0)]
    assert words_of("", 1.0, 3.0) == []
    words = words_of("a b c d e", 10.0)
    assert words[-1].end_s == pytest.approx(10.0 + 5 / WORDS_PER_SECOND)


@pytest.mark.parametrize("times", [(2.0, 1.0), (float("nan"), 1.0), (0.0, float("inf"))])
def test_times_must_run_forwards(times: tuple[float, float]) -> None:
    for make in (lambda: Word("x", *times), lambda: words_of("x y", *times)):
        with pytest.raises(AffectError) as caught:
            make()
        assert caught.value.code == "text.times"


def test_tokens_carry_their_words_times(tokenizer: Tokenizer) -> None:
    tokens = tokenizer.encode([Word("so", 0.0, 1.0), Word("unhappy!", 1.0, 2.0)])
    # [CLS] so u ##n ##h ##a ##p ##p ##y ! [SEP]
    assert tokens.ids.dtype == np.int64
    assert tokens.times_s.tolist() == [1.0, 1.0] + [2.0] * 9


def test_word_by_word_is_the_same_as_the_sentence(
    tiny_members: dict[str, bytes], tokenizer: Tokenizer
) -> None:
    import tokenizers

    whole = tokenizers.Tokenizer.from_str(tiny_members["tokenizer.json"].decode())
    text = "I don't love it, it was a great film - NOT awful! Café 42"
    assert tokenizer.encode(words_of(text, 0.0)).ids.tolist() == whole.encode(text).ids


def test_overlapping_words_are_in_order_of_their_ends(tokenizer: Tokenizer) -> None:
    first, second = Word("happy", 0.0, 2.0), Word("sad", 0.5, 1.0)
    assert tokenizer.encode([first, second]).ids.tolist() == tokenizer.encode([second, first]).ids.tolist()
    assert tokenizer.encode([first, second]).times_s.tolist() == [1.0, 1.0, 2.0, 2.0]


@given(st.lists(st.sampled_from(["so", "happy", "unhappy", "it!", "x" * 50, "…", "日本"]), max_size=40))
def test_too_long_keeps_the_newest_words_whole(tokenizer: Tokenizer, pieces: list[str]) -> None:
    words = [Word(piece, float(k), k + 1.0) for k, piece in enumerate(pieces)]
    tokens = tokenizer.encode(words)
    assert len(tokens) <= MAX_TOKENS
    if not words:
        assert len(tokens) == 0
        return
    assert (np.diff(tokens.times_s) >= 0).all()
    # Brute force: drop words from the front until the rest fits.
    roomy = Tokenizer(tokenizer._tokenizer, 10_000)
    kept = words
    while len(kept) > 1 and len(roomy.encode(kept)) > MAX_TOKENS:
        kept = kept[1:]
    expected = roomy.encode(kept)
    if len(expected) <= MAX_TOKENS:
        assert tokens.ids.tolist() == expected.ids.tolist()
        assert tokens.times_s.tolist() == expected.times_s.tolist()
    else:
        assert tokens.ids[:-1].tolist() == expected.ids[: MAX_TOKENS - 1].tolist()
        assert tokens.ids[-1] == expected.ids[-1]


def test_truncation_and_padding_of_the_file_are_off(tiny_members: dict[str, bytes]) -> None:
    import tokenizers

    library = tokenizers.Tokenizer.from_str(tiny_members["tokenizer.json"].decode())
    library.enable_truncation(4)
    library.enable_padding(length=20)
    ours = Tokenizer.from_json(library.to_str().encode(), MAX_TOKENS)
    assert len(ours.encode(words_of("i am so happy", 0.0))) == 6


@pytest.mark.parametrize("data", [b"", b"{}", b"\xff\xfe", b'{"model": 1}'])
def test_invalid_tokenizer(data: bytes) -> None:
    with pytest.raises(AffectError) as caught:
        Tokenizer.from_json(data, MAX_TOKENS)
    assert caught.value.code == "tokenizer.invalid"


def test_tokenizer_without_special_tokens_is_refused(tiny_members: dict[str, bytes]) -> None:
    import json

    data = json.loads(tiny_members["tokenizer.json"])
    data["post_processor"] = None
    with pytest.raises(AffectError) as caught:
        Tokenizer.from_json(json.dumps(data).encode(), MAX_TOKENS)
    assert caught.value.code == "tokenizer.invalid"


def test_states(features: TextFeatures, tokenizer: Tokenizer) -> None:
    words = words_of("i am so happy", 0.0, 4.0)
    sequence = features.extract(words)
    assert (sequence.modality, sequence.values.shape) == ("text", (6, 12))
    np.testing.assert_array_equal(sequence.times_s, tokenizer.encode(words).times_s)
    assert (len(features.extract([])), features.extract([]).dim) == (0, 12)
