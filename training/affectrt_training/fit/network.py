"""A fusion model with the text encoder that is tuned along with it, if any."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from affectrt.affect import MODALITIES
from affectrt_training.data.dataset import inputs
from affectrt_training.encoders.text import TextEncoder
from affectrt_training.models.fusion import Fused, FusionModel


class Network(nn.Module):
    """Batches of :class:`Examples` in, what the losses need out."""

    def __init__(self, fusion: FusionModel, encoder: TextEncoder | None = None) -> None:
        super().__init__()
        self.fusion, self.encoder = fusion, encoder

    def forward(self, batch: Mapping[str, Tensor]) -> Fused:
        given = inputs(batch)
        if self.encoder is not None:
            given["text"] = self.encoder(batch["ids"], batch["mask"]).float()
        fused = self.fusion.fuse(**given)
        # Half precision is for the layers, not for losses.
        views = {modality: view.float() for modality, view in fused.views.items()}
        rating = None if fused.rating_logits is None else fused.rating_logits.float()
        return Fused(fused.sentiment.float(), fused.emotion_logits.float(), views, rating)

    def frozen(self) -> set[str]:
        """Names of the parameters that training leaves as they came, which no checkpoint needs."""
        return {name for name, parameter in self.named_parameters() if not parameter.requires_grad}

    def learnt(self) -> dict[str, Tensor]:
        """The weights that training changes, and the buffers; not copied."""
        frozen = self.frozen()
        return {name: value for name, value in self.state_dict().items() if name not in frozen}

    def put_back(self, weights: Mapping[str, Tensor]) -> None:
        """Weights as :meth:`learnt` gave them. Raises RuntimeError where they don't fit."""
        found = self.load_state_dict(dict(weights), strict=False)
        if missing := set(found.missing_keys) - self.frozen():
            raise RuntimeError(f"missing weights: {', '.join(sorted(missing))}")
        if found.unexpected_keys:
            raise RuntimeError(f"foreign weights: {', '.join(found.unexpected_keys)}")


def without_some(batch: Mapping[str, Tensor], chance: float) -> dict[str, Tensor]:
    """The batch with modalities taken away at random, each with that chance, but never an example's last."""
    lengths = torch.stack([batch[f"{m}_lengths"] for m in MODALITIES])
    luck = torch.rand(lengths.shape, device=lengths.device).masked_fill(lengths == 0, -1.0)
    # The luckiest stays anyway: if it is below the chance, all are.
    kept = (luck >= chance) | (luck == luck.max(dim=0).values)
    lengths = lengths * kept
    return {**batch, **{f"{m}_lengths": lengths[row] for row, m in enumerate(MODALITIES)}}
