"""Evaluation that the processes of a run share: every process ranks a part of the rows, the first one measures.

A batch of the evaluated part is cut into as many parts of consecutive rows as there are processes. Each process ranks
its own rows alone, or all of them rank all rows together, each among its own items (`split_blocks`). What is collected
of all rows is put together in their order, and process 0 runs RecBole's evaluator once: so every metric, additive or
not, is that of one process.
"""

from typing import Any

import numpy as np
import torch
from recbole.data.interaction import Interaction
from recbole.evaluator import Evaluator
from recbole.evaluator.collector import DataStruct
from torch import Tensor

from recbole_llm.data.known_histories import KnownHistories
from recbole_llm.evaluation.blocks import ItemBlocks
from recbole_llm.evaluation.ranks import RankCollector
from recbole_llm.evaluation.split_blocks import SplitItemBlocks
from recbole_llm.utils.collectives import object_from_first, objects_of_all
from recbole_llm.utils.processes import own_part, world

_OF_ROWS = ("rec.topk", "rec.meanrank", "rec.score", "rec.items", "data.label")  # RecBole's names of what rows have
_Batch = tuple[Interaction, Any, Tensor, Tensor]


class SharedRankCollector(RankCollector):
    """`RankCollector` of the rows that this process ranks, and after the last batch of all rows.

    Every batch is first given to `own_part`.
    """

    def begin(self, known: KnownHistories | None = None, repeatable: bool = True, both: bool = False) -> None:
        """Forget the last evaluation, see `RankCollector`."""
        super().begin(known, repeatable, both)
        self._numbers = np.empty(0, dtype=np.int64)  # of the own rows, among all that are evaluated
        self._begun = 0  # rows of the batches so far
        self._together = False

    def own_part(self, batch: _Batch) -> _Batch:
        """Return the part of a batch of `FullSortEvalDataLoader` that this process ranks; it may have no rows.

        Args:
            batch: of a sequential model, which has one target per row.
        """
        interaction, _, rows, targets = batch
        count = len(interaction)
        if len(rows) != count:
            raise ValueError("only rows with one target each can be shared out")
        own = own_part(count)
        begin, end = own.start, own.stop
        if self.candidates is not None:
            self.candidates.skip(begin)
        self._after = count - end
        self._numbers = np.concatenate([self._numbers, self._begun + np.arange(begin, end)])
        self._begun += count
        return interaction[own], None, torch.arange(end - begin), targets[own]

    def eval_batch_collect(
        self, scores_tensor: Tensor | ItemBlocks, interaction: Any, positive_u: Tensor | None, positive_i: Tensor | None
    ) -> None:
        """Collect the own part of one batch; of what all rank together, no process is left out."""
        if len(scores_tensor) or isinstance(scores_tensor, SplitItemBlocks):
            super().eval_batch_collect(scores_tensor, interaction, positive_u, positive_i)
        if self.candidates is not None:
            self.candidates.skip(self._after)

    def get_data_struct(self) -> Any:
        """Return what was collected of all rows, in their order. All processes call it together."""
        if not self._together:
            self._put_together()
        struct = super().get_data_struct()
        own = {name: struct[name].numpy() for name in _OF_ROWS if name in struct}
        for name, rows in self._in_order(own).items():
            struct.set(name, torch.from_numpy(rows))
        return struct

    def _put_together(self) -> None:
        """Collect the ranks and hits of all rows."""
        self._together = True
        own = super().collected() if self._parts else ()
        whole = self._in_order(dict(enumerate(own)))
        self._parts = [tuple(whole.values())] if whole else []
        self._lists = [np.arange(self._begun)]
        if self.candidates is not None:
            self.candidates.add_processes()

    def _in_order(self, own: dict[Any, np.ndarray]) -> dict[Any, np.ndarray]:
        """Return arrays of the own rows with the rows of all processes, in the order of evaluation."""
        parts = [part for part in objects_of_all((self._numbers, own)) if len(part[0])]
        if not parts:
            return {}
        order = np.argsort(np.concatenate([numbers for numbers, _ in parts]))
        return {name: np.concatenate([arrays[name] for _, arrays in parts])[order] for name in parts[0][1]}


class FirstEvaluates(Evaluator):
    """RecBole's evaluator in process 0, and its answer in the others."""

    def evaluate(self, dataobject: DataStruct) -> Any:
        """Return the metrics of what process 0 collected."""
        return object_from_first(super().evaluate(dataobject) if world().is_first else None)


def rank_collector(config: Any) -> RankCollector:
    """Return the collector of a run, which several processes may share."""
    return SharedRankCollector(config) if world().is_shared else RankCollector(config)
