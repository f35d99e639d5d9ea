"""The base class of models that are tuned on lists of candidates: the answer is the target's title (LLaRA, TALLRec)."""

from typing import Any

import numpy as np

from recbole_llm.data.answered_prompts import AnsweredPrompts, in_passes
from recbole_llm.data.dataset import HistoryDataset
from recbole_llm.data.list_samples import ListSamples, drawn_list, few, list_samples
from recbole_llm.data.targets import TrainingHistories
from recbole_llm.model.prompt_recommender import PromptRecommender


class ListTunedRecommender(PromptRecommender):
    """A `PromptRecommender` whose training rows are every prefix of a history, each with lists drawn in every epoch.

    The other candidates of a row are drawn from the items outside its history so far; the order is random. The loss is
    the cross-entropy of the tokens of the target's title and of the end of the line, their mean over a step.

    Args:
        config: the settings of the run.
        dataset: the training part of a `HistoryDataset`.

    Attributes:
        histories: what is trained on.
    """

    def __init__(self, config: Any, dataset: HistoryDataset) -> None:
        super().__init__(config, dataset)
        self.histories = TrainingHistories(dataset, self.n_items)
        self._rows = few(self.histories.every_target(), config["train_samples"], config["seed"])

    def training_samples(self, rng: np.random.Generator) -> Any:
        """Return the rows of one epoch. See `PackedTrainer`."""
        return list_samples(self._rows, rng)

    def prepared_step(self, samples: ListSamples) -> tuple[int, list[AnsweredPrompts]]:
        """Return how many answer tokens a step has, and its passes. See `PackedTrainer`."""
        return self._passes(samples, marked=False)

    def _passes(self, samples: ListSamples, marked: bool) -> tuple[int, list[AnsweredPrompts]]:
        count = self.settings.candidates
        assert count is not None
        prompts, answers = [], []
        rows = zip(samples.targets.ends, samples.targets.lengths, samples.seeds, strict=True)
        for end, length, seed in rows:
            shown = drawn_list(self.histories, int(end), int(length), count, int(seed))
            history = self.histories.flat[end - min(length, self.settings.max_items) : end]
            prompts.append(self.prompts.rows({"history": history, "candidates": shown}, marked))
            answers.append(self.prompts.answer_rows(self.histories.flat[end]))
        parts = in_passes(self.prompts, prompts, answers, self.settings.train_batch_tokens)
        return sum(len(part.packed.query_index) for part in parts), parts
