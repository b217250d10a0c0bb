"""The fusion model as its paper writes it, in float64 numpy: what ``doctor`` holds the C++ kernels against.

Source: ghrnn_cma §3.2, equations 3–4 and 9–12. Slow and plain; nothing runs on it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product

import numpy as np
import numpy.typing as npt

from affectrt.affect import EMOTIONS, MODALITIES

Array = npt.NDArray[np.float64]
Weights = Mapping[str, npt.NDArray[np.float32]]


def random_weights(
    seed: int, *, dims: Sequence[int] = (7, 5, 3), model: int = 12, hidden: int = 10, fused: int = 9
) -> dict[str, npt.NDArray[np.float32]]:
    """The weights of a model of some shape, under the names of a bundle's; no shape fills a vector."""
    sides, parts = ("weight", "bias"), ("query", "key_value", "out")
    shapes: dict[str, tuple[int, ...]] = {}
    for modality, dim in zip(MODALITIES, dims, strict=True):
        shapes |= {f"{modality}.norm.{side}": (dim,) for side in sides}
        shapes |= {f"{modality}.conv.weight": (model, dim, 3), f"{modality}.conv.bias": (model,)}
        shapes[f"{modality}.null"] = (model,)
    for pair, part in product(("text_to_audio", "text_to_vision"), parts):
        width = 2 * model if part == "key_value" else model
        shapes |= {f"{pair}.{part}.weight": (width, model), f"{pair}.{part}.bias": (width,)}
    shapes |= {f"norms.{k}.{side}": (model,) for k in range(3) for side in sides}
    shapes |= {"w_x": (3, 2 * hidden, 2 * model), "w_h": (3, 2 * hidden, hidden), "bias": (3, 2 * hidden)}
    for head, (rows, columns) in {
        "fused": (fused, 3 * hidden),
        "sentiment": (1, fused),
        "emotion": (len(EMOTIONS), fused),
    }.items():
        shapes |= {f"{head}.weight": (rows, columns), f"{head}.bias": (rows,)}
    random = np.random.default_rng(seed)
    return {
        name: (random.standard_normal(shape) / np.sqrt(shape[-1])).astype(np.float32)
        for name, shape in shapes.items()
    }


def ghrnn_cma(
    weights: Weights, heads: int, features: Sequence[npt.NDArray[np.float32]]
) -> tuple[float, Array]:
    """Rows (T, D) of text, audio and vision, none for an absent one → sentiment and emotion logits (7,)."""
    w = {name: value.astype(np.float64) for name, value in weights.items()}
    rows = zip(MODALITIES, features, strict=True)
    text, *memories = (_project(w, modality, values.astype(np.float64)) for modality, values in rows)
    pairs = zip(("text_to_audio", "text_to_vision"), memories, strict=True)
    sides = [text, *(_attend(w, pair, heads, text, memory) for pair, memory in pairs)]
    t, at, vt = (_norm(w, f"norms.{k}", side) for k, side in enumerate(sides))
    read = [np.concatenate(pair, axis=1) for pair in ((t, at), (t, vt), (at, vt))]  # eq. 9
    last = [ghrnn(x, w["w_x"][s], w["w_h"][s], w["bias"][s])[-1] for s, x in enumerate(read)]  # eq. 10
    fused = np.maximum(_linear(w, "fused", np.concatenate(last)), 0.0)  # eq. 11
    return float(np.clip(_linear(w, "sentiment", fused)[0], -3.0, 3.0)), _linear(w, "emotion", fused)


def ghrnn(x: Array, w_x: Array, w_h: Array, bias: Array) -> Array:
    """Eq. 12 from a state of zeros: ``x`` (T, I), weights (2H, I), (2H, H), (2H,) → states (T, H).

    The blocks of the weights are gate, candidate; the gate resets before the matrix product.
    """
    hidden = w_h.shape[-1]
    h = np.zeros(hidden)
    states = []
    for row in x:
        from_x = w_x @ row + bias
        z = 1.0 / (1.0 + np.exp(-(from_x[:hidden] + w_h[:hidden] @ h)))
        g = np.tanh(from_x[hidden:] + w_h[hidden:] @ (z * h))
        h = (1.0 - z) * h + z * g
        states.append(h)
    return np.array(states).reshape(len(x), hidden)


def _project(w: Mapping[str, Array], modality: str, rows: Array) -> Array:
    """Normalise, convolve over time with zeros around, put the null slot in front: (T, D) → (1 + T, d)."""
    kernel = w[f"{modality}.conv.weight"]
    reach = kernel.shape[2] // 2
    padded = np.pad(_norm(w, f"{modality}.norm", rows), ((reach, reach), (0, 0)))
    steps = range(len(rows))
    projected = [np.einsum("dit,ti->d", kernel, padded[k : k + kernel.shape[2]]) for k in steps]
    return np.stack([w[f"{modality}.null"], *(row + w[f"{modality}.conv.bias"] for row in projected)])


def _attend(w: Mapping[str, Array], pair: str, heads: int, asking: Array, memory: Array) -> Array:
    """Eq. 3–4: every row of ``asking`` looks at every row of ``memory``, in each head on its own."""
    q = _linear(w, f"{pair}.query", asking)
    k, v = np.split(_linear(w, f"{pair}.key_value", memory), 2, axis=1)
    answers = []
    for q_h, k_h, v_h in zip(*(np.split(x, heads, axis=1) for x in (q, k, v)), strict=True):
        scores = np.exp(q_h @ k_h.T / np.sqrt(q_h.shape[1]))
        answers.append(scores / scores.sum(axis=1, keepdims=True) @ v_h)
    return _linear(w, f"{pair}.out", np.concatenate(answers, axis=1))


def _norm(w: Mapping[str, Array], name: str, rows: Array) -> Array:
    centred = rows - rows.mean(axis=-1, keepdims=True)
    scaled = centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + 1e-5)
    return np.asarray(scaled * w[f"{name}.weight"] + w[f"{name}.bias"])


def _linear(w: Mapping[str, Array], name: str, rows: Array) -> Array:
    return np.asarray(rows @ w[f"{name}.weight"].T + w[f"{name}.bias"])
