"""Which step looked at which: attention weights of any fusion model, and their picture (MulG, fig. 4)."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from affectrt.affect import MODALITIES
from affectrt.errors import AffectError, require
from affectrt_training.data.dataset import inputs
from affectrt_training.models.parts import PairwiseAttention, valid_steps

MOST_LABELS = 60
"""Longer axes are numbered at intervals instead of naming every step."""

NULL_LABEL = "∅"
"""Stands for the null slot on the axes."""


@dataclass(frozen=True)
class AttentionMap:
    """The weights of one call of attention for one pair of modalities, over a batch."""

    asking: str
    """Whose rows look: a modality, or ``row N`` where ``lengths`` has other rows than the modalities."""
    answering: str
    """Whose rows are looked at, likewise."""
    module: str
    """Name of the attention module within the model: one for each layer."""
    call: int
    """Which call of that module within the forward pass, 0 first."""
    weights: Tensor
    """(B, heads, 1 + Tα, 1 + Tβ), null slots first. Rows of valid queries sum to 1, others are 0."""
    asking_lengths: Tensor
    """(B,) int64 valid steps of the asking sequence, null slot not counted."""
    answering_lengths: Tensor
    """(B,) int64 valid steps of the answering sequence, likewise."""


def attention_weights(q: Tensor, k: Tensor, asks: Tensor, answers: Tensor, window: Tensor | None) -> Tensor:
    """softmax(q kᵀ / √D) over the valid keys (MulG, eq. 5–6), as the operator computes it for one pair.

    Args:
        q: (B, 1 + Tα, N, D), null slot first.
        k: (B, 1 + Tβ, N, D), null slot first.
        asks: (B,) int64 valid steps of q, null slot not counted.
        answers: (B,) int64 valid steps of k, likewise.
        window: (B, 1 + Tα, 2) int64, the keys that each query sees beside the null slot; None: all.

    Returns:
        (B, N, 1 + Tα, 1 + Tβ); 0 for queries and keys beyond the lengths, whatever they hold.
    """
    asking, answering = valid_steps(asks + 1, q.shape[1]), valid_steps(answers + 1, k.shape[1])
    seen = answering[:, None, :]
    if window is not None:
        rows = torch.arange(k.shape[1], device=k.device)
        seen = seen & ((rows == 0) | ((window[..., :1] <= rows) & (rows < window[..., 1:])))
    q = q.masked_fill(~asking[..., None, None], 0.0)
    k = k.masked_fill(~answering[..., None, None], 0.0)
    scores = torch.einsum("bind,bjnd->bnij", q, k) * q.shape[-1] ** -0.5
    weights: Tensor = scores.masked_fill(~seen[:, None], -torch.inf).softmax(-1)
    return weights.masked_fill(~asking[:, None, :, None], 0.0)


def attention_maps(model: nn.Module, batch: Mapping[str, Tensor]) -> list[AttentionMap]:
    """Run a fusion model over a collated batch and return what attended to what, in the order of computation.

    The model runs as in evaluation, without gradients, and is left in the mode that it was in. Raises
    ``model.no_attention`` when no attention of ours ran in it.
    """
    found: list[AttentionMap] = []
    calls: dict[str, int] = {}

    def watch(name: str, module: PairwiseAttention) -> Any:
        signature = inspect.signature(module.forward)

        def look(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            given = signature.bind(*args, **kwargs).arguments
            call = calls[name] = calls.get(name, -1) + 1
            lengths, windows = given["lengths"], given.get("windows")
            of_modalities = lengths.shape[0] == len(MODALITIES)
            for p, (asking, answering) in enumerate(given["pairs"]):
                labels = [MODALITIES[m] if of_modalities else f"row {m}" for m in (asking, answering)]
                window = None if windows is None else windows[p]
                asks, answers = lengths[asking], lengths[answering]
                weights = attention_weights(given["q"][p], given["k"][p], asks, answers, window)
                found.append(AttentionMap(labels[0], labels[1], name, call, weights, asks, answers))

        return module.register_forward_pre_hook(look, with_kwargs=True)

    was_training = model.training
    with ExitStack() as hooks, torch.no_grad():
        for name, module in model.named_modules():
            if isinstance(module, PairwiseAttention):
                hooks.callback(watch(name, module).remove)
        model.eval()
        try:
            model(**inputs(batch))
        finally:
            model.train(was_training)
    if not found:
        raise AffectError(
            "model.no_attention",
            f"attention maps: expected a model that attends, got {type(model).__name__} "
            "in which no attention ran; choose another model, or turn its attention on",
        )
    return found


def plot_attention_map(
    found: AttentionMap,
    index: int,
    path: Path | None = None,
    *,
    head: int | None = None,
    asking_labels: Sequence[str] = (),
    answering_labels: Sequence[str] = (),
    title: str = "",
) -> Any:
    """Draw the map of one row of the batch; returns the matplotlib figure, written to ``path`` as PNG.

    Args:
        found: from :func:`attention_maps`.
        index: which row of the batch, 0 first.
        path: where to write; None: nowhere.
        head: which head; None: the mean of all.
        asking_labels: a label for each step that looks, words for example; none: numbers from 1.
        answering_labels: a label for each step that is looked at, likewise.
        title: none: which modality looks at which, and in which module.

    Raises ``plot.labels`` when there are labels, but not one for each valid step.
    """
    figure_class: Any = require("matplotlib.figure", "plot").Figure
    canvas_class: Any = require("matplotlib.backends.backend_agg", "plot").FigureCanvasAgg
    weights = found.weights[index].mean(0) if head is None else found.weights[index, head]
    rows, columns = int(found.asking_lengths[index]) + 1, int(found.answering_lengths[index]) + 1
    shown = weights[:rows, :columns].float().cpu().numpy()

    size = (min(16.0, 3.5 + 0.22 * columns), min(16.0, 2.5 + 0.22 * rows))
    figure = figure_class(figsize=size, dpi=120, facecolor="white", layout="constrained")
    canvas_class(figure)
    axes = figure.subplots()
    image = axes.imshow(shown, cmap="viridis", vmin=0.0, aspect="auto", interpolation="nearest")
    _label(axes.xaxis, answering_labels, columns - 1, found.answering)
    _label(axes.yaxis, asking_labels, rows - 1, found.asking)
    axes.tick_params(axis="x", rotation=90)
    # The null slot is no moment in time: a line sets it apart.
    axes.axvline(0.5, color="white", linewidth=1.5)
    axes.axhline(0.5, color="white", linewidth=1.5)
    axes.set_title(
        title or f"{found.asking} looks at {found.answering} ({found.module})",
        fontsize=10,
        parse_math=False,
    )
    figure.colorbar(image, ax=axes, label="attention weight")
    if path is not None:
        with warnings.catch_warnings():
            # Words in a script that the font lacks show boxes; nobody can do anything about it here.
            warnings.filterwarnings("ignore", message="Glyph .* missing from font", category=UserWarning)
            figure.savefig(path, format="png", metadata={"Software": "AffectRT"})
    return figure


def _label(axis: Any, labels: Sequence[str], steps: int, who: str) -> None:
    """Name the ticks of an axis of the null slot and ``steps`` steps."""
    if labels and len(labels) != steps:
        raise AffectError(
            "plot.labels",
            f"attention map: expected {steps} labels, one for each valid step of {who}, got {len(labels)}; "
            "give one for each or none",
        )
    named = len(labels) > 0 and steps <= MOST_LABELS
    every = 1 if named else max(1, -(-steps // 20))
    ticks = [0, *range(1, steps + 1, every)]
    texts = [NULL_LABEL, *(labels if named else (str(t) for t in ticks[1:]))]
    axis.set_ticks(ticks, texts, fontsize=8, parse_math=False)
    axis.set_label_text(f"{who}: {'words' if named else 'time step'} ({NULL_LABEL} null slot)")
