"""The causal model: what comes later never changes an answer, and every stage keeps to its window."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from affectrt_training.models.ghrnn_cma import GhrnnCma, GhrnnCmaConfig
from affectrt_training.models.ghrnn_cma_causal import CausalGhrnnCma

SMALL = GhrnnCmaConfig(
    text_dim=6,
    audio_dim=5,
    vision_dim=4,
    model_dim=8,
    heads=2,
    hidden_dim=8,
    fused_dim=16,
    causal=True,
    window_s=0.6,
)
TOLERANCE = 1e-6


def make_model(config: GhrnnCmaConfig = SMALL) -> CausalGhrnnCma:
    torch.manual_seed(3)
    return CausalGhrnnCma(config).eval()


def clip(ticks: int = 12, audio_rows: int = 31, vision_rows: int = 17, batch: int = 1) -> dict[str, Tensor]:
    """Ticks at 10 Hz, voice and face at rates of their own, a word ending at every third tick."""
    random = torch.Generator().manual_seed(ticks)

    def times(rows: int, offset: float, hop: float) -> Tensor:
        return (offset + hop * torch.arange(rows, dtype=torch.float64)).expand(batch, rows).clone()

    def rows(count: int, dim: int) -> Tensor:
        return torch.randn(batch, count, dim, generator=random)

    return {
        "text": rows(ticks, 6),
        "spoken": (torch.arange(ticks) % 3 == 1).expand(batch, ticks).clone(),
        "tick_times": times(ticks, 0.1, 0.1),
        "lengths": torch.full((batch,), ticks),
        "audio": rows(audio_rows, 5),
        "audio_times": times(audio_rows, 0.013, 0.04),
        "audio_lengths": torch.full((batch,), audio_rows),
        "vision": rows(vision_rows, 4),
        "vision_times": times(vision_rows, 0.02, 0.07),
        "vision_lengths": torch.full((batch,), vision_rows),
    }


def largest_difference(some: tuple[Tensor, Tensor], others: tuple[Tensor, Tensor], ticks: slice) -> float:
    return max(
        float((a[:, ticks] - b[:, ticks]).detach().abs().max()) for a, b in zip(some, others, strict=True)
    )


@pytest.mark.parametrize("now", [0, 1, 5, 10])
def test_the_future_never_changes_the_past(now: int) -> None:
    model, inputs = make_model(), clip()
    before = model(**inputs)
    later = dict(inputs)
    time = inputs["tick_times"][0, now]
    for name, times in (("text", "tick_times"), ("audio", "audio_times"), ("vision", "vision_times")):
        after = (inputs[times] > time)[..., None]
        assert after.any()
        later[name] = torch.where(after, inputs[name] * -2 + 1, inputs[name])
    later["spoken"] = inputs["spoken"] ^ (inputs["tick_times"] > time)
    after_change = model(**later)
    assert largest_difference(before, after_change, slice(now + 1)) <= TOLERANCE
    assert largest_difference(before, after_change, slice(now + 1, None)) > 1e-3


@pytest.mark.parametrize("now", [0, 4, 10])
def test_a_clip_cut_off_answers_the_same_until_there(now: int) -> None:
    model, inputs = make_model(), clip()
    whole = model(**inputs)
    time = inputs["tick_times"][0, now]
    ends = {
        "tick_times": now + 1,
        "audio_times": int((inputs["audio_times"] <= time).sum()),
        "vision_times": int((inputs["vision_times"] <= time).sum()),
    }
    of = {"text": "tick_times", "spoken": "tick_times", "audio": "audio_times", "vision": "vision_times"}
    cut = {
        name: value if name.endswith("lengths") else value[:, : ends[of.get(name, name)]]
        for name, value in inputs.items()
    }
    for name, times in (("lengths", "tick_times"), ("audio_lengths", "audio_times")):
        cut[name] = torch.tensor([ends[times]])
    cut["vision_lengths"] = torch.tensor([ends["vision_times"]])
    answers = model(**cut)
    assert answers[0].shape == (1, now + 1) and answers[1].shape == (1, now + 1, 7)
    assert largest_difference(whole, answers, slice(now + 1)) <= TOLERANCE


@pytest.mark.parametrize("modality", ["audio", "vision"])
def test_a_tick_sees_the_frames_of_its_window(modality: str) -> None:
    """t − W < t_frame ≤ t, to the edge. Kernels of one step: no frame speaks through its neighbour."""
    model = make_model(replace(SMALL, kernel_steps=1))
    inputs = clip(ticks=1, audio_rows=6, vision_rows=6)
    time, window = 5.0, SMALL.window_s
    inputs["tick_times"] = torch.tensor([[time]], dtype=torch.float64)
    frames = [time - window - 0.01, time - window, time - window + 1e-9, time - 0.1, time, time + 1e-9]
    inputs[f"{modality}_times"] = torch.tensor([frames], dtype=torch.float64)
    before = model(**inputs)
    for frame, seen in enumerate([False, False, True, True, True, False]):
        changed = inputs[modality].clone()
        changed[:, frame] *= -3
        difference = largest_difference(before, model(**{**inputs, modality: changed}), slice(None))
        assert difference > 1e-4 if seen else difference <= TOLERANCE, frame


@pytest.mark.parametrize("pattern", [(12, 31, 0), (12, 0, 17), (12, 0, 0), (7, 9, 1), (0, 31, 17)])
def test_what_lies_past_a_length_is_ignored(pattern: tuple[int, int, int]) -> None:
    model, inputs = make_model(), clip(batch=2)
    for name, length in zip(("lengths", "audio_lengths", "vision_lengths"), pattern, strict=True):
        inputs[name][1] = length
    plain = model(**inputs)
    changed = {name: value.clone() for name, value in inputs.items()}
    changed["text"][1, pattern[0] :] = 7.0
    changed["spoken"][1, pattern[0] :] ^= True
    changed["tick_times"][1, pattern[0] :] = -1.0
    for name, length in (("audio", pattern[1]), ("vision", pattern[2])):
        changed[name][1, length:] = 7.0
        changed[f"{name}_times"][1, length:] = -1.0
    again = model(**changed)
    if pattern[0]:
        assert largest_difference(plain, again, slice(pattern[0])) <= TOLERANCE
    assert torch.equal(plain[0][0], again[0][0]) and torch.equal(plain[1][0], again[1][0])
    assert all(bool(x.isfinite().all()) for x in again)
    alone = {name: value[1:] for name, value in inputs.items()}
    assert all(
        torch.allclose(a[:, : pattern[0]], b[1:, : pattern[0]], rtol=0, atol=TOLERANCE)
        for a, b in zip(model(**alone), plain, strict=True)
    )


def test_a_text_row_without_a_word_is_never_read() -> None:
    model, inputs = make_model(), clip()
    before = model(**inputs)
    inputs["text"][~inputs["spoken"]] = float("nan")
    after = model(**inputs)
    assert torch.equal(before[0], after[0]) and torch.equal(before[1], after[1])


def test_every_modality_is_heard() -> None:
    model, inputs = make_model(), clip()
    before = model(**inputs)
    for change in (
        {"audio_lengths": torch.tensor([0])},
        {"vision_lengths": torch.tensor([0])},
        {"spoken": torch.zeros_like(inputs["spoken"])},
    ):
        assert largest_difference(before, model(**{**inputs, **change}), slice(None)) > 1e-3, list(change)


def test_every_parameter_gets_a_gradient() -> None:
    torch.manual_seed(3)
    model = CausalGhrnnCma(SMALL)
    sentiment, logits = model(**clip(batch=2))
    (sentiment.sum() + logits.square().sum()).backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert without == []


def test_weights_are_those_of_the_other_model_and_no_word() -> None:
    causal = {name: tuple(value.shape) for name, value in make_model().state_dict().items()}
    other = {
        name: tuple(value.shape)
        for name, value in GhrnnCma(replace(SMALL, causal=False)).state_dict().items()
    }
    assert causal == {**other, "no_word": (6,)}


def test_a_config_of_the_other_model_is_refused() -> None:
    with pytest.raises(ValueError, match=r"config\.causal: expected False, got True; that is CausalGhrnnCma"):
        GhrnnCma(SMALL)
    with pytest.raises(ValueError, match=r"config\.causal: expected True, got False; that is GhrnnCma"):
        CausalGhrnnCma(replace(SMALL, causal=False))


@pytest.mark.parametrize(
    "ablated", [replace(SMALL, pairs=("av",)), replace(SMALL, joint=False), replace(SMALL, cell="gru")]
)
def test_ablations_are_for_whole_clips(ablated: GhrnnCmaConfig) -> None:
    with pytest.raises(ValueError, match="ablations are for GhrnnCma"):
        CausalGhrnnCma(ablated)
