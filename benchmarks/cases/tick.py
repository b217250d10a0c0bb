"""One tick of the causal GHRNN-CMA: ten a second, behind it 15 s of voice and face at 100 rows a second.

A stream keeps keys, values and states; the peers answer the same moment by computing the whole window again.
They run the model of whole clips with the same weights: as many rows and as much work, other answers, since
it looks ahead. So each is checked against its own model in float64.
"""

from __future__ import annotations

from collections.abc import Iterable
from copy import deepcopy
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch

from affectrt_training.models.ghrnn_cma import GhrnnCma, GhrnnCmaConfig
from affectrt_training.models.ghrnn_cma_causal import CausalGhrnnCma
from benchmarks.cases import fusion
from benchmarks.peers.onnx_runtime import Array
from benchmarks.timing import Case, Contender, difference, difference_of

TICK_S = 0.1
ROWS_PER_TICK = 10
TICKS = 150
WINDOW_S = TICKS * TICK_S
HISTORY = TICKS * ROWS_PER_TICK
_SINCE_LAST_TICK_S = (np.arange(ROWS_PER_TICK) + 0.5) / ROWS_PER_TICK * TICK_S
CHECKED_TICKS = TICKS + 50
"""From an empty ring until rows have left it."""


class Ticks:
    """A stream that is fed forever: random rows that come again after a while, at times that go on."""

    def __init__(self, model: CausalGhrnnCma) -> None:
        rows = CHECKED_TICKS * ROWS_PER_TICK
        self._text, self._audio, self._vision = fusion.draw_features(
            model.config, (CHECKED_TICKS, rows, rows)
        )
        self._model = model
        self._stream = fusion.native_of(model).stream(model.no_word.numpy(), WINDOW_S)
        self._next = 0

    def __call__(self) -> tuple[float, Array]:
        """The next tick."""
        tick, at = self._next, self._next % CHECKED_TICKS
        self._next += 1
        rows = slice(at * ROWS_PER_TICK, (at + 1) * ROWS_PER_TICK)
        times = _row_times(tick)
        text = self._text[at] if _spoken(at) else None
        return self._stream.step(_time_s(tick), text, self._audio[rows], times, self._vision[rows], times)

    def offline(self) -> list[npt.NDArray[np.float64]]:
        """What the offline model answers to the first ticks in float64: sentiment (K,) and logits (K, 7)."""
        ticks = range(CHECKED_TICKS)
        times = torch.from_numpy(np.concatenate([_row_times(tick) for tick in ticks]))[None]
        count, rows = torch.tensor([len(ticks)]), torch.tensor([times.shape[1]])
        features = (self._text, self._audio, self._vision)
        text, audio, vision = (torch.from_numpy(x).double()[None] for x in features)
        spoken = torch.tensor([[_spoken(tick) for tick in ticks]])
        tick_times = torch.tensor([[_time_s(tick) for tick in ticks]], dtype=torch.float64)
        model = deepcopy(self._model).double()
        with torch.inference_mode():
            answers = model(text, spoken, tick_times, count, audio, times, rows, vision, times, rows)
        return [answer[0].numpy() for answer in answers]


def cases(threads: Iterable[int], quick: bool) -> list[Case]:
    """With every number of threads of the peers; there is no quicker one."""
    del quick
    torch.manual_seed(0)
    config = GhrnnCmaConfig(causal=True, window_s=WINDOW_S)
    causal = CausalGhrnnCma(config).eval().requires_grad_(False)
    whole = GhrnnCma(replace(config, causal=False)).eval().requires_grad_(False)
    whole.load_state_dict({name: x for name, x in causal.state_dict().items() if name != "no_word"})
    graph = fusion.graph_of(whole)
    return [_case(causal, whole, graph, count) for count in threads]


def _case(causal: CausalGhrnnCma, whole: GhrnnCma, graph: bytes, threads: int) -> Case:
    def from_the_start() -> float:
        """Every tick of a new stream against the offline model."""
        stream = Ticks(causal)
        sentiments, logits = zip(*(stream() for _ in range(CHECKED_TICKS)), strict=True)
        return difference([np.array(sentiments), np.stack(logits)], stream.offline())

    ticks = Ticks(causal)
    for _ in range(TICKS):
        ticks()  # its ring is full from now on

    text, audio, vision = features = fusion.draw_features(whole.config, (TICKS, HISTORY, HISTORY))
    inputs = fusion.batch_of(features, fusion.ALL_PRESENT)
    truth = fusion.truth_of(whole, inputs)
    native = fusion.native_of(whole)
    session = fusion.in_onnx_runtime(graph, inputs, threads)

    def recompute() -> tuple[Array, Array]:
        return native(text, audio, vision, fusion.ALL_PRESENT)

    return Case(
        operator="tick",
        shape=f"ghrnn-cma {(TICKS, HISTORY, HISTORY)} new {(1, ROWS_PER_TICK, ROWS_PER_TICK)}",
        threads=threads,
        ours=Contender("native, one tick", ticks, from_the_start),
        peers=(
            Contender(
                "native, window recomputed (1 thread)",
                recompute,
                lambda: difference(recompute(), truth),
                20.0 if threads == 1 else None,
            ),
            Contender(
                "onnxruntime, window recomputed", session, difference_of(session, session.outputs, truth)
            ),
        ),
        ours_threads=1,
    )


def _time_s(tick: int) -> float:
    """When it answers."""
    return (tick + 1) * TICK_S


def _row_times(tick: int) -> npt.NDArray[np.float64]:
    """Of its new rows, evenly between the last tick and this one: none is at an edge of any window."""
    return tick * TICK_S + _SINCE_LAST_TICK_S


def _spoken(at: int) -> bool:
    """Whether a word ended in a tick."""
    return at % 3 == 1
