"""What the metrics of the recommended items themselves read: ItemCoverage, GiniIndex, AveragePopularity, and others."""

from typing import Any

from recbole.evaluator import Collector
from torch import Tensor

from recbole_llm.compat import item_metrics  # noqa: F401  (repairs these metrics)
from recbole_llm.data.popularity import item_occurrences


class RecommendedItemsCollector(Collector):
    """RecBole's collector with the right numbers for `recbole_llm.compat.item_metrics`."""

    def data_collect(self, train_data: Any) -> None:
        """Collect the number of items and how often training holds each.

        Repairs `recbole/evaluator/collector.py:87`, which counts the padding id, too, and :92, which misses the first
        item of each user for a sequential model and fails for a loader of a knowledge graph.

        Args:
            train_data: the training loader.
        """
        part = train_data._dataset
        if self.register.need("data.num_items"):
            self.data_struct.set("data.num_items", part.item_num - 1)
        if self.register.need("data.count_items"):
            self.data_struct.set("data.count_items", dict(enumerate(item_occurrences(part).tolist()[1:], start=1)))

    def eval_batch_collect(
        self, scores_tensor: Tensor, interaction: Any, positive_u: Tensor | None, positive_i: Tensor | None
    ) -> None:
        """Collect one batch; what fills a list that has too few candidates becomes item 0, and is no hit."""
        super().eval_batch_collect(scores_tensor, interaction, positive_u, positive_i)
        if self.register.need("rec.topk") and scores_tensor.dim() == 2:
            hits = self.data_struct["rec.topk"][-len(scores_tensor) :, :-1]
            filled = scores_tensor.topk(max(self.topk), dim=-1).values.isneginf()
            hits.masked_fill_(filled.to(hits.device), 0)
        if self.register.need("rec.items"):
            items = self.data_struct["rec.items"][-len(scores_tensor) :]
            items[:] = only_candidates(scores_tensor, items)


def only_candidates(scores: Tensor, items: Tensor) -> Tensor:
    """Return lists of recommended items [lines, k], with item 0 where a list has fewer than k candidates.

    Args:
        scores: [lines, items]; items that are no candidates have -inf.
        items: int64 [lines, k].
    """
    return items.masked_fill(scores.gather(1, items.to(scores.device)).isneginf().to(items.device), 0)
