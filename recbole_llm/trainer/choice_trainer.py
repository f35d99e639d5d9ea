"""Training of models that are shown lists of candidates and choose one: validation counts right choices."""

from collections import OrderedDict
from typing import Any

import torch
from recbole.data.dataloader import FullSortEvalDataLoader
from torch import Tensor
from tqdm import tqdm

from recbole_llm.config.hooks import hooks_of_class
from recbole_llm.evaluation.candidate_choices import CandidateChoices, CandidateLists
from recbole_llm.trainer.packed_trainer import PackedTrainer


class ChoiceTrainer(PackedTrainer):
    """`PackedTrainer` for models whose `chooses` says so; any other is evaluated as RecBole does.

    Validation in training answers the lists of draw 0 alone; the best epoch is then measured on all draws. The metrics
    are ``hit@1``, hits over all lists, and ``valid_ratio``, by the run's `answer_rule`.
    """

    def __init__(self, config: Any, model: Any) -> None:
        self._validation: CandidateChoices | None = None
        super().__init__(config, model)

    def _build_optimizer(self, **keywords: Any) -> torch.optim.Optimizer:
        if any(parameter.requires_grad for parameter in self.model.parameters()):
            return super()._build_optimizer(**keywords)
        self.masters, self.average = None, None  # type: ignore[assignment] # nothing is trained
        return torch.optim.SGD([Tensor([0.0]).requires_grad_()], lr=0.0)

    def _train_epoch(
        self, train_data: Any, epoch_idx: int, loss_func: Any = None, show_progress: bool = False
    ) -> float:
        """Train one epoch and return its mean loss; 0 where nothing is trained."""
        if self.masters is None:
            return 0.0
        return super()._train_epoch(train_data, epoch_idx, loss_func, show_progress)

    def schedule(self, epochs: int) -> torch.optim.lr_scheduler.LambdaLR:
        """Return the schedule of the learning rate, see `PackedTrainer`; a constant one where nothing is trained."""
        if self.masters is not None:
            return super().schedule(epochs)
        return torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda _: 1.0)

    def more_resume_state(self) -> dict[str, Any]:
        """Return what `PackedTrainer` needs to resume; nothing where nothing is trained."""
        return super().more_resume_state() if self.masters is not None else {}

    def weights_of_more(self, state: dict[str, Any] | None = None) -> dict[str, Tensor]:
        """Return the weights that the float32 masters give back, see `PackedTrainer`; none if nothing is trained."""
        return super().weights_of_more(state) if self.masters is not None else {}

    def load_more_resume_state(self, state: dict[str, Any]) -> None:
        """Take back what `more_resume_state` returned."""
        if self.masters is not None:
            super().load_more_resume_state(state)

    @torch.no_grad()
    def evaluate(
        self, eval_data: Any, load_best_model: bool = True, model_file: Any = None, show_progress: bool = False
    ) -> Any:
        """Answer the lists of `eval_collector.candidates`, or those of draw 0, and return the metrics."""
        if not hooks_of_class(type(self.model)).chooses(self.config):
            return super().evaluate(eval_data, load_best_model, model_file, show_progress)
        del load_best_model, model_file  # `RunFolderMixin` has loaded the best weights
        assert isinstance(eval_data, FullSortEvalDataLoader)
        choices = self.eval_collector.candidates
        if choices is None:
            choices = self._validation = self._validation or self._first_draw(eval_data._dataset)
        choices.clear()
        self.model.eval()
        begin = 0
        with tqdm(total=len(choices.lists), desc="Evaluate   ", ncols=100, disable=not show_progress) as bar:
            for interaction, *_ in eval_data:
                rows = slice(begin, begin + len(interaction))
                self.model.choose(interaction, choices, rows)
                begin = rows.stop
                bar.update(len(interaction))
        return OrderedDict(choices.metrics(self.config["answer_rule"]))

    def _first_draw(self, part: Any) -> CandidateChoices:
        return CandidateChoices(CandidateLists.drawn(part, [], self.config["candidates"], 1, part.known_histories))
