"""The sections of a report, each a piece of Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from affectrt_training.evaluation.conclusion import Comparison
from affectrt_training.evaluation.contrasts import LEVEL, Contrast
from affectrt_training.evaluation.measures import EMOTION, MEASURES, SENTIMENT, Measure
from affectrt_training.evaluation.plan import SYSTEMS_THEMSELVES
from affectrt_training.evaluation.significance import RESAMPLES
from affectrt_training.evaluation.summary import BASELINE, Row
from affectrt_training.evaluation.tables import difference_text, p_text, plain_text, score_text, table

BETTER, WORSE = "▲", "▼"


def best_row(comparison: Comparison) -> Row:
    """The best paper or peer in the primary measure."""
    measure = MEASURES[comparison.primary]
    rows = [row for row in comparison.rows if row.kind in SYSTEMS_THEMSELVES]
    return max(rows, key=lambda row: _worth(row, measure))


def _worth(row: Row, measure: Measure) -> float:
    mean = row.scores[measure.name].mean
    return -float("inf") if mean is None else measure.sign * mean


def results(comparison: Comparison) -> str:
    """The main table, marked against the best peer."""
    marks = {
        (c.label, c.measure): _mark(c) for c in comparison.against_reference if c.examples_holm is not None
    }
    found = ["## Results"]
    for measures in (SENTIMENT, EMOTION):
        columns = [m for m in measures if m.name in comparison.rows[-1].scores and m.name != "acc5"]
        if columns:
            found.append(_score_table(comparison, columns, marks))
    kinds = {row.label: row.kind for row in comparison.rows}
    what = "peer" if kinds[comparison.reference] == "peer" else "system"
    found.append(
        f"Bold: best. {BETTER} better and {WORSE} worse than the best {what} in "
        f"{_primary(comparison).title}, `{comparison.reference}`: paired bootstrap over examples "
        f"({RESAMPLES} resamples), Holm-corrected over the rows of a column, p < {LEVEL:g}. "
        f"`{BASELINE}` knows no input: it stands for no skill."
    )
    return "\n\n".join(found)


def _score_table(
    comparison: Comparison, columns: Sequence[Measure], marks: Mapping[tuple[str, str], str]
) -> str:
    rows = [row for row in comparison.rows if row.kind != "variant"]
    skilled = [row for row in rows if row.kind != "trivial"]
    best = {m.name: max((_worth(row, m) for row in skilled), default=0.0) for m in columns}
    lines = []
    for row in rows:
        cells = []
        for m in columns:
            text = score_text(m, row.scores[m.name])
            if row.kind != "trivial" and row.scores[m.name].mean is not None:
                text = f"**{text}**" if _worth(row, m) == best[m.name] else text
            cells.append(text + marks.get((row.label, m.name), ""))
        lines.append([f"`{row.label}`" if row.kind != "trivial" else f"*{row.label}*", row.source, *cells])
    arrows = [f"{m.title} {'↓' if m.better == 'lower' else '↑'}" for m in columns]
    return table(["system", "source", *arrows], lines)


def _mark(contrast: Contrast) -> str:
    if contrast.examples is None or contrast.examples_holm is None or contrast.examples_holm >= LEVEL:
        return ""
    good = contrast.examples.value * MEASURES[contrast.measure].sign > 0
    return f" {BETTER if good else WORSE}"


def verdicts(comparison: Comparison) -> str:
    """What a hurried reader should take away."""
    measure = _primary(comparison)
    papers = {row.label for row in comparison.rows if row.kind == "paper"}
    lines = []
    for c in comparison.against_reference:
        if c.measure == measure.name and c.label in papers and c.examples is not None:
            mark = _mark(c).strip()
            verdict = {BETTER: "better than", WORSE: "behind", "": "level within noise with"}[mark]
            lines.append(
                f"- `{c.label}` is {verdict} `{c.reference}`: {measure.title} "
                f"{difference_text(measure, c.examples)}, p after Holm {p_text(c.examples_holm)}."
            )
    skilled = [c for c in comparison.against_baseline if _mark(c).strip() == BETTER]
    lines.append(
        f"- {len(skilled)} of {len(comparison.against_baseline)} rows beat `{BASELINE}` in {measure.title} "
        "beyond noise" + (": " + ", ".join(f"`{c.label}`" for c in skilled) if skilled else "") + "."
    )
    return "\n".join(lines)


def significance(comparison: Comparison) -> str:
    """Every row against the best peer and against no skill, with intervals."""
    folds = comparison.about["protocol"]["folds"]
    test = (
        "corrected resampled t-test over folds × seeds (Nadeau & Bengio 2003)"
        if folds
        else "paired t-test over seeds, which share their test examples: luck of training alone"
    )
    measure = _primary(comparison)
    chosen = [c for c in comparison.against_reference if c.measure == measure.name]
    if not chosen:
        return ""
    return (
        f"## Differences in {measure.title} from `{comparison.reference}`, and from no skill\n\n"
        f"95 % confidence intervals. *Examples*: paired bootstrap. *Trainings*: {test}. p after Holm.\n\n"
        + _contrast_table(chosen)
        + "\n\n"
        + _contrast_table(comparison.against_baseline)
    )


def _contrast_table(chosen: Sequence[Contrast]) -> str:
    lines = []
    for c in chosen:
        m = MEASURES[c.measure]
        lines.append(
            [
                f"`{c.label}` − `{c.reference}`",
                difference_text(m, c.examples), p_text(c.examples_holm),
                difference_text(m, c.trainings), p_text(c.trainings_holm),
            ]
        )  # fmt: skip
    return table(["rows", "examples", "p", "trainings", "p"], lines)


def variants(comparison: Comparison) -> str:
    """Rows that vary others, each against its base."""
    rows = {row.label: row for row in comparison.rows if row.kind == "variant"}
    if not rows:
        return ""
    columns = [m for m in MEASURES.values() if m.name in comparison.rows[-1].scores and m.name != "acc5"]
    bases = dict.fromkeys(row.base for row in rows.values())
    lines = []
    for row in comparison.rows:
        if row.label in bases or row.label in rows:
            lines.append([f"`{row.label}`", *(score_text(m, row.scores[m.name]) for m in columns)])
    parts = ["## Ablations", table(["row", *(m.title for m in columns)], lines)]
    if comparison.against_base:
        parts.append(_contrast_table(comparison.against_base))
    return "\n\n".join(parts)


def robustness(comparison: Comparison, pictures: Sequence[str]) -> Iterable[str]:
    """Missing and noisy modalities, and modalities alone."""
    if not comparison.curves:
        return
    measure = _primary(comparison)
    for kind, title, what in (
        (
            "missing",
            "Missing modalities",
            "Each example loses a modality with the chance on the axis; who has lost it at a rate has lost "
            "it at every higher one.",
        ),
        ("noise", "Noisy modalities", "Gaussian noise on every feature, in units of its standard deviation."),
    ):
        curves = [c for c in comparison.curves if c.kind == kind]
        if not curves:
            continue
        shown = [0, len(curves[0].at) // 2, len(curves[0].at) - 1] if kind == "missing" else range(4)
        head = ["system", "modality", *(f"at {curves[0].at[i]:g}" for i in shown), "mean over the curve"]
        lines = [
            [f"`{c.label}`", c.modality, *(score_text(measure, c.scores[i]) for i in shown),
             score_text(measure, c.area)]
            for c in curves
        ]  # fmt: skip
        yield f"## {title}\n\n{what} {measure.title}:\n\n{table(head, lines)}\n\n![{kind}]({kind}.png)"
    if comparison.retrained:
        lines = [
            [f"`{r.label}`", r.modality, score_text(measure, r.missing), score_text(measure, r.without),
             difference_text(measure, r.difference), p_text(r.p_holm)]
            for r in comparison.retrained
        ]  # fmt: skip
        head = ["system", "modality", "missing everywhere", "trained without it", "difference", "p"]
        yield (
            "### A modality missing everywhere, against a model that never had it\n\n"
            f"{measure.title}; paired bootstrap over examples, p after Holm.\n\n" + table(head, lines)
        )
    if "modalities.png" in pictures:
        lines = [
            [f"`{s.label}`", s.present.replace("+", " + "), score_text(measure, s.score)]
            for s in comparison.subsets
        ]
        yield (
            "## Modalities alone and together\n\nTrained with all, judged with some. "
            f"{measure.title}:\n\n{table(['system', 'present', measure.title], lines)}\n\n"
            "![modalities](modalities.png)"
        )


def confidence(comparison: Comparison) -> str:
    """Intervals and calibration error."""
    columns = {
        "interval_coverage": ("90 % interval covers, %", 100.0),
        "interval_width": ("its width", 1.0),
        "ece": ("ECE as trained, %", 100.0),
        "ece_calibrated": ("ECE with temperature, %", 100.0),
    }
    there = {k: v for k, v in columns.items() if k in comparison.rows[-1].scores}
    lines = []
    for row in comparison.rows:
        cells = [plain_text(row.scores[name], scale) for name, (_, scale) in there.items()]
        lines.append([f"`{row.label}`", *cells])
    return (
        "## Confidence\n\nIntervals are split-conformal and temperatures fitted on each part's validation "
        "rows, as the product does it. Width on the scale of −3 to 3, before it is clipped to it.\n\n"
        + table(["system", *(title for title, _ in there.values())], lines)
    )


def costs(comparison: Comparison) -> str:
    """Parameters, operations and training time."""
    lines = [
        [
            f"`{row.label}`",
            f"{row.parameters:,}" if row.parameters is not None else "–",
            f"{row.mflops:.1f}" if row.mflops is not None else "–",
            f"{row.train_s:.1f}" if row.train_s is not None else "–",
            f"{row.best_epoch:.0f}" if row.best_epoch is not None else "–",
        ]
        for row in comparison.rows
        if row.kind != "trivial"
    ]
    text = "## Cost\n\nOf the fusion model; one forward pass of an example of median length.\n\n" + table(
        ["system", "parameters", "MFLOPs", "CPU seconds a training", "best epoch, mean"], lines
    )
    if cut := [f"`{row.label}`" for row in comparison.rows if _was_cut(row)]:
        text += f"\n\nBest near the last epoch of the budget, and perhaps better with more: {', '.join(cut)}."
    return text


def _was_cut(row: Row) -> bool:
    """Whether training would probably have gone on improving."""
    return row.best_epoch is not None and row.best_epoch > 0.9 * row.settings["training"]["epochs"]


def _primary(comparison: Comparison) -> Measure:
    return MEASURES[comparison.primary]
