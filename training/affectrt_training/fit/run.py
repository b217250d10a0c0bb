"""Train one system on one data set."""

from __future__ import annotations

import logging
import math
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.seed import isolate_rng

from affectrt.cli.output import progress as progress_bar
from affectrt.errors import AffectError, require
from affectrt_training.data.dataset import RAW_CLIPS, Dataset
from affectrt_training.data.text_rows import with_text_rows
from affectrt_training.encoders.text import TextEncoder
from affectrt_training.fit.calibrate import calibrate, rows_told
from affectrt_training.fit.checkpoint import Fitted, begin_run, finish_run, is_finished, load_run
from affectrt_training.fit.course import Course, Progress, read_state, tell
from affectrt_training.fit.network import Network
from affectrt_training.fit.prepare import Reader, all_dims, check_labels, check_rows, fingerprint, text_from
from affectrt_training.fit.settings import RunConfig, TrainingConfig
from affectrt_training.fit.stage import Stage, seed_all
from affectrt_training.models.registry import create

EMOTION_METRICS = frozenset({"accuracy", "weighted_f1", "uar"})
"""Those of ``training.select`` that need emotion labels; the others need sentiments."""


def fit_run(
    config: RunConfig,
    dataset: Dataset,
    folder: Path | None = None,
    *,
    train: str = "train",
    valid: str = "valid",
    resume: bool = False,
    progress: bool = True,
    cache: Path | None = None,
    start: Fitted | None = None,
) -> Fitted:
    """Train on a split, choose the best epoch on another, and return the model with its weights.

    With a ``folder``, weights, metrics and settings are kept there, and after every epoch the state, from
    which ``resume`` goes on; without ``resume`` what lies there is replaced. Resumed on the same machine, a
    run ends with the very weights that it would have had uninterrupted. ``cache``: where a frozen text
    encoder keeps its rows. ``start``: a run of the same model and encoder, with whose weights
    this one begins.

    Raises ``data.no_split``, ``data.empty_split``, ``data.label``, ``data.shape``, ``data.values``,
    ``data.no_words``, ``model.unknown``, ``config.unknown_key``, ``config.value``, ``checkpoint.corrupt``,
    ``checkpoint.mismatch``, ``train.devices`` and ``train.diverged``.
    """
    training = config.training
    for split in (train, valid):
        check_labels(dataset, split)
    select = selected_metric(training, dataset, valid)
    used = replace(dataset, splits={name: dataset.split(name) for name in (train, valid)})
    source = text_from(used, config.text)
    data: dict[str, Any] = {
        "name": dataset.name,
        "splits": {name: len(part) for name, part in used.splits.items()},
        "label_range": list(dataset.label_range),
        "sha256": {name: fingerprint([part]) for name, part in used.splits.items()},
        "modalities": list(used.modalities),
        "clips": _clip_extractor() if dataset.format == RAW_CLIPS else None,
    }
    with isolate_rng(), _quietly():
        seed_all(training.seed, 0)
        encoder = None
        if source == "words" and config.text.tuning != "frozen":
            encoder = TextEncoder(config.text)
            used = replace(used, dims={**used.dims, "text": encoder.dim})
        elif source == "words":
            used = with_text_rows(used, config.text, cache, progress)
        reader = Reader(source, config.text, all_dims(used.dims))
        train_set, valid_set = (reader.read(used.split(name), cache, progress) for name in (train, valid))
        for name, examples in ((train, train_set), (valid, valid_set)):
            check_rows(examples.examples, reader.dims, f"{dataset.name}, split '{name}'")
        data["rows"] = rows_told(train_set.examples)
        # Of its own seed, so that a model's first weights don't depend on whether an encoder was made before.
        seed_all(training.seed, 0)
        network = Network(create(config.system, reader.dims, config.model), encoder)
        if start is not None:
            _begin_with(network, start)
        now, state = Progress(), None
        main = is_main()
        if folder is not None:
            if main:
                described = {"config": config.to_dict(), "dims": reader.dims, "text_from": source}
                begin_run(folder, {**described, "data": data}, resume=resume)
            if resume and is_finished(folder):
                return load_run(folder)
            if resume and (found := read_state(folder)):
                now, state = found
                _put_back(network, state["network"], folder)
        if not now.over(training.epochs, training.patience):
            stage = Stage(config, network, train_set, valid_set, first_epoch=now.epoch, resumed=state)
            with _shown(config, len(train_set), progress and main) as (say, update):
                course = Course(select, now, folder=folder, say=say, update=update)
                _train(training, stage, course, folder)
        network.put_back(now.best_weights)
        network.eval()
        calibration = None
        if folder is not None and main:
            calibration = calibrate(network, valid_set, used.modalities)
    fitted = Fitted(
        model=network.fusion,
        config=config,
        dims=reader.dims,
        best_epoch=now.best_epoch,
        history=now.history,
        metrics=now.best_metrics,
        text_from=source,
        encoder=encoder,
        data=data,
        calibration=calibration,
    )
    if folder is not None and main:
        finish_run(folder, fitted)
    return fitted


def selected_metric(training: TrainingConfig, dataset: Dataset, valid: str) -> str:
    """The metric to choose by. Raises ``data.label`` where the validation split lacks its labels."""
    examples = dataset.split(valid)
    rated = any(e.sentiment is not None for e in examples)
    if training.select == "auto":
        return "mae" if rated else "weighted_f1"
    needs_emotion = training.select in EMOTION_METRICS
    if not (any(e.emotion is not None for e in examples) if needs_emotion else rated):
        raise AffectError(
            "data.label",
            f"{dataset.name}, split '{valid}': training.select '{training.select}' needs "
            f"{'emotion' if needs_emotion else 'sentiment'} labels, there are none; set training.select=auto",
        )
    return training.select


def _clip_extractor() -> str:
    from affectrt_training.data.raw import ClipExtractor

    return ClipExtractor().key


def is_main() -> bool:
    """Whether this is the one process of a distributed training that writes and tells."""
    return int(getattr(rank_zero_only, "rank", 0)) == 0


def _begin_with(network: Network, start: Fitted) -> None:
    try:
        network.put_back(Network(start.model, start.encoder).learnt())
    except RuntimeError as error:
        raise AffectError(
            "checkpoint.mismatch",
            f"the run to start from ({start.config.system}) is of another model: {error}; start from one "
            f"with the same system, settings and feature widths",
        ) from error


def _put_back(network: Network, weights: Any, folder: Path) -> None:
    try:
        network.put_back(weights)
    except RuntimeError as error:
        raise AffectError(
            "checkpoint.mismatch", f"{folder}: the interrupted run had another model: {error}; begin again"
        ) from error


def _train(training: TrainingConfig, stage: Stage, course: Course, folder: Path | None) -> None:
    """Let Lightning run the epochs that are left."""
    if training.precision == "16-mixed" and not _on_gpu(training):
        raise AffectError(
            "train.devices", "training.precision 16-mixed needs a GPU; set bf16-mixed or 32-true"
        )
    try:
        trainer = lightning.Trainer(
            max_epochs=training.epochs - stage.first_epoch,
            accelerator=training.accelerator,
            devices=training.devices,
            num_nodes=training.nodes,
            strategy=_strategy(training),
            precision=training.precision,
            gradient_clip_val=training.gradient_clip or None,
            logger=_tensorboard(folder) if training.logger == "tensorboard" and folder else False,
            callbacks=[course],
            log_every_n_steps=1,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,
            sync_batchnorm=training.devices * training.nodes > 1,
        )
    except (MisconfigurationException, ValueError) as error:
        raise AffectError(
            "train.devices",
            f"training can't start on {training.devices} × {training.accelerator} with precision "
            f"{training.precision}: {error}",
        ) from error
    if stage.resumed is not None:
        trainer.precision_plugin.load_state_dict(stage.resumed["precision"])
    interrupts = signal.getsignal(signal.SIGINT)
    try:
        trainer.fit(stage)
    except SystemExit as error:
        # What Lightning makes of Ctrl-C, after it has stopped listening to any further one.
        signal.signal(signal.SIGINT, interrupts)
        if isinstance(error.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from error
        raise
    if trainer.interrupted:  # older versions of Lightning call that an end
        raise KeyboardInterrupt


def _strategy(training: TrainingConfig) -> str | DDPStrategy:
    if training.devices * training.nodes == 1:
        return "auto"
    return DDPStrategy(process_group_backend="nccl" if _on_gpu(training) else "gloo")


def _on_gpu(training: TrainingConfig) -> bool:
    return training.accelerator != "cpu" and torch.cuda.is_available()


def _tensorboard(folder: Path) -> Any:
    require("tensorboard", "train")
    from lightning.pytorch.loggers import TensorBoardLogger

    return TensorBoardLogger(folder, name="", version="")


@contextmanager
def _quietly() -> Iterator[None]:
    """Without what Lightning tells about itself; faults are raised, not told."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            # Sets that lie in memory need no workers.
            warnings.filterwarnings("ignore", message=".*does not have many workers.*")
            # A frozen or eval-mode part (dropout off) is as it should be.
            warnings.filterwarnings("ignore", message=".*module\\(s\\) in eval mode.*")
            # Between the libraries themselves: nothing that a user of ours could mend.
            warnings.filterwarnings("ignore", message=".*LeafSpec.*")
            # A GPU that lies idle because training.accelerator says so.
            warnings.filterwarnings("ignore", message=".*available but not used.*")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextmanager
def _shown(
    config: RunConfig, examples: int, progress: bool
) -> Iterator[tuple[Callable[[str], None] | None, Callable[[float], None] | None]]:
    """How to tell of an epoch and of a step: a line and, on a terminal, a bar on stderr."""
    if not progress:
        yield None, None
        return
    with ExitStack() as stack:
        update = None
        if sys.stderr.isatty():
            steps = config.training.epochs * math.ceil(examples / config.training.batch_size)
            update = stack.enter_context(progress_bar(f"training {config.system}", steps, "steps"))
        yield tell, update
