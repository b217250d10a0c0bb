"""Weights on disk: what is written comes back, what doesn't fit is refused."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from affectrt.affect import EMOTIONS
from affectrt.errors import AffectError
from affectrt_training.encoders.face import FaceEncoder, FaceEncoderConfig
from affectrt_training.encoders.text import LoraSettings, TextEncoder, TextSettings
from affectrt_training.encoders.voice import VoiceEncoder, VoiceEncoderConfig
from affectrt_training.models.ghrnn_cma import GhrnnCma, GhrnnCmaConfig
from affectrt_training.models.ghrnn_cma_causal import CausalGhrnnCma
from affectrt_training.recipes.starter.weights import COMMITTED, load_starter, read_parts, save_weights

LORA = LoraSettings(rank=2)
VOICE = VoiceEncoderConfig(channels=(4, 4, 4), dim=6)
FACE = FaceEncoderConfig(stem=4, widths=(48, 48, 48), dim=5)
FUSION = GhrnnCmaConfig(audio_dim=6, vision_dim=5, model_dim=8, heads=2, hidden_dim=8, fused_dim=8)
CAUSAL = replace(FUSION, causal=True, window_s=4.0)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "small.safetensors"
    text = TextEncoder(TextSettings(tuning="lora", lora=LORA))
    with torch.no_grad():
        for tensor in text.adapter().values():
            tensor.normal_(0, 0.05)
    parts = {
        "text": text.adapter(),
        "voice": VoiceEncoder(VOICE).state_dict(),
        "face": FaceEncoder(FACE).state_dict(),
        "fusion": GhrnnCma(FUSION).state_dict(),
        "causal": CausalGhrnnCma(CAUSAL).state_dict(),
    }
    meta = {
        "config": asdict(FUSION),
        "lora": asdict(LORA),
        "voice_encoder": asdict(VOICE),
        "face_encoder": asdict(FACE),
        "causal": {"config": asdict(CAUSAL)},
    }
    save_weights(parts, meta, path)
    return path


def test_round_trip(saved: Path) -> None:
    starter = load_starter(saved)
    written = read_parts(saved)
    for part, module in (("voice", starter.voice_encoder), ("face", starter.face_encoder)):
        for name, tensor in module.state_dict().items():
            if tensor.is_floating_point():
                torch.testing.assert_close(tensor, written[part][name], atol=0, rtol=0)
    assert not any(m.training for m in (starter.text_encoder, starter.fusion, starter.causal))
    assert starter.meta["model_card"] == ""


def test_the_merged_text_encoder_is_the_adapted_one(saved: Path) -> None:
    adapted = TextEncoder(TextSettings(tuning="lora", lora=LORA)).eval()
    adapted.load_adapter(read_parts(saved)["text"])
    ids = torch.tensor([[101, 7592, 2088, 102]])
    mask = torch.ones_like(ids)
    plain = TextEncoder(TextSettings(tuning="lora", lora=LORA)).eval()
    with torch.no_grad():
        merged = load_starter(saved).text_encoder(input_ids=ids, attention_mask=mask).last_hidden_state
        torch.testing.assert_close(merged, adapted(ids, mask), atol=1e-4, rtol=1e-4)
        assert (merged - plain(ids, mask)).abs().max() > 1e-2


def test_missing_file_says_how_to_make_it(tmp_path: Path) -> None:
    with pytest.raises(AffectError, match="affectrt train --recipe starter") as caught:
        load_starter(tmp_path / "none.safetensors")
    assert caught.value.code == "weights.not_found"


def test_garbage_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bad.safetensors"
    path.write_bytes(b"not a tensor in sight")
    with pytest.raises(AffectError) as caught:
        load_starter(path)
    assert caught.value.code == "weights.invalid"


def test_weights_of_before_there_was_a_causal_model_say_how_to_add_one(saved: Path, tmp_path: Path) -> None:
    tensors = {name: t for name, t in load_file(saved).items() if not name.startswith("causal.")}
    path = tmp_path / "older.safetensors"
    save_file(tensors, path)
    path.with_suffix(".json").write_text(saved.with_suffix(".json").read_text())
    with pytest.raises(AffectError, match="--keep") as caught:
        load_starter(path)
    assert caught.value.code == "weights.no_causal"


@pytest.mark.parametrize("damage", ["missing", "foreign", "misshapen"])
def test_tensors_that_do_not_fit_are_refused(saved: Path, tmp_path: Path, damage: str) -> None:
    tensors = load_file(saved)
    name = "fusion.fused.bias"
    if damage == "missing":
        del tensors[name]
    elif damage == "foreign":
        tensors["fusion.extra"] = torch.zeros(1)
    else:
        tensors[name] = torch.zeros(3)
    path = tmp_path / "damaged.safetensors"
    save_file(tensors, path)
    path.with_suffix(".json").write_text(saved.with_suffix(".json").read_text())
    with pytest.raises(AffectError, match="fusion") as caught:
        load_starter(path)
    assert caught.value.code == "weights.mismatch"


def test_the_committed_weights_are_small_and_whole() -> None:
    assert COMMITTED.stat().st_size <= 8 * 2**20
    starter = load_starter()
    assert starter.fusion.emotion.out_features == len(EMOTIONS)
    assert "non-commercial" in starter.meta["licence"]
    assert "biased" in starter.meta["model_card"] or "bias" in starter.meta["model_card"]
    assert all(torch.isfinite(t).all() for part in read_parts(COMMITTED).values() for t in part.values())
