"""Which hidden states ST2SI reads of a frozen backbone, in training and evaluation, each once."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from recbole_llm.backbone.feature_cache import FeatureStore, QueryStateCache, shared_passes
from recbole_llm.data.dataset import HISTORY_END, HistoryDataset
from recbole_llm.model.sequential_recommender.st2si.inputs import ST2SIInputs
from recbole_llm.packing.ragged import RaggedTable
from recbole_llm.packing.sequences import Sequences, concatenate, digests


@dataclass(frozen=True)
class QueryPlan:
    """The queries whose states are stored, and where each is read.

    Attributes:
        passes: the sequences in the order of the stored states.
        samples, labels, state_before, aligned: see `QueryStateCache`.
    """

    passes: Sequences
    samples: RaggedTable
    labels: np.ndarray
    state_before: np.ndarray
    aligned: np.ndarray

    @property
    def states(self) -> int:
        """How many states there are."""
        return int(self.passes.query_mask.sum())

    def content(self, table: RaggedTable) -> str:
        """Return a hash of all tokens that are read, in their order, and of the places of the queries."""
        return hashlib.sha256(b"".join(digests(self.passes, table))).hexdigest()

    def cache(self, store: FeatureStore) -> QueryStateCache:
        """Return the cache of these queries, whose states are in `store`."""
        return QueryStateCache(store, self.samples, self.labels, self.state_before, self.aligned)


def plan_queries(inputs: ST2SIInputs, evaluated: Sequence[HistoryDataset], alignment: bool) -> QueryPlan:
    """Return every query that training and the `evaluated` parts read.

    Args:
        inputs: of the training part.
        evaluated: validation and test parts.
        alignment: whether alignment inputs are trained on.
    """
    histories = inputs.histories
    windows = inputs.training_windows(np.random.default_rng(0))
    users = inputs.window_sequences(windows)
    positions, counts = windows.positions()
    starts = [np.repeat(windows.starts, counts)[users.query_mask]]
    wanted = [positions[users.query_mask]]
    for part in evaluated:
        ends = part.inter_feat[HISTORY_END].numpy()
        starts.append(histories.window_starts(histories.user_start[ends], ends))
        wanted.append(ends - 1)
    all_starts, all_wanted = np.concatenate(starts), np.concatenate(wanted)
    passes, index = shared_passes(histories.items, all_starts, all_wanted)
    trained = len(starts[0])
    state_before = np.full(len(histories.items) + 1, -1, dtype=np.int64)
    state_before[all_wanted[trained:] + 1] = index[trained:]
    samples = RaggedTable(index[:trained], np.concatenate([[0], np.cumsum(users.queries())]))
    labels, aligned = users.labels[users.query_mask], np.arange(0)
    if alignment:
        items = inputs.alignment_sequences()
        aligned = int(passes.query_mask.sum()) + np.arange(len(items))
        samples = samples.followed_by(RaggedTable(aligned, np.arange(len(items) + 1)))
        labels = np.concatenate([labels, items.labels[items.query_mask]])
        passes = concatenate([passes, items])
    return QueryPlan(passes, samples, labels, state_before, aligned)
