"""Blocks of rows that never part a group."""

from __future__ import annotations

from itertools import chain

import numpy as np
import pytest

from affectrt.errors import AffectError
from affectrt_training.data.dataset import Dataset, Example
from affectrt_training.data.splits import cut_last, hold_out, k_folds, row_blocks


def _examples(groups: str) -> list[Example]:
    """One example a letter, which names its group; a dot has none."""
    return [
        Example(str(i), {"audio": np.ones((1, 2), np.float32)}, group="" if g == "." else g)
        for i, g in enumerate(groups)
    ]


def _ids(block: list[Example]) -> str:
    return ",".join(example.id for example in block)


def test_without_groups_blocks_are_contiguous_and_as_equal_as_can_be() -> None:
    blocks = row_blocks(_examples("." * 220), 5)
    assert [len(block) for block in blocks] == [44] * 5
    assert [example.id for example in chain(*blocks)] == [str(i) for i in range(220)]
    assert sorted(len(block) for block in row_blocks(_examples("." * 11), 4)) == [2, 3, 3, 3]


def test_groups_stay_whole_and_no_block_is_empty() -> None:
    blocks = row_blocks(_examples("aaaaaaaabbcd"), 3)
    assert [_ids(block) for block in blocks] == ["0,1,2,3,4,5,6,7", "8,9", "10,11"]
    # A group that comes back later lies where it began.
    assert [_ids(block) for block in row_blocks(_examples("abab.."), 2)] == ["0,2", "1,3,4,5"]
    for k in (2, 3, 4):
        assert all(row_blocks(_examples("aaaaaaaaaaabcd"), k))


def test_too_many_folds_are_refused() -> None:
    with pytest.raises(AffectError, match="from 2 to 3 folds") as caught:
        row_blocks(_examples("aabbc"), 4)
    assert caught.value.code == "data.folds"
    with pytest.raises(AffectError, match="got 1"):
        row_blocks(_examples("abc"), 1)


def test_the_last_share_is_held_out() -> None:
    train, valid = cut_last(_examples("." * 10), 0.2)
    assert (_ids(train), _ids(valid)) == ("0,1,2,3,4,5,6,7", "8,9")
    train, valid = cut_last(_examples("aaaaaaaab"), 0.5)
    assert (len(train), len(valid)) == (8, 1)
    for share, groups in ((0.0, "ab"), (1.0, "ab"), (0.5, "aa")):
        with pytest.raises(AffectError) as caught:
            cut_last(_examples(groups), share)
        assert caught.value.code == "data.share"


def test_folds_and_hold_out_leave_the_test_split_alone() -> None:
    rows = _examples("." * 6)
    dataset = Dataset("d", {"train": rows[:3], "valid": rows[3:5], "test": rows[5:]}, {"audio": 2})
    folds = k_folds(dataset, 5)
    assert [_ids(list(fold.split("valid"))) for fold in folds] == ["0", "1", "2", "3", "4"]
    assert [_ids(list(fold.split("train"))) for fold in folds][1] == "0,2,3,4"
    held = hold_out(dataset, 0.4)
    assert [_ids(list(held.split(name))) for name in ("train", "valid", "test")] == ["0,1,2", "3,4", "5"]
    assert "test" not in hold_out(Dataset("d", {"all": rows}, {"audio": 2}), 0.5).splits
