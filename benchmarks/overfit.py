"""Can every system learn 32 examples by heart? One that can't has a fault, whatever else it scores.

Run from the repository root:

    python -m benchmarks.overfit --data FILE [--label-range LO HI] [--set text.rows=window] [--models A,B]

Trains each system with Adam at 1e-3 on the first 32 examples that have a sentiment, and prints the step at
which the mean absolute error on them, on the scale [-3, 3] and with dropout off, first falls below 0.1. The
exit status is 1 when a system never gets there.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from time import process_time

import torch
from torch import Tensor

from affectrt.affect import Modality
from affectrt.errors import AffectError
from affectrt_training.commands.data_options import add_data_options, read_data
from affectrt_training.config import build, read_settings
from affectrt_training.data.dataset import Dataset, collate, inputs
from affectrt_training.data.text_rows import with_text_rows
from affectrt_training.encoders.text import TextSettings
from affectrt_training.fit.prepare import all_dims
from affectrt_training.losses import masked_l1
from affectrt_training.models.registry import SYSTEMS, create

EXAMPLES = 32
ENOUGH = 0.1
"""On the scale [-3, 3]."""
CHECK_STEPS = 25
"""Between two looks at the error."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Train, print, say who failed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.overfit", description=__doc__.split("\n")[0])
    add_data_options(parser, splitting=False)
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="text.… settings")
    twelve = ",".join(name for name, system in SYSTEMS.items() if system.kind != "baseline")
    parser.add_argument("--models", default=twelve, help="by name (default: all but the baseline)")
    parser.add_argument("--steps", type=int, default=1000, help="at most (default: %(default)s)")
    args = parser.parse_args(arguments)
    try:
        settings = read_settings(None, args.set).get("text", {})
        assert isinstance(settings, dict)
        dataset = with_text_rows(read_data(args), build(TextSettings, settings, where="text"))
        batch, dims = first_examples(dataset)
        print(f"{dataset.name}: {len(batch['sentiment'])} examples, {dims}")
        results = [learn(name, batch, dims, args.steps) for name in args.models.split(",")]
    except AffectError as error:
        print(error, file=sys.stderr)
        return 2
    return 0 if all(results) else 1


def first_examples(dataset: Dataset) -> tuple[dict[str, Tensor], dict[Modality, int]]:
    """One batch, and the widths of its features."""
    dims = all_dims(dataset.dims)
    rated = [e for part in dataset.splits.values() for e in part if e.sentiment is not None]
    return collate(rated[:EXAMPLES], dims), dims


def learn(name: str, batch: Mapping[str, Tensor], dims: Mapping[Modality, int], steps: int) -> bool:
    """Train one system and print how far it got."""
    torch.manual_seed(0)
    model = create(name, dims)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    begin = process_time()
    for step in range(1, steps + 1):
        model.train()
        loss = masked_l1(model(**inputs(batch))[0], batch["sentiment"])
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        if step % CHECK_STEPS == 0 or step == steps:
            model.eval()
            with torch.no_grad():
                error = float(masked_l1(model(**inputs(batch))[0], batch["sentiment"]))
            if error < ENOUGH:
                break
    good = error < ENOUGH
    told = "" if good else f"  not below {ENOUGH}"
    print(
        f"{name:<15} MAE {error:.3f}  step {step:>4}  {process_time() - begin:5.0f} s of CPU{told}",
        flush=True,
    )
    return good


if __name__ == "__main__":
    sys.exit(main())
