"""What happens between epochs: keep the best weights, stop in time, write down how it went."""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from affectrt.errors import AffectError
from affectrt_training.fit.score import LOWER_IS_BETTER
from affectrt_training.fit.stage import Stage
from affectrt_training.fit.storage import pack, read_tensors, unpack, write_bytes, write_tensors

STATE = Path("state") / "state.safetensors"
"""In a run folder: all that a killed training needs to go on."""

PARTS = ("network", "optimizer", "schedule", "precision")
"""Of the state, beside the progress."""

HISTORY = "metrics.csv"
"""In a run folder: a row an epoch."""


@dataclass
class Progress:
    """How a run stands after its last finished epoch."""

    history: list[dict[str, float | int | None]] = field(default_factory=list)
    """A row an epoch: ``epoch`` from 1, ``lr``, ``loss``, and the metrics of the validation split."""
    best_epoch: int = 0
    """From 1; 0: none yet."""
    best_score: float = -float("inf")
    """Higher is better."""
    best_metrics: dict[str, object] = field(default_factory=dict)
    """Validation metrics of the best epoch."""
    best_weights: dict[str, Tensor] = field(default_factory=dict)
    """On the CPU."""

    @property
    def epoch(self) -> int:
        """Finished epochs."""
        return len(self.history)

    def over(self, epochs: int, patience: int) -> bool:
        """Whether there is nothing left to train."""
        return self.epoch >= epochs or self.epoch - self.best_epoch >= patience


class Course(Callback):
    """Lightning calls it; ``progress`` holds what came of it."""

    def __init__(
        self,
        select: str,
        progress: Progress,
        *,
        folder: Path | None = None,
        say: Callable[[str], None] | None = None,
        update: Callable[[float], None] | None = None,
    ) -> None:
        self.select, self.progress = select, progress
        self.folder, self.say, self.update = folder, say, update

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, *_: Any
    ) -> None:
        """Move the progress bar."""
        if self.update is not None:
            assert isinstance(pl_module, Stage)
            per_epoch = int(trainer.num_training_batches)
            self.update(pl_module.first_epoch * per_epoch + trainer.global_step)

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """After validation. Raises ``train.diverged``."""
        assert isinstance(pl_module, Stage)
        stage, training, now = pl_module, pl_module.run_config.training, self.progress
        lr = float(trainer.optimizers[0].param_groups[0]["lr"])
        if not abs(stage.loss) < float("inf") or not stage.metrics:
            raise AffectError(
                "train.diverged",
                f"{stage.run_config.system}: loss or answers became NaN or infinite in epoch "
                f"{now.epoch + 1}; lower training.lr ({training.lr:g}) or training.gradient_clip "
                f"({training.gradient_clip:g})",
            )
        flat = {
            name: value
            for name, value in stage.metrics.items()
            if (value is None or isinstance(value, float)) and name != "interval_coverage"
        }
        now.history.append({"epoch": now.epoch + 1, "lr": lr, "loss": stage.loss, **flat})
        found = flat.get(self.select)
        worth = -float("inf") if found is None else found * (-1 if self.select in LOWER_IS_BETTER else 1)
        better = worth > now.best_score or not now.best_epoch
        if better:
            now.best_epoch, now.best_score, now.best_metrics = now.epoch, worth, dict(stage.metrics)
            learnt = stage.network.learnt()
            now.best_weights = {k: v.detach().to("cpu", copy=True) for k, v in learnt.items()}
        if self.say is not None:
            shown = "undefined" if found is None else f"{found:.4f}"
            self.say(
                f"epoch {now.epoch} of {training.epochs}: loss {stage.loss:.4f}, {self.select} {shown}"
                + (" *" if better else "")
            )
        for logger in trainer.loggers:
            logger.log_metrics({k: v for k, v in now.history[-1].items() if v is not None}, step=now.epoch)
        if now.over(training.epochs, training.patience):
            trainer.should_stop = True
        if self.folder is not None and trainer.is_global_zero:
            self._write(trainer, stage)

    def _write(self, trainer: lightning.Trainer, stage: Stage) -> None:
        assert self.folder is not None
        write_bytes(self.folder / HISTORY, history_csv(self.progress.history))
        schedule = trainer.lr_scheduler_configs[0].scheduler
        tree = {
            "progress": vars(self.progress),
            "network": stage.network.learnt(),
            "optimizer": trainer.optimizers[0].state_dict(),
            "schedule": schedule.state_dict(),
            "precision": trainer.precision_plugin.state_dict(),
        }
        tensors: dict[str, Tensor] = {}
        info = pack(tree, tensors)
        write_tensors(self.folder / STATE, tensors, info)


def read_state(folder: Path) -> tuple[Progress, dict[str, Any]] | None:
    """Where a killed run stood; None: nowhere yet. Raises ``checkpoint.corrupt``."""
    path = folder / STATE
    if not path.exists():
        return None
    tensors, info = read_tensors(path)
    try:
        tree = unpack(info, tensors)
        return Progress(**tree["progress"]), {part: tree[part] for part in PARTS}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise AffectError("checkpoint.corrupt", f"{path}: no state of a training: {error!r}") from error


def history_csv(history: list[dict[str, float | int | None]]) -> bytes:
    """A row an epoch; a metric that is undefined is an empty cell."""
    out = io.StringIO()
    writer = csv.DictWriter(out, list(history[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(history)
    return out.getvalue().encode()


def tell(line: str) -> None:
    """One line on stderr."""
    print(line, file=sys.stderr, flush=True)


def differences(before: Mapping[str, Any], now: Mapping[str, Any], at: str = "") -> list[str]:
    """What differs between two nested settings, as ``name: before, now``."""
    found = []
    for key in sorted({*before, *now}):
        old, new, name = before.get(key), now.get(key), f"{at}{key}"
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            found += differences(old, new, f"{name}.")
        elif old != new:
            found.append(f"{name}: was {old}, is {new}")
    return found
