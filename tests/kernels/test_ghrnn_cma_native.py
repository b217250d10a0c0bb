"""The whole GHRNN-CMA in one C++ call, for every subset of the modalities, against PyTorch in float64."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import product
from time import perf_counter
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from affectrt_kernels import _native
from affectrt_training.models.ghrnn_cma import GhrnnCma, GhrnnCmaConfig

Floats = NDArray[np.float32]

TOLERANCE = 1e-5  # from PyTorch in float64 on the same weights; sentiment is within ±3
SUBSETS = np.array(list(product([True, False], repeat=3)))

pytestmark = pytest.mark.usefixtures("poisoned_scratch")

STARTER = GhrnnCmaConfig()
ODD = GhrnnCmaConfig(text_dim=7, audio_dim=5, vision_dim=3, model_dim=12, heads=3, hidden_dim=10, fused_dim=9)
CONFIGS = {
    "starter": STARTER,
    "odd": ODD,
    "long kernel": GhrnnCmaConfig(
        text_dim=33,
        audio_dim=17,
        vision_dim=1,
        model_dim=20,
        heads=5,
        hidden_dim=7,
        fused_dim=5,
        kernel_steps=7,
    ),
    "smallest": GhrnnCmaConfig(
        text_dim=3, audio_dim=3, vision_dim=3, model_dim=3, heads=3, hidden_dim=1, fused_dim=8, kernel_steps=1
    ),
    "wide": GhrnnCmaConfig(
        text_dim=16, audio_dim=16, vision_dim=16, model_dim=136, heads=2, hidden_dim=200, fused_dim=33
    ),
}
STEPS = (0, 1, 2, 7, 8, 63, 500)
LENGTHS = [(0, 0, 0), *((STEPS[i], STEPS[i - 3], STEPS[i - 5]) for i in range(len(STEPS)))]


@cache
def trained(config: GhrnnCmaConfig) -> GhrnnCma:
    """A model in float64 whose every weight is random: as constructed, norms and biases would do nothing."""
    torch.manual_seed(5)
    model = GhrnnCma(config).eval().double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_((parameter + 0.1 * torch.randn_like(parameter)).float())
    return model


def weights_of(config: GhrnnCmaConfig) -> dict[str, Floats]:
    return {name: value.float().numpy() for name, value in trained(config).state_dict().items()}


def native_of(config: GhrnnCmaConfig, instruction_set: str = "") -> _native.GhrnnCma:
    return _native.GhrnnCma(weights_of(config), heads=config.heads, instruction_set=instruction_set)


def features_of(config: GhrnnCmaConfig, lengths: tuple[int, int, int]) -> tuple[Floats, Floats, Floats]:
    random = np.random.default_rng(lengths)

    def rows(steps: int, dim: int) -> Floats:
        return random.standard_normal((steps, dim)).astype(np.float32)

    text, audio, vision = lengths
    return rows(text, config.text_dim), rows(audio, config.audio_dim), rows(vision, config.vision_dim)


@cache
def offline(config: GhrnnCmaConfig, lengths: tuple[int, int, int]) -> tuple[NDArray[Any], NDArray[Any]]:
    """What PyTorch says of all subsets, one a row."""
    inputs = []
    for m, rows in enumerate(features_of(config, lengths)):
        padded = rows if len(rows) else np.zeros((1, rows.shape[1]), np.float32)
        inputs.append(torch.from_numpy(padded).double().expand(len(SUBSETS), -1, -1))
        inputs.append(torch.from_numpy(SUBSETS[:, m] * np.int64(len(rows))))
    with torch.no_grad():
        sentiment, logits = trained(config)(*inputs)
    return sentiment.numpy(), logits.numpy()


@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
@pytest.mark.parametrize("config", CONFIGS.values(), ids=list(CONFIGS))
@pytest.mark.parametrize("instruction_set", _native.instruction_sets())
def test_every_subset_is_what_pytorch_says(
    instruction_set: str, config: GhrnnCmaConfig, lengths: tuple[int, int, int]
) -> None:
    model = native_of(config, instruction_set)
    assert model.dims == [config.text_dim, config.audio_dim, config.vision_dim]
    sentiment, logits = model(*features_of(config, lengths), SUBSETS)
    expected, expected_logits = offline(config, lengths)
    assert sentiment.shape == expected.shape and logits.shape == expected_logits.shape
    np.testing.assert_allclose(sentiment, expected, rtol=0, atol=TOLERANCE)
    np.testing.assert_allclose(logits, expected_logits, rtol=0, atol=TOLERANCE)


def test_a_result_does_not_depend_on_the_other_subsets() -> None:
    model, features = native_of(STARTER), features_of(STARTER, (9, 40, 25))
    sentiment, logits = model(*features, SUBSETS)
    for row, subset in enumerate(SUBSETS):
        alone = model(*features, subset[None])
        np.testing.assert_allclose(alone[0], sentiment[row : row + 1], rtol=0, atol=1e-6)
        np.testing.assert_allclose(alone[1], logits[row : row + 1], rtol=0, atol=1e-6)
    none, no_logits = model(*features, SUBSETS[:0])
    assert (none.shape, no_logits.shape) == ((0,), (0, 7))


def test_what_does_not_count_is_not_read() -> None:
    model, features = native_of(ODD), features_of(ODD, (6, 9, 4))
    before = model(*features, SUBSETS)
    features[1][:] = np.nan
    after = model(*features, SUBSETS)
    for row, counts in enumerate(SUBSETS[:, 1]):
        assert np.isnan(after[1][row]).all() == counts
        if not counts:
            assert after[0][row] == before[0][row] and (after[1][row] == before[1][row]).all()


def test_threads_share_a_model() -> None:
    model = native_of(ODD)
    clips = [features_of(ODD, (k % 5, 3 * k, 40 - k)) for k in range(40)]

    def logits(clip: tuple[Floats, Floats, Floats]) -> Floats:
        return model(*clip, SUBSETS)[1]

    expected = [logits(clip) for clip in clips]
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(logits, clips))
    for want, got in zip(expected, results, strict=True):
        np.testing.assert_array_equal(want, got)


def test_other_threads_run_meanwhile() -> None:
    config, slowest = CONFIGS["wide"], _native.instruction_sets()[-1]
    model, features = native_of(config, slowest), features_of(config, (500, 500, 500))
    seconds = []

    def compute() -> None:
        start = perf_counter()
        for _ in range(3):
            model(*features, SUBSETS)
        seconds.append((perf_counter() - start) / 3)

    worker = threading.Thread(target=compute)
    longest, last = 0.0, perf_counter()
    worker.start()
    while worker.is_alive():
        now = perf_counter()
        longest, last = max(longest, now - last), now
    worker.join()
    assert longest < seconds[0] / 2


def refused(message: str, call: Callable[..., object], *arguments: Any, **options: Any) -> None:
    with pytest.raises(ValueError, match=message):
        call(*arguments, **options)


def test_weights_that_are_not_such_a_models_are_refused() -> None:
    weights = weights_of(ODD)

    def load(heads: int = 3, instruction_set: str = "", **changes: Any) -> object:
        changed = {name: value for name, value in {**weights, **changes}.items() if value is not None}
        return _native.GhrnnCma(changed, heads=heads, instruction_set=instruction_set)

    for name, value in weights.items():
        refused(rf"weights: expected '{name}' among the names, got no such weight", load, **{name: None})
        nan = value.copy()
        nan.flat[-1] = np.nan
        refused(rf"weights\['{name}'\]: expected finite numbers, got NaN", load, **{name: nan})
        refused(r"expected .*, got ", load, **{name: np.concatenate([value, value])})
    bias = weights["bias"]
    refused(r"the weights of GHRNN-CMA only, got also 'extra'", load, extra=bias)
    refused(r"\['bias'\]: expected float32, got float64", load, bias=bias.astype(np.float64))
    refused(r"\['bias'\]: expected a C-contiguous array", load, bias=bias[:, ::-1])
    refused(r"\['bias'\]: expected a numpy array, got .*list", load, bias=bias.tolist())
    refused(r"\['bias'\]: expected \(3, 20\), got shape \(20,\)", load, bias=bias[0])
    for heads in (5, 0, -1):
        refused(rf"heads: expected a divisor of the model's width 12, got {heads}", load, heads=heads)
    refused(r"instruction_set: expected one of .*baseline, got mmx", load, instruction_set="mmx")
    widths = {"text": 7, "audio": 5, "vision": 3}
    even = {f"{m}.conv.weight": np.ones((12, width, 2), np.float32) for m, width in widths.items()}
    refused(r"text\.conv\.weight'\]: expected an odd number of taps, got 2", load, **even)
    refused(r"weights: expected a dict of arrays by name", _native.GhrnnCma, list(weights), heads=3)


def test_features_that_do_not_fit_are_refused() -> None:
    model = native_of(ODD)
    text, audio, vision = features_of(ODD, (2, 6, 4))
    narrow = r"text: expected \(T, D\) = \(2, 7\), got shape \(2, 6\)"
    refused(narrow, model, text[:, :6].copy(), audio, vision, SUBSETS)
    refused(r"text: expected \(T, D\), got shape \(7,\)", model, text[0], audio, vision, SUBSETS)
    refused(r"audio: expected a C-contiguous array", model, text, audio[::2], vision, SUBSETS)
    wide = vision.astype(np.float64)
    refused(r"vision: expected float32, got float64", model, text, audio, wide, SUBSETS)
    refused(r"vision: expected a numpy array, got .*NoneType", model, text, audio, None, SUBSETS)
    for subsets, message in (
        (SUBSETS[:, :2], r"subsets: expected \(R, 3\) = \(8, 3\), got shape \(8, 2\)"),
        (SUBSETS[0], r"subsets: expected \(R, 3\), got shape \(3,\)"),
        (SUBSETS.astype(np.int8), r"subsets: expected bool, got int8"),
        (SUBSETS[::2], r"subsets: expected a C-contiguous array"),
    ):
        refused(message, model, text, audio, vision, subsets)
