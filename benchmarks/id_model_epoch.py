"""An epoch of RecBole's models through this project against one through RecBole's own dataset, loader and Trainer.

Both start from the same seed and take the same first batches; the loss over them and the validation metrics after them
must be equal (`recbole_repeats_itself` tells whether RecBole's own are, from one time to the next, on this device).
What RecBole takes is told twice: without autograd's anomaly detection, and with it, which RecBole switches on for every
process that imports a sequential model (`recbole/model/sequential_recommender/sine.py:25`).

    python benchmarks/id_model_epoch.py --data_path=data --dataset=ml-1m --models=SASRec,GRU4Rec --steps=100

`--steps` of an epoch are measured and scaled to the whole epoch; 0 measures all. Prints one JSON line a model.
"""

import argparse
import functools
import itertools
import logging
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from recbole.trainer import Trainer
from recbole.utils import init_seed
from shapes import print_line

from recbole_llm.config.config import Config
from recbole_llm.data.build import create_dataset, data_preparation
from recbole_llm.runs import checkpoint
from recbole_llm.runs.context import RunContext
from recbole_llm.trainer.choose import trainer_class

_WARM_UP = 10  # steps on a model that is thrown away: kernels are loaded, the allocator has its memory
_LOADED = 200  # batches that are put together without a model


class FirstSteps:
    """The first batches of a loader, and when the first of them was there."""

    def __init__(self, loader: Any, steps: int) -> None:
        self.loader, self.steps = loader, steps
        self.first = 0.0

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[Any]:
        for number, batch in enumerate(itertools.islice(self.loader, self.steps)):
            if number == 0:
                self.first = time.perf_counter()
            yield batch


def synchronise() -> None:
    """Wait for the device."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def scaled(begun: float, steps: FirstSteps) -> float:
    """Return the seconds of a whole epoch: what comes before its first batch, and the time of its steps scaled up."""
    synchronise()
    each = (time.perf_counter() - steps.first) / steps.steps
    return steps.first - begun + each * len(steps.loader)


def settings_of(model: str, arguments: argparse.Namespace, folder: str, on_device: bool) -> Config:
    """Return the settings of a run with RecBole's defaults but for the device and the batch size."""
    settings = {"train_batch_size": arguments.batch_size} if arguments.batch_size else {}
    config = Config(
        model, arguments.dataset,
        config_dict={
            "data_path": arguments.data_path, "checkpoint_dir": folder, "state": "ERROR", "show_progress": False,
            "device_table": on_device, "use_gpu": torch.cuda.is_available(), "loss_type": "CE", **settings,
        },
    )  # fmt: skip
    return config


def load(config: Config) -> tuple[Any, Any, Any, float]:
    """Return a dataset, its training and validation loaders, and how long they took."""
    begun = time.perf_counter()
    init_seed(config["seed"], config["reproducibility"])
    dataset = create_dataset(config)
    train, valid, _ = data_preparation(config, dataset)
    return dataset, train, valid, time.perf_counter() - begun


def loader_seconds(train: Any, config: Config) -> float:
    """Return the seconds of the batches of an epoch alone, on the device."""
    batches = FirstSteps(train, min(_LOADED, len(train)))
    state = train.generator.get_state()
    synchronise()
    begun = time.perf_counter()
    for batch in batches:
        batch.to(config["device"])
    seconds = scaled(begun, batches)
    train.generator.set_state(state)
    return seconds


def epoch(config: Config, loaded: Any, make_trainer: Any, steps: int, anomaly: bool = False) -> dict[str, Any]:
    """Train the first steps of an epoch and evaluate; return seconds of a whole epoch, loss and metrics."""
    _, train, valid, _ = loaded
    seed = config["seed"]
    train.generator.manual_seed(seed)
    init_seed(seed, config["reproducibility"])
    model = config.model_class(config, train._dataset).to(config["device"])
    trainer = make_trainer(config, model)
    trainer.eval_collector.data_collect(train)
    batches = FirstSteps(train, steps)
    with torch.autograd.set_detect_anomaly(anomaly):
        synchronise()
        begun = time.perf_counter()
        loss = trainer._train_epoch(batches, 0)
        seconds = scaled(begun, batches)
    begun = time.perf_counter()
    metrics = dict(trainer.evaluate(valid, load_best_model=False))
    synchronise()
    metrics.pop("mrr", None)  # RecBole does not have it
    return {"seconds": seconds, "loss": loss, "metrics": metrics, "evaluate_s": time.perf_counter() - begun}


def compare(model: str, arguments: argparse.Namespace, folder: str, known: dict[Any, Any]) -> None:
    """Measure one model both ways and print its line."""
    theirs, ours = (settings_of(model, arguments, folder, on_device) for on_device in (False, True))
    # Models that read the same rows share the loaders, which take a while on a large dataset.
    for config in (theirs, ours):
        key = (config["device_table"], config["transform"], str(config["train_neg_sample_args"]))
        if key not in known:
            known[key] = load(config)
    their_data, our_data = (
        known[config["device_table"], config["transform"], str(config["train_neg_sample_args"])]
        for config in (theirs, ours)
    )
    context = RunContext(Path(folder), description=checkpoint.describe(ours, our_data[0]))
    our_trainer = functools.partial(trainer_class(ours), context=context)
    whole = len(their_data[1])
    steps = min(arguments.steps or whole, whole)
    epoch(theirs, their_data, Trainer, min(_WARM_UP, steps))
    epoch(ours, our_data, our_trainer, min(_WARM_UP, steps))
    plain = epoch(theirs, their_data, Trainer, steps)
    default = epoch(theirs, their_data, Trainer, steps, anomaly=True)
    here = epoch(ours, our_data, our_trainer, steps)
    print_line(
        name="id_model_epoch", model=model, dataset=arguments.dataset, steps_of_epoch=whole, steps_measured=steps,
        recbole_s=plain["seconds"], recbole_with_its_anomaly_detection_s=default["seconds"], ours_s=here["seconds"],
        ratio=plain["seconds"] / here["seconds"], ratio_to_default=default["seconds"] / here["seconds"],
        step_ms=1000 * here["seconds"] / whole,
        recbole_batches_s=loader_seconds(their_data[1], theirs),
        batches_s=loader_seconds(our_data[1], ours),
        recbole_evaluate_s=plain["evaluate_s"], evaluate_s=here["evaluate_s"],
        recbole_prepare_s=their_data[3], prepare_s=our_data[3],
        equal_loss=plain["loss"] == here["loss"], equal_metrics=plain["metrics"] == here["metrics"],
        recbole_repeats_itself=plain["loss"] == default["loss"] and plain["metrics"] == default["metrics"],
        loss=here["loss"], recbole_loss=plain["loss"],
        device=torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
    )  # fmt: skip


def main() -> None:
    """Measure each model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="ml-1m")
    parser.add_argument("--data_path", default="dataset")
    parser.add_argument("--models", default="SASRec,GRU4Rec")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--batch_size", type=int, default=0, help="0: RecBole's default")
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    known: dict[Any, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for model in arguments.models.split(","):
            compare(model, arguments, folder, known)


if __name__ == "__main__":
    sys.exit(main())
