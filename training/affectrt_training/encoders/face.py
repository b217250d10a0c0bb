"""Face crops in, face states out: 2D-Inception blocks with self-attention.

Source: bert_inception §3.2.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class FaceEncoderConfig:
    """Shape of the face encoder."""

    stem: int = 32
    """Channels of the first convolution."""
    widths: tuple[int, int, int] = (96, 160, 224)
    """Channels of the 2D-Inception stages at 24×24, 12×12 and 6×6."""
    base_width: int = 3
    """The paper's d, odd: branch kernels are d, 2d and (for pooling) 1.5d rounded up to an odd number."""
    dim: int = 128
    """Features per face."""


class BatchNorm2d(nn.BatchNorm2d):
    """Batch normalisation of maps that may be of unlike heights.

    Given ``valid`` (N, 1, H, 1), 1 or 0, the rows of x below a map must be zero: they take no part in
    the statistics and stay zero.
    """

    def forward(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        if valid is None:
            return super().forward(x)
        assert self.running_mean is not None and self.running_var is not None and self.momentum is not None
        assert self.num_batches_tracked is not None
        mean, variance = self.running_mean, self.running_var
        if self.training:
            # Zeros scale both moments down by the share of valid places, no more.
            share, count = valid.mean(), valid.sum() * x.shape[3]
            all_variance, all_mean = torch.var_mean(x.float(), dim=(0, 2, 3), correction=0)
            mean = all_mean / share
            variance = ((all_variance + all_mean.square()) / share - mean.square()).clamp(min=0)
            with torch.no_grad():
                self.num_batches_tracked += 1
                self.running_mean.lerp_(mean, self.momentum)
                self.running_var.lerp_(variance * count / (count - 1).clamp(min=1), self.momentum)
        scale = self.weight * (variance + self.eps).rsqrt()
        shift = self.bias - mean * scale
        by_channel = (1, -1, 1, 1)
        return torch.addcmul(shift.view(by_channel) * valid, x, scale.view(by_channel)).to(x.dtype)


class Inception2d(nn.Module):
    """One 2D-Inception block (bert_inception §3.2.1, Figure 3): two scales of convolution and the input.

    (N, C_in, H, W) → (N, C_out, H, W), C_out at least 48. Half the output channels come from 1×1 then d×d, a
    third from 2d×2d, the rest from pooling over 1.5d and 1×1. The 2d branch has a 1×1 reduction in front,
    which the paper does not draw: without it that one branch costs more than all others together. Where
    widths agree the block is residual.

    Maps of unlike heights can share a batch: ``valid`` (N, 1, H, 1) is 1 in the rows of a map and 0 below,
    where x must be zero. Then each map gives what it gives alone, and zero below.
    """

    def __init__(self, in_channels: int, out_channels: int, d: int) -> None:
        super().__init__()
        wide = out_channels // 3 // 8 * 8
        pooled = out_channels // 6 // 8 * 8
        near = out_channels - wide - pooled
        self.near = nn.Sequential(
            nn.Conv2d(in_channels, near, 1, bias=False),
            BatchNorm2d(near),
            nn.ReLU(),
            nn.Conv2d(near, near, d, padding=d // 2, bias=False),
        )
        squeezed = max(16, wide // 2)
        self.wide = nn.Sequential(
            nn.Conv2d(in_channels, squeezed, 1, bias=False),
            BatchNorm2d(squeezed),
            nn.ReLU(),
            # An even kernel has no centre: the extra row and column go to the top left.
            nn.ZeroPad2d((d, d - 1, d, d - 1)),
            nn.Conv2d(squeezed, wide, 2 * d, bias=False),
        )
        window = -(-3 * d // 2) // 2 * 2 + 1
        self.pooled = nn.Sequential(
            nn.AvgPool2d(window, stride=1, padding=window // 2, count_include_pad=False),
            nn.Conv2d(in_channels, pooled, 1, bias=False),
        )
        self.norm = BatchNorm2d(out_channels)
        self.residual = in_channels == out_channels

    def forward(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        average, mix = self.pooled
        if valid is None:
            # An average and a 1×1 without bias commute, and the average of fewer channels is cheaper.
            y = self.norm(torch.cat([self.near(x), self.wide(x), average(mix(x))], dim=1))
            return F.relu(x + y) if self.residual else F.relu(y)
        # Both averages count the rows below; their quotient is the average over valid places.
        share = average(valid.expand_as(x[:, :1])).clamp(min=1e-6)
        parts = [_convolve(self.near, x, valid), _convolve(self.wide, x, valid), mix(average(x)) / share]
        y = self.norm(torch.cat(parts, dim=1) * valid, valid)
        return F.relu(x + y if self.residual else y)


def _convolve(branch: nn.Sequential, x: Tensor, valid: Tensor) -> Tensor:
    """A branch in which every convolution sees zeros below a map; the 1×1 has no bias and keeps them."""
    for layer in branch:
        x = layer(x, valid) if isinstance(layer, BatchNorm2d) else layer(x)
    return x


class SpatialSelfAttention(nn.Module):
    """Self-attention between the places of a feature map, added to it (bert_inception §3.2.2, eq. 5).

    The learned scale of the sum starts at zero, so that the block starts as the identity.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.f = nn.Conv2d(channels, channels // 4, 1)
        self.g = nn.Conv2d(channels, channels // 4, 1)
        self.h = nn.Conv2d(channels, channels, 1)
        self.scale = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        f, g, h = (conv(x).flatten(2) for conv in (self.f, self.g, self.h))
        attention = (f.transpose(1, 2) @ g).softmax(dim=1)  # β_ji: over the i places that place j looks at
        y: Tensor = x + self.scale * (h @ attention).view_as(x)
        return y


class FaceEncoder(nn.Module):
    """``faces`` (N, 48, 48) grey in [0, 1] → states (N, dim).

    Each crop is brought to zero mean and unit contrast first, so that exposure doesn't read as emotion.
    """

    def __init__(self, config: FaceEncoderConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or FaceEncoderConfig()
        first, second, third = config.widths
        d = config.base_width
        self.stem = nn.Sequential(
            nn.Conv2d(1, config.stem, 3, padding=1, bias=False), nn.BatchNorm2d(config.stem), nn.ReLU()
        )
        self.stages = nn.Sequential(
            nn.AvgPool2d(2),
            Inception2d(config.stem, first, d),
            nn.AvgPool2d(2),
            nn.BatchNorm2d(first),
            SpatialSelfAttention(first),
            Inception2d(first, second, d),
            Inception2d(second, second, d),
            nn.AvgPool2d(2),
            nn.BatchNorm2d(second),
            SpatialSelfAttention(second),
            Inception2d(second, third, d),
            Inception2d(third, third, d),
        )
        self.out = nn.Linear(third, config.dim)

    def forward(self, faces: Tensor) -> Tensor:
        faces = faces - faces.mean(dim=(1, 2), keepdim=True)
        faces = faces / (faces.square().mean(dim=(1, 2), keepdim=True).sqrt() + 0.02)
        pooled = self.stages(self.stem(faces.unsqueeze(1))).mean(dim=(2, 3))
        states: Tensor = self.out(pooled)
        return states
