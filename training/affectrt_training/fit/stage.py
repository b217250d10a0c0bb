"""One run as Lightning sees it: steps, validation, optimiser."""

from __future__ import annotations

import math
import random
import re
from collections.abc import Mapping
from typing import Any

import lightning
import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from affectrt.affect import EMOTIONS, MODALITIES
from affectrt_training.fit.batches import FILLER, Batches, Examples, loader, mixed
from affectrt_training.fit.gather import gathered
from affectrt_training.fit.network import Network, without_some
from affectrt_training.fit.score import Truth, score
from affectrt_training.fit.settings import RunConfig
from affectrt_training.losses import total_loss
from affectrt_training.models.fusion import Fused

VALID_BATCH = 64
"""Examples per validation step and process: no gradients, so more fit than in training."""


class Stage(lightning.LightningModule):
    """Trains a network; after each epoch ``loss`` and ``metrics`` hold what it was worth.

    The loss is that of the whole batch on every process: outputs are gathered before it is taken, so uneven
    shares, missing labels and contrasts with the whole batch come out as on one process, up to rounding.
    Random numbers begin anew with each epoch, from seed, epoch and process; a run that is resumed at an
    epoch's start therefore goes on exactly as it would have.
    """

    def __init__(
        self,
        config: RunConfig,
        network: Network,
        train: Examples,
        valid: Examples,
        *,
        first_epoch: int = 0,
        resumed: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.run_config, self.network = config, network
        self.train_examples, self.valid_examples = train, valid
        self.first_epoch, self.resumed = first_epoch, resumed
        self.truth = Truth([e.sentiment for e in valid.examples], [e.emotion for e in valid.examples])
        self.losses: list[Tensor] = []
        self.answers: list[Tensor] = []
        self.loss = math.nan
        self.metrics: dict[str, object] = {}

    @property
    def epoch(self) -> int:
        """Counted from 0 over the whole run, restarts included."""
        return self.first_epoch + self.current_epoch

    def train_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        """Shuffled, by seed and epoch."""
        training = self.run_config.training
        batches = Batches(
            len(self.train_examples),
            training.batch_size,
            seed=training.seed,
            first_epoch=self.first_epoch,
            # An encoder in the graph is what costs, and it costs as much as the longest text.
            lengths=self.train_examples.token_counts,
            rank=self.trainer.global_rank,
            world=self.trainer.world_size,
        )
        return loader(self.train_examples, batches)

    def val_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        """In order."""
        world = self.trainer.world_size
        batches = Batches(
            len(self.valid_examples), VALID_BATCH * world, rank=self.trainer.global_rank, world=world
        )
        return loader(self.valid_examples, batches)

    def on_train_epoch_start(self) -> None:
        self.losses.clear()

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        # Not earlier: what Lightning does between epochs draws random numbers, too, and not always as many.
        if batch_idx == 0:
            seed_all(self.run_config.training.seed, self.epoch, self.global_rank)

    def training_step(self, batch: dict[str, Tensor], _: int) -> Tensor:
        if chance := self.run_config.training.modality_dropout:
            batch = without_some(batch, chance)
        fused = self.network(batch)
        unused = 0.0
        if self.trainer.world_size > 1:
            # Every output belongs to the graph: DDP waits for the gradient of every parameter.
            outputs = [*fused.views.values(), *([] if fused.rating_logits is None else [fused.rating_logits])]
            unused = sum(output.sum() for output in outputs) * 0.0
            fused, batch = self._whole_batch(fused, batch)
        loss: Tensor = total_loss(fused, batch, self.run_config.loss)["loss"] + unused
        self.losses.append(loss.detach())
        return loss

    def _whole_batch(self, fused: Fused, batch: dict[str, Tensor]) -> tuple[Fused, dict[str, Tensor]]:
        """All processes' outputs and labels, in the order of the batch and without fillers.

        Gradients of a gathered tensor are summed over the processes, all of which take the same loss; DDP
        then divides them by their number.
        """
        world = self.trainer.world_size
        kept = gathered(batch["index"], world) != FILLER

        def whole(tensor: Tensor) -> Tensor:
            return gathered(tensor, world)[kept]

        labels = ("sentiment", "emotion", *(f"{m}_lengths" for m in MODALITIES))
        views = {modality: whole(view) for modality, view in fused.views.items()}
        rating = None if fused.rating_logits is None else whole(fused.rating_logits)
        together = Fused(whole(fused.sentiment), whole(fused.emotion_logits), views, rating)
        return together, {key: whole(batch[key]) for key in labels}

    def on_validation_epoch_start(self) -> None:
        self.answers.clear()

    def validation_step(self, batch: dict[str, Tensor], _: int) -> None:
        fused = self.network(batch)
        answer = [fused.sentiment[:, None], fused.emotion_logits.softmax(-1), batch["index"][:, None]]
        self.answers.append(gathered(torch.cat(answer, dim=1).double(), self.trainer.world_size))

    def on_validation_epoch_end(self) -> None:
        answers = torch.cat(self.answers).cpu().numpy()
        answers = answers[answers[:, -1] != FILLER]
        if self.losses:
            self.loss = float(torch.stack(self.losses).double().mean())
        finite = bool(np.isfinite(answers).all())
        self.metrics = score(self.truth, answers[:, 0], answers[:, 1 : 1 + len(EMOTIONS)]) if finite else {}

    def configure_optimizers(self) -> Any:
        training = self.run_config.training
        groups = [{"params": list(self.network.fusion.parameters()), "lr": training.lr}]
        if self.network.encoder is not None:
            by_depth = tuned_by_depth(self.network.encoder)
            groups += [
                {"params": tuned, "lr": training.encoder_lr * training.layer_decay**depth}
                for depth, tuned in enumerate(by_depth)
                if tuned
            ]
        # Fused is several times faster on so many small tensors; Lightning can't clip it in half precision.
        optimizer = torch.optim.AdamW(
            groups, weight_decay=training.weight_decay, fused=training.precision == "32-true"
        )
        steps = training.epochs * -(-len(self.train_examples) // training.batch_size)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: rate(step, steps, training.warmup, training.schedule)
        )
        if self.resumed is not None:
            optimizer.load_state_dict(self.resumed["optimizer"])
            schedule.load_state_dict(self.resumed["schedule"])
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def rate(step: int, steps: int, warmup: float, schedule: str) -> float:
    """The learning rate of a step (from 0) of ``steps`` as a share of its peak."""
    rising = warmup * steps
    if step < rising:
        return (step + 1) / (rising + 1)
    if schedule == "constant":
        return 1.0
    done = min(1.0, (step - rising) / max(1.0, steps - rising))
    return 1.0 - done if schedule == "linear" else 0.5 * (1 + math.cos(math.pi * done))


def tuned_by_depth(encoder: nn.Module) -> list[list[nn.Parameter]]:
    """What training changes of an encoder: the top layer first, what lies below all layers last.

    Layers are told by the first number in their parameters' names, as in ``encoder.layer.3.output.weight``.
    """
    found: dict[int, list[nn.Parameter]] = {}
    for name, parameter in encoder.named_parameters():
        if parameter.requires_grad:
            number = re.search(r"\.(\d+)\.", name)
            found.setdefault(int(number[1]) if number else -1, []).append(parameter)
    return [found.get(layer, []) for layer in range(max(found, default=-1), -2, -1)]


def seed_all(seed: int, epoch: int, rank: int = 0) -> None:
    """Seed the global generators of torch (on all devices), numpy and Python."""
    number = mixed(seed, epoch, rank)
    torch.manual_seed(number)
    # The global ones: whoever draws without a generator draws from them.
    np.random.seed(number)  # noqa: NPY002
    random.seed(number)
