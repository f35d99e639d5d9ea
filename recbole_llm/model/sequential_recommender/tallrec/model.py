"""TALLRec (Bao et al., RecSys 2023, "An Effective and Efficient Tuning Framework to Align LLM with Recommendation").

``task: pointwise`` is the paper's: a prompt names what a user liked and disliked and one item; the answer is Yes or No,
and an item's score is P(Yes) / (P(Yes) + P(No)). What is liked comes from labels, which RecBole makes of ratings
(`threshold`); without labels the whole history is liked, and one random item that the user has not met is a No for
every Yes. ``task: listwise`` is what LLaRA's paper compares with, whose answers can be invalid: the target's title from
a list of candidates, which is LLaRA without its behaviour tokens.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from recbole.data.interaction import Interaction
from torch import Tensor

from recbole_llm.data.answered_prompts import AnsweredPrompts, answered, in_passes, padded_groups
from recbole_llm.data.list_prompts import ListTemplate
from recbole_llm.data.list_samples import ListSamples
from recbole_llm.data.rated_dataset import RatedDataset
from recbole_llm.errors import BackboneError, SettingError
from recbole_llm.evaluation.candidate_choices import CandidateChoices
from recbole_llm.model.list_tuned_recommender import ListTunedRecommender
from recbole_llm.model.prompt_recommender import choice_template

_ANSWERS = ("No", "Yes")  # by label
_FIELDS = ("liked", "disliked", "item")


class TALLRec(ListTunedRecommender):
    """TALLRec as a RecBole sequential model.

    Args:
        config: the settings of the run.
        dataset: the training part of a `RatedDataset`.

    Attributes:
        pointwise: whether items are judged one by one.
        verdicts: int64 [2], the first tokens in which No and Yes differ.

    Raises:
        BackboneError: if the backbone cannot be had or is no decoder, or its tokenizer does not tell Yes from No.
        DataError: if an item has no title.
        SettingError: for values that do not go together.
    """

    dataset_class = RatedDataset
    verdicts: Tensor

    def __init__(self, config: Any, dataset: RatedDataset) -> None:
        self.pointwise = config["task"] == "pointwise"
        self.titles_answer = not self.pointwise
        super().__init__(config, dataset)
        if not self.pointwise:
            return
        self._labels: np.ndarray | None = None
        if dataset.has_labels:
            self._label_list: str = getattr(dataset, f"{dataset.label_field}_list_field")
            self._labels = dataset.flat[self._label_list].numpy() > 0
        # As a title is written there, with the space that belongs to it.
        space = " " if self.prompts.answer_spaced else ""
        tokens = [self._tokenizer(f"{space}{word}.", add_special_tokens=False)["input_ids"] for word in _ANSWERS]
        same = next((n for n, (no, yes) in enumerate(zip(*tokens, strict=False)) if no != yes), None)
        if same is None:
            raise BackboneError(f"the tokenizer of {self.settings.backbone} does not tell Yes from No: choose another")
        self._before_verdict = self.prompts.add_row(tokens[0][:same])  # empty but for byte tokens
        self._verdict_rows = [self.prompts.add_row(ids) for ids in tokens]
        self.register_buffer("verdicts", torch.tensor([ids[same] for ids in tokens]), persistent=False)

    @classmethod
    def chooses(cls, config: Any) -> bool:
        """Tell whether candidates are shown: always if listwise, and if there are any. See `ModelHooks`."""
        return config["task"] == "listwise" or config["candidates"] is not None

    @classmethod
    def check_before_stages(cls, config: Any, dataset: Any) -> None:
        """Refuse a listwise run without candidates, and a ranking of all items that takes too many prompts.

        Raises:
            SettingError: with the number of prompts.
        """
        super().check_before_stages(config, dataset)
        if not cls.chooses(config) and config["eval_args"]["mode"]["valid"] == "full":
            users, items = dataset.user_num - 1, dataset.item_num - 1
            _require_few(users * items, f"{users} users x {items} items", config["max_full_sort_prompts"])

    def template(self, config: Any) -> ListTemplate:
        """Return the text of the prompts."""
        if not self.pointwise:
            return choice_template(config)
        return ListTemplate("judge_prompt", config["judge_prompt"], _FIELDS, config["prompt_noun"], '"{title}"')

    # -- training ------------------------------------------------------------------------------------------------------

    def prepared_step(self, samples: ListSamples) -> tuple[int, list[AnsweredPrompts]]:
        """Return how many answer tokens a step has, and its passes. See `PackedTrainer`."""
        if not self.pointwise:
            return super().prepared_step(samples)
        prompts, answers = [], []
        for end, length, seed in zip(samples.targets.ends, samples.targets.lengths, samples.seeds, strict=True):
            begin = end - min(length, self.settings.max_items)
            history, target = self.histories.flat[begin:end], self.histories.flat[end]
            labels = None if self._labels is None else self._labels[begin:end]
            judged = [(target, True)] if self._labels is None else [(target, bool(self._labels[end]))]
            if self._labels is None:
                judged.append((self._unmet(int(end), int(length), int(seed)), False))
            for item, liked in judged:
                prompts.append(self._prompt(history, labels, int(item)))
                answers.append([self._verdict_rows[liked]])
        parts = in_passes(self.prompts, prompts, answers, self.settings.train_batch_tokens)
        return sum(len(part.packed.query_index) for part in parts), parts

    def _unmet(self, end: int, length: int, seed: int) -> int:
        """Return an item drawn from those outside a row's history and target; any, if the user has met all."""
        known = np.unique(self.histories.flat[end - length : end + 1])
        left = np.setdiff1d(np.arange(1, self.n_items), known)
        return int(np.random.default_rng(seed).choice(left if len(left) else np.arange(1, self.n_items)))

    def _prompt(self, history: Sequence[int] | np.ndarray, labels: np.ndarray | None, item: int) -> list[int]:
        items = np.asarray(history)
        liked = np.ones(len(items), dtype=bool) if labels is None else np.asarray(labels, dtype=bool)
        return self.prompts.rows({"liked": items[liked], "disliked": items[~liked], "item": [item]})

    # -- judging -------------------------------------------------------------------------------------------------------

    def choose(self, interaction: Interaction, choices: CandidateChoices, rows: slice) -> None:
        """Answer the lists of some rows; pointwise, the candidate with the greatest P(Yes) is chosen."""
        if not self.pointwise:
            super().choose(interaction, choices, rows)
            return
        shown = choices.lists.shown[rows]
        places = np.empty(shown.shape[:2], dtype=np.int64)
        for row in range(len(shown)):
            items, inverse = np.unique(shown[row], return_inverse=True)  # draws share items, each is judged once
            scores = self.judge(interaction[row : row + 1], [items]).cpu().numpy()
            places[row] = scores[inverse.reshape(shown[row].shape)].argmax(axis=1)
        choices.choose(rows, places)

    @torch.no_grad()
    def judge(self, interaction: Interaction, items: Sequence[Sequence[int] | np.ndarray]) -> Tensor:
        """Return P(Yes) / (P(Yes) + P(No)) of some items of each row, end to end: float32.

        Args:
            interaction: the rows.
            items: item ids of each row.
        """
        histories = self.histories_of(interaction)
        labels: list[Any] = [None] * len(histories)
        if self._labels is not None:
            lists = interaction[self._label_list].cpu().numpy() > 0
            labels = [row[: len(history)] for row, history in zip(lists, histories, strict=True)]
        keep = self.settings.max_items
        prompts = [
            [*self._prompt(history[-keep:], None if label is None else label[-keep:], int(item)), self._before_verdict]
            for history, label, of_row in zip(histories, labels, items, strict=True)
            for item in of_row
        ]
        found = torch.empty(len(prompts), device=self.device)
        decoder = self.decoder()
        for group in padded_groups(self.prompts, prompts, self.settings.eval_batch_tokens, 0):
            batch = answered(self.prompts, [prompts[index] for index in group]).to(self.device)
            last = torch.from_numpy(np.cumsum(batch.lengths) - 1).to(self.device)
            logits = decoder.logits(self.states(batch)[last], self.verdicts)
            found[torch.from_numpy(group).to(self.device)] = logits.softmax(dim=1)[:, 1]
        return found

    def predict(self, interaction: Interaction) -> Tensor:
        """Return the score of each row's `item_id`: [batch], float32. Raises SettingError if listwise."""
        if not self.pointwise:
            return super().predict(interaction)
        return self.judge(interaction, interaction[self.ITEM_ID].cpu().numpy()[:, None])

    def full_sort_predict(self, interaction: Interaction) -> Tensor:
        """Return the scores of all items: [batch, items], float32, -inf for the padding id.

        Raises:
            SettingError: if listwise, or if that takes more than `max_full_sort_prompts` prompts.
        """
        if not self.pointwise:
            return super().full_sort_predict(interaction)
        rows, items = len(interaction), self.n_items - 1
        _require_few(rows * items, f"{rows} rows x {items} items", self.settings.max_full_sort_prompts)
        every = np.arange(1, self.n_items)
        scores = self.judge(interaction, [every] * rows).view(rows, items)
        return torch.cat([scores.new_full((rows, 1), -torch.inf), scores], dim=1)


def _require_few(prompts: int, why: str, most: int) -> None:
    """Refuse a ranking that takes too many prompts. Raises SettingError."""
    if prompts > most:
        raise SettingError(
            f"ranking all items takes {prompts:,} prompts ({why}), more than max_full_sort_prompts={most:,}: set "
            f"candidates=20 to judge drawn candidates, eval_args={{mode: labeled}} for AUC, or raise it"
        )
