"""Training at all positions of one pass over each history (`train_positions: all`), the whole epoch on the device."""

import time
from typing import Any

import torch
from recbole.data.interaction import Interaction
from torch import Tensor
from tqdm import tqdm

from recbole_llm.data.position_windows import WindowTable, labelled_windows
from recbole_llm.model.layers.quick_layers import quicken
from recbole_llm.trainer.device_steps import DeviceSteps
from recbole_llm.trainer.graphed_loss import GraphedLoss

_WINDOWS = "windows"


class OnePassTrainer(DeviceSteps):
    """RecBole's Trainer for a model of `model.one_pass`: a step is `train_batch_size` windows of histories.

    The histories are moved to the device once; the windows are shuffled and cut there, and losses are added up there,
    so that nothing waits for the device within an epoch. On a GPU, loss and gradients of a batch are one CUDA graph for
    each width that batches have.
    """

    def __init__(self, config: Any, model: Any) -> None:
        super().__init__(config, model)
        quicken(model)
        self.graphed_loss = None  # that of rows
        self._table: WindowTable | None = None
        self._graphs: dict[int, GraphedLoss] = {}
        on_gpu = torch.device(self.device).type == "cuda"
        precise = not config["enable_amp"] and not config["enable_scaler"]
        self._replays = on_gpu and precise and model.capturable
        self._pool = torch.cuda.graph_pool_handle() if self._replays else None

    def _build_optimizer(self, **kwargs: Any) -> torch.optim.Optimizer:
        """Return RecBole's optimiser; Adam and AdamW update a weight, or all of them on a GPU, in one kernel."""
        optimizer: torch.optim.Optimizer = super()._build_optimizer(**kwargs)
        if isinstance(optimizer, torch.optim.Adam | torch.optim.AdamW):
            return type(optimizer)(
                self.model.parameters(), lr=self.learning_rate, weight_decay=self.weight_decay, fused=True
            )
        return optimizer

    def windows(self, train_data: Any) -> WindowTable:
        """Return the windows of a training loader's dataset, made once.

        Args:
            train_data: RecBole's loader of the training part; its rows are not read.
        """
        if self._table is None:
            longest = self.config["MAX_ITEM_LIST_LENGTH"]
            labelled = labelled_windows(train_data._dataset, longest, self.config["train_positions"] == "recent")
            self._table = WindowTable(labelled, longest, self.config["train_batch_size"], torch.device(self.device))
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
        scaler = torch.amp.GradScaler("cuda", enabled=self.enable_scaler)
        total = torch.zeros((), dtype=torch.double, device=self.device)
        batches = table.epoch(self.config["seed"], epoch_idx)
        noted = time.monotonic()
        with tqdm(total=table.batches, desc=f"Train {epoch_idx:>5}", ncols=100, disable=not show_progress) as bar:
            for width, windows in batches:
                loss = self._step_on(table, width, windows, scaler)
                total += loss.detach() * table.labelled(windows)
                if show_progress and time.monotonic() - noted > 1:
                    noted = time.monotonic()
                    bar.refresh()
                bar.update()
        mean = float(total) / table.predictions
        if mean != mean:
            raise ValueError("Training loss is nan")
        return mean

    def _step_on(self, table: WindowTable, width: int, windows: Tensor, scaler: Any) -> Tensor:
        def loss_of(batch: Interaction) -> Tensor:
            histories, labels = table.rows(batch[_WINDOWS], width)
            loss: Tensor = self.model.positions_loss(histories, labels)
            return loss

        batch = Interaction({_WINDOWS: windows})
        if not self._replays:
            return self._step(batch, loss_of, scaler)  # type: ignore[return-value]
        if width not in self._graphs:
            self._graphs[width] = GraphedLoss(self.model, loss_of, self._pool)
        loss = self._graphs[width](batch)
        self._update(scaler)
        return loss
