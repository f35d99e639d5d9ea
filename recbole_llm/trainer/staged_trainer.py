"""Training in two stages around a table of item vectors (Recformer): the second goes back to the best of the first."""

from typing import Any

from recbole_llm.trainer.packed_trainer import PackedTrainer

_NEVER = 1 << 30  # epochs without a better validation


class StagedTrainer(PackedTrainer):
    """`PackedTrainer` for models that may train in two stages, as their `training_stages` says.

    The first stage ends after `first_stage_epochs` (half of `epochs` if that is None), or after more than
    `stopping_step` validations without a better result. Then the model gets the best weights so far, and
    ``begin_stage(2)`` is called; the optimiser, the schedule of the learning rate and the patience begin again. (In the
    authors' code one schedule, as long as one stage, spans both: after a full first stage the rate of the second is 0.)
    What is kept at the end is the best of both stages.

    Attributes:
        stage: 1 or 2.
        stage_begin: the epoch with which the stage began.
    """

    def __init__(self, config: Any, model: Any) -> None:
        super().__init__(config, model)
        self.stage, self.stage_begin = 1, 0
        self._patience: int = config["stopping_step"]
        self._first_epochs = self.epochs
        if model.training_stages == 2:
            first = config["first_stage_epochs"]
            self._first_epochs = -(-self.epochs // 2) if first is None else first
            self.stopping_step = _NEVER  # RecBole ends the whole training
            self.scheduler = self.schedule(self._first_epochs)

    def _train_epoch(
        self, train_data: Any, epoch_idx: int, loss_func: Any = None, show_progress: bool = False
    ) -> float:
        """Train one epoch, the first of the second stage if the first is over, and return its mean loss."""
        if self._first_is_over(epoch_idx):
            self._begin_second(epoch_idx)
        return super()._train_epoch(train_data, epoch_idx, loss_func, show_progress)

    def _first_is_over(self, epoch: int) -> bool:
        if self.stage != 1 or self.model.training_stages != 2:
            return False
        return epoch >= self._first_epochs or self.cur_step > self._patience

    def _begin_second(self, epoch: int) -> None:
        self.restore_best()
        self.model.begin_stage(2)
        self.stage, self.stage_begin = 2, epoch
        self.cur_step, self.stopping_step = 0, self._patience
        self.optimizer = self._build_optimizer()
        self.scheduler = self.schedule(self.epochs - epoch)
        self.logger.info("Second stage from epoch %d", epoch)

    def more_resume_state(self) -> dict[str, Any]:
        """Return what `PackedTrainer` needs to resume, and the stage."""
        return {**super().more_resume_state(), "stage": [self.stage, self.stage_begin]}

    def load_more_resume_state(self, state: dict[str, Any]) -> None:
        """Take back what `more_resume_state` returned."""
        self.stage, self.stage_begin = state["stage"]
        if self.stage == 2:
            self.stopping_step = self._patience
            rates = [group["lr"] for group in self.optimizer.param_groups]
            self.scheduler = self.schedule(self.epochs - self.stage_begin)
            for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
                group["lr"] = rate  # which a new schedule sets to its first
        super().load_more_resume_state(state)
