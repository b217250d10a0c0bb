"""Trains MMSA's models with MMSA's own code; :mod:`benchmarks.peers_mmsa` runs it in MMSA's environment.

A job a line comes in on stdin as JSON, its answer goes out as a line on stdout: predictions by id, or
``error``. What MMSA itself prints goes to stderr.

This does what ``MMSA._run`` does for one seed, in its order: data, model, trainer, ``do_train``, the best
epoch's weights, answers. It differs where ``MMSA_run`` asks for what isn't there or isn't wanted:

* nothing calls ``torch.cuda.set_device``: MMSA asks for it on a CPU, too;
* ``verbose`` of ``ReduceLROnPlateau``, which torch removed, is dropped on the way;
* no loader processes;
* the model itself is asked for its answers: ``do_test`` can return them, but fails for Graph_MFN, of which it
  wants features that are never collected, and for a batch of one;
* the held-out rows, MMSA's split ``test``, are read once, after training. ``do_train`` picks the epoch by the
  loss on ``valid``, and looks at ``test`` only when it is asked for results of every epoch: it never is.
"""

from __future__ import annotations

import json
import os
import sys
from importlib import import_module, metadata
from inspect import signature
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch.utils.data import DataLoader

DATASET = "mosi"
"""Whose hyper-parameters and reader are used."""
OF_MOSI = frozenset(
    {"dataset_name", "featurePath", "feature_dims", "language", "missing_rate", "missing_seed", "num_classes",
     "seq_lens", "train_samples"}
)  # fmt: skip
"""Settings that describe that data set: replaced by the data's own, or without effect here."""
PREDICTED_AT_ONCE = 64

Json = dict[str, Any]


def mend_scheduler() -> None:
    """Let MMSA pass ``verbose`` to a scheduler that no longer takes it."""
    plateau: Any = torch.optim.lr_scheduler.ReduceLROnPlateau
    if "verbose" in signature(plateau).parameters:
        return

    def without_verbose(*args: Any, verbose: object = None, **settings: Any) -> Any:
        return plateau(*args, **settings)

    # MMSA imports it by name: this must come first.
    torch.optim.lr_scheduler.ReduceLROnPlateau = without_verbose  # type: ignore[misc, assignment]


def train(job: Json) -> Json:
    """One training of ``model`` on the pickle ``data`` with ``seed``, MMSA's ``settings`` changed as given.

    ``epochs_cap``: most epochs; None: as many as MMSA's early stop allows. ``scratch``: a file for weights.
    """
    settings = import_module("MMSA.config").get_config_regression(job["model"], DATASET)
    if wrong := set(job["settings"]) - set(settings):
        raise ValueError(f"{job['model']}: MMSA has no settings {', '.join(sorted(wrong))}")
    settings.update(job["settings"])
    used = {key: value for key, value in settings.items() if key not in OF_MOSI}
    settings.update(
        custom_feature=job["data"],
        feature_T="",
        feature_A="",
        feature_V="",
        model_save_path=job["scratch"],
        device=torch.device("cpu"),
        train_mode="regression",
        cur_seed=1,
    )
    import_module("MMSA.utils").setup_seed(job["seed"])
    loaders = import_module("MMSA.data_loader").MMDataLoader(settings, 0)
    model = import_module("MMSA.models").AMIO(settings)
    trainer = import_module("MMSA.trains").ATIO().getTrain(settings)
    losses = watch(trainer, job["epochs_cap"])
    Path(job["scratch"]).unlink(missing_ok=True)
    begin = perf_counter()
    trainer.do_train(model, loaders, return_epoch_results=False)
    took = perf_counter() - begin
    if not Path(job["scratch"]).is_file():
        raise ValueError(f"no epoch of {len(losses)} had a loss on valid that is a number")
    model.load_state_dict(torch.load(job["scratch"], weights_only=True))
    Path(job["scratch"]).unlink()
    return {
        "held": predictions(model, loaders["test"].dataset),
        "valid": predictions(model, loaders["valid"].dataset),
        "best_epoch": best_epoch(losses),
        "epochs": len(losses),
        "train_s": took,
        "parameters": sum(p.numel() for p in model.parameters()),
        "settings": used,
    }


def watch(trainer: Any, cap: int | None) -> list[float]:
    """Notes the validation loss of every epoch, and lets training end after ``cap`` of them."""
    losses: list[float] = []
    judge = trainer.do_test

    def do_test(model: Any, loader: Any, mode: str = "VAL", **how: Any) -> Any:
        result = judge(model, loader, mode=mode, **how)
        if mode == "VAL":
            losses.append(float(result["Loss"]))
            if len(losses) == cap:
                trainer.args.early_stop = 0  # the loop has no limit but this, and reads it every epoch
        return result

    trainer.do_test = do_test
    return losses


def best_epoch(losses: list[float]) -> int:
    """The epoch whose weights MMSA kept, by its own rule; epochs count from 1."""
    best, epoch = 1e8, 0
    for number, loss in enumerate(losses, 1):
        if loss <= best - 1e-6:
            best, epoch = loss, number
    return epoch


def predictions(model: Any, rows: Any) -> dict[str, float]:
    """Sentiment by id of an MMSA data set, in its order."""
    model.eval()
    with torch.no_grad():
        batches = [
            model(batch["text"], batch["audio"], batch["vision"])["M"].reshape(-1)
            for batch in DataLoader(rows, PREDICTED_AT_ONCE)
        ]
    return dict(zip(map(str, rows.ids), torch.cat(batches).tolist(), strict=True))


def main() -> int:
    """Answer every line until there are no more."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    sys.stdout = sys.stderr
    torch.set_num_threads(1)
    mend_scheduler()
    import_module("MMSA")
    print(
        json.dumps({"mmsa": metadata.version("MMSA"), "torch": torch.__version__}), file=answers, flush=True
    )
    for line in sys.stdin:
        try:
            answer = train(json.loads(line))
        except Exception as error:  # one fit's fault is an answer, too
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=answers, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
