"""What every stage of the starter recipe shares: one way to fit, select and keep weights."""

from __future__ import annotations

import logging
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback, TQDMProgressBar
from lightning.pytorch.loggers import CSVLogger
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader

SCORE = "valid_score"
"""What stages log to be selected by; higher is better."""


class Stage(lightning.LightningModule):
    """A stage of the recipe: logs :data:`SCORE` in validation and says which tensors to keep."""

    def weights(self) -> dict[str, Tensor]:
        """What the stage leaves behind."""
        return self.state_dict()


class KeepBest(Callback):
    """Writes the stage's ``weights()`` as safetensors whenever the validation score improves.

    Lightning's own checkpoints are pickles; ours never are.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.best = float("-inf")

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Keep the weights when they are the best so far."""
        assert isinstance(pl_module, Stage)
        score = float(trainer.callback_metrics[SCORE])
        if score > self.best:
            self.best = score
            save_tensors(pl_module.weights(), self.path)
        shown = {k: round(float(v), 4) for k, v in trainer.callback_metrics.items() if k.startswith("valid")}
        print(f"epoch {trainer.current_epoch}: {shown}{' *' if score == self.best else ''}", flush=True)


class ProgressBar(TQDMProgressBar):
    """Lightning's, which also leaves a clean terminal when a stage breaks off."""

    def on_exception(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, exception: BaseException
    ) -> None:
        """Close the bars, which would else be drawn once more when Python exits."""
        for name in ("val_progress_bar", "train_progress_bar"):
            with suppress(TypeError):  # this one was not begun
                getattr(self, name).close()


def save_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    """Safetensors, written whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    save_file({name: t.detach().contiguous().clone() for name, t in tensors.items()}, partial)
    partial.chmod(0o644)  # safetensors makes them private
    partial.replace(path)


def fit(
    stage: Stage,
    train: DataLoader[Any],
    valid: DataLoader[Any] | list[DataLoader[Any]],
    *,
    epochs: int,
    folder: Path,
    precision: str = "32-true",
    gradient_clip: float = 1.0,
) -> Path:
    """Fit a stage and return the path of its best weights (by :data:`SCORE` on validation data).

    ``best.safetensors`` appears when the last epoch is over: finding it means that the stage is done.
    """
    best = best_weights(folder)
    so_far = best.with_name("best_so_far.safetensors")
    best.unlink(missing_ok=True)
    for noisy in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    with warnings.catch_warnings():
        # Sets this small load faster in the main process than in workers, on two cores.
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        # Of the causal stage's batches, which one process draws.
        warnings.filterwarnings("ignore", message=".*IterableDataset.*")
        # Between the libraries themselves: nothing that a user of ours could mend.
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*")
        warnings.filterwarnings("ignore", message=".*LeafSpec.*")
        trainer = lightning.Trainer(
            max_epochs=epochs,
            accelerator="auto",
            devices=1,
            precision=precision,  # type: ignore[arg-type]
            gradient_clip_val=gradient_clip,
            logger=CSVLogger(folder, name="", version=""),
            callbacks=[KeepBest(so_far), ProgressBar(refresh_rate=20)],
            enable_checkpointing=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            log_every_n_steps=10,
        )
        trainer.fit(stage, train, valid)
    if trainer.interrupted:  # Lightning turns Ctrl-C into an early end
        raise KeyboardInterrupt
    so_far.replace(best)
    return best


def best_weights(folder: Path) -> Path:
    """Where a finished stage's weights lie."""
    return folder / "best.safetensors"


def warmup_cosine(
    groups: list[dict[str, Any]], total_steps: int, *, weight_decay: float, warmup: float = 0.1
) -> dict[str, Any]:
    """AdamW with a linear warm-up and a cosine decay per step, as Lightning wants it."""
    optimizer = torch.optim.AdamW(groups, weight_decay=weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        max_lr=[group["lr"] for group in groups],
        total_steps=total_steps,
        pct_start=warmup,
        cycle_momentum=False,
    )
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def trainable(module: nn.Module) -> list[nn.Parameter]:
    """The parameters that gradients should reach."""
    return [p for p in module.parameters() if p.requires_grad]
