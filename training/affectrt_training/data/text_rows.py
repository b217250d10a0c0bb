"""Words to text rows by a frozen encoder, computed once and kept on disk."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import NamedTemporaryFile
from time import perf_counter

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from affectrt.errors import AffectError
from affectrt.features.passages import Passage, Pooling, passages, row_count
from affectrt.features.text import words_of
from affectrt_training.data.dataset import Dataset, Example, FloatMatrix
from affectrt_training.encoders.text import (
    TextEncoder,
    TextSettings,
    max_tokens_of,
    pad_ids,
    tokenizer_of,
    weights_hash,
)

Ids = npt.NDArray[np.int64]

FORMAT = 1
"""Part of every cache key: count up when the same words and settings give other rows than before."""
BATCH_TOKENS = 4096
"""Padded tokens per pass of the encoder: bounds the memory."""
PATIENCE_S = 2.0
"""Work that is done by then needs no progress bar."""


def tokens(example: Example, settings: TextSettings) -> Ids:
    """The example's token ids (T,), what an encoder that is trained reads; no words → none.

    As the device makes them: too long for ``max_tokens``, the newest words stay whole and older ones go.
    """
    return tokenizer_of(settings).encode(words_of(" ".join(example.words), 0.0)).ids


def with_text_rows(
    dataset: Dataset, settings: TextSettings, cache: Path | None = None, progress: bool = True
) -> Dataset:
    """The data set with text rows for every example that has words but no text rows.

    ``rows: token``: a state a token, special ones included, as the device feeds them to fusion; too long a
    text loses its oldest words. ``word`` and ``window``: the mean of the states of a word's tokens, or of
    ``window_words`` consecutive words', so ⌈words / window⌉ rows and none lost: a text too long for the
    encoder is read in passages of whole words as long as it takes. A row without any token is zero.

    ``cache``: a folder where rows are kept between runs, each entry under the SHA-256 of words, settings and
    weights; a damaged entry is computed again. A progress bar shows after two seconds.

    Raises ``data.text_dims`` where other examples have text rows of another width, and what
    :class:`TextEncoder` raises.
    """
    if settings.tuning != "frozen":
        raise ValueError(f"with_text_rows: expected a frozen encoder, got tuning '{settings.tuning}'")
    lacking = [e for part in dataset.splits.values() for e in part if "text" not in e.rows and e.words]
    if not lacking:
        return dataset
    keys = _keys(lacking, settings)
    found = _Store(cache).complete(
        {keys[e.words]: e.words for e in lacking},
        lambda missing, keep: _encode(missing, settings, keep, progress),
    )
    dim = next(iter(found.values())).shape[1]
    for example in (e for part in dataset.splits.values() for e in part if "text" in e.rows):
        if (width := example.rows["text"].shape[1]) != dim:
            raise AffectError(
                "data.text_dims",
                f"{dataset.name}: example '{example.id}' brings text rows of {width} features, the text "
                f"encoder makes {dim}; encode all examples with one encoder",
            )

    def filled(example: Example) -> Example:
        if "text" in example.rows or not example.words or not len(rows := found[keys[example.words]]):
            return example
        return replace(example, rows={**example.rows, "text": rows})

    splits = {name: [filled(e) for e in part] for name, part in dataset.splits.items()}
    return replace(dataset, splits=splits, dims={**dataset.dims, "text": dim})


def _keys(examples: Sequence[Example], settings: TextSettings) -> dict[tuple[str, ...], str]:
    """Words → the name of their cache entry."""
    window = settings.window_words if settings.rows == "window" else 0
    common = [FORMAT, weights_hash(settings), settings.rows, max_tokens_of(settings), window]
    return {e.words: hashlib.sha256(json.dumps([*common, e.words]).encode()).hexdigest() for e in examples}


class _Store:
    """Rows by key: one small safetensors file each, with a checksum."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder

    def complete(
        self,
        wanted: dict[str, tuple[str, ...]],
        encode: Callable[[dict[str, tuple[str, ...]], Callable[[str, FloatMatrix], None]], None],
    ) -> dict[str, FloatMatrix]:
        """Rows for all that is wanted: what is kept, and the rest computed, then kept."""
        found = {key: rows for key in wanted if (rows := self.read(key)) is not None}

        def keep(key: str, rows: FloatMatrix) -> None:
            found[key] = rows
            self.write(key, rows)

        if missing := {key: words for key, words in wanted.items() if key not in found}:
            encode(missing, keep)
        return found

    def _path(self, key: str) -> Path | None:
        return self.folder and self.folder / key[:2] / f"{key}.safetensors"

    def read(self, key: str) -> FloatMatrix | None:
        """None: not there, or damaged."""
        path = self._path(key)
        if path is None or not path.is_file():
            return None
        try:
            with safe_open(path, framework="numpy") as file:
                rows: FloatMatrix = file.get_tensor("rows")
                intact = file.metadata()["sha256"] == _digest(rows)
        except (OSError, SafetensorError, KeyError, TypeError):
            return None
        return rows if intact else None

    def write(self, key: str, rows: FloatMatrix) -> None:
        """Whole or not at all, also when the process dies meanwhile or another writes the same."""
        path = self._path(key)
        if path is None:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        with NamedTemporaryFile(dir=path.parent, suffix=".part", delete=False) as file:
            file.write(save({"rows": rows}, {"sha256": _digest(rows)}))
        Path(file.name).replace(path)


def _digest(rows: FloatMatrix) -> str:
    return hashlib.sha256(json.dumps(rows.shape).encode() + rows.tobytes()).hexdigest()


def _passages(words: tuple[str, ...], settings: TextSettings) -> list[Passage]:
    """What the encoder must read of a text: for token rows one passage, else as many as it takes."""
    tokenizer = tokenizer_of(settings)
    if settings.words_per_row:
        return passages(words, tokenizer, settings.words_per_row)
    ids = tokenizer.encode(words_of(" ".join(words), 0.0)).ids
    return [Passage(ids, np.arange(len(ids)))] if len(ids) else []


def _encode(
    texts: dict[str, tuple[str, ...]],
    settings: TextSettings,
    keep: Callable[[str, FloatMatrix], None],
    progress: bool,
) -> None:
    """Hand the rows of every text to ``keep``, each as soon as it is done."""
    encoder = TextEncoder(settings)
    device = next(encoder.parameters()).device
    queue: list[tuple[str, Passage]] = []
    pooled, pending = {}, {}
    for key, words in texts.items():
        own = _passages(words, settings)
        per_row = settings.words_per_row
        count = row_count(len(words), per_row) if per_row else sum(len(p.ids) for p in own)
        pooled[key], pending[key] = Pooling(count, encoder.dim), len(own)
        queue += [(key, passage) for passage in own]
        if not own:
            keep(key, pooled[key].rows())
    # Like lengths together, so that little of a batch is padding; the longest first.
    queue.sort(key=lambda entry: -len(entry[1].ids))
    with _bar(len(queue), progress) as advance:
        while queue:
            size = max(1, BATCH_TOKENS // len(queue[0][1].ids))
            batch, queue = queue[:size], queue[size:]
            ids, mask = pad_ids([torch.from_numpy(passage.ids) for _, passage in batch])
            with torch.inference_mode():
                states = encoder(ids.to(device), mask.to(device)).float().cpu().numpy()
            for (key, passage), rows in zip(batch, states, strict=True):
                pooled[key].add(passage, rows)
                pending[key] -= 1
                if not pending[key]:
                    keep(key, pooled[key].rows())
            advance(len(batch))


@contextmanager
def _bar(total: int, wanted: bool) -> Iterator[Callable[[int], None]]:
    """Counts passages on a progress bar that shows once the work proves long."""
    from rich.console import Console
    from rich.progress import Progress

    bar, begin = Progress(console=Console(stderr=True), transient=True), perf_counter()
    task, shown = bar.add_task("reading text", total=total), False

    def advance(count: int) -> None:
        nonlocal shown
        bar.update(task, advance=count)
        if wanted and not shown and perf_counter() - begin > PATIENCE_S:
            bar.start()
            shown = True

    try:
        yield advance
    finally:
        if shown:
            bar.stop()
