"""What does int8 cost and save in the text encoder? Ours against ONNX Runtime's own dynamic quantization.

Run from the repository root: ``python -m benchmarks.text_int8``. One thread, batch 1, the probe sentences of
the int8 gate, the starter's text encoder (``--plain``: MiniLM as it was before training). The fp32 graph must
first agree with PyTorch and our int8 states with it; else nothing is timed and the exit status is 1. Then all
take turns within every round, and what is reported is the median of the rounds' ratios to fp32.
"""

from __future__ import annotations

import argparse
import logging
import platform
import sys
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from onnxruntime.quantization import QuantType, quantize_dynamic
from torch import nn
from transformers import AutoModel

from affectrt.backends.onnx_runtime import OnnxGraph
from affectrt.features.text import Tokenizer, words_of
from affectrt_export import graphs, parity
from affectrt_export.gate import probe_sentences
from affectrt_export.quantize import quantize
from affectrt_training.encoders.text import minilm_folder
from affectrt_training.recipes.starter.weights import load_starter

MAX_TOKENS = 128
LEAST_COSINE = 0.99
"""Mean cosine to fp32 token states, below which no speed is reported."""
LENGTHS = (16, 64)
"""Tokens: a short utterance, a long one."""

Ids = NDArray[np.int64]


def text_encoder(plain: bool) -> nn.Module:
    """The encoder that is measured, fp32."""
    if not plain:
        return load_starter().text_encoder
    encoder: nn.Module = AutoModel.from_pretrained(
        minilm_folder(), add_pooling_layer=False, local_files_only=True
    )
    return encoder.eval().requires_grad_(False)


def contenders(fp32: bytes) -> dict[str, bytes]:
    """Every way to int8, by name; fp32 first."""
    made = {"fp32": fp32, "int8, a scale per token": quantize(fp32)}
    everything = ["MatMul", "Gather"]
    for name, per_channel, operators in (
        ("onnxruntime, per tensor", False, everything),
        ("onnxruntime, per channel", True, everything),
        ("onnxruntime, per channel, MatMul only", True, ["MatMul"]),
    ):
        with TemporaryDirectory() as folder:
            path = Path(folder) / "int8.onnx"
            quantize_dynamic(
                onnx.load_from_string(fp32),
                path,
                per_channel=per_channel,
                op_types_to_quantize=operators,
                weight_type=QuantType.QInt8,
            )
            made[name] = path.read_bytes()
    return made


def states(graph: OnnxGraph, ids: Ids) -> NDArray[np.float32]:
    """Token states of one text, (T, 384)."""
    (batch,) = graph(input_ids=ids[None], attention_mask=np.ones_like(ids[None]))
    return np.asarray(batch[0])


def cosines(graph: OnnxGraph, fp32: OnnxGraph, texts: list[Ids]) -> NDArray[np.float32]:
    """Cosine to fp32 of every token of every text."""
    pairs = [(states(graph, ids), states(fp32, ids)) for ids in texts]
    a, b = (np.concatenate(side) for side in zip(*pairs, strict=True))
    return np.asarray((a * b).sum(1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)))


def seconds_per_run(
    runners: Mapping[str, OnnxGraph], ids: Ids, rounds: int
) -> dict[str, NDArray[np.float64]]:
    """(rounds,) seconds for each contender, taking turns within each round."""
    for runner in runners.values():
        states(runner, ids)
    taken = {name: np.zeros(rounds) for name in runners}
    for index in range(rounds):
        for name, runner in runners.items():
            start = perf_counter()
            for _ in range(5):
                states(runner, ids)
            taken[name][index] = (perf_counter() - start) / 5
    return taken


def main() -> int:
    """Check, time, print a table."""
    parser = argparse.ArgumentParser(description="int8 in the text encoder: size, faithfulness, speed.")
    parser.add_argument("--plain", action="store_true", help="MiniLM without the starter's adapter")
    parser.add_argument("--rounds", type=int, default=31, help="turns each contender takes (default: 31)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)  # ONNX Runtime's quantizer advises on preprocessing
    encoder = text_encoder(args.plain)
    fp32 = graphs.text_graph(encoder, encoder.get_parameter("embeddings.LayerNorm.weight").shape[0]).graph
    tokenizer = Tokenizer.from_json((minilm_folder() / "tokenizer.json").read_bytes(), MAX_TOKENS)
    sentences = probe_sentences()
    largest = parity.check_parity(
        "text.onnx", fp32, encoder, ["states"], parity.text_cases(tokenizer, sentences, MAX_TOKENS)
    )
    made = contenders(fp32)
    runners = {name: OnnxGraph(graph, threads=1, name=name) for name, graph in made.items()}
    texts = [tokenizer.encode(words_of(sentence, 0.0)).ids for sentence in sentences]
    found = {name: cosines(runner, runners["fp32"], texts) for name, runner in runners.items()}
    ours = float(found["int8, a scale per token"].mean())
    if ours < LEAST_COSINE:
        print(f"token cosine {ours:.4f} < {LEAST_COSINE}: no speed is reported", file=sys.stderr)
        return 1

    which = "MiniLM" if args.plain else "the starter's text encoder"
    print(f"{which}, one thread, {platform.machine()}, onnxruntime {onnxruntime.__version__};")
    print(f"fp32 graph within {largest:.1e} of PyTorch. Times over fp32's, median of {args.rounds}.\n")
    print(f"{'':40}{'MB':>6}{'cosine':>8}{'least':>8}" + "".join(f"{f'{n} tokens':>22}" for n in LENGTHS))
    stream = parity.token_stream(tokenizer, sentences, max(LENGTHS))
    taken = [seconds_per_run(runners, stream[:length], args.rounds) for length in LENGTHS]
    for name, graph in made.items():
        cells = []
        for times in taken:
            low, median, high = np.percentile(times[name] / times["fp32"], [25, 50, 75])
            in_ms = f"{np.median(times['fp32']) * 1e3:.2f} ms"
            cells.append(in_ms if name == "fp32" else f"{median:.2f} ({low:.2f}–{high:.2f})")
        quality = f"{found[name].mean():8.4f}{found[name].min():8.4f}"
        print(f"{name:40}{len(graph) / 1e6:6.1f}{quality}" + "".join(f"{cell:>22}" for cell in cells))
    return 0


if __name__ == "__main__":
    sys.exit(main())
