"""MMSA's own systems beside ours: the same features, folds and seeds, one report.

Run from the repository root, with the options of ``affectrt compare`` and the same ``-o`` or ``--work``:
``python -m benchmarks.peers_mmsa --data pom_trimodal.npz --label-range 1 7 --folds 5 --set text.rows=window
-o docs/results/pom``. Trainings that ``affectrt compare`` has finished with those options are not repeated,
nor are MMSA's. The report is compare's, with rows named MMSA, and a section on them at its end.

MMSA (https://github.com/thuiar/MMSA) trains with its own code and its own hyper-parameters for CMU-MOSI, in
an environment of its own; of what it measures nothing is used but its predictions. It chooses epochs by the
validation loss; see :mod:`benchmarks.peers.mmsa_worker` for what had to be changed from outside. A system of
which a training failed, or predicted NaN or one number for all, gets no row; the report says so, and the exit
status is 1.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from affectrt.cli.output import progress
from affectrt.errors import AffectError
from affectrt_training.commands.compare import COMMAND, entries_of, without_paths
from affectrt_training.commands.data_options import load_dataset, read_data
from affectrt_training.data.dataset import Dataset
from affectrt_training.data.text_rows import with_text_rows
from affectrt_training.evaluation.compare import Protocol, compare
from affectrt_training.evaluation.conclusion import Comparison, conclude
from affectrt_training.evaluation.contrasts import contrasts
from affectrt_training.evaluation.fits import Fit, Fitted, load, path_of
from affectrt_training.evaluation.measures import MEASURES
from affectrt_training.evaluation.plan import Entry, Part, parts_of
from affectrt_training.evaluation.report import write_report
from affectrt_training.evaluation.sections import results
from affectrt_training.evaluation.summary import pool, truth_of
from affectrt_training.evaluation.tables import difference_text, p_text, table
from affectrt_training.fit.storage import read_tensors, write_bytes
from benchmarks.peers import mmsa
from benchmarks.peers.mmsa_fits import Peer, PeerFit, peers_of, train

NO_LIMIT = 1_000_000
"""MMSA trains until its early stop; reports want a number of epochs."""
MAIN = ("ghrnn-cma", "mulg")
"""Of our rows: those that MMSA's are held against one by one."""


def beside(
    ours: Comparison,
    entries: Sequence[Entry],
    dataset: Dataset,
    parts: Sequence[Part],
    peers: Sequence[Peer],
    fits: Mapping[str, Sequence[Sequence[PeerFit]]],
    work: Path,
) -> Comparison:
    """The comparison with MMSA's rows in it, from finished fits: ``fits[label][seed][part]``.

    ``ours``: without them; ``work``: where the fits of its entries lie. Peers with a fit that isn't there get
    no row.
    """
    seeds = ours.about["protocol"]["seeds"]
    by_entry = {e.label: _loaded([_ours(e, dataset, parts, seed, work) for seed in seeds]) for e in entries}
    rows_of = {peer.label: _loaded(fits[peer.label]) for peer in peers}
    whole = [peer for peer in peers if all(fit is not None for seed in rows_of[peer.label] for fit in seed)]
    failed = {
        peer.label: [
            f"{fit.part.name}, seed {fit.seed}"
            for seed, found in zip(fits[peer.label], rows_of[peer.label], strict=True)
            for fit, fitted in zip(seed, found, strict=True)
            if fitted is None
        ]
        for peer in peers
        if peer not in whole
    }
    there: dict[str, list[list[Fitted]]] = {
        label: [[fit for fit in seed if fit is not None] for seed in found]
        for label, found in {**by_entry, **{peer.label: rows_of[peer.label] for peer in whole}}.items()
    }
    settings = {peer.label: _settings(fits[peer.label][0][0]) for peer in whole}
    note = "Rows named MMSA are trained by its own code, with its own budget: see the section on it."
    data = {**ours.about["data"], "notes": [*ours.about["data"]["notes"], note]}
    all_entries = [*entries, *(peer.entry(entries[0]) for peer in whole)]
    texts = dict.fromkeys((e.config.text for e in all_entries), dataset)
    found = conclude(all_entries, parts, there, texts, {**ours.about, "data": data})

    truth = truth_of(example for part in parts for example in part.held)
    labels = [peer.label for peer in whole]
    main = [entry.label for entry in entries if entry.label in MAIN]
    answers = {label: pool(parts, there[label]) for label in [*labels, *main]}
    measure = MEASURES[found.primary]
    against = [c for one in main for c in contrasts(labels, one, measure, answers, truth, parts)]
    first = fits[peers[0].label][0][0]
    about = {
        **found.about,
        "mmsa": {
            "version": mmsa.VERSION,
            "padding": first.padding,
            "epochs_cap": first.epochs_cap,
            "failed": failed,
            "changed": {peer.label: dict(peer.settings) for peer in peers if peer.settings},
            "against_ours": against,
        },
    }
    rows = [
        replace(row, source=f"MMSA {mmsa.VERSION}", mflops=None, settings=settings[row.label])
        if row.label in settings
        else row
        for row in found.rows
    ]
    return replace(found, about=about, rows=rows)


def _settings(fit: PeerFit) -> dict[str, Any]:
    """What MMSA trained with, under the names that reports look for."""
    used = read_tensors(fit.path)[1]["settings"]
    epochs = fit.epochs_cap or NO_LIMIT
    return {"model": used, "training": {"epochs": epochs, "patience": used["early_stop"]}}


def _ours(entry: Entry, dataset: Dataset, parts: Sequence[Part], seed: int, work: Path) -> list[Fit]:
    return [Fit(entry, dataset, p, seed, path_of(work, entry.label, p.name, seed)) for p in parts]


def _loaded(fits: Sequence[Sequence[Fit]]) -> list[list[Fitted | None]]:
    return [[load(fit) for fit in seed] for seed in fits]


def section(about: Mapping[str, Any], primary: str) -> str:
    """What the report says of MMSA, as Markdown."""
    theirs, measure = about["mmsa"], MEASURES[primary]
    where = "before" if theirs["padding"] == "front" else "after"
    cap, against = theirs["epochs_cap"], theirs["against_ours"]
    lines = [
        f"## MMSA\n\nMMSA {theirs['version']} trained its own models with its own code and its hyper-"
        "parameters for CMU-MOSI (listed above as settings) on the features, parts and seeds of all other "
        "rows. Its early stop counts 8 epochs without a lower loss on the validation rows"
        + (f"; here at most {cap} epochs." if cap else ".")
        + " The held-out rows were read once, after training. Its measures were not used.",
        f"Zeros stand {where} shorter sequences: its networks have no masks, and most read the last step.",
        "As MMSA has it: MFN, TFN, LMF and LF_DNN see the mean of audio and vision over all steps, padding "
        "included; MFN and Graph_MFN repeat the last row of shorter modalities to the text's length; LMF "
        "never trains its fusion weights; MULT takes a step every 8 batches and drops those left over at the "
        "end of an epoch.",
    ]
    if theirs["changed"]:
        changes = [f"`{label}`: `{json.dumps(change)}`" for label, change in theirs["changed"].items()]
        lines.append("Changed on purpose: " + "; ".join(changes) + ".")
    lines += [
        f"**No row for `{label}`**: it failed, or predicted NaN or one number for all, in {len(which)} "
        f"trainings ({'; '.join(which[:3])}{' …' if len(which) > 3 else ''})."
        for label, which in theirs["failed"].items()
    ]
    if against:
        cells = [
            [
                f"`{c.label}` − `{c.reference}`",
                difference_text(measure, c.examples), p_text(c.examples_holm),
                difference_text(measure, c.trainings), p_text(c.trainings_holm),
            ]
            for c in against
        ]  # fmt: skip
        head = ["rows", "examples", "p", "trainings", "p"]
        lines.append(
            f"### {measure.title}, MMSA's against ours\n\nIntervals and tests as above; Holm's correction "
            f"over the rows against one of ours.\n\n{table(head, cells)}"
        )
    return "\n\n".join(lines) + "\n"


def run(args: argparse.Namespace) -> int:
    """Train what isn't there, compare, write."""
    peers = peers_of(args.peers, args.peer_variant)
    if args.fold is not None:
        raise AffectError("cli.usage", "--fold: a comparison holds out every fold in turn; leave it out")
    dataset = load_dataset(args) if args.folds is None else read_data(args)
    entries = entries_of(args, dataset)
    text = entries[0].config.text
    if text.tuning != "frozen" or any(entry.config.text != text for entry in entries):
        raise AffectError("peers.text", "expected one frozen text encoder for all rows, MMSA's included")
    work = args.work or args.output / "work"
    # Ours first: it checks settings, and its folder holds the fits of both.
    ours = compare(dataset, entries, Protocol(args.folds, range(args.seeds), args.jobs, args.cache), work)
    dataset = with_text_rows(dataset, text, args.cache)
    parts = parts_of(dataset, args.folds)
    fits = {
        peer.label: [
            [
                PeerFit(
                    peer.entry(entries[0]), dataset, part, seed, path_of(work, peer.label, part.name, seed),
                    peer=peer, padding=args.padding, epochs_cap=args.epochs_cap,
                )
                for part in parts
            ]
            for seed in range(args.seeds)
        ]
        for peer in peers
    }  # fmt: skip
    # Seed by seed, so that what a killed run leaves behind covers all rows.
    in_order = [fit for seed in zip(*fits.values(), strict=True) for of_peer in seed for fit in of_peer]
    with progress("training MMSA's", len(in_order), "fits") as tell:
        trained = train(in_order, args.jobs, args.env, work / "logs", tell)
    comparison = beside(ours, entries, dataset, parts, peers, fits, work)
    command = shlex.join(["python", "-m", "benchmarks.peers_mmsa", *sys.argv[1:]])
    comparison = replace(comparison, about={**comparison.about, "command": command})
    files = write_report(comparison, args.output, without_paths)
    report = args.output / "report.md"
    told = without_paths(section(comparison.about, comparison.primary))
    write_bytes(report, f"{report.read_text()}\n{told}".encode())
    print(f"{results(comparison)}\n\n{told}")
    print("\n".join(map(str, files)))
    return int(None in trained)


def main() -> int:
    """Parse, run, name the fault."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.peers_mmsa",
        description="MMSA's own systems beside ours, in one report; other options as 'affectrt compare'.",
    )
    COMMAND.add_arguments(parser)
    parser.add_argument(
        "--peers",
        default=",".join(mmsa.MODELS),
        metavar="A,B,…",
        help=f"which systems of MMSA's (default: {', '.join(mmsa.MODELS)})",
    )
    parser.add_argument(
        "--peer-variant",
        action="append",
        default=[],
        metavar="'SYSTEM …: KEY=VALUE …'",
        help="one more row, of that system with other hyper-parameters than MMSA's own",
    )
    parser.add_argument(
        "--padding",
        choices=("front", "behind"),
        default="front",
        help="where zeros fill shorter sequences (default: front, as MMSA's networks read the last step)",
    )
    parser.add_argument(
        "--epochs-cap",
        type=int,
        metavar="N",
        help="most epochs of each (default: MMSA's early stop alone)",
    )
    parser.add_argument(
        "--env",
        type=Path,
        default=Path("build/mmsa-env"),
        metavar="DIR",
        help="environment with MMSA, made where there is none (default: build/mmsa-env)",
    )
    try:
        return run(parser.parse_args())
    except AffectError as error:
        print(f"{error.code}: {error.message}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
