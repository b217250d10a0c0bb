"""The causal GHRNN-CMA: an answer at every tick, from what was said, heard and seen until then.

None of the papers streams. This is GHRNN-CMA (ghrnn_cma §3.2, equations 9–12) with every stage that sees the
future replaced by one that doesn't, so that an answer once given never changes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from affectrt_kernels.ops import gated_rnn
from affectrt_kernels.reference import key_windows
from affectrt_training.models.fusion import stack_lengths
from affectrt_training.models.ghrnn_cma import Fusion, GhrnnCmaConfig


class CausalGhrnnCma(Fusion):
    """Words at ticks, voice and face at their own times in; sentiment and emotion at every tick out.

    Its weights are those of :class:`GhrnnCma` and ``no_word``, a learned text row for ticks at which no word
    ended. Convolutions see a row and those before it, with zeros before the first. A tick at t attends to the
    frames of t − window_s < t_frame ≤ t and to the null slots. The recurrences walk the text's null slot,
    whose query sees null keys only, and then the ticks; every tick is answered from the states after it.
    """

    def __init__(self, config: GhrnnCmaConfig) -> None:
        if not config.causal:
            raise ValueError("CausalGhrnnCma: config.causal: expected True, got False; that is GhrnnCma")
        if config.ablated:
            raise ValueError(
                "CausalGhrnnCma: pairs, attention, joint and cell: expected the defaults; ablations are for "
                "GhrnnCma"
            )
        super().__init__(config)
        self.no_word = nn.Parameter(torch.randn(config.text_dim) * 0.02)

    def forward(
        self,
        text: Tensor,
        spoken: Tensor,
        tick_times: Tensor,
        lengths: Tensor,
        audio: Tensor,
        audio_times: Tensor,
        audio_lengths: Tensor,
        vision: Tensor,
        vision_times: Tensor,
        vision_lengths: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Answer K ticks of B clips.

        Args:
            text: (B, K, text_dim), at every tick the mean of the words that ended in it. Rows without a word
                are never read.
            spoken: (B, K) bool, at which ticks a word ended.
            tick_times: (B, K) float64 seconds.
            lengths: (B,) int64 ticks.
            audio: (B, T_a, audio_dim), T_a ≥ 1.
            audio_times: (B, T_a) float64 seconds, not decreasing within a row's length.
            audio_lengths: (B,) int64; 0: absent.
            vision: (B, T_v, vision_dim), T_v ≥ 1.
            vision_times: (B, T_v) float64 seconds, likewise.
            vision_lengths: (B,) int64; 0: absent.

        Returns:
            ``sentiment`` (B, K) in [-3, 3] and ``emotion_logits`` (B, K, 7). Ticks past the length are
            answered from a state of zeros.
        """
        text = torch.where(spoken[..., None], text, self.no_word)
        frames = ((audio_times, audio_lengths), (vision_times, vision_lengths))
        windows = [key_windows(tick_times, *of, self.config.window_s) for of in frames]
        given = [(text, lengths), (audio, audio_lengths), (vision, vision_lengths)]
        [pairs] = self.attend(
            self.project(given), stack_lengths(lengths, audio_lengths, vision_lengths), windows
        )
        states, _ = gated_rnn(pairs, self.w_x, self.w_h, self.bias, lengths + 1)  # eq. 10, 12
        fused = self.read(states[:, :, 1:])
        return fused.sentiment, fused.emotion_logits
