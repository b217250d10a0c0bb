"""Text rows that stand for words: what the encoder reads of a long text, and whose mean each row is.

Training and device both make their rows here. Words are read in passages as long as the encoder takes, so
none is lost however long the text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from affectrt.features.sequence import FloatArray
from affectrt.features.text import Tokenizer, Word

Ids = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Passage:
    """What one pass of the encoder reads of one text."""

    ids: Ids
    """(T,) with the special tokens."""
    owners: Ids
    """(T,) the row that each state is averaged into; -1: none."""


def passages(words: Sequence[str], tokenizer: Tokenizer, words_per_row: int) -> list[Passage]:
    """As many passages as a text takes; row r is that of words r · ``words_per_row`` and following.

    Passages begin and end with whole words as far as those fit. The last one is short: words before it fill
    the room that is left, as context.
    """
    # Instead of times, words carry their index, which comes back with their tokens.
    encoded = tokenizer.uncut().encode([Word(word, float(k), float(k)) for k, word in enumerate(words)])
    room = tokenizer.max_tokens - 2
    ids, words_of_ids = encoded.ids[1:-1], encoded.times_s[1:-1].astype(np.int64)
    rows = words_of_ids // words_per_row
    found: list[Passage] = []
    begin = 0
    while begin < len(ids):
        end = min(begin + room, len(ids))
        if end < len(ids):
            # Back to a word's first token; a word that is longer than the room is cut in two.
            first = int(np.searchsorted(words_of_ids, words_of_ids[end]))
            end = first if first > begin else end
        context = begin if end < len(ids) else max(0, end - room)
        if 0 < context < begin and words_of_ids[context] == words_of_ids[context - 1]:
            context = min(begin, int(np.searchsorted(words_of_ids, words_of_ids[context] + 1)))
        owners = np.where(np.arange(context, end) < begin, -1, rows[context:end])
        found.append(
            Passage(
                np.concatenate([encoded.ids[:1], ids[context:end], encoded.ids[-1:]]),
                np.concatenate([[-1], owners, [-1]]),
            )
        )
        begin = end
    return found


def row_count(words: int, words_per_row: int) -> int:
    """Rows of a text of so many words."""
    return -(-words // words_per_row)


class Pooling:
    """Collects the states of a text's passages, in any order, and averages them into its rows."""

    def __init__(self, rows: int, dim: int) -> None:
        self._sums = np.zeros((rows, dim), np.float32)
        self._counts = np.zeros((rows, 1), np.float32)

    def add(self, passage: Passage, states: FloatArray) -> None:
        """Take the states (≥ T, dim) of a passage of T tokens; what follows them is padding."""
        owned = np.flatnonzero(passage.owners >= 0)
        np.add.at(self._sums, passage.owners[owned], states[owned])
        np.add.at(self._counts, passage.owners[owned], 1.0)

    def rows(self) -> FloatArray:
        """(rows, dim) float32; a row without any token is zero."""
        mean: FloatArray = self._sums / np.maximum(self._counts, np.float32(1))
        return mean
