"""Examples as batches, each process its share."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from affectrt.affect import Modality
from affectrt_training.data.dataset import Example, collate
from affectrt_training.encoders.text import pad_ids

FILLER = -1
"""Stands in a batch where a process has one example less than the others; nothing is learnt from it."""

POOL = 50
"""Batches among which examples of like length find each other."""


class Examples(Dataset[dict[str, Tensor]]):
    """Batches by lists of indexes.

    Beside what :func:`collate` gives, a batch has ``index`` (B,) int64 and, where token ids are given,
    ``ids`` and ``mask`` (B, T); then ``text_lengths`` counts tokens.
    """

    def __init__(
        self,
        examples: Sequence[Example],
        dims: Mapping[Modality, int],
        ids: Sequence[Tensor] | None = None,
    ) -> None:
        self.examples, self.dims, self.ids = examples, dims, ids

    def __len__(self) -> int:
        return len(self.examples)

    @property
    def token_counts(self) -> list[int] | None:
        """Tokens of every example, where token ids are given."""
        return None if self.ids is None else [len(row) for row in self.ids]

    def __getitem__(self, indexes: Sequence[int]) -> dict[str, Tensor]:
        filler = Example("", {})
        batch = collate([filler if i == FILLER else self.examples[i] for i in indexes], self.dims)
        if self.ids is not None:
            none = torch.zeros(0, dtype=torch.int64)
            rows = [none if i == FILLER else self.ids[i] for i in indexes]
            batch["ids"], batch["mask"] = pad_ids(rows)
            batch["text_lengths"] = torch.tensor([len(row) for row in rows])
        return {**batch, "index": torch.tensor(indexes)}


class Batches(Sampler[list[int]]):
    """Indexes of one process's share of each batch; all processes take the same number of steps.

    The order of an epoch depends on seed and epoch alone, not on how many processes share it. Given
    ``lengths``, examples of like length come together, so that little of a batch is padding.
    """

    def __init__(
        self,
        count: int,
        batch_size: int,
        *,
        seed: int | None = None,
        first_epoch: int = 0,
        rank: int = 0,
        world: int = 1,
        lengths: Sequence[int] | None = None,
    ) -> None:
        self.lengths = lengths
        self.count, self.batch_size, self.seed = count, batch_size, seed
        self.first_epoch = self.epoch = first_epoch
        self.rank, self.world = rank, world

    def set_epoch(self, epoch: int) -> None:
        """Lightning calls this with epochs counted from the start of the process."""
        self.epoch = self.first_epoch + epoch

    def __len__(self) -> int:
        return -(-self.count // self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        order = list(range(self.count))
        if self.seed is not None:
            generator = torch.Generator().manual_seed(mixed(self.seed, self.epoch))
            order = torch.randperm(self.count, generator=generator).tolist()
            if self.lengths is not None:
                order = self._alike(order, self.lengths, generator)
        for start in range(0, self.count, self.batch_size):
            batch = order[start : start + self.batch_size]
            batch += [FILLER] * (-len(batch) % self.world)
            yield batch[self.rank :: self.world]

    def _alike(self, order: list[int], lengths: Sequence[int], generator: torch.Generator) -> list[int]:
        """Sorted by length within pools, the batches shuffled but for a short last one."""
        size, pool = self.batch_size, self.batch_size * POOL
        pools = [sorted(order[i : i + pool], key=lengths.__getitem__) for i in range(0, len(order), pool)]
        flat = [index for part in pools for index in part]
        whole = len(flat) // size
        shuffled = torch.randperm(whole, generator=generator).tolist()
        return [i for k in shuffled for i in flat[k * size : (k + 1) * size]] + flat[whole * size :]


def mixed(seed: int, epoch: int, rank: int = 0) -> int:
    """One seed of three numbers, below 2**32; near ones give seeds far apart."""
    value = 0
    for number in (seed, epoch, rank):
        value = ((value ^ number) * 0x9E3779B97F4A7C15 + 0x632BE59BD9B4E019) % 2**64
        value ^= value >> 31
    return value % 2**32


def loader(examples: Examples, batches: Batches) -> DataLoader[dict[str, Tensor]]:
    """Batches in the main process: the examples lie in memory."""
    # The sampler's lists go to the data set as they are; a generator of its own leaves the global one alone.
    return DataLoader(examples, sampler=batches, batch_size=None, generator=torch.Generator())
