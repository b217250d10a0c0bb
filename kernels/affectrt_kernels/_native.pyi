from collections.abc import Mapping, Sequence

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

class GhrnnCma:
    def __init__(self, weights: Mapping[str, _Floats], *, heads: int, instruction_set: str = "") -> None: ...
    @property
    def dims(self) -> list[int]: ...
    def __call__(
        self, text: _Floats, audio: _Floats, vision: _Floats, subsets: NDArray[np.bool_]
    ) -> tuple[_Floats, _Floats]: ...
    def stream(self, no_word: _Floats, window_s: float) -> GhrnnCmaStream: ...

class GhrnnCmaStream:
    def step(
        self,
        time_s: float,
        text: _Floats | None = None,
        audio: _Floats | None = None,
        audio_times_s: NDArray[np.float64] | None = None,
        vision: _Floats | None = None,
        vision_times_s: NDArray[np.float64] | None = None,
    ) -> tuple[float, _Floats]: ...

def instruction_sets() -> list[str]: ...
def poison_scratch(enabled: bool) -> None: ...
