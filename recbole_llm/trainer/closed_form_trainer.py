"""Training of a model whose weights are the solution of equations: one epoch, no steps."""

from typing import Any

from recbole_llm.trainer.device_steps import DeviceSteps


class ClosedFormTrainer(DeviceSteps):
    """RecBole's Trainer for a model with a method ``solve(dataset)`` that sets its weights and returns the mean loss.

    One epoch solves, whatever `epochs` says; with ``epochs: 0`` the model is evaluated as it was built. Before a
    validation it calls the model's `before_validation`.
    """

    def __init__(self, config: Any, model: Any) -> None:
        super().__init__(config, model)
        self.epochs: int = min(config["epochs"], 1)

    def _train_epoch(
        self, train_data: Any, epoch_idx: int, loss_func: Any = None, show_progress: bool = False
    ) -> float:
        """Solve for the weights on the training part and return the mean loss over its rows."""
        self.model.train()
        loss: float = self.model.solve(train_data._dataset)
        return loss

    def _valid_epoch(self, valid_data: Any, show_progress: bool = False) -> Any:
        self.model.before_validation(valid_data)
        return super()._valid_epoch(valid_data, show_progress)
