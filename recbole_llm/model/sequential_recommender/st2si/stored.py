"""Which hidden states ST2SI reads of a frozen backbone, in training and evaluation, each once."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from recbole_llm.backbone.feature_cache import QueryStateCache, by_turns, shared_passes, storing_budget
from recbole_llm.backbone.feature_store import FeatureStore, Store, stored_or_computed
from recbole_llm.backbone.stored_states import files_key, read_states, states_key
from recbole_llm.data.dataset import HISTORY_END, HistoryDataset
from recbole_llm.model.projected_recommender import ProjectedRecommender
from recbole_llm.model.sequential_recommender.st2si.inputs import ST2SIInputs
from recbole_llm.model.sequential_recommender.st2si.settings import ST2SISettings
from recbole_llm.packing.ragged import RaggedTable
from recbole_llm.packing.sequences import Sequences, concatenate, digests, within_budget
from recbole_llm.utils.processes import world


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

    def cache(self, store: Store) -> QueryStateCache:
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


class StoredStates(ProjectedRecommender):
    """The part of ST2SI that computes a frozen backbone's states once."""

    inputs: ST2SIInputs
    settings: ST2SISettings
    backbone_folder: Path

    def passes(self, sequences: Sequences, budget: int) -> list[Sequences]:
        """Split `sequences` into passes of at most `budget` tokens."""
        groups = within_budget(sequences.tokens(self.inputs.table), budget)
        return [sequences.select(group) for group in groups]

    def states_of(self, sequences: Sequences) -> Tensor:
        """Return the states of all queries of `sequences` [queries, width]."""
        raise NotImplementedError

    @property
    def states_never_change(self) -> bool:
        """Whether each training sample has the same hidden states in every epoch."""
        return self.settings.states_never_change

    def fill_state_cache(
        self, evaluated: list[HistoryDataset], folder: Path, progress: Callable[..., Any], in_parts: bool = False
    ) -> None:
        """Compute every hidden state that training and the `evaluated` parts read, once.

        Where several processes share the run, each computes some. See `TextRecommender`.
        """
        plan = plan_queries(self.inputs, evaluated, self.settings.alignment)
        device = torch.device(self.device)
        shape = plan.states, self.projection.width
        passes = self.passes(plan.passes, storing_budget(device, self.settings.eval_batch_tokens))
        bounds = None
        if in_parts:
            bounds = np.cumsum([0, *(part.query_mask.sum() for part in passes)]).tolist()
        self.eval()

        def parts() -> Iterator[Tensor]:
            with progress(len(plan.passes)) as bar:

                def states(part: Sequences) -> Tensor:
                    bar.update(len(part) * world().size)
                    return self.states_of(part)

                if in_parts:
                    yield from map(states, passes[world().rank :: world().size])
                    return
                yield from by_turns(passes, states, torch.empty(0, shape[1], dtype=self.precision, device=device))

        limit = self.settings.stored_states_gb * 1e9
        # The key reads all weight files: seconds for a large backbone, of no use where nothing is stored.
        key = self._states_key(plan) if limit else None
        store = stored_or_computed(key, shape, self.precision, device, folder, limit, parts, bounds=bounds)
        self.state_cache = plan.cache(store)

    def use_stored_states(self, evaluated: list[HistoryDataset]) -> None:
        """Read the states that a run has stored on the disk, where they still are. See `ModelHooks`."""
        if not self.states_never_change or not self.settings.stored_states_gb:
            return
        plan = plan_queries(self.inputs, evaluated, self.settings.alignment)
        shape = plan.states, self.projection.width
        known = read_states(self._states_key(plan), *shape, self.precision)
        if known is not None:  # they stay on the disk: few of them may be asked for
            self.state_cache = plan.cache(FeatureStore.of(known, torch.device(self.device), in_memory=0))

    def _states_key(self, plan: QueryPlan) -> str:
        device = torch.device(self.device)
        return states_key(
            files_key(self.backbone_folder),
            plan.content(self.inputs.table),
            model="ST2SI",
            precision=self.precision,
            device=device.type,
            budget=storing_budget(device, self.settings.eval_batch_tokens),
        )
