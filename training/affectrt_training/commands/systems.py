"""``affectrt systems``: which fusion models can be trained, and what each of them costs."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING

from affectrt.cli import Command
from affectrt.errors import require

if TYPE_CHECKING:
    from affectrt.affect import Modality


def describe(dims: dict[Modality, int], steps: int) -> dict[str, object]:
    """All systems with their default configs, for features of these widths, over so many rows a modality.

    Keys of each: ``name``, ``kind``, ``source``, ``summary``, ``parameters`` (of the fusion model alone),
    ``flops`` of one forward pass over one clip, and ``stated``: the size that a paper states, "" where none
    does.
    """
    from affectrt_training.models.cost import forward_flops, parameters
    from affectrt_training.models.registry import SYSTEMS, create

    listed = []
    for system in SYSTEMS.values():
        model = create(system.name, dims)
        listed.append(
            {
                "name": system.name,
                "kind": system.kind,
                "source": system.source,
                "summary": system.summary,
                "parameters": parameters(model),
                "flops": forward_flops(model, dict.fromkeys(dims, steps)),
                "stated": system.stated,
            }
        )
    return {"dims": dims, "steps": steps, "systems": listed}


def table(told: dict[str, object]) -> str:
    """What :func:`describe` found, in at most 90 columns."""
    systems, dims = told["systems"], told["dims"]
    assert isinstance(systems, list) and isinstance(dims, dict)
    lines = [f"{'name':<15}{'kind':<9}{'parameters':>11}{'MFLOPs':>9}  {'source':<18}stated size"]
    for system in systems:
        lines += [
            f"{system['name']:<15}{system['kind']:<9}{system['parameters']:>11,}{system['flops'] / 1e6:>9.1f}"
            f"  {system['source']:<18}{system['stated'] or '–'}",
            f"  {system['summary']}",
        ]
    widths = ", ".join(f"{modality} {dim}" for modality, dim in dims.items())
    return "\n".join(
        [
            *lines,
            "",
            f"Features a row: {widths}; {told['steps']} rows of each; default configs.",
            "Encoders are not counted. MFLOPs: multiplications and additions of matrix products,",
            "convolutions, recurrences and attention, in one forward pass over one clip.",
            "Stated sizes are of models with the papers' own widths.",
            "",
        ]
    )


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print the list as JSON")
    for modality, dim in (("text", 384), ("audio", 43), ("vision", 41)):
        parser.add_argument(
            f"--{modality}-dim",
            type=_positive,
            default=dim,
            metavar="N",
            help=f"features per {modality} row (default: %(default)s)",
        )
    parser.add_argument(
        "--steps", type=_positive, default=20, metavar="N", help="rows per modality (default: %(default)s)"
    )


def _positive(text: str) -> int:
    number = int(text) if text.isdecimal() else 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected a number above 0, got '{text}'")
    return number


def _run(args: argparse.Namespace) -> int:
    require("torch", "train")
    told = describe({"text": args.text_dim, "audio": args.audio_dim, "vision": args.vision_dim}, args.steps)
    print(json.dumps(told, indent=1, ensure_ascii=False) if args.json else table(told), end="")
    return 0


COMMAND = Command(
    summary="List the fusion models that can be trained, with their size and cost.",
    add_arguments=_add_arguments,
    run=_run,
    examples="""\
The default widths are those of POM movie reviews with a MiniLM text encoder.

examples:
  affectrt systems
  affectrt systems --text-dim 768 --audio-dim 5 --vision-dim 20 --steps 50 --json     # MOSI, aligned
""",
)
