"""Prompting a language model that is not trained (rows Llama2 and GPT-4 of ST2SI's Table 9).

The prompt has the titles of the history and of the candidates. ``answer: generate`` is the papers': the model writes,
and a written rule reads its answer. ``answer: likelihood`` takes the candidate whose title is the most probable answer:
always valid, and another protocol than the papers'. Models behind an address are asked by ``recbole-llm prompts``.
"""

from typing import Any

import numpy as np

from recbole_llm.data.answered_prompts import AnsweredPrompts
from recbole_llm.model.prompt_recommender import PromptRecommender


class _NoSamples:
    """The samples of a model that is not trained."""

    def __len__(self) -> int:
        return 0

    def select(self, indices: np.ndarray) -> "_NoSamples":
        del indices
        return self


class LLMPrompt(PromptRecommender):
    """A language model as it is, prompted. Has nothing to train, and so no epochs."""

    trains_on_rows = False

    def training_samples(self, rng: np.random.Generator) -> Any:
        """Return nothing to train on. See `PackedTrainer`."""
        del rng
        return _NoSamples()

    def prepared_step(self, samples: Any) -> tuple[int, list[AnsweredPrompts]]:
        """Return no passes. See `PackedTrainer`."""
        del samples
        return 0, []
