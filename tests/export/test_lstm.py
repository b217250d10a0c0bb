"""``nn.LSTM`` exports with any number of steps, layers and directions, and is itself again afterwards."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from affectrt.affect import EMOTIONS
from affectrt.errors import AffectError
from affectrt_export import graphs, parity
from affectrt_export.lstm import lstm, through_operator


class Reader(nn.Module):
    """Reads text rows with an LSTM; the rest of the inputs only has to be there."""

    def __init__(self, **settings: bool | int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(3, 4, batch_first=True, **settings)
        self.out = nn.Linear(8 if settings.get("bidirectional") else 4, len(EMOTIONS))

    def forward(
        self,
        text: Tensor,
        text_lengths: Tensor,
        audio: Tensor,
        audio_lengths: Tensor,
        vision: Tensor,
        vision_lengths: Tensor,
    ) -> tuple[Tensor, Tensor]:
        logits = self.out(
            self.lstm(text)[0][:, 0] + audio.sum((1, 2))[:, None] * 0 + vision.sum((1, 2))[:, None] * 0
        )
        return logits.sum(-1) + 0.0 * (text_lengths + audio_lengths + vision_lengths), logits


@pytest.mark.parametrize(
    "settings", [{}, {"num_layers": 2}, {"bidirectional": True, "num_layers": 2}, {"bias": False}]
)
def test_any_lstm_and_any_length(settings: dict[str, bool | int]) -> None:
    torch.manual_seed(0)
    module = Reader(**settings).eval().requires_grad_(False)
    made = graphs.fusion_graph(module, {"text": 3, "audio": 1, "vision": 1})
    assert type(module.lstm) is nn.LSTM
    rng = np.random.default_rng(0)
    states = {
        m: rng.normal(size=(17, d)).astype(np.float32) for m, d in (("text", 3), ("audio", 1), ("vision", 1))
    }
    cases = parity.fusion_cases(states)  # type: ignore[arg-type]
    assert parity.check_parity("lstm", made.graph, module, ("sentiment", "emotion_logits"), cases) < 1e-5


@pytest.mark.parametrize("reverse", [False, True])
def test_the_operator_is_an_lstm(reverse: bool) -> None:
    torch.manual_seed(1)
    whole = nn.LSTM(3, 4, batch_first=True, bidirectional=True).requires_grad_(False)
    x = torch.randn(2, 5, 3)
    suffix = "_reverse" if reverse else ""
    w_x, w_h, b_x, b_h = (
        getattr(whole, f"{name}_l0{suffix}") for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    )
    half = slice(4, 8) if reverse else slice(0, 4)
    torch.testing.assert_close(lstm(x, w_x, w_h, b_x + b_h, reverse), whole(x)[0][..., half])
    torch.library.opcheck(
        lstm, (x, w_x, w_h, b_x + b_h, reverse), test_utils=("test_schema", "test_faketensor")
    )


@pytest.mark.parametrize("settings", [{"batch_first": False}, {"batch_first": True, "proj_size": 2}])
def test_another_lstm_is_refused_by_name(settings: dict[str, bool | int]) -> None:
    module = nn.ModuleDict({"reads": nn.LSTM(3, 4, **settings)})
    with pytest.raises(AffectError, match="reads: expected") as caught, through_operator(module):
        pass
    assert caught.value.code == "export.lstm"
