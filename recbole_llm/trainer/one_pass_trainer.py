"""Training at all positions of one pass over each history (`train_positions: all`), the whole epoch on the device."""

import time
from typing import Any

import torch
from recbole.data.interaction import Interaction
from torch import Tensor
from tqdm import tqdm

from recbole_llm.config.settings.one_pass import TWO_LEVEL
from recbole_llm.data.position_windows import WindowTable, labelled_windows
from recbole_llm.trainer.device_steps import DeviceSteps
from recbole_llm.trainer.graphed_loss import GraphedLoss
from recbole_llm.trainer.quick_layers import quicken
from recbole_llm.trainer.row_sparse import row_options, with_rows
from recbole_llm.trainer.shared_steps import SharedSteps, seed_epoch
from recbole_llm.utils.collectives import sum_
from recbole_llm.utils.processes import world

_WINDOWS = "windows"


class OnePassTrainer(DeviceSteps):
    """RecBole's Trainer for a model of `model.one_pass`: a step is `train_batch_size` windows of histories.

    The histories are moved to the device once; the windows are shuffled and cut there, and losses are added up there,
    so that nothing waits for the device within an epoch. On a GPU, loss and gradients of a batch are one CUDA graph for
    each width that batches have. Where several processes share a run, each takes a part of the windows of every batch.
    """

    def __init__(self, config: Any, model: Any) -> None:
        super().__init__(config, model)
        quicken(model)
        self.graphed_loss = None  # that of rows
        self._table: WindowTable | None = None
        self._graphs: dict[int, GraphedLoss] = {}
        on_gpu = torch.device(self.device).type == "cuda"
        precise = not config["enable_amp"] and not config["enable_scaler"]
        self.shared = SharedSteps(model) if world().is_shared else None
        # Which rows a sparse gradient has, and how many queries a cluster, the host must know.
        on_device = config["item_optimizer"] is None and config["loss_type"] != TWO_LEVEL
        self._replays = on_gpu and precise and model.capturable and on_device and self.shared is None
        self._pool = torch.cuda.graph_pool_handle() if self._replays else None

    def _build_optimizer(self, **kwargs: Any) -> torch.optim.Optimizer:
        """Return RecBole's optimiser; Adam and AdamW update a weight, or all of them on a GPU, in one kernel."""
        optimizer: torch.optim.Optimizer = super()._build_optimizer(**kwargs)
        if isinstance(optimizer, torch.optim.Adam | torch.optim.AdamW):
            return self._fused(type(optimizer))
        return optimizer

    def _fused(self, kind: Any) -> torch.optim.Optimizer:
        weights, options = list(self.model.parameters()), row_options(self.config)
        if options:
            table = self.model.row_sparse_table()
            groups = [{"params": [weight for weight in weights if weight is not table]}, {"params": [table], **options}]
            kind, weights = with_rows(kind), [group for group in groups if group["params"]]
        optimizer: torch.optim.Optimizer = kind(
            weights, lr=self.learning_rate, weight_decay=self.weight_decay, fused=True
        )
        return optimizer

    def windows(self, train_data: Any) -> WindowTable:
        """Return the windows of a training loader's dataset, made once.

        Args:
            train_data: RecBole's loader of the training part; its rows are not read.
        """
        if self._table is None:
            self.model.before_training(train_data._dataset)
            longest = self.config["MAX_ITEM_LIST_LENGTH"]
            labelled = labelled_windows(train_data._dataset, longest, self.config["train_positions"] == "recent")
            by_positions = self.config["batches_of"] == "positions"
            self._table = WindowTable(
                labelled, longest, self.config["train_batch_size"], torch.device(self.device), by_positions
            )
        return self._table

    def _train_epoch(
        self, train_data: Any, epoch_idx: int, loss_func: Any = None, show_progress: bool = False
    ) -> float:
        """Train one epoch and return the mean loss over its predictions.

        Raises:
            ValueError: if the loss is not a number, with RecBole's words.
        """
        table = self.windows(train_data)
        self.model.train()
        if self.shared is not None:
            seed_epoch(self.config["seed"], epoch_idx)
        scaler = torch.amp.GradScaler("cuda", enabled=self.enable_scaler)
        total = torch.zeros((), dtype=torch.double, device=self.device)
        batches = table.epoch(self.config["seed"], epoch_idx)
        noted = time.monotonic()
        with tqdm(total=table.batches, desc=f"Train {epoch_idx:>5}", ncols=100, disable=not show_progress) as bar:
            for width, windows in batches:
                loss = self._step_on(table, width, windows, scaler)
                total += loss.detach() * table.labelled(windows)  # of this process: a part of the loss
                if show_progress and time.monotonic() - noted > 1:
                    noted = time.monotonic()
                    bar.refresh()
                bar.update()
        mean = float(sum_(total)) / table.predictions
        if mean != mean:
            raise ValueError("Training loss is nan")
        return mean

    def _step_on(self, table: WindowTable, width: int, windows: Tensor, scaler: Any) -> Tensor:
        def loss_of(batch: Interaction) -> Tensor:
            histories, labels = table.rows(batch[_WINDOWS], width)
            loss: Tensor = self.model.positions_loss(histories, labels)
            return loss

        if self.shared is not None:
            return self._shared_step(table, windows, loss_of, scaler)
        batch = Interaction({_WINDOWS: windows})
        if not self._replays:
            return self._step(batch, loss_of, scaler)  # type: ignore[return-value]
        if width not in self._graphs:
            self._graphs[width] = GraphedLoss(self.model, loss_of, self._pool)
        loss = self._graphs[width](batch)
        self._update(scaler)
        return loss

    def _shared_step(self, table: WindowTable, windows: Tensor, loss_of: Any, scaler: Any) -> Tensor:
        """Take a step of which this process has every n-th window, and return its part of the mean loss."""
        own = windows[world().rank :: world().size]
        if not len(own):
            self.optimizer.zero_grad()
            scaler.scale(torch.zeros((), device=self.device))  # a new scaler does not step before it has scaled
            self._update(scaler)
            return torch.zeros((), device=self.device)
        share = table.labelled(own) / table.labelled(windows)

        def part(batch: Interaction) -> Tensor:
            loss: Tensor = loss_of(batch) * share
            return loss

        return self._step(Interaction({_WINDOWS: own}), part, scaler)  # type: ignore[return-value]

    def _update(self, scaler: Any) -> None:
        if self.shared is not None:
            self.shared.add_gradients(list(self.model.parameters()))
        super()._update(scaler)
