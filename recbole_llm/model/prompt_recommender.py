"""The base class of models that are prompted with lists of items and answer in words, or judge given answers."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from recbole.data.interaction import Interaction
from torch import Tensor

from recbole_llm.backbone.attention import packed_hidden_states, use_packed_attention
from recbole_llm.backbone.decoding.decoder import Decoder, PaddedPrompts, left_padded
from recbole_llm.backbone.decoding.greedy import greedy
from recbole_llm.backbone.decoding.likelihood import answer_log_likelihoods
from recbole_llm.backbone.language_head import language_head
from recbole_llm.backbone.loading import Backbone, load_backbone
from recbole_llm.backbone.precision import resolve_precision
from recbole_llm.backbone.tuning import prepare_for_tuning
from recbole_llm.data.answered_prompts import AnsweredPrompts, answered, padded_groups
from recbole_llm.data.dataset import HistoryDataset
from recbole_llm.data.list_prompts import Items, ListPrompts, ListTemplate, tidy_titles
from recbole_llm.errors import SettingError
from recbole_llm.evaluation.candidate_choices import CandidateChoices
from recbole_llm.model.layers.answer_loss import answer_loss_sum
from recbole_llm.model.prompt_settings import PromptSettings
from recbole_llm.model.text_recommender import TextRecommender
from recbole_llm.packing.ragged import RaggedTable
from recbole_llm.runs.checkpoint import trained_state
from recbole_llm.trainer.choice_trainer import ChoiceTrainer


class PromptRecommender(TextRecommender):
    """A decoder that reads prompts of `ListPrompts`.

    It is shown lists of candidates and chooses one: by writing a title, which a written rule reads, or by how probable
    it finds each title as the answer. It ranks nothing else.

    Args:
        config: the settings of the run.
        dataset: the training part of a `HistoryDataset`.

    Attributes:
        titles_answer: whether answers are titles.
        settings: what these models have in common.
        backbone: the language model, without its head.
        head: its language head.
        prompts: how prompts are laid.

    Raises:
        BackboneError: if the backbone cannot be had or is no decoder, or two titles have the same tokens.
        DataError: if an item has no title.
        SettingError: for values that do not go together.
    """

    dataset_class = HistoryDataset
    trainer_class = ChoiceTrainer
    histories_on_host = True
    titles_answer = True

    def __init__(self, config: Any, dataset: HistoryDataset) -> None:
        super().__init__(config, dataset)
        self.settings = settings = PromptSettings.from_config(config)
        self.precision = resolve_precision(config["precision"], torch.device(self.device))
        dtype = settings.tuning.load_dtype(self.precision)
        loaded = load_backbone(settings.backbone, dtype=dtype)
        self.head = language_head(loaded, settings.tuning, dtype)
        self._autocast = settings.tuning.needs_autocast(self.precision)
        self.prompts = self.make_prompts(config, dataset, loaded)
        self._tokenizer = loaded.tokenizer
        self._stop = {loaded.tokenizer.eos_token_id} if loaded.tokenizer.eos_token_id is not None else set()
        if settings.tuning.tuning != "frozen" or not self._stop:
            self._stop.add(
                self.prompts.end[-1]
            )  # a model that was not taught to end there may begin with an empty line
        self.backbone = loaded.model
        use_packed_attention(self.backbone)
        prepare_for_tuning(loaded, settings.tuning)

    @classmethod
    def chooses(cls, config: Any) -> bool:
        """Tell that the model is shown candidates. See `ModelHooks`."""
        del config
        return True

    @classmethod
    def check_before_stages(cls, config: Any, dataset: Any) -> None:
        """Refuse a run without lists of candidates. Raises SettingError."""
        del dataset
        if cls.chooses(config) and config["candidates"] is None:
            raise SettingError(
                f"{config['model']} chooses from a list of candidates and ranks no catalogue: set candidates=20"
            )

    def template(self, config: Any) -> ListTemplate:
        """Return the text of the prompts."""
        return choice_template(config)

    def make_prompts(self, config: Any, dataset: HistoryDataset, loaded: Backbone) -> ListPrompts:
        """Return how prompts are laid for a backbone."""
        settings = self.settings
        limit = loaded.max_positions
        if limit is not None and settings.max_sequence_tokens > limit:
            raise SettingError(
                f"max_sequence_tokens={settings.max_sequence_tokens} is more than the {limit} positions of "
                f"{settings.backbone}: lower it"
            )
        room = settings.max_sequence_tokens - max(settings.max_answer_tokens, settings.max_attribute_tokens + 1)
        return ListPrompts(
            self.template(config),
            titles_of(dataset, settings.title_field, settings.tidy_titles),
            loaded.tokenizer,
            item_tokens=settings.max_attribute_tokens,
            max_tokens=room,
            count=settings.candidates or 0,
            chat=settings.chat,
            titles_answer=self.titles_answer,
        )

    def train(self, mode: bool = True) -> "PromptRecommender":
        """Set training mode; a frozen backbone stays in eval mode, without dropout."""
        super().train(mode)
        if self.settings.tuning.tuning == "frozen":
            self.backbone.eval()
        return self

    # -- embeddings and losses -----------------------------------------------------------------------------------------

    def embed(self, batch: AnsweredPrompts) -> Tensor:
        """Return the input embeddings of a batch on the device: [tokens, width]."""
        embedded: Tensor = self.backbone.get_input_embeddings()(batch.packed.token_ids)
        return embedded

    def states(self, batch: AnsweredPrompts) -> Tensor:
        """Return the hidden states of a batch on the device: [tokens, width]."""
        with torch.autocast(batch.packed.token_ids.device.type, torch.bfloat16, enabled=self._autocast):
            return packed_hidden_states(self.backbone, batch.packed, inputs_embeds=self.embed(batch))

    def pass_loss_sum(self, part: AnsweredPrompts) -> Tensor:
        """Return the cross-entropy of the answers of one pass, summed over their tokens. See `PackedTrainer`."""
        part = part.to(self.device)
        states = self.states(part)[part.packed.query_index]
        assert part.packed.labels is not None
        return answer_loss_sum(states, self.head.weight, part.packed.labels, self.precision)

    # -- choosing ------------------------------------------------------------------------------------------------------

    def prompt_rows(self, history: Items, candidates: Items) -> list[int]:
        """Return the rows of a prompt in evaluation.

        Args:
            history: item ids, the oldest first.
            candidates: item ids in the order in which they are shown.
        """
        return self.prompts.rows({"history": history[-self.settings.max_items :], "candidates": candidates})

    @torch.no_grad()
    def choose(self, interaction: Interaction, choices: CandidateChoices, rows: slice) -> None:
        """Answer the lists of some rows.

        Args:
            interaction: the rows.
            choices: has the lists, and takes what is chosen.
            rows: which rows of the lists these are.
        """
        shown = choices.lists.shown[rows]
        histories = self.histories_of(interaction)
        prompts = [
            self.prompt_rows(history, of_draw)
            for history, of_row in zip(histories, shown, strict=True)
            for of_draw in of_row
        ]
        if self.settings.answer == "likelihood":
            places = self._most_likely(prompts, shown.reshape(len(prompts), -1))
            choices.choose(rows, places.reshape(shown.shape[:2]))
            return
        texts = self._written(prompts)
        draws = shown.shape[1]
        answers = [texts[start : start + draws] for start in range(0, len(texts), draws)]
        choices.read(rows, answers, self.prompts.answer_titles)

    def _written(self, prompts: list[list[int]]) -> list[str]:
        """Return the greedy answer to each prompt."""

        def answer(decoder: Decoder, padded: PaddedPrompts, _: np.ndarray) -> list[str]:
            tokens = greedy(decoder, padded, self.settings.max_answer_tokens, self._stop)
            return [self._tokenizer.decode(row, skip_special_tokens=True) for row in tokens]

        return self._in_groups(prompts, self.settings.max_answer_tokens, answer)

    def _most_likely(self, prompts: list[list[int]], candidates: np.ndarray) -> np.ndarray:
        """Return the place of the candidate whose title is the most probable answer to each prompt: int64 [prompts]."""
        table, count = self.prompts.table, candidates.shape[1]

        def answer(decoder: Decoder, padded: PaddedPrompts, group: np.ndarray) -> list[int]:
            rows = np.array([self.prompts.answer_rows(item) for item in candidates[group].ravel()])
            values, lengths = table.gather(rows.ravel())
            lengths = lengths.reshape(rows.shape).sum(axis=1)
            answers = RaggedTable(values, np.concatenate([[0], np.cumsum(lengths)]))
            logs = answer_log_likelihoods(decoder, padded, answers, np.full(len(group), count))
            if self.settings.answer_likelihood == "mean":
                logs = logs / torch.from_numpy(lengths).to(logs)
            return logs.view(len(group), count).argmax(dim=1).tolist()

        longest = count * (self.settings.max_attribute_tokens + 1)
        return np.array(self._in_groups(prompts, longest, answer), dtype=np.int64)

    def _in_groups(
        self,
        prompts: list[list[int]],
        following: int,
        answer: Callable[[Decoder, PaddedPrompts, np.ndarray], list[Any]],
    ) -> list[Any]:
        """Return what `answer` gives for every prompt, in padded batches within `eval_batch_tokens`.

        Args:
            prompts: rows of each.
            following: the most tokens that follow a prompt.
            answer: from a decoder, the prompts of a batch and their indices to an answer each.
        """
        found: list[Any] = [None] * len(prompts)
        decoder = self.decoder()
        for group in padded_groups(self.prompts, prompts, self.settings.eval_batch_tokens, following):
            batch = answered(self.prompts, [prompts[index] for index in group]).to(self.device)
            padded = left_padded(self.embed(batch), batch.lengths)
            for index, one in zip(group, answer(decoder, padded, group), strict=True):
                found[index] = one
        return found

    def decoder(self) -> Decoder:
        """Return what writes and judges answers with the present weights."""
        return Decoder(
            self.backbone, lambda: self.head.weight, self.backbone.get_input_embeddings(), autocast=self._autocast
        )

    def histories_of(self, interaction: Interaction) -> list[np.ndarray]:
        """Return the item ids of each row's history, the oldest first."""
        lengths = interaction[self.ITEM_SEQ_LEN].cpu().numpy()
        histories = interaction[self.ITEM_SEQ].cpu().numpy()
        return [history[:length] for history, length in zip(histories, lengths, strict=True)]

    # -- RecBole's interface -------------------------------------------------------------------------------------------

    def full_sort_predict(self, interaction: Interaction) -> Tensor:
        """Refuse to rank a catalogue. Raises SettingError."""
        raise SettingError(
            f"{type(self).__name__} chooses from a list of candidates and ranks no catalogue: take TALLRec with "
            f"task=pointwise, or a model that scores all items"
        )

    def predict(self, interaction: Interaction) -> Tensor:
        """Refuse to score an item by itself. Raises SettingError."""
        return self.full_sort_predict(interaction)

    def calculate_loss(self, interaction: Interaction) -> Tensor:
        """`PackedTrainer` trains on `training_samples`; RecBole's batches are not read."""
        raise SettingError(f"{type(self).__name__} makes its own batches: train it by recbole_llm.run")

    def stored_state(self) -> dict[str, Tensor]:
        """Return the weights that a checkpoint holds; frozen ones are named alone."""
        return self.state_dict() if self.settings.tuning.tuning == "full" else trained_state(self)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return AdamW's groups."""
        trained = [parameter for parameter in self.parameters() if parameter.requires_grad]
        return [{"params": trained, "lr": self.settings.learning_rate}]


def choice_template(config: Any) -> ListTemplate:
    """Return the prompt of a choice among candidates, as the settings write it. Raises SettingError."""
    return ListTemplate("list_prompt", config["list_prompt"], ("history", "candidates"), config["prompt_noun"])


def titles_of(dataset: Any, field: str, tidy: bool) -> Any:
    """Return the titles of a dataset's items by id, a Series; row 0 is empty.

    Args:
        dataset: RecBole's.
        field: the column of the `.item` file.
        tidy: whether they are written as LLaRA writes them.
    """
    titles = dataset.item_texts_by_id([field])[field]
    return tidy_titles(titles) if tidy else titles
