"""A pickle from a stranger yields arrays and containers or a named error; nothing of it runs."""

from __future__ import annotations

import os
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from affectrt.errors import AffectError
from affectrt_training.data.unpickle import load_pickle

RANDOM = np.random.default_rng(0)
CONTENT: dict[str, Any] = {
    "float": RANDOM.normal(size=(3, 4)).astype(np.float32),
    "columns": np.asfortranarray(RANDOM.normal(size=(2, 3))),
    "turned": RANDOM.normal(size=(2, 3, 4)).transpose(1, 0, 2),
    "names": np.array(["a$_$1", "b$_$2"]),
    "bytes": np.array([b"x", b"yz"]),
    "objects": np.array([np.zeros(2), "said", None], dtype=object),
    "whole": np.arange(3),
    "scalar": np.float32(1.5),
    "flag": np.bool_(True),
    "plain": [1, 2.5, "é", b"", b"\xff\x00", None, True, (1, {2, 3}), frozenset({4}), 1 + 2j, {"k": [5]}],
}


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, np.ndarray) and a.dtype == object:
        return a.shape == b.shape and all(_same(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(a, np.ndarray | np.generic):
        return bool(a.dtype == b.dtype and a.shape == b.shape and (a == b).all())
    return bool(type(a) is type(b) and a == b)


def _load(path: Path, data: bytes) -> Any:
    path.write_bytes(data)
    return load_pickle(path)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_arrays_and_containers_come_out_of_every_protocol(protocol: int, tmp_path: Path) -> None:
    found = _load(tmp_path / "a.pkl", pickle.dumps(CONTENT, protocol))
    assert found.keys() == CONTENT.keys()
    for key, value in CONTENT.items():
        assert _same(value, found[key]), key


@pytest.mark.parametrize("protocol", [2, 4])
def test_both_spellings_of_numpy_and_of_the_builtins_are_known(protocol: int, tmp_path: Path) -> None:
    data = pickle.dumps(CONTENT["float"], protocol)
    new = b"numpy._core.multiarray"
    old = b"numpy.core.multiarray"
    here, other = (new, old) if new in data else (old, new)
    # Protocol 4 counts the letters of a name, protocol 2 ends it with a line.
    swapped = data.replace(bytes([len(here)]) + here, bytes([len(other)]) + other) if protocol == 4 else data
    swapped = swapped.replace(here + b"\n", other + b"\n")
    if protocol == 4:
        # And the length of the frame, which follows its opcode.
        size = int.from_bytes(swapped[3:11], "little") + len(other) - len(here)
        swapped = swapped[:3] + size.to_bytes(8, "little") + swapped[11:]
    assert other in swapped and here not in swapped
    assert _same(_load(tmp_path / "a.pkl", swapped), CONTENT["float"])
    assert _load(tmp_path / "b.pkl", b"c__builtin__\nset\n((lI1\natR.") == {1}


def test_strings_of_python_2_are_read(tmp_path: Path) -> None:
    # What Python 2.7 with numpy 1.16 writes for {'id': 'caf\xe9', 'x': numpy.array([1., 2.])}, protocol 2.
    data = (
        b"\x80\x02}q\x00(U\x02idU\x04caf\xe9U\x01xcnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n"
        b"K\x00\x85U\x01b\x87R(K\x01K\x02\x85cnumpy\ndtype\nU\x02f8K\x00K\x01\x87R(K\x03U\x01<NNNJ\xff\xff\xff"
        b"\xffJ\xff\xff\xff\xffK\x00tb\x89U\x10\x00\x00\x00\x00\x00\x00\xf0?\x00\x00\x00\x00\x00\x00\x00@tbu."
    )
    found = _load(tmp_path / "a.pkl", data)
    assert found["id"] == "café"
    assert found["x"].tolist() == [1.0, 2.0]


class _Payload:
    def __init__(self, call: Any, *arguments: Any) -> None:
        self.call, self.arguments = call, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call, self.arguments


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_a_foreign_class_is_named_and_nothing_runs(protocol: int, tmp_path: Path) -> None:
    trace = tmp_path / "was_here"
    data = pickle.dumps({"train": _Payload(os.system, f"touch {trace}")}, protocol)
    with pytest.raises(AffectError, match=r"'(posix|nt|os)\.system'") as caught:
        _load(tmp_path / "a.pkl", data)
    assert caught.value.code == "data.pickle_class"
    assert not trace.exists()


@pytest.mark.parametrize(
    ("data", "named"),
    [
        (pickle.dumps(OrderedDict(a=1)), "collections.OrderedDict"),
        (pickle.dumps(_Payload(eval, "1")), "builtins.eval"),
        (pickle.dumps(_Payload(getattr, 1, "real")), "builtins.getattr"),
        (pickle.dumps(np.random.default_rng(0)), "numpy.random"),
        # A dotted name that walks from what is allowed to what isn't.
        (b"\x80\x04\x8c\x05numpy\x8c\x16ndarray.__base__.__new\x93.", "numpy.ndarray.__base__.__new"),
        (b"cnumpy\nload\n.", "numpy.load"),
        (b"cnumpy.core.multiarray\nfromfile\n.", "numpy.core.multiarray.fromfile"),
        (b"c_codecs\nlookup\n.", "_codecs.lookup"),
    ],
)
def test_whatever_else_is_named_is_refused(data: bytes, named: str, tmp_path: Path) -> None:
    with pytest.raises(AffectError) as caught:
        _load(tmp_path / "a.pkl", data)
    assert caught.value.code == "data.pickle_class" and named in caught.value.message


@pytest.mark.parametrize("target", [b"c_codecs\nencode\n", b"cnumpy\nndarray\n", b"cnumpy\ndtype\n"])
def test_nothing_that_a_pickle_may_name_can_be_written_to(target: bytes, tmp_path: Path) -> None:
    # BUILD with a dictionary of slots is how a pickle sets attributes.
    with pytest.raises(AffectError) as caught:
        _load(tmp_path / "a.pkl", target + b"(N(S'__doc__'\nS'mine'\ndtb.")
    assert caught.value.code == "data.unreadable"


def test_bytes_may_be_latin_1_only(tmp_path: Path) -> None:
    assert _load(tmp_path / "a.pkl", b"c_codecs\nencode\n(V\xe9\nVlatin1\ntR.") == b"\xe9"
    with pytest.raises(AffectError, match="encoded as"):
        _load(tmp_path / "a.pkl", b"c_codecs\nencode\n(Vx\nVbz2\ntR.")


def test_a_truncated_or_damaged_pickle_is_unreadable(tmp_path: Path) -> None:
    data = pickle.dumps(CONTENT, 4)
    for cut in (0, 1, 2, 11, len(data) // 2, len(data) - 1):
        with pytest.raises(AffectError, match="fetch it anew") as caught:
            _load(tmp_path / "a.pkl", data[:cut])
        assert caught.value.code == "data.unreadable"
    random = np.random.default_rng(1)
    for _ in range(100):
        damaged = bytearray(data)
        for place in random.integers(2, len(data), 8):
            damaged[place] = random.integers(256)
        try:
            _load(tmp_path / "a.pkl", bytes(damaged))
        except AffectError as error:
            assert error.code in ("data.unreadable", "data.pickle_class")
