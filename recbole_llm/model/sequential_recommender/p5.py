"""P5 (Geng et al., RecSys 2022, "Recommendation as Language Processing"): the next item is a generated ID.

Of P5's five families of tasks the sequential one, in which a prompt names the items of a history and the answer is the
next item's ID. With a T5, as in the paper, an encoder reads the prompt and a decoder writes the answer; any other
decoder reads the prompt and goes on with the answer, as OpenP5 does with Llama. Whole-word embeddings, which hold the
pieces of one ID together, are added in training and in ranking alike (P5's public code leaves them out where it
generates).

Ranking is exact by default: log P of every item's ID, from one continuation per inner node of the tree of all IDs. The
paper's beam search is ``decoding: beam``.
"""

from typing import Any

import numpy as np
import torch
from recbole.data.interaction import Interaction
from torch import Tensor, nn

from recbole_llm.backbone.decoding.beams import beam_items
from recbole_llm.backbone.decoding.decoder import PaddedPrompts
from recbole_llm.backbone.decoding.exact import path_log_probabilities
from recbole_llm.backbone.decoding.trie import Trie, build_trie, clashing_paths
from recbole_llm.data import item_indexing
from recbole_llm.data.answers import TextRows
from recbole_llm.data.dataset import HistoryDataset
from recbole_llm.data.id_prompts import IdPrompts, id_tokens
from recbole_llm.errors import DataError
from recbole_llm.model.generative_recommender import AnswerTargets, GenerativeRecommender, check_positions
from recbole_llm.packing.ragged import RaggedTable, ranges

WORDS = 512  # whole-word embeddings, as in the authors' code; further words share the last


class P5(GenerativeRecommender):
    """P5 as a RecBole sequential model.

    Args:
        config: the settings of the run.
        dataset: the training part of a `HistoryDataset`.

    Attributes:
        ids: int64 [items, tokens], the ID of every item as token ids, padded with -1; stored with the weights. Those
            from the size of the vocabulary on are `id_embedding`'s.
        id_embedding: the embeddings, and the weights of the language head, of tokens that IDs add to the vocabulary.
        word_embedding: of whole words, by their place in the prompt; it starts at zero. With a T5 in the encoder alone.
        id_prompts: writes histories.

    Raises:
        BackboneError: if the backbone cannot be had, or is an encoder.
        DataError: if two items have the same ID.
        SettingError: if a prompt can be longer than the backbone's positions, or a template is not understood.
    """

    takes_encoder_decoders = True
    ids: Tensor

    def __init__(self, config: Any, dataset: HistoryDataset) -> None:
        super().__init__(config, dataset)
        assert self.loaded is not None
        self._names = np.asarray(dataset.field2id_token[dataset.iid_field])
        vocabulary = len(self.head.weight)
        table, added = self._indexed(config, vocabulary)
        width = int(table.lengths.max(initial=1))
        padded = torch.full((len(table), width), -1, dtype=torch.int64)
        padded[torch.arange(width) < torch.from_numpy(table.lengths)[:, None]] = torch.from_numpy(table.values)
        self.register_buffer("ids", padded)
        base = self.head.weight.detach()
        self.id_embedding = nn.Embedding(added, self.width, dtype=base.dtype)
        nn.init.normal_(self.id_embedding.weight, 0.0, float(base.float().std()))
        self.word_embedding: nn.Embedding | None = None
        if config["whole_word_embeddings"]:
            self.word_embedding = nn.Embedding(WORDS, self.loaded.model.get_input_embeddings().weight.shape[1])
            nn.init.zeros_(self.word_embedding.weight)
        templates, last = list(config["id_prompts"]), config["eval_id_prompt"]
        self._trained_from = 0 if last is None else 1
        self._templates = templates if last is None else [last, *templates]
        self._writing = len(dataset.field2id_token[dataset.uid_field]), self.loaded.tokenizer, config["id_separator"]
        self.use_ids()
        self.register_load_state_dict_post_hook(lambda *_: self.use_ids())
        check_positions(self.loaded, self.id_prompts.longest(self.max_items), "lower MAX_ITEM_LIST_LENGTH")
        self._beam = config["num_beams"] if config["decoding"] == "beam" else None
        self._among_children = config["id_probability"] == "children"
        self._id_rate = config["id_learning_rate"]
        self.loaded = None

    # -- IDs -----------------------------------------------------------------------------------------------------------

    def _indexed(self, config: Any, vocabulary: int) -> tuple[RaggedTable, int]:
        """Return the tokens of every item's ID, row = item id, and how many tokens are added to the vocabulary."""
        assert self.loaded is not None
        found, kind, seed = self.histories, config["indexing"], config["seed"]
        lengths = found.last - found.users + 1
        training = item_indexing.TrainingItems(found.flat[ranges(found.users, lengths)], lengths, self._names)
        if kind in ("random", "sequential"):
            order = (
                item_indexing.random_order(training, seed)
                if kind == "random"
                else item_indexing.sequential_order(training)
            )
            table, added = id_tokens(item_indexing.numbers(order), self.loaded.tokenizer), 0
        else:
            codes = (
                item_indexing.independent_codes(training)
                if kind == "independent"
                else item_indexing.collaborative_codes(training, config["id_clusters"], config["cluster_items"], seed)
            )
            table, added = RaggedTable(codes.values + vocabulary, codes.offsets), int(codes.values.max(initial=-1)) + 1
        clash = clashing_paths(table)
        if clash is not None:
            first, second = self._names[list(clash)]
            raise DataError(
                f"the tokenizer of {config['backbone']} writes the IDs of the items '{first}' and '{second}' so that "
                f"one is, or begins, the other: take indexing=collaborative, whose IDs have tokens of their own"
            )
        return table, added

    def use_ids(self) -> None:
        """Write prompts with the IDs in `ids`; a checkpoint brings its own, whatever a clustering would give now."""
        padded = self.ids.cpu().numpy()
        lengths = (padded >= 0).sum(axis=1)
        paths = RaggedTable(padded[padded >= 0], np.concatenate([[0], np.cumsum(lengths)]))
        self.id_prompts = IdPrompts(self._templates, paths, *self._writing, closed=self.encodes)
        self.table, self.word_starts = self.id_prompts.table, self.id_prompts.starts
        self._trie = build_trie(paths)

    def trie(self) -> Trie:
        """Return the tree of all IDs, on the model's device."""
        if self._trie.tokens.device != self.ids.device:
            self._trie = self._trie.to(self.ids.device)
        return self._trie

    def item_ids(self) -> dict[str, list[int]]:
        """Return the tokens of every item's ID by the item's token."""
        return {
            str(name): [token for token in row if token >= 0]
            for name, row in zip(self._names[1:], self.ids[1:].tolist(), strict=True)
        }

    # -- the language model --------------------------------------------------------------------------------------------

    def embed(self, tokens: Tensor) -> Tensor:
        """Return the input embeddings of token ids [...], those of the vocabulary and of IDs: [..., width]."""
        known = len(self.head.weight)
        embedded = super().embed(tokens.clamp_max(known - 1))
        if not len(self.id_embedding.weight):
            return embedded
        of_ids = self.id_embedding((tokens - known).clamp_min(0))
        return torch.where((tokens >= known)[..., None], of_ids, embedded)

    def vocabulary(self) -> Tensor:
        """Return W of the language head with the tokens of IDs behind it: [tokens, width]."""
        if not len(self.id_embedding.weight):
            return self.head.weight
        return torch.cat([self.head.weight, self.id_embedding.weight])

    def word_shift(self, words: Tensor) -> Tensor | None:
        """Return the whole-word embeddings of words [...], from 1: [..., width]; None without them.

        With an encoder from 0, the word of the token that ends a prompt.
        """
        if self.word_embedding is None:
            return None
        rows = words if self.encodes else words - 1
        shift: Tensor = self.word_embedding(rows.clamp_max(WORDS - 1)).to(self.head.weight.dtype)
        return shift

    def added(self) -> list[nn.Module]:
        """Return the modules that are not of the language model."""
        return [part for part in (self.id_embedding, self.word_embedding) if part is not None]

    def added_rate(self) -> float:
        """Return the learning rate of `added`."""
        return super().added_rate() if self._id_rate is None else float(self._id_rate)

    def stored_buffers(self) -> list[tuple[str, Tensor]]:
        """Return the buffers that a checkpoint holds beside its trained weights."""
        return [("ids", self.ids)]

    # -- prompts and scores --------------------------------------------------------------------------------------------

    def ways(self) -> int:
        """Return how many templates training draws from."""
        return len(self._templates) - self._trained_from

    def training_samples(self, rng: np.random.Generator) -> Any:
        """Return the rows of one epoch, each with a template. See `PackedTrainer`."""
        samples = super().training_samples(rng)
        return AnswerTargets(samples.targets, samples.prompts + self._trained_from)

    def users_of(self, interaction: Interaction) -> np.ndarray:
        """Return the user ids that prompts name, int64 [rows]; zeros where they name none."""
        if not self.id_prompts.reads_users:
            return super().users_of(interaction)
        users: np.ndarray = interaction[self.USER_ID].cpu().numpy()
        return users

    def prompts(
        self, items: np.ndarray, ends: np.ndarray, lengths: np.ndarray, users: np.ndarray, which: np.ndarray
    ) -> TextRows:
        """Return the prompts of histories, see `IdPrompts.texts`; ranking takes the first template."""
        return self.id_prompts.texts(items, ends, lengths, users, which)

    def answer_rows(self, items: np.ndarray) -> np.ndarray:
        """Return the rows of `table` that write items, int64 ids."""
        return items

    def tokens_per_row(self, prompt_tokens: np.ndarray) -> np.ndarray:
        """Return how many tokens the scores of a row take: the prompt, and all inner nodes or every beam's tokens."""
        trie = self.trie()
        if self._beam is None:
            return prompt_tokens + len(trie.inner)
        return prompt_tokens + trie.depth * self._beam

    def scores_of(self, prompts: PaddedPrompts) -> Tensor:
        """Return log P of every item's ID after prompts: float32 [rows, items], -inf for items outside a beam."""
        decoder, trie = self.decoder(), self.trie()
        if self._beam is None:
            return path_log_probabilities(decoder, prompts, trie, self._among_children)
        items, found = beam_items(decoder, prompts, trie, self._beam, self._among_children)
        scores = found.new_full((len(found), self.n_items), float("-inf"))
        scores.scatter_(1, items, found)
        scores[:, 0] = float("-inf")
        return scores

    def extra_results(self) -> dict[str, Any]:
        """Return what `result.json` holds beyond what every model's does: the tree of IDs, and the items ranked."""
        trie = self.trie()
        ranked = self.n_items - 1 if self._beam is None else min(self._beam, self.n_items - 1)
        return {"ids": {"longest": trie.depth, "inner_nodes": len(trie.inner)}, "ranked_items": ranked}
