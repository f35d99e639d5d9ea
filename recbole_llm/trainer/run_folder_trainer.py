"""RecBole's trainers with our run folder: safe checkpoints, resuming, whole-ranking metrics, one protocol."""

import functools
import time
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from recbole.data.dataloader import FullSortEvalDataLoader
from recbole.data.interaction import Interaction
from recbole.trainer import Trainer

from recbole_llm.config.hooks import ModelHooks, hooks_of
from recbole_llm.errors import TrainingError
from recbole_llm.evaluation.blocks import ItemBlocks
from recbole_llm.evaluation.ranks import mean_reciprocal_rank
from recbole_llm.evaluation.shared_ranks import FirstEvaluates, SharedRankCollector, rank_collector
from recbole_llm.evaluation.split_blocks import SplitItemBlocks
from recbole_llm.runs import checkpoint, resume_parts
from recbole_llm.runs.context import RunContext
from recbole_llm.runs.outside_state import OutsideState
from recbole_llm.trainer.device_steps import DeviceSteps
from recbole_llm.trainer.hooks import TrainerHooks
from recbole_llm.trainer.one_tensorboard import one_tensorboard
from recbole_llm.utils.collectives import object_from_first
from recbole_llm.utils.processes import meet, part_counts, world


class HostRows(Interaction):
    """Rows for a model that reads them on the host: RecBole moves every batch to the device, in vain for these."""

    def to(self, device: Any, selected_field: Any = None) -> "HostRows":
        """Return the rows where they are; the model moves what its device needs."""
        return self


class RunFolderMixin(TrainerHooks):
    """Stands in front of a RecBole trainer.

    Args:
        config: the settings of the run.
        model: what is trained.
        context: of the run; its folder is needed, and its description.

    Repairs in RecBole 1.2.1:

    * `recbole/trainer/trainer.py:583` and `:323`: ``torch.load`` of a checkpoint that pickles the Config, which torch
      2.6 refuses. Weights are safetensors here, the state to resume from is read with ``weights_only=True``.
    * `recbole/data/dataloader/general_dataloader.py` (`FullSortEvalDataLoader`) gives the history of a general model,
      which the trainer always leaves out of a ranking, and none for a sequential one. Here all models are ranked by
      what `repeatable` says, see `RankCollector`.
    * `recbole/trainer/trainer.py:279` (`_save_checkpoint`) stores frozen weights and the Config. `stored_state` says
      what is stored.
    """

    def __init__(self, config: Any, model: Any, context: RunContext) -> None:
        with one_tensorboard():
            super().__init__(config, model)
        if context.folder is None:
            raise ValueError("a trainer needs a folder to store the run in")
        self.run_folder = context.folder
        self.saved_model_file = str(self.run_folder / checkpoint.WEIGHTS)
        self.description = context.description
        self.eval_collector = rank_collector(config)
        if world().is_shared:
            self.evaluator = FirstEvaluates(config)
        self.both_protocols = False
        self._in_blocks = False
        self.other_result: dict[str, float] | None = None
        self.epochs_done = 0
        self.finished = False
        self.seconds_before = 0.0
        self.history: list[dict[str, Any]] = []
        self._loader_generators: list[torch.Generator] = []
        # Models of this package store all that they train with; what else they hold are stored states, made again.
        self._outside = None if isinstance(model, ModelHooks) else OutsideState(model)
        self._started = self._stored = time.monotonic()
        self._best: checkpoint.Snapshot | None = None  # best weights that are not on the disk yet

    # -- fitting -------------------------------------------------------------------------------------------------------

    def fit(
        self,
        train_data: Any,
        valid_data: Any = None,
        verbose: bool = True,
        saved: bool = True,
        show_progress: bool = False,
        callback_fn: Any = None,
    ) -> tuple[float, Any]:
        """Train as RecBole does.

        After evaluated epochs, at least `resume_seconds` apart, the best weights and the state to resume from are
        stored together.

        Raises:
            TrainingError: if the loss is not a number.
        """
        self._started = self._stored = time.monotonic()
        self._loader_generators = _generators(train_data)
        if self.finished:
            self.eval_collector.data_collect(train_data)  # what some metrics read, such as ItemCoverage
            self.after_training()
            return self.best_valid_score, self.best_valid_result
        if self._pending is not None:
            self._restore_random_states(self._pending)

        def after_epoch(epoch: int, valid_score: float) -> None:
            self._after_epoch(epoch, saved)
            if callback_fn is not None:
                callback_fn(epoch, valid_score)

        try:
            result = super().fit(train_data, valid_data, verbose, saved, show_progress, after_epoch)
        except ValueError as error:
            if "loss is nan" not in str(error):
                raise
            raise TrainingError(
                f"the training loss of {self.config['model']} is not a number in epoch {self.epochs_done}: lower "
                f"learning_rate, or set clip_grad_norm"
            ) from error
        self.epochs_done = max(self.epochs_done, len(self.train_loss_dict))
        self._write_best()
        self.after_training()
        return result

    def _valid_epoch(self, valid_data: Any, show_progress: bool = False) -> Any:
        with self.evaluated_weights():
            score, result = super()._valid_epoch(valid_data, show_progress)
        self._last_valid = {name: float(value) for name, value in result.items()}
        return score, result

    def _after_epoch(self, epoch: int, saved: bool) -> None:
        self.epochs_done = epoch + 1
        loss = self.train_loss_dict[epoch]
        self.history.append({"epoch": epoch, "train_loss": float(loss), "valid": self._last_valid})
        if saved and object_from_first(time.monotonic() - self._stored >= self.config["resume_seconds"]):
            self._stored = time.monotonic()
            self._write_best()
            stopped = self.cur_step > self.stopping_step or self.epochs_done >= self.epochs
            resume_parts.save(self.run_folder / checkpoint.RESUME, self._resume_state(stopped))

    def fit_seconds(self) -> float:
        """Return the seconds of training so far, those before an interruption included."""
        return self.seconds_before + time.monotonic() - self._started

    # -- checkpoints ---------------------------------------------------------------------------------------------------

    def _save_checkpoint(self, epoch: int, verbose: bool = True, **kwargs: Any) -> None:
        self._best = None  # before there are two
        with self.stored_weights():
            state = self.in_first(hooks_of(self.model).stored_state())
            if world().is_first:
                self._best = checkpoint.snapshot(self.model, state)

    def _write_best(self) -> None:
        if self._best is not None:
            checkpoint.save_weights(Path(self.saved_model_file), self._best, self.description)
        self._best = None

    def restore_best(self) -> None:
        """Give the model the best weights of the run so far; nothing if no validation has chosen any."""
        self._write_best()
        meet()
        path = Path(self.saved_model_file)
        if path.exists():
            self._load_weights(path)

    def _load_weights(self, path: Path) -> None:
        checkpoint.load_weights(path, self.model, self.description, hooks_of(self.model), self.own_rows())

    def save_pretrained_model(self, epoch: int, saved_model_file: str) -> None:
        """Store a pre-trained model (S3Rec) as safetensors; repairs `recbole/trainer/trainer.py:755`."""
        self._save_checkpoint(epoch)
        self._write_best()

    def pretrain(self, train_data: Any, verbose: bool = True, show_progress: bool = False) -> Any:
        """Pre-train as RecBole does and store the last weights.

        Repairs `recbole/trainer/trainer.py:774` (`PretrainTrainer.pretrain`), which stores every `save_step` epochs
        alone: nothing at all if there are fewer.
        """
        result = super().pretrain(train_data, verbose, show_progress)
        self.save_pretrained_model(self.pretrain_epochs - 1, self.saved_model_file)
        return result

    def _resume_state(self, finished: bool) -> dict[str, Any]:
        return {
            "description": self.description,
            "epoch": self.epochs_done,
            "cur_step": self.cur_step,
            "best_valid_score": float(self.best_valid_score),
            "best_valid_result": _plain(self.best_valid_result),
            "history": self.history,
            "finished": finished,
            "seconds": self.fit_seconds(),
            "model": self.in_parts(self._own_weights()),
            "optimizers": {name: self.optimizer_state(optimizer) for name, optimizer in self._optimizers().items()},
            "random": checkpoint.random_states(),
            "loaders": [generator.get_state() for generator in self._loader_generators],
            "outside": {} if self._outside is None else self._outside.changed(),
            "more": self.more_resume_state(),
        }

    def _own_weights(self) -> dict[str, torch.Tensor]:
        """Return the weights that are not stored in another form already."""
        others = self.weights_of_more()
        return {name: value for name, value in hooks_of(self.model).stored_state().items() if name not in others}

    def store_finished(self) -> None:
        """Store that training is over, for a later `resume_checkpoint` to evaluate the best weights with.

        Training is not resumed from here, so neither the last weights nor the optimiser's state are stored.
        """
        self.finished = True
        state = {**self._resume_state(finished=True), "model": {}, "optimizers": {}, "more": {}, "outside": {}}
        checkpoint.save_resume(self.run_folder / checkpoint.RESUME, state)

    def _optimizers(self) -> dict[str, torch.optim.Optimizer]:
        # RecVAE's trainer has one for the encoder and one for the decoder; its `optimizer` is one of the two in turn.
        found = {name: value for name, value in vars(self).items() if isinstance(value, torch.optim.Optimizer)}
        others = [value for name, value in found.items() if name != "optimizer"]
        return {name: value for name, value in found.items() if name != "optimizer" or value not in others}

    _pending: dict[str, Any] | None = None

    def resume_checkpoint(self, resume_file: Any) -> None:
        """Go on from the state in `resume_file` when `fit` is called.

        Raises:
            CheckpointError: if the file is broken or belongs to another model or catalogue.
        """
        path = Path(resume_file)
        state = checkpoint.load_resume(path, self.description)
        if not state["finished"]:
            state["model"] = checkpoint.renamed(state["model"], hooks_of(self.model))
            state = resume_parts.read(path, self.own_part(state))
            weights = {**self.weights_of_more(state["more"]), **state["model"]}
            checkpoint.load_state(path, self.model, weights, hooks_of(self.model))
            for name, stored in state["optimizers"].items():
                getattr(self, name).load_state_dict(stored)
            self.load_more_resume_state(state["more"])
            if self._outside is not None:
                self._outside.put_back(state.get("outside", {}))
        self.start_epoch = self.epochs_done = state["epoch"]
        self.cur_step = state["cur_step"]
        self.best_valid_score = state["best_valid_score"]
        best = state["best_valid_result"]
        self.best_valid_result = None if best is None else OrderedDict(best)
        self.history = list(state["history"])
        self.train_loss_dict = {entry["epoch"]: entry["train_loss"] for entry in self.history}
        self.finished = state["finished"]
        self.seconds_before = state["seconds"]
        self._pending = state
        self.logger.info("Going on after epoch %d", state["epoch"] - 1)

    def _restore_random_states(self, state: dict[str, Any]) -> None:
        checkpoint.set_random_states(state["random"])
        older = [state["loader"]] if state.get("loader") is not None else []  # states of older versions have one
        for generator, found in zip(self._loader_generators, state.get("loaders", older), strict=False):
            generator.set_state(found)
        self._pending = None

    # -- evaluation ----------------------------------------------------------------------------------------------------

    def _full_sort_batch_eval(self, batched_data: Any) -> Any:
        batch = batched_data[0]
        if isinstance(self.eval_collector, SharedRankCollector):
            batched_data = self.eval_collector.own_part(batched_data)
        interaction, _, positive_u, positive_i = batched_data
        if world().is_shared and (of_own_items := self._blocks_of_own_items(interaction, batch)) is not None:
            return interaction, of_own_items, positive_u, positive_i
        if not len(interaction):  # another process has the rows of a small batch
            return interaction, torch.empty(0, self.tot_item_num, device=self.device), positive_u, positive_i
        if hooks_of(self.model).histories_on_host:
            interaction = HostRows(interaction.interaction)
        if self._in_blocks:
            scores_of = hooks_of(self.model).scores_of_items(interaction.to(self.device))
            if scores_of is not None:
                rows, memory = len(interaction), self.config["eval_memory"] * 2**20
                blocks = ItemBlocks(scores_of, rows, self.tot_item_num, memory, torch.device(self.device))
                return interaction, blocks, positive_u, positive_i
        return super()._full_sort_batch_eval((interaction, None, positive_u, positive_i))

    def _blocks_of_own_items(self, own: Interaction, batch: Interaction) -> SplitItemBlocks | None:
        """Return the scores of a batch that all processes rank together; None if the model is whole in each."""
        hooks, device = hooks_of(self.model), torch.device(self.device)
        if hooks.histories_on_host:
            own, batch = HostRows(own.interaction), HostRows(batch.interaction)
        found = hooks.scores_of_own_items(own.to(device), batch.to(device))
        if found is None:
            return None
        return SplitItemBlocks(found[0], part_counts(len(batch)), found[1], self.config["eval_memory"] * 2**20, device)

    @torch.no_grad()
    def evaluate(
        self, eval_data: Any, load_best_model: bool = True, model_file: Any = None, show_progress: bool = False
    ) -> Any:
        """Evaluate as RecBole does, among the items that `repeatable` says, and add `mrr` over the whole ranking.

        With `both_protocols` the metrics of the other answer to `repeatable` are in `other_result`, from the same
        scores; None where there are none: candidates that were drawn without the history do not tell of it.

        Raises:
            CheckpointError: if the best weights cannot be loaded.
            TrainingError: if the model's scores are not numbers.
        """
        if not eval_data:
            return None
        if load_best_model:
            meet()  # process 0 has written them
            self._load_weights(Path(model_file or self.saved_model_file))
        self._begin_ranking(eval_data)
        result = super().evaluate(eval_data, load_best_model=False, show_progress=show_progress)
        if self.eval_collector.has_ranks():
            _, _, *ranks = self.eval_collector.collected()
            self._add_mrr(result, ranks[0])
            if len(ranks) > 1:
                self.other_result = self.evaluator.evaluate(self.eval_collector.other_data_struct())
                self._add_mrr(self.other_result, ranks[1])
        return result

    def _begin_ranking(self, eval_data: Any) -> None:
        part = eval_data._dataset
        repeatable = part.item_protocol.repeatable
        both = self.both_protocols and (repeatable or isinstance(eval_data, FullSortEvalDataLoader))
        self.eval_collector.begin(part.known_histories, repeatable, both)
        self.other_result = None
        self._in_blocks = getattr(eval_data, "in_blocks", False)

    def _add_mrr(self, result: Any, ranks: np.ndarray) -> None:
        reciprocal = mean_reciprocal_rank(self.eval_collector.lists(), ranks)
        result["mrr"] = round(reciprocal, self.config["metric_decimal_place"])


def _generators(train_data: Any) -> list[torch.Generator]:
    """Return what a training loader draws its order from; that of a knowledge graph has two loaders in it."""
    loaders = [train_data, *(getattr(train_data, f"{kind}_dataloader", None) for kind in ("general", "kg"))]
    return [loader.generator for loader in loaders if hasattr(loader, "generator")]


def _plain(result: Any) -> dict[str, float] | None:
    return None if result is None else {name: float(value) for name, value in result.items()}


@functools.cache
def with_run_folder(trainer_class: type) -> type:
    """Return `trainer_class` with `RunFolderMixin` in front of it and `DeviceSteps` before RecBole's own Trainer."""
    bases: tuple[type, ...] = (RunFolderMixin, trainer_class)
    if trainer_class is Trainer:
        bases = (RunFolderMixin, DeviceSteps)
    elif issubclass(trainer_class, Trainer):
        bases = (RunFolderMixin, trainer_class, DeviceSteps)
    return type(trainer_class.__name__, bases, {})


def best_epoch(history: list[dict[str, Any]], metric: str, bigger: bool) -> int | None:
    """Return the epoch with the best validation `metric` (the last of equals, as RecBole keeps it), or None."""
    scores = [entry["valid"][metric] for entry in history]
    if not scores:
        return None
    ordered = np.asarray(scores if bigger else [-s for s in scores])
    return int(history[len(scores) - 1 - int(np.argmax(ordered[::-1]))]["epoch"])
