import numpy as np
from numpy.typing import NDArray

def gated_rnn(
    x: NDArray[np.float32],
    w_x: NDArray[np.float32],
    w_h: NDArray[np.float32],
    bias: NDArray[np.float32],
    lengths: NDArray[np.int64] | None = None,
    h0: NDArray[np.float32] | None = None,
    *,
    gates: int = 1,
    reverse: bool = False,
    threads: int = 1,
    instruction_set: str = "",
) -> tuple[NDArray[np.float32], NDArray[np.float32]]: ...
def instruction_sets() -> list[str]: ...
