"""Text features: words with times → token states of the bundle's text encoder.

Training tokenises with :class:`Tokenizer` too, so that the device sees the ids that training saw.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any

import numpy as np
import numpy.typing as npt

from affectrt.backends import Graph
from affectrt.errors import AffectError, require
from affectrt.features.sequence import FeatureSequence, FloatArray, TimeArray

WORDS_PER_SECOND = 2.5
"""Rate of conversational English; gives words without times some (Yuan et al. 2006: about 150 a minute)."""


@dataclass(frozen=True)
class Word:
    """One word and when it was said. Raises ``text.times`` when the times are not finite or run backwards."""

    text: str
    """As written, with its punctuation; no whitespace."""
    start_s: float
    """When it begins, in stream seconds."""
    end_s: float
    """When it ends; the word counts as heard from here on."""

    def __post_init__(self) -> None:
        if not (isfinite(self.start_s) and isfinite(self.end_s) and self.start_s <= self.end_s):
            raise AffectError(
                "text.times",
                f"word '{self.text}': expected finite times with start_s <= end_s, got "
                f"{self.start_s} to {self.end_s}",
            )


def words_of(text: str, start_s: float, end_s: float | None = None) -> list[Word]:
    """Split plain text at whitespace into words spread evenly over ``start_s`` … ``end_s``.

    Without ``end_s`` they follow each other at :data:`WORDS_PER_SECOND`. Raises ``text.times`` as
    :class:`Word` does, also for a text without any word.
    """
    pieces = text.split()
    last = start_s + len(pieces) / WORDS_PER_SECOND if end_s is None else end_s
    if not (isfinite(start_s) and isfinite(last) and start_s <= last):
        raise AffectError(
            "text.times", f"text: expected finite times with start_s <= end_s, got {start_s} to {last}"
        )
    edges = np.linspace(start_s, last, len(pieces) + 1).tolist()
    return [Word(piece, edges[k], edges[k + 1]) for k, piece in enumerate(pieces)]


@dataclass(frozen=True)
class Tokens:
    """One tokenised utterance."""

    ids: npt.NDArray[np.int64]
    """(T,), with the leading [CLS] and the closing [SEP]."""
    times_s: TimeArray
    """(T,), non-decreasing: the end of the word that the token belongs to; [CLS] has the first word's,
    [SEP] the last word's."""

    def __len__(self) -> int:
        return len(self.ids)


class Tokenizer:
    """WordPiece as the bundle's ``tokenizer.json`` defines it. Immutable, safe to share between threads."""

    def __init__(self, tokenizer: Any, max_tokens: int) -> None:
        """Wrap a ``tokenizers.Tokenizer``; use :meth:`from_json`."""
        self._tokenizer = tokenizer
        self._max_tokens = max_tokens

    @property
    def max_tokens(self) -> int:
        """Longest utterance in tokens, [CLS] and [SEP] included."""
        return self._max_tokens

    @classmethod
    def from_json(cls, data: bytes, max_tokens: int) -> Tokenizer:
        """Read ``tokenizer.json``. Raises ``tokenizer.invalid``; ``extra.missing`` without the library."""
        if max_tokens < 3:
            raise AffectError(
                "tokenizer.invalid",
                f"tokenizer: expected room for at least 3 tokens ([CLS], one, [SEP]), got {max_tokens}",
            )
        library = require("tokenizers", "media")
        try:
            tokenizer = library.Tokenizer.from_str(data.decode("utf-8"))
        except Exception as error:  # the library raises bare Exception
            raise AffectError(
                "tokenizer.invalid", f"tokenizer.json could not be read ({error}); export the model again"
            ) from error
        # Both may be set in the file; encode() below cuts whole words and needs no padding.
        tokenizer.no_truncation()
        tokenizer.no_padding()
        specials = tokenizer.encode([], is_pretokenized=True).ids
        if len(specials) != 2:
            raise AffectError(
                "tokenizer.invalid",
                f"tokenizer.json: expected one token before and one after every text ([CLS], [SEP]), "
                f"got {len(specials)} in all; export the model again",
            )
        return cls(tokenizer, max_tokens)

    def uncut(self) -> Tokenizer:
        """The same for texts of any length."""
        return Tokenizer(self._tokenizer, 1 << 30)

    def encode(self, words: Sequence[Word]) -> Tokens:
        """Tokenise words in order of their end times; no words → no tokens.

        Too long for ``max_tokens``: the newest words stay whole, older ones go. A single word that is itself
        too long keeps its beginning.
        """
        if not words:
            return Tokens(np.zeros(0, np.int64), np.zeros(0, np.float64))
        words = sorted(words, key=lambda word: word.end_s)
        encoding = self._tokenizer.encode([word.text for word in words], is_pretokenized=True)
        first, last = encoding.ids[0], encoding.ids[-1]
        ids = np.asarray(encoding.ids[1:-1], np.int64)
        owners = np.asarray(encoding.word_ids[1:-1], np.int64)
        room = self._max_tokens - 2
        if len(ids) > room:
            # The oldest word that still fits whole begins at or after len - room.
            whole = owners > owners[len(ids) - room - 1]
            if not whole.any():
                whole = owners == owners[-1]
            ids, owners = ids[whole][:room], owners[whole][:room]
        ends = np.asarray([word.end_s for word in words], np.float64)
        times = ends[owners]
        # A text of nothing but characters the tokenizer drops still is [CLS] [SEP], at its last word.
        opening, closing = (times[0], times[-1]) if len(times) else (ends[-1], ends[-1])
        return Tokens(
            np.concatenate([[first], ids, [last]]).astype(np.int64),
            np.concatenate([[opening], times, [closing]]),
        )

    def encode_newest(
        self, words: Sequence[str], count: int
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
        """Ids (T,) of the words, and which of them (T,) belong to the last ``count`` words.

        For causal models, which read each word with those before it. Too long: as :meth:`encode`.
        """
        # Instead of times, words carry their index, which comes back with their tokens.
        tokens = self.encode([Word(word, float(k), float(k)) for k, word in enumerate(words)])
        newest = tokens.times_s >= len(words) - count
        newest[[0, -1]] = False
        return tokens.ids, newest


class TextFeatures:
    """Text rows of an utterance. Holds no state: safe to share between people and threads."""

    def __init__(self, tokenizer: Tokenizer, graph: Graph, dim: int, words_per_row: int = 0) -> None:
        """``graph``: ``input_ids``, ``attention_mask`` (1, T) int64 → ``states`` (1, T, ``dim``) float32.

        ``words_per_row``: a row is the mean over the tokens of so many words; 0: a row is a token.
        """
        self._tokenizer = tokenizer
        self._graph = graph
        self._dim = dim
        self._words_per_row = words_per_row

    @property
    def tokenizer(self) -> Tokenizer:
        """What turns words into ids."""
        return self._tokenizer

    def fits(self, words: Sequence[Word]) -> bool:
        """Whether no word is lost when these are extracted together."""
        return self._words_per_row > 0 or len(self._tokenizer.encode(words)) < self._tokenizer.max_tokens

    def extract(self, words: Sequence[Word]) -> FeatureSequence:
        """Encode the words together: rows (T, dim), each at the end of its last word; no words → no rows."""
        if not words:
            return FeatureSequence.empty("text", self._dim, "text encoder")
        if self._words_per_row:
            return self._rows_of_words(sorted(words, key=lambda word: word.end_s))
        tokens = self._tokenizer.encode(words)
        return FeatureSequence("text", self._states(tokens.ids), tokens.times_s, "text encoder")

    def newest(self, words: Sequence[Word], count: int) -> FloatArray | None:
        """What the last ``count`` of these words say: the mean (dim,) of their tokens' states.

        The words before them are read as context, all in the order given. None when the tokenizer drops
        every character of theirs.
        """
        ids, newest = self._tokenizer.encode_newest([word.text for word in words], count)
        if not newest.any():
            return None
        return np.asarray(self._states(ids)[newest].mean(axis=0), np.float32)

    def _rows_of_words(self, words: Sequence[Word]) -> FeatureSequence:
        from affectrt.features.passages import Pooling, passages, row_count

        per_row = self._words_per_row
        pooling = Pooling(row_count(len(words), per_row), self._dim)
        for passage in passages([word.text for word in words], self._tokenizer, per_row):
            pooling.add(passage, self._states(passage.ids))
        ends = [words[min(k + per_row, len(words)) - 1].end_s for k in range(0, len(words), per_row)]
        return FeatureSequence("text", pooling.rows(), np.asarray(ends, np.float64), "text encoder")

    def _states(self, ids: npt.NDArray[np.int64]) -> FloatArray:
        (states,) = self._graph(input_ids=ids[None], attention_mask=np.ones((1, len(ids)), np.int64))
        rows: FloatArray = states[0]
        return rows
