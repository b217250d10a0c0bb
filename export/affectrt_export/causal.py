"""The causal model of a bundle: its member, what the manifest says of it, and the proof that it steps as in
training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors.torch import save

from affectrt.affect import Modality
from affectrt.errors import AffectError
from affectrt.features.sequence import FeatureSequence

if TYPE_CHECKING:
    from affectrt.model import Model
    from affectrt_training.models.ghrnn_cma_causal import CausalGhrnnCma

WEIGHTS = "causal.safetensors"
TOLERANCE = 1e-4
"""Of every step's sentiment and logits, between the device's kernels and PyTorch."""

_TICKS = 60
_RATES_HZ: Mapping[Modality, float] = {"audio": 12.5, "vision": 10.0}


def member(model: CausalGhrnnCma) -> bytes:
    """The weights, float32, under the names they have in the model."""
    return save({name: tensor.float().contiguous() for name, tensor in model.state_dict().items()})


def entry(meta: Mapping[str, Any]) -> dict[str, Any]:
    """The manifest's ``causal``, of the weights' sidecar's. Raises KeyError where something is missing."""
    names = ("config", "tick_s", "audio_context_rows", "calibration")
    return {"weights": WEIGHTS, **{name: meta[name] for name in names}}


@torch.no_grad()
def check_steps(trained: CausalGhrnnCma, written: Model) -> float:
    """Largest difference of ``written``'s steps from what ``trained`` says of the whole at once.

    Six seconds of random rows, every third tick with words. Raises ``export.parity``.
    """
    tick_s = written.causal.spec.tick_s
    random = np.random.default_rng(0)
    ticks = np.arange(1, _TICKS + 1) * tick_s
    text = random.standard_normal((_TICKS, trained.config.text_dim)).astype(np.float32)
    spoken = np.arange(_TICKS) % 3 == 0
    dims: dict[Modality, int] = {"audio": trained.config.audio_dim, "vision": trained.config.vision_dim}
    sequences: dict[Modality, FeatureSequence] = {}
    for modality, rate_hz in _RATES_HZ.items():
        times_s = np.arange(0.03, ticks[-1], 1.0 / rate_hz)
        values = random.standard_normal((len(times_s), dims[modality])).astype(np.float32)
        sequences[modality] = FeatureSequence(modality, values, times_s, "export")
    rows = [
        torch.from_numpy(x)[None]
        for sequence in sequences.values()
        for x in (sequence.values, sequence.times_s, np.array(len(sequence)))
    ]
    sentiment, logits = trained(
        torch.from_numpy(text)[None],
        torch.from_numpy(spoken)[None],
        torch.from_numpy(ticks)[None],
        torch.tensor([_TICKS]),
        *(x if x.ndim > 1 else x.flatten() for x in rows),
    )
    state, last_s, worst = written.causal.start(), 0.0, 0.0
    for k, time_s in enumerate(ticks.tolist()):
        fresh = {m: sequence.between(last_s, time_s) for m, sequence in sequences.items()}
        told, scores = state.step(time_s, text[k] if spoken[k] else None, fresh["audio"], fresh["vision"])
        last_s = time_s
        difference = max(abs(told - float(sentiment[0, k])), float(abs(scores - logits[0, k].numpy()).max()))
        worst = max(worst, difference)
    if not worst <= TOLERANCE:
        raise AffectError(
            "export.parity",
            f"the causal model's steps differ from PyTorch's by {worst:.2g}, expected at most {TOLERANCE:g}; "
            f"nothing was written",
        )
    return worst
