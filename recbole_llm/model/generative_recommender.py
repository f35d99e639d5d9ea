"""The base class of models that write the next item: prompts, answers, and the language model between them."""

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from recbole.data.interaction import Interaction
from torch import Tensor, nn
from tqdm import tqdm

from recbole_llm.backbone.attention import packed_hidden_states, use_packed_attention
from recbole_llm.backbone.decoding.decoder import Decoder, PaddedPrompts, left_padded
from recbole_llm.backbone.decoding.encoder_decoder import EncoderDecoder, decoder_states, encode, start_token
from recbole_llm.backbone.language_head import language_head
from recbole_llm.backbone.loading import Backbone, load_backbone
from recbole_llm.backbone.precision import resolve_precision
from recbole_llm.backbone.tuning import TuningSettings, prepare_for_tuning
from recbole_llm.data.answers import (
    PackedAnswers,
    SplitAnswers,
    TextRows,
    pack_answers,
    split_answers,
    word_numbers,
)
from recbole_llm.data.dataset import HistoryDataset, row_ends
from recbole_llm.data.targets import Targets, TrainingHistories
from recbole_llm.errors import DataError, SettingError
from recbole_llm.model.layers.answer_loss import answer_loss_sum
from recbole_llm.model.text_recommender import TextRecommender
from recbole_llm.packing.ragged import RaggedTable
from recbole_llm.packing.sequences import alike_within_budget, within_budget
from recbole_llm.runs.checkpoint import trained_state
from recbole_llm.trainer.packed_trainer import PackedTrainer

_SHOWN = 20  # passes of one call from which on their progress is shown


@dataclass(frozen=True)
class AnswerTargets:
    """Rows to train on.

    Attributes:
        targets: the rows.
        prompts: int64 [rows], which way of writing the prompt each has.
    """

    targets: Targets
    prompts: np.ndarray

    def __len__(self) -> int:
        return len(self.targets)

    def select(self, indices: np.ndarray) -> "AnswerTargets":
        """Return the rows at `indices`, in that order."""
        return AnswerTargets(self.targets.select(indices), self.prompts[indices])


class GenerativeRecommender(TextRecommender):
    """A language model that reads a history as a prompt and writes the next item after it.

    It is a decoder, or, where the subclass allows it, an encoder that reads and a decoder that writes (T5).

    The loss is the cross-entropy of the answers' tokens alone, a mean over the tokens of a step.

    Args:
        config: the settings of the run.
        dataset: the training part of a `HistoryDataset`.

    Attributes:
        takes_encoder_decoders: whether the subclass can use a T5 type.
        backbone: the language model, without its head.
        encodes: whether an encoder reads the prompts.
        head: the language head.
        histories: what is trained on.
        table: token ids; texts are sequences of its rows. The subclass sets it.
        word_starts: parallel to `table` where the words of a text are counted, else None.

    Raises:
        BackboneError: if the backbone cannot be had, or cannot write.
        SettingError: if its layers are to be compiled, and an encoder reads the prompts.
    """

    takes_encoder_decoders: ClassVar[bool] = False
    dataset_class = HistoryDataset
    trainer_class = PackedTrainer
    histories_on_host = True  # where texts are put together
    table: RaggedTable
    word_starts: RaggedTable | None = None

    def __init__(self, config: Any, dataset: HistoryDataset) -> None:
        super().__init__(config, dataset)
        self.tuning = TuningSettings.from_config(config)
        self.precision = resolve_precision(config["precision"], torch.device(self.device))
        dtype = self.tuning.load_dtype(self.precision)
        name = str(config["backbone"])
        loaded = load_backbone(name, dtype=dtype, encoder_decoder=self.takes_encoder_decoders)
        self.encodes = loaded.preset.kind == "encoder-decoder"
        if self.encodes and self.tuning.compile:
            raise SettingError(f"compile=True does not go with the encoder-decoder {name}: leave it out")
        self.head = language_head(loaded, self.tuning, dtype)
        self.backbone: Any = loaded.model
        self.width = self.head.weight.shape[1]
        self._autocast = self.tuning.needs_autocast(self.precision)
        if self.encodes:  # both read embeddings that are given to them: their names for the shared ones go
            self.backbone.encoder.embed_tokens = self.backbone.decoder.embed_tokens = None
        else:
            use_packed_attention(self.backbone)
        prepare_for_tuning(loaded, self.tuning)
        self.max_items = config["MAX_ITEM_LIST_LENGTH"]
        self.train_batch_tokens = config["train_batch_tokens"]
        self.eval_batch_tokens = config["eval_batch_tokens"]
        self._learning_rate = config["learning_rate"]
        self._shows = bool(config["show_progress"])
        self.histories = TrainingHistories(dataset, self.n_items)
        self._users = np.zeros(len(self.histories.flat) + 1, dtype=np.int64)
        self._users[self.histories.ends] = dataset.inter_feat[dataset.uid_field].numpy()
        self.loaded: Backbone | None = loaded  # until the subclass has read its tokenizer

    # -- what a subclass says ------------------------------------------------------------------------------------------

    @abstractmethod
    def prompts(
        self, items: np.ndarray, ends: np.ndarray, lengths: np.ndarray, users: np.ndarray, which: np.ndarray
    ) -> TextRows:
        """Return the prompts of histories, see `IdPrompts.texts`.

        Args:
            items: int64, histories laid end to end.
            ends: int64 [histories], where each history ends in `items`.
            lengths: int64 [histories], its items.
            users: int64 [histories], user ids; 0 where they are not known.
            which: int64 [histories], the way of writing it, from 0.
        """

    @abstractmethod
    def answer_rows(self, items: np.ndarray) -> np.ndarray:
        """Return the rows of `table` that write items, int64 ids: int64 of the same shape."""

    @abstractmethod
    def scores_of(self, prompts: PaddedPrompts) -> Tensor:
        """Return the scores of all items after prompts: float32 [rows, items], -inf where an item is not ranked."""

    @abstractmethod
    def tokens_per_row(self, prompt_tokens: np.ndarray) -> np.ndarray:
        """Return how many tokens the scores of a row take, from the tokens of its prompt: int64 [rows] both."""

    def ways(self) -> int:
        """Return in how many ways prompts are written in training; each row of an epoch draws one."""
        return 1

    # -- the language model --------------------------------------------------------------------------------------------

    def embed(self, tokens: Tensor) -> Tensor:
        """Return the input embeddings of token ids [...]: [..., width of the embeddings]."""
        embedded: Tensor = self.backbone.get_input_embeddings()(tokens)
        return embedded

    def vocabulary(self) -> Tensor:
        """Return W of the language head: [tokens, width]."""
        return self.head.weight

    def word_shift(self, words: Tensor) -> Tensor | None:
        """Return what is added to the embeddings of tokens for the words [...] that they belong to; None: nothing."""
        del words
        return None

    def decoder(self) -> Decoder:
        """Return what reads prompts and writes after them."""
        kind = EncoderDecoder if self.encodes else Decoder
        return kind(self.backbone, self.vocabulary, self.embed, self._autocast)

    def padded(self, texts: TextRows) -> PaddedPrompts:
        """Return prompts as input embeddings, padded on the left."""
        tokens, _ = self.table.gather(texts.rows)
        lengths, words = texts.tokens(self.table), self._words(texts)
        of_words = None if words is None else torch.from_numpy(words).to(self.device)
        embedded = self._embedded(torch.from_numpy(tokens).to(self.device), of_words)
        shift = None
        if words is not None and not self.encodes:
            shift = self.word_shift(torch.from_numpy(words[np.cumsum(lengths) - 1] + 1).to(self.device))
        return left_padded(embedded, lengths, shift)

    def _embedded(self, tokens: Tensor, words: Tensor | None) -> Tensor:
        """Return the input embeddings of token ids [tokens] in words [tokens]: [tokens, width]."""
        embedded = self.embed(tokens)
        shift = None if words is None else self.word_shift(words)
        return embedded if shift is None else embedded + shift

    def _words(self, texts: TextRows) -> np.ndarray | None:
        """Return which word of its text each token belongs to, int64 [tokens]; None where words are not counted.

        They count from 1; the token that ends what an encoder reads is word 0, as in P5's code.
        """
        if self.word_starts is None:
            return None
        words = word_numbers(self.word_starts, texts)
        if self.encodes:
            words[np.cumsum(texts.tokens(self.table)) - 1] = 0
        return words

    # -- training ------------------------------------------------------------------------------------------------------

    def training_samples(self, rng: np.random.Generator) -> Any:
        """Return the rows of one epoch: every prefix. See `PackedTrainer`."""
        targets = self.histories.every_target()
        return AnswerTargets(targets, rng.integers(self.ways(), size=len(targets)))

    def prepared_step(self, samples: Any) -> tuple[int, list[Any]]:
        """Return how many answer tokens a step has, and its passes. See `PackedTrainer`."""
        targets = samples.targets
        lengths = np.minimum(targets.lengths, self.max_items)
        users = self._users[targets.ends]
        prompts = self.prompts(self.histories.flat, targets.ends, lengths, users, samples.prompts)
        if self.encodes:
            return self._split_step(prompts, self.answer_rows(targets.labels))
        texts = prompts.followed_by(self.answer_rows(targets.labels))
        groups = within_budget(texts.tokens(self.table), self.train_batch_tokens)
        parts = [pack_answers(texts.select(group), self.table, self.word_starts) for group in groups]
        return sum(len(part.packed.query_index) for part in parts), parts

    def _split_step(self, prompts: TextRows, answers: np.ndarray) -> tuple[int, list[Any]]:
        """Return what `prepared_step` does for an encoder-decoder: prompts of like length together, padded."""
        groups = alike_within_budget(prompts.tokens(self.table), self.train_batch_tokens)
        start, parts = start_token(self.backbone), []
        for group in groups:
            some = prompts.select(group)
            parts.append(split_answers(some, answers[group], self.table, start, self._words(some)))
        return sum(len(part.labels) for part in parts), parts

    def pass_loss_sum(self, part: Any) -> Tensor:
        """Return the loss of one pass, summed over its answer tokens. See `PackedTrainer`."""
        if self.encodes:
            return self._split_loss_sum(part.to(self.device))
        answers: PackedAnswers = part.to(self.device)
        packed = answers.packed
        embedded = self._embedded(packed.token_ids, answers.words)
        with torch.autocast(embedded.device.type, torch.bfloat16, enabled=self._autocast):
            hidden = packed_hidden_states(self.backbone, packed, inputs_embeds=embedded)
        assert packed.labels is not None
        states = hidden.index_select(0, packed.query_index)
        return answer_loss_sum(states, self.vocabulary(), packed.labels, self.precision)

    def _split_loss_sum(self, part: SplitAnswers) -> Tensor:
        prompts = left_padded(self._embedded(part.prompts, part.words), part.lengths)
        fed = self.embed(part.fed)
        with torch.autocast(fed.device.type, torch.bfloat16, enabled=self._autocast):
            states = decoder_states(self.backbone, fed, encode(self.backbone, prompts), prompts.visible)
        before = states.flatten(0, 1).index_select(0, part.places)
        return answer_loss_sum(before, self.vocabulary(), part.labels, self.precision)

    def calculate_loss(self, interaction: Interaction) -> Tensor:
        """Return the mean loss of a RecBole batch of prefix rows. `PackedTrainer` trains on `training_samples`."""
        ends = row_ends(interaction)
        assert ends is not None, "rows of the training part say where they are"
        lengths = interaction[self.ITEM_SEQ_LEN].cpu().numpy()
        targets = Targets(ends, lengths, self.histories.flat[ends], np.zeros((len(ends), 0), dtype=np.int64))
        tokens, parts = self.prepared_step(AnswerTargets(targets, np.zeros(len(ends), dtype=np.int64)))
        return torch.stack([self.pass_loss_sum(part) for part in parts]).sum() / tokens

    # -- ranking -------------------------------------------------------------------------------------------------------

    def users_of(self, interaction: Interaction) -> np.ndarray:
        """Return the user ids that prompts name, int64 [rows]; zeros where they name none."""
        return np.zeros(len(interaction[self.ITEM_SEQ_LEN]), dtype=np.int64)

    @torch.no_grad()
    def full_sort_predict(self, interaction: Interaction) -> Tensor:
        """Return the scores of all items: [batch, items], float32, -inf for what is not ranked.

        Raises:
            DataError: if a history is empty.
        """
        items, ends, lengths, _ = self.histories.rows(interaction, self.ITEM_SEQ, self.ITEM_SEQ_LEN)
        if (lengths < 1).any():
            raise DataError("a history is empty: there is nothing to predict from")
        users, which = self.users_of(interaction), np.zeros(len(ends), dtype=np.int64)
        texts = self.prompts(items, ends, np.minimum(lengths, self.max_items), users, which)
        tokens = texts.tokens(self.table)
        order = np.argsort(tokens, kind="stable")  # little padding
        groups = within_budget(self.tokens_per_row(tokens[order]), self.eval_batch_tokens)
        scores = torch.empty(len(order), self.n_items, device=self.device)
        hidden = not self._shows or len(groups) < _SHOWN
        with tqdm(total=len(order), desc="Answers", ncols=100, disable=hidden, leave=False) as bar:
            for group in groups:
                rows = order[group]
                scores[torch.from_numpy(rows).to(self.device)] = self.scores_of(self.padded(texts.select(rows)))
                bar.update(len(rows))
        return scores

    @torch.no_grad()
    def predict(self, interaction: Interaction) -> Tensor:
        """Return the score of each row's `item_id`: [batch], float32."""
        items = interaction[self.ITEM_ID].to(self.device)
        return self.full_sort_predict(interaction).gather(1, items[:, None])[:, 0]

    # -- what a run keeps ----------------------------------------------------------------------------------------------

    def stored_state(self) -> dict[str, Tensor]:
        """Return the weights that a checkpoint holds; frozen ones are named alone."""
        if self.tuning.tuning == "full":
            return self.state_dict()
        return {**trained_state(self), **dict(self.stored_buffers())}

    def stored_buffers(self) -> list[tuple[str, Tensor]]:
        """Return the buffers of this model that a checkpoint holds beside its trained weights; by default none."""
        return []

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return AdamW's groups: the language model, and what was added to it, each with its rate."""
        own = {id(parameter) for part in self.added() for parameter in part.parameters()}
        trained = [parameter for parameter in self.parameters() if parameter.requires_grad]
        groups = ([each for each in trained if (id(each) in own) == added] for added in (False, True))
        rates = (self._learning_rate, self.added_rate())
        return [{"params": group, "lr": rate} for group, rate in zip(groups, rates, strict=True) if group]

    def added(self) -> list[nn.Module]:
        """Return the modules that are not of the language model."""
        return []

    def added_rate(self) -> float:
        """Return the learning rate of `added`."""
        rate: float = self._learning_rate
        return rate


def check_positions(loaded: Backbone, tokens: int, remedy: str) -> None:
    """Refuse prompts that a backbone has no positions for.

    Args:
        loaded: the backbone.
        tokens: the most that a prompt and its answer can take.
        remedy: what to do.

    Raises:
        SettingError: if there are fewer positions.
    """
    if loaded.max_positions is not None and tokens > loaded.max_positions:
        raise SettingError(
            f"a prompt and its answer can take {tokens} tokens, more than the {loaded.max_positions} positions of "
            f"{loaded.folder}: {remedy}"
        )
