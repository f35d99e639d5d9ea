"""Training on packed batches: optimiser steps of a fixed number of samples, in passes within a budget of tokens."""

import contextlib
import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm
from transformers import get_scheduler

from recbole_llm.config.settings.one_pass import TWO_LEVEL
from recbole_llm.data.device_table import ranks_in_blocks
from recbole_llm.data.prefetch import prefetch
from recbole_llm.errors import TrainingError
from recbole_llm.trainer.graphed_step import GraphedStep
from recbole_llm.trainer.hooks import TrainerHooks
from recbole_llm.trainer.master_weights import MasterWeights
from recbole_llm.trainer.row_sparse import ROWS, RowSparse, with_rows
from recbole_llm.trainer.sharded_backbone import is_sharded
from recbole_llm.trainer.shared_steps import SharedSteps, seed_epoch
from recbole_llm.trainer.split_rows import SplitState
from recbole_llm.trainer.weight_average import WeightAverage
from recbole_llm.utils.collectives import exchanged_by_torch, sum_
from recbole_llm.utils.processes import world

_SCHEDULES = {"cosine": "cosine", "linear": "linear", "constant": "constant_with_warmup"}
_SECONDS_BETWEEN_LOSSES = 1.0  # reading a loss waits for the device, so it is not done after every step


class PackedTrainer(TrainerHooks):
    """RecBole's Trainer for models that pack their own batches: a `TextRecommender`, whose hooks it calls.

    The gradient of a step is that of the mean cross-entropy over all queries of its `train_batch_size` samples, however
    many passes it takes: the budget changes memory and speed, not the result. The exception is what IDLE-Adapter's
    discrepancy takes from the prompts of one pass: its rows with ``mmd_rows: batch``, and the median distance.

    Several processes share every step, see `SharedSteps`.
    """

    run_folder: Path  # which `RunFolderMixin` sets
    shared: SharedSteps | None = None

    def __init__(self, config: Any, model: Any) -> None:
        super().__init__(config, model)
        self.batch_size = config["train_batch_size"]
        self.graphed_step: GraphedStep | None = None
        self.steps = -(-len(self._samples(0)) // self.batch_size)
        self.scheduler = self.schedule(self.epochs)

    def schedule(self, epochs: int) -> torch.optim.lr_scheduler.LambdaLR:
        """Return the schedule of the learning rate of `optimizer` over some epochs, warm-up included."""
        return get_scheduler(
            _SCHEDULES[self.config["lr_scheduler"]], self.optimizer, self.config["warmup_steps"], self.steps * epochs
        )

    def _build_optimizer(self, **_: Any) -> torch.optim.Optimizer:
        self.shared = self._shared_steps() if world().is_shared else None
        groups = self.model.parameter_groups()
        weights = _weights(groups)
        self.masters = MasterWeights(groups) if self.shared is None else self.shared.masters(groups)
        if self.shared is not None and self.shared.backbone is not None:
            weights = _weights(groups)  # rows of float32, which become the model's weights where it is evaluated
        self.average: WeightAverage | None = None
        if self.config["weight_average"] is not None:
            self.average = WeightAverage(weights, _weights(groups), self.config["weight_average"])
        on_gpu = torch.device(self.device).type == "cuda"
        kind: Any = torch.optim.AdamW
        if any(ROWS in group for group in groups):
            kind = with_rows(kind)
        optimizer: torch.optim.Optimizer = kind(groups, weight_decay=self.weight_decay, fused=on_gpu, capturable=on_gpu)
        return optimizer

    def _shared_steps(self) -> SharedSteps:
        sharded = is_sharded(self.config["shard"], self.model, torch.device(self.device))
        if sharded:
            logging.getLogger().info("The backbone is split over %d processes", world().size)
        within_machine = self.config["shard_within"] == "machine"
        return SharedSteps(self.model, ranks_in_blocks(self.config), sharded, within_machine)

    def _samples(self, epoch: int) -> Any:
        # The epoch's own generator: a resumed run draws what the uninterrupted one draws.
        return self.model.training_samples(np.random.default_rng([self.config["seed"], epoch]))

    def precompute(self, *evaluated: Any, show_progress: bool = False) -> None:
        """Compute the hidden states of a frozen backbone once, if its windows never change.

        Args:
            evaluated: loaders of the parts that will be evaluated; None is skipped.
            show_progress: whether to show a bar.
        """
        if not self.model.states_never_change:
            return
        parts = [loader.dataset for loader in evaluated if loader is not None]

        def bar(sequences: int) -> Any:
            return tqdm(total=sequences, desc="Hidden states", ncols=100, disable=not show_progress)

        # Where a process ranks rows of its own, it asks for their states when others may not.
        in_parts = self.shared is not None and self.shared.ranks_split
        with self.whole_backbone():
            self.model.fill_state_cache(parts, self.run_folder, bar, in_parts)
        if self._replays():
            queries = self.model.state_cache.samples.lengths
            # Room for a step of average samples and a half; the rare larger one is taken without the graph.
            capacity = max(int(1.5 * self.batch_size * queries.mean()), int(queries.max()))
            self.graphed_step = GraphedStep(
                lambda part, count: self._update([part], count), self.optimizer, capacity, torch.device(self.device)
            )

    def fit(self, *arguments: Any, **named: Any) -> Any:
        """Train as RecBole's trainer does; without an epoch the model is prepared as for the first, and no more."""
        if not self.epochs:
            self._prepare_model(0)
        return super().fit(*arguments, **named)

    def _prepare_model(self, epoch: int) -> None:
        self.model.before_epoch(epoch)
        if epoch == 0 and self.average is not None:
            self.average.restart()  # the model may have set where training starts

    def _replays(self) -> bool:
        """Tell whether steps can be replayed from a CUDA graph, which cannot ask which rows a sparse gradient has."""
        on_gpu = torch.device(self.device).type == "cuda"
        on_device = not isinstance(self.optimizer, RowSparse) and self.config["loss_type"] != TWO_LEVEL
        return on_gpu and self.shared is None and on_device

    def _train_epoch(
        self, train_data: Any, epoch_idx: int, loss_func: Any = None, show_progress: bool = False
    ) -> float:
        """Train one epoch and return the mean loss over its steps."""
        self._prepare_model(epoch_idx)
        self.model.train()
        if self.shared is not None:
            seed_epoch(self.config["seed"], epoch_idx)
        losses: list[Tensor] = []
        shown = time.monotonic()
        with tqdm(total=self.steps, desc=f"Train {epoch_idx:>5}", ncols=100, disable=not show_progress) as bar:
            for queries, passes in self._steps(epoch_idx):
                losses.append(self._step(max(queries, 1), passes))
                bar.update()
                if self.shared is None and time.monotonic() - shown > _SECONDS_BETWEEN_LOSSES:
                    bar.set_postfix_str(f"loss {self._mean(losses[-20:], epoch_idx, len(losses)):.4f}")
                    shown = time.monotonic()
        return self._mean(losses, epoch_idx, len(losses))

    def _valid_epoch(self, valid_data: Any, show_progress: bool = False) -> Any:
        self.model.before_validation(valid_data)
        return super()._valid_epoch(valid_data, show_progress)

    def _steps(self, epoch: int) -> Iterator[tuple[int, list[Any]]]:
        """Yield the number of queries of every step of an epoch, and its passes."""
        order = np.random.default_rng([self.config["seed"], epoch, 1])
        cache = self.model.state_cache
        if cache is not None:
            for queries in cache.steps(order.permutation(len(cache.samples)), self.batch_size):
                yield len(queries.labels), [queries if self.shared is None else cache.share(queries)]
            return
        samples = self._samples(epoch)
        shuffled = order.permutation(len(samples))
        steps = np.split(shuffled, np.arange(self.batch_size, len(shuffled), self.batch_size))
        prepared = prefetch(lambda indices: self._prepare(samples.select(indices)), steps)
        yield from prepared if self.shared is None else self.shared.agreed(prepared)

    def _prepare(self, step: Any) -> tuple[int, list[Any]]:
        if self.shared is not None:
            own = self.shared.own(self.model.sample_tokens(step))
            if not len(own):
                return 0, []
            step = step.select(own)
        queries, batches = self.model.prepared_step(step)
        return queries, [batch.pin_memory() for batch in batches] if self.gpu_available else batches

    def _step(self, queries: int, passes: list[Any]) -> Tensor:
        """Take one optimiser step and return its mean loss, a scalar on the device. Nothing waits for the device."""
        graphed = self.graphed_step
        loss = self._update(passes, queries) if graphed is None else graphed(passes[0])
        if self.average is not None:
            self.average.update()  # outside of the graph, where the decay of every step would be the same
        self.scheduler.step()
        return loss

    def _update(self, passes: list[Any], queries: int | Tensor) -> Tensor:
        total = torch.zeros((), device=self.device)
        with exchanged_by_torch():
            for part in passes:
                loss = (self.model.empty_pass_loss() if part is None else self.model.pass_loss_sum(part)) / queries
                loss.backward()
                total += loss.detach()
        self.masters.take_gradients()
        if self.shared is not None:
            self.shared.add_gradients(_weights(self.optimizer.param_groups))
        if self.clip_grad_norm and self.shared is not None:
            self.shared.clip(_weights(self.optimizer.param_groups), **self.clip_grad_norm)
        elif self.clip_grad_norm:
            torch.nn.utils.clip_grad_norm_(_weights(self.optimizer.param_groups), **self.clip_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.masters.give_weights()
        return total

    def _mean(self, losses: list[Tensor], epoch: int, done: int) -> float:
        values = sum_(torch.stack(losses)).tolist()
        for index, value in enumerate(values):
            if not np.isfinite(value):
                step = done - len(values) + index
                raise TrainingError(
                    f"the training loss is {value} at step {step} of epoch {epoch}: lower learning_rate, or raise "
                    f"warmup_steps"
                )
        return float(np.mean(values))

    @contextlib.contextmanager
    def evaluated_weights(self) -> Iterator[None]:
        """Return a context in which the model has the average of its weights, if `weight_average` asks for one.

        What several processes split is whole in it, but for items if each can rank its own.
        """
        with self.stored_weights(), contextlib.nullcontext() if self.shared is None else self.shared.joined():
            yield

    def stored_weights(self) -> contextlib.AbstractContextManager[None]:
        """Return a context in which the model has the average of its weights, if `weight_average` asks for one."""
        return contextlib.nullcontext() if self.average is None else self.average.in_model()

    def in_first(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return weights, whole in process 0. See `TrainerHooks`."""
        return super().in_first(state) if self.shared is None else self.shared.in_first(self.model, state)

    def whole_backbone(self) -> contextlib.AbstractContextManager[None]:
        """Return a context in which the model has all rows of a split backbone. See `TrainerHooks`."""
        return contextlib.nullcontext() if self.shared is None else self.shared.joined_backbone()

    def after_training(self) -> None:
        """Join what several processes split for good, but for items if each can rank its own."""
        if self.shared is not None:
            self.shared.join()

    def before_storing(self) -> None:
        """Let the model measure its extra results, and join what is split in process 0. See `TrainerHooks`."""
        super().before_storing()
        if self.shared is not None:
            self.shared.join_in_first()

    def own_rows(self) -> dict[str, slice]:
        """Return which rows of split weights this process has. See `TrainerHooks`."""
        splits = {} if self.shared is None else self.shared.split_items(self.model)
        return {name: slice(split.begin, split.end) for name, split in splits.items()}

    def in_parts(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return weights of the model to resume from. See `TrainerHooks`."""
        splits = {} if self.shared is None else self.shared.split_weights(self.model)
        whole = super().in_parts({name: weight for name, weight in weights.items() if name not in splits})
        return whole | {name: splits[name].stored(splits[name].rounded()) for name in weights if name in splits}

    def optimizer_state(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """Return the state of an optimiser. See `TrainerHooks`."""
        state = optimizer.state_dict()
        return state if self.shared is None else self._split_state().stored_optimizer(state)

    def own_part(self, state: dict[str, Any]) -> dict[str, Any]:
        """Return a state to resume from with the rows of this process. See `TrainerHooks`."""
        if self.shared is None:
            return state
        split, splits = self._split_state(), self.shared.split_weights(self.model)
        more = {**state["more"], "masters": self.masters.own(state["more"]["masters"])}
        if more.get("average") is not None:
            more["average"] = {**more["average"], "averages": split.own_list(more["average"]["averages"])}
        return {
            **state,
            "model": {n: splits[n].own(weight) if n in splits else weight for n, weight in state["model"].items()},
            "optimizers": {name: split.own_optimizer(found) for name, found in state["optimizers"].items()},
            "more": more,
        }

    def _split_state(self) -> SplitState:
        assert self.shared is not None
        return SplitState(self.shared.splits, _weights(self.optimizer.param_groups))

    def more_resume_state(self) -> dict[str, Any]:
        """Return the state of the learning rate schedule, the float32 masters and the average of the weights."""
        average = None if self.average is None else self.average.state()
        if average is not None and self.shared is not None:
            average["averages"] = self._split_state().stored_list(average["averages"])
        return {"scheduler": self.scheduler.state_dict(), "masters": self.masters.state(), "average": average}

    def weights_of_more(self, state: dict[str, Any] | None = None) -> dict[str, Tensor]:
        """Return the weights in bfloat16, which are their float32 masters rounded. See `TrainerHooks`."""
        names = {id(parameter): name for name, parameter in self.model.named_parameters()}
        rounded = self.masters.low if state is None else self.masters.rounded(state["masters"])
        return {names[id(low)]: weight for low, weight in zip(self.masters.low, rounded, strict=True)}

    def load_more_resume_state(self, state: dict[str, Any]) -> None:
        """Take back what `more_resume_state` returned."""
        self.scheduler.load_state_dict(state["scheduler"])
        self.masters.load_state(state["masters"])
        if self.average is not None:
            self.average.load_state(state.get("average"))


def _weights(groups: list[dict[str, Any]]) -> list[Tensor]:
    return [weight for group in groups for weight in group["params"]]
