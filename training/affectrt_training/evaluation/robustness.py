"""What happens when a modality is missing or noisy: the same examples, made worse in measured steps."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from affectrt.affect import MODALITIES, Modality
from affectrt.calibration import PRESENCE_KEYS
from affectrt_training.data.dataset import Example

RATES = tuple(round(0.1 * k, 1) for k in range(11))
"""Shares of examples that lose a modality."""

NOISE = (0.0, 0.5, 1.0, 2.0)
"""Standard deviations of added noise, in units of each feature's own."""

SUBSETS = tuple(key for key in PRESENCE_KEYS if key != "none")
"""All seven ways to keep at least one modality, as presence keys; the fullest first."""


def keep(examples: Sequence[Example], modalities: Collection[str]) -> list[Example]:
    """The same examples with these modalities alone; the words go with the text."""
    return [
        replace(
            example,
            rows={m: rows for m, rows in example.rows.items() if m in modalities},
            words=example.words if "text" in modalities else (),
        )
        for example in examples
    ]


def lose(examples: Sequence[Example], modality: Modality, rate: float, seed: int = 0) -> list[Example]:
    """Each example loses ``modality`` with chance ``rate``, in [0, 1].

    Nested: whoever has lost it at a rate has lost it at every higher one, so a curve over rates isn't shaken
    by drawing anew. At 1 all have lost it.
    """
    draws = np.random.default_rng([seed, MODALITIES.index(modality)]).random(len(examples))
    others = [m for m in MODALITIES if m != modality]
    return [
        keep([example], others)[0] if draw < rate else example
        for example, draw in zip(examples, draws, strict=True)
    ]


def spread(examples: Sequence[Example]) -> dict[Modality, npt.NDArray[np.float32]]:
    """Standard deviation (D,) of each feature over all rows, of each modality that occurs."""
    rows = {m: [e.rows[m] for e in examples if m in e.rows] for m in MODALITIES}
    return {m: np.concatenate(found).std(0) for m, found in rows.items() if found}


def add_noise(
    examples: Sequence[Example],
    modality: Modality,
    scale: float,
    spreads: Mapping[Modality, npt.NDArray[np.float32]],
    seed: int = 0,
) -> list[Example]:
    """Gaussian noise on every row of ``modality``, ``scale`` times the feature's ``spreads``.

    The draws depend on the seed alone: at twice the scale the same noise is twice as strong.
    """
    generator = np.random.default_rng([seed, MODALITIES.index(modality)])
    noisy = []
    for example in examples:
        rows = dict(example.rows)
        if modality in rows:
            draws = generator.standard_normal(rows[modality].shape, dtype=np.float32)
            rows[modality] = rows[modality] + np.float32(scale) * spreads[modality] * draws
        noisy.append(replace(example, rows=rows))
    return noisy


def conditions(
    examples: Sequence[Example], spreads: Mapping[Modality, npt.NDArray[np.float32]], seed: int = 0
) -> dict[str, list[Example]]:
    """All made-worse copies of ``examples`` by name.

    Names: ``missing/audio/0.3``, ``noise/audio/0.5``, ``only/text+vision``. What would leave the examples as
    they are is left out, and so is noise on modalities without ``spreads``: words that a tuned encoder reads.
    """
    there = [m for m in MODALITIES if any(m in e.rows or (m == "text" and e.words) for e in examples)]
    found = {f"missing/{m}/{rate}": lose(examples, m, rate, seed) for m in there for rate in RATES[1:]}
    for m in spreads:
        for scale in NOISE[1:]:
            found[f"noise/{m}/{scale}"] = add_noise(examples, m, scale, spreads, seed)
    for key in SUBSETS:
        kept = key.split("+")
        if set(kept) < set(there):
            found[f"only/{key}"] = keep(examples, kept)
    return found


def area(rates: Sequence[float], values: Sequence[float]) -> float:
    """Area under a curve over the rates, by trapezia, divided by their range: the mean height."""
    x, y = np.asarray(rates, np.float64), np.asarray(values, np.float64)
    return float((np.diff(x) * (y[1:] + y[:-1]) / 2).sum() / (x[-1] - x[0]))
