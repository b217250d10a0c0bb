"""Feature rows as the peers read them: at their own width, the null slot in front, aligned if need be."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from affectrt_training.models.fusion import AUDIO, TEXT, VISION
from affectrt_training.models.parts import valid_steps


class FeatureRows(nn.Module):
    """Normalised feature rows with the modality's null slot in front.

    (B, T, D) with lengths (B,) → (B, 1 + T, D). Rows past the length are cleared, whatever they hold. The
    null slot is a learned row; it is all that is left of an absent modality.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.null = nn.Parameter(torch.randn(dim) * 0.02)

    def forward(self, rows: Tensor, lengths: Tensor) -> Tensor:
        return self.with_null(self.normalised(rows, lengths))

    def normalised(self, rows: Tensor, lengths: Tensor) -> Tensor:
        """The rows alone, (B, T, D), finite past the length."""
        # masked_fill, not a product: padding may hold NaN.
        cleared = rows.masked_fill(~valid_steps(lengths, rows.shape[1]).unsqueeze(-1), 0.0)
        normed: Tensor = self.norm(cleared)
        return normed

    def with_null(self, rows: Tensor) -> Tensor:
        """The null slot put in front of (B, T, D)."""
        return torch.cat([self.null.expand(rows.shape[0], 1, -1), rows], dim=1)


class AlignedRows(nn.Module):
    """The three modalities on one timeline, for models that read them step by step together.

    Step 0 holds the three null slots. After it come n rows: as many as the text has, or, where text is
    absent, as many as the longer of voice and face. The rows of each modality are pooled onto them by
    :func:`pool_onto`; an absent modality's null slot stands at every step. So aligned data pass unchanged.
    """

    def __init__(self, dims: Sequence[int]) -> None:
        super().__init__()
        self.modalities = nn.ModuleList(FeatureRows(dim) for dim in dims)

    def forward(self, sequences: Sequence[Tensor], lengths: Tensor) -> tuple[list[Tensor], Tensor]:
        """Sequences (B, T_m, D_m), lengths (3, B) → three (B, 1 + N, D_m), valid steps 1 + n (B,)."""
        longer = torch.maximum(lengths[AUDIO], lengths[VISION])
        n = torch.where(lengths[TEXT] > 0, lengths[TEXT], longer)
        aligned = []
        steps = _steps(sequences, n)
        for modality, rows, valid in zip(self.modalities, sequences, lengths, strict=True):
            assert isinstance(modality, FeatureRows)
            pooled = pool_onto(modality.normalised(rows, valid), valid, n, steps)
            present = (valid > 0).view(-1, 1, 1)
            aligned.append(modality.with_null(torch.where(present, pooled, modality.null)))
        return aligned, n + 1


def pool_onto(rows: Tensor, lengths: Tensor, targets: Tensor, steps: int) -> Tensor:
    """Pool each sequence of T rows onto its n new ones, evenly over time.

    New row i is the mean of the rows j in its share i·T/n ≤ j < (i + 1)·T/n. Where there are fewer old rows
    than new ones a share may hold none; then new row i is the old one at its middle, ⌊(i + ½)·T/n⌋. In
    integers throughout, so T = n changes nothing at all.

    Args:
        rows: (B, T_max, D), finite.
        lengths: (B,) int64, T of each; rows from there on are not used. 0: all new rows are zero.
        targets: (B,) int64, n of each. New rows from there on are zero or copies, to be ignored.
        steps: at least the largest n.

    Returns:
        (B, steps, D).
    """
    i = torch.arange(steps, device=rows.device)
    j = torch.arange(rows.shape[1], device=rows.device)
    t, n = lengths.unsqueeze(1), targets.clamp(min=1).unsqueeze(1)
    first, end = (i * t + n - 1) // n, ((i + 1) * t + n - 1) // n  # of the share: both rounded up
    middle = (2 * i + 1) * t // (2 * n)
    none = first == end
    first, end = torch.where(none, middle, first), torch.where(none, middle + 1, end)
    share = (first.unsqueeze(-1) <= j) & (j < end.unsqueeze(-1)) & (j < t.unsqueeze(-1))  # (B, steps, T_max)
    return (share.to(rows.dtype) / (end - first).unsqueeze(-1)) @ rows


def _steps(sequences: Sequence[Tensor], targets: Tensor) -> int:
    """How many new rows to make. An exported graph can't ask the lengths: it takes the longest padded
    sequence, which is never less and gives the same results."""
    if torch.compiler.is_compiling():
        return max(rows.shape[1] for rows in sequences)
    return int(targets.max())
