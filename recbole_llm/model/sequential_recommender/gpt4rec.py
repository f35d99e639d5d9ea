"""GPT4Rec (Li et al. 2023, "GPT4Rec: A Generative Framework for Personalized Recommendation"): titles as queries.

A decoder reads the titles of a history and is tuned to write that of the next item. Beam search gives several queries,
and BM25 over all titles finds items for each. Only items that are found are ranked; every other has the score -inf.
"""

from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from recbole_llm.backbone.decoding.beams import beam_answers
from recbole_llm.backbone.decoding.decoder import PaddedPrompts
from recbole_llm.data.answers import TextRows
from recbole_llm.data.dataset import HistoryDataset
from recbole_llm.data.item_text import tokenize_items
from recbole_llm.data.prompts import PromptLimits, Prompts, PromptTemplate, keeps_spaces
from recbole_llm.data.title_search import TitleSearch, in_rounds
from recbole_llm.errors import BackboneError, DataError
from recbole_llm.model.generative_recommender import GenerativeRecommender, check_positions


class GPT4Rec(GenerativeRecommender):
    """GPT4Rec as a RecBole sequential model.

    Args:
        config: the settings of the run.
        dataset: the training part of a `HistoryDataset`.

    Attributes:
        search: BM25 over the titles.

    Raises:
        BackboneError: if the backbone cannot be had, is no decoder, or has no token that ends a text.
        DataError: if an item has no title.
        SettingError: if a prompt can be longer than the backbone's positions, or is not understood.
    """

    reads_text_only = True

    def __init__(self, config: Any, dataset: HistoryDataset) -> None:
        super().__init__(config, dataset)
        assert self.loaded is not None
        tokenizer: Any = self.loaded.tokenizer
        if tokenizer.eos_token_id is None:
            raise BackboneError(f"the tokenizer of {config['backbone']} has no token that ends a text: choose another")
        self._end = int(tokenizer.eos_token_id)
        self._field = config["item_text_fields"][0]
        texts = dataset.item_texts_by_id([self._field])
        without = int((texts[self._field][1:] == "").sum())
        if without:
            raise DataError(
                f"{without} items of {dataset.dataset_name} have no text in '{self._field}', and GPT4Rec writes "
                f"nothing but text: set items_without_text=drop"
            )
        limit = config["max_attribute_tokens"]
        self._max_query = limit
        self._template = PromptTemplate(
            config["query_prompt"], f"{{{self._field}}}", config["prompt_noun"], ".", "query_prompt"
        )
        self._limits = PromptLimits(self.max_items, config["max_prompt_tokens"], limit, self.loaded.max_positions)
        check_positions(self.loaded, self._limits.tokens + limit + 1, "lower max_prompt_tokens")
        self._tokenizer = tokenizer
        self._bm25 = config["bm25_k1"], config["bm25_b"]
        self._use_texts(texts)
        self._queries, self._per_round = config["num_queries"], config["items_per_query"]
        self._ranked, self._by_sum = config["retrieved_items"], config["retrieval"] == "sum"
        self.loaded = None

    def _use_texts(self, texts: pd.DataFrame) -> None:
        """Write prompts and search with the texts of all items, row = item id."""
        self._texts, field = texts, self._field
        self._prompts = Prompts(self._template, texts, self._tokenizer, self._limits, virtual=0, closed=False)
        space = " " if keeps_spaces(self._tokenizer) else ""
        written = pd.DataFrame({field: [space + text if text else "" for text in texts[field]]})
        answers = tokenize_items(written, self._tokenizer, self._max_query).with_row_ends(self._end)
        self._first_answer = len(self._prompts.table)
        self.table = self._prompts.table.followed_by(answers)
        self._offsets = self._prompts.token_offsets(self.histories.flat)
        self.search = TitleSearch(texts[field].tolist(), *self._bm25)

    def add_items(self, texts: pd.DataFrame) -> None:
        """Add items that have a title, see `ModelHooks`: from now on queries find them.

        Raises:
            DataError: if a new item has no title.
        """
        empty = np.flatnonzero(texts[self._field].to_numpy() == "")
        if len(empty):
            raise DataError(
                f"the new item '{texts.index[empty[0]]}' has no text in '{self._field}': give it one or leave it out"
            )
        self._use_texts(pd.concat([self._texts, texts[[self._field]]]))
        self.n_items += len(texts)

    # -- prompts -------------------------------------------------------------------------------------------------------

    def prompts(
        self, items: np.ndarray, ends: np.ndarray, lengths: np.ndarray, users: np.ndarray, which: np.ndarray
    ) -> TextRows:
        """Return the prompts of histories: the titles of their most recent items, within both limits."""
        del users, which
        labels = np.zeros(len(ends), dtype=np.int64)
        offsets = self._offsets if items is self.histories.flat else None
        found = self._prompts.sequences(items, ends, lengths, labels, virtual=False, offsets=offsets)
        return TextRows(found.rows, found.counts)

    def answer_rows(self, items: np.ndarray) -> np.ndarray:
        """Return the rows of `table` that write items, int64 ids."""
        return items + self._first_answer

    # -- ranking -------------------------------------------------------------------------------------------------------

    def tokens_per_row(self, prompt_tokens: np.ndarray) -> np.ndarray:
        """Return how many tokens the scores of a row take: the prompt, and a query of every beam."""
        return prompt_tokens + self._max_query * self._queries

    def queries(self, prompts: PaddedPrompts) -> list[list[tuple[str, float]]]:
        """Return the queries for each prompt with their log-probabilities, the most probable first; none twice."""
        found = beam_answers(self.decoder(), prompts, self._queries, self._max_query, self._end)
        tokens, lengths, scores = (each.cpu().numpy() for each in (found.tokens, found.lengths, found.scores))
        rows, beams = scores.shape
        flat = [tokens[row, beam, : lengths[row, beam]].tolist() for row in range(rows) for beam in range(beams)]
        texts = self._tokenizer.batch_decode(flat, skip_special_tokens=True)
        every = []
        for row in range(rows):
            best: dict[str, float] = {}
            for beam in range(beams):
                if np.isfinite(scores[row, beam]):
                    best.setdefault(texts[row * beams + beam].strip(), float(scores[row, beam]))
            every.append(list(best.items()))
        return every

    def retrieved(self, queries: list[tuple[str, float]]) -> tuple[list[int], list[float]]:
        """Return the items that are ranked for one user, the best first, and falling scores.

        Args:
            queries: with log-probabilities, the most probable first.
        """
        if self._by_sum:
            return self._summed(queries)
        lists = [self.search.best(query, self._ranked)[0] for query, _ in queries]
        items = in_rounds(lists, self._per_round, self._ranked)
        return items, [float(-place) for place in range(len(items))]

    def _summed(self, queries: list[tuple[str, float]]) -> tuple[list[int], list[float]]:
        """Return items by the sum over queries of P(query) times BM25, P being normalised among the queries."""
        chances = np.array([score for _, score in queries])
        chances = np.exp(chances - chances.max(initial=-np.inf)) if len(chances) else chances
        total = np.zeros(self.n_items, dtype=np.float64)
        for (query, _), chance in zip(queries, chances / max(chances.sum(), 1e-30), strict=True):
            total[1:] += chance * self.search.scores(query)
        best = np.argsort(-total, kind="stable")[: self._ranked]
        best = best[total[best] > 0]
        # Ranks, not sums: those of two items that differ by less than float32 tells stay apart.
        return best.tolist(), [float(-place) for place in range(len(best))]

    def scores_of(self, prompts: PaddedPrompts) -> Tensor:
        """Return the scores of all items after prompts: minus their places, -inf for items that are not found."""
        scores = torch.full((len(prompts.lengths), self.n_items), float("-inf"))
        for row, queries in enumerate(self.queries(prompts)):
            items, values = self.retrieved(queries)
            scores[row, items] = torch.tensor(values)
        return scores.to(self.device)

    def extra_results(self) -> dict[str, Any]:
        """Return what `result.json` holds beyond what every model's does: how many items are ranked at most."""
        return {"ranked_items": min(self._ranked, self.n_items - 1)}
