from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_Floats = NDArray[np.float32]

class GatedRnn:
    def __init__(
        self, w_x: _Floats, w_h: _Floats, bias: _Floats, *, gates: int = 1, instruction_set: str = ""
    ) -> None: ...
    def __call__(
        self,
        x: _Floats,
        lengths: NDArray[np.int64] | None = None,
        h0: _Floats | None = None,
        *,
        reverse: bool = False,
        threads: int = 1,
        out: tuple[_Floats, _Floats] | None = None,
    ) -> tuple[_Floats, _Floats]: ...

def pairwise_attention(
    q: Sequence[_Floats],
    k: Sequence[_Floats],
    v: Sequence[_Floats],
    pairs: Sequence[tuple[int, int]],
    lengths: NDArray[np.int64] | None = None,
    windows: Sequence[NDArray[np.int64]] | None = None,
    *,
    threads: int = 1,
    instruction_set: str = "",
) -> tuple[list[_Floats], list[_Floats]]: ...
def instruction_sets() -> list[str]: ...
def poison_scratch(enabled: bool) -> None: ...
