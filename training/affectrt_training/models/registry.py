"""All fusion models by name: the papers' systems and their peers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from importlib import import_module
from typing import TYPE_CHECKING, Literal

from affectrt.affect import MODALITIES, Modality
from affectrt.errors import AffectError

if TYPE_CHECKING:
    from affectrt_training.models.fusion import FusionModel


@dataclass(frozen=True)
class System:
    """One fusion model that can be trained by name."""

    name: str
    """What users type."""
    target: str
    """``module:class`` below ``affectrt_training.models``; loaded on use: listing is light."""
    kind: Literal["paper", "peer", "baseline"]
    """Of one of the five papers, a peer that they compare themselves with, or what both have to beat."""
    source: str
    """The paper."""
    summary: str
    """What makes it itself, in one line."""
    stated: str = ""
    """How many parameters the whole model has as a paper states it, and where; empty: none does."""

    def load(self) -> type[FusionModel]:
        """Its class."""
        module, name = self.target.split(":")
        found: type[FusionModel] = getattr(import_module(f"affectrt_training.models.{module}"), name)
        return found


_ALL = [
    System(
        "inpnrln-md", "inpnrln_md:InpnrlnMd", "paper", "ghrnn_cma §3.1",
        "self-attention over voice and face, outer products with text, contrastive loss",
    ),
    System(
        "ghrnn-cma", "ghrnn_cma:GhrnnCma", "paper", "ghrnn_cma §3.2",
        "text looks at voice and face, one-gate recurrences read the pairs",
    ),
    System(
        "mulg", "mulg:MulG", "paper", "mulg",
        "six directed cross-modal transformers, then a reset-before GRU per modality",
    ),
    System(
        "cm-msf", "cm_msf:CmMsf", "paper", "cm_msf",
        "two encoders a modality, cascaded cross-modal encoders, mask-gated GRU",
    ),
    System(
        "tmsam", "tmsam:Tmsam", "paper", "tmsam",
        "BiGRUs, two levels of cross-modal then self-attention, two tasks",
    ),
    System(
        "bert-inception", "bert_inception:BertInception", "paper", "bert_inception",
        "2D-Inception with self-attention over feature maps, InfoNCE within modalities",
    ),
    System("ef-lstm", "ef_lstm:EfLstm", "peer", "LSTM (1997)", "one LSTM, early fusion"),
    System("lf-lstm", "lf_lstm:LfLstm", "peer", "LSTM (1997)", "one LSTM a modality, late fusion"),
    System(
        "tfn", "tfn:Tfn", "peer", "arXiv:1707.07250", "outer product of the three modalities",
        stated="12.5 M (LMF, §5.3)",
    ),
    System(
        "lmf", "lmf:Lmf", "peer", "arXiv:1806.00064", "the outer product in low-rank factors",
        stated="1.1 M (§5.3)",
    ),
    System("mfn", "mfn:Mfn", "peer", "arXiv:1802.00927", "LSTMs side by side with a shared gated memory"),
    System("mult", "mult:MulT", "peer", "arXiv:1906.00295", "six directed cross-modal transformers"),
    System("text-mean", "text_mean:TextMean", "baseline", "arXiv:1908.10084", "mean of the text rows"),
]  # fmt: skip

SYSTEMS: Mapping[str, System] = {system.name: system for system in _ALL}
"""Name → system, the papers' first."""


def find_system(name: str) -> System:
    """The system of that name. Raises ``model.unknown``, with the nearest name."""
    if name not in SYSTEMS:
        near = get_close_matches(name, SYSTEMS, n=1, cutoff=0.4)
        raise AffectError(
            "model.unknown",
            f"unknown model '{name}'; expected one of {', '.join(SYSTEMS)}"
            + (f"; did you mean '{near[0]}'?" if near else ""),
        )
    return SYSTEMS[name]


def create(
    name: str, dims: Mapping[Modality, int], settings: Mapping[str, object] | None = None
) -> FusionModel:
    """A new model for features of these widths, with random weights.

    ``settings`` are fields of the model's config other than the widths. Raises ``model.unknown`` and
    ``config.unknown_key``, both with the nearest name, and ``config.value`` where a value makes no sense.
    """
    from affectrt_training.config import build

    kind = find_system(name).load()
    widths = {f"{m}_dim": dims[m] for m in MODALITIES}
    return kind(build(kind.Config, {**(settings or {}), **widths}, where="model"))
