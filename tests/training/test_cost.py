"""Parameters and operations against what is counted by hand."""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass

import pytest
from torch import Tensor, nn

from affectrt.affect import Modality
from affectrt_training.commands.systems import COMMAND, table
from affectrt_training.models.cost import forward_flops, parameters
from affectrt_training.models.fusion import Fused, FusionConfig, FusionModel, stack_lengths
from affectrt_training.models.lf_lstm import LfLstm, LfLstmConfig
from affectrt_training.models.parts import GatedRecurrence, PairwiseAttention
from affectrt_training.models.registry import SYSTEMS

LENGTHS: dict[Modality, int] = {"text": 5, "audio": 9, "vision": 0}


@dataclass(frozen=True)
class OperatorsConfig(FusionConfig):
    """Widths only."""


class Operators(FusionModel):
    """Both of our operators and a convolution; text asks voice, then a recurrence reads what it heard."""

    Config = OperatorsConfig

    def __init__(self, config: OperatorsConfig) -> None:
        super().__init__()
        self.config = config
        self.conv = nn.Conv1d(6, 6, 3, padding=1, bias=False)
        self.attention = PairwiseAttention()
        self.recurrence = GatedRecurrence(6, 4, gates=2, bidirectional=True)
        self.add_heads(8)

    def fuse(
        self,
        text: Tensor,
        text_lengths: Tensor,
        audio: Tensor,
        audio_lengths: Tensor,
        vision: Tensor,
        vision_lengths: Tensor,
    ) -> Fused:
        text = self.conv(text.mT).mT.contiguous()
        q, k = (x.view(1, -1, 2, 3) for x in (text, audio))
        lengths = stack_lengths(text_lengths - 1, audio_lengths - 1, vision_lengths)
        [heard] = self.attention([q], [k], [k], [(0, 1)], lengths)
        _, last = self.recurrence(heard.flatten(-2)[None], text_lengths)
        return self.answer(last[0])


def test_operators_are_counted() -> None:
    model = Operators(OperatorsConfig(text_dim=6, audio_dim=6, vision_dim=6))
    conv = 2 * 5 * 6 * 6 * 3
    attention = 2 * 5 * 9 * 6 + 2 * 5 * 9 * 6  # scores and values: 5 queries, 9 keys, 2 heads of 3
    recurrence = 2 * 2 * 5 * (3 * 4) * (6 + 4)  # two directions, 5 steps, two gates and the candidate
    heads = 2 * 8 * (1 + 7)
    assert forward_flops(model, LENGTHS) == conv + attention + recurrence + heads
    assert parameters(model) == 6 * 6 * 3 + 2 * (12 * 6 + 12 * 4 + 12) + 9 * 8


def test_lstms_are_counted() -> None:
    config = LfLstmConfig(6, 5, 4, text_hidden_dim=7, audio_hidden_dim=3, vision_hidden_dim=2, fused_dim=8)
    model = LfLstm(config).train()
    steps = (6, 10, 2)  # with the null slots; absent vision is one padded row
    lstms = sum(2 * t * 4 * h * (d + h) for t, d, h in zip(steps, (6, 5, 4), (7, 3, 2), strict=True))
    assert forward_flops(model, LENGTHS) == lstms + 2 * 12 * 8 + 2 * 8 * 8
    assert model.training, "left as it was"
    frozen = parameters(model)
    model.fused.requires_grad_(False)
    assert parameters(model) == frozen - 12 * 8 - 8


def test_the_command_lists_all_systems(capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser()
    COMMAND.add_arguments(parser)
    widths = ["--text-dim", "12", "--audio-dim", "6", "--vision-dim", "5", "--steps", "4"]
    assert COMMAND.run(parser.parse_args([*widths, "--json"])) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["dims"] == {"text": 12, "audio": 6, "vision": 5} and told["steps"] == 4
    assert [system["name"] for system in told["systems"]] == list(SYSTEMS)
    for system in told["systems"]:
        assert system["parameters"] > 100 and system["flops"] > 2 * 4 * 23, system
    stated = {system["name"]: system["stated"] for system in told["systems"] if system["stated"]}
    assert set(stated) == {"tfn", "lmf"}
    lines = table(told).splitlines()
    assert max(map(len, lines)) <= 90
    assert [line.split()[0] for line in lines[1 : 2 * len(SYSTEMS) : 2]] == list(SYSTEMS)
