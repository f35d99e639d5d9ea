"""Ranks of scores that several processes have parts of are those of the whole; the processes are threads here."""

import threading

import numpy as np
import pytest
import torch

from recbole_llm.errors import TrainingError
from recbole_llm.evaluation import blocks as blocks_module
from recbole_llm.evaluation import split_blocks
from recbole_llm.evaluation.blocks import BestOfDrawn, rank_in_blocks
from recbole_llm.evaluation.split_blocks import SplitItemBlocks, merged_best
from recbole_llm.model.id_model.mixed_ranks import mixed_ranks, mixed_ranks_in_blocks
from recbole_llm.model.id_model.mixed_scores import MixedScores
from recbole_llm.model.id_model.scores import log_probabilities, mixed
from recbole_llm.utils.processes import World

ITEMS, ROWS, K = 23, 9, 4
CASES = {  # rows of each process, the first item id of each and their number, items of a block
    "one process": ([9], [0, 23], 4),
    "two": ([5, 4], [0, 12, 23], 5),
    "three, one without rows": ([4, 0, 5], [0, 8, 16, 23], 3),
    "large blocks, few items in the last": ([3, 3, 3], [0, 11, 22, 23], 64),
    "a process without items": ([2, 3, 4], [0, 12, 23, 23], 7),
}


class Together:
    """Threads that exchange tensors as processes do."""

    def __init__(self, count):
        self.count, self._own = count, threading.local()
        self._barrier, self._slots = threading.Barrier(count, timeout=10), [None] * count

    def patch(self, monkeypatch):
        for name in ("world", "rows_of_all", "stacked_of_all", "numbers_of_all", "sum_", "max_"):
            monkeypatch.setattr(split_blocks, name, getattr(self, name))

    def world(self):
        return World(self._own.rank, self.count)

    def _of_all(self, value):
        self._slots[self._own.rank] = value.clone()
        self._barrier.wait()
        found = list(self._slots)
        self._barrier.wait()
        return found

    def rows_of_all(self, own, counts):
        assert len(own) == counts[self._own.rank]
        return torch.cat(self._of_all(own))

    def stacked_of_all(self, own):
        return torch.stack(self._of_all(own))

    def numbers_of_all(self, values):
        return torch.stack(self._of_all(torch.tensor(values)))

    def sum_(self, tensor):
        return tensor.copy_(torch.stack(self._of_all(tensor)).sum(dim=0))

    def max_(self, tensor):
        return tensor.copy_(torch.stack(self._of_all(tensor)).amax(dim=0))

    def call(self, function):
        """Return what the function returns for each rank, or the error that it raises there."""
        answers = [None] * self.count

        def run(rank):
            self._own.rank = rank
            try:
                answers[rank] = function(rank)
            except TrainingError as error:
                answers[rank] = error

        threads = [threading.Thread(target=run, args=(rank,)) for rank in range(self.count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return answers


@pytest.fixture(params=CASES)
def case(request, monkeypatch):
    """What is exchanged, the rows and bounds of the processes, and what makes blocks of a table of scores."""
    counts, bounds, size = CASES[request.param]
    together = Together(len(counts))
    together.patch(monkeypatch)
    monkeypatch.setattr(blocks_module, "_block_size", lambda *_: size)

    def blocks_of(scores):
        widths = set()

        def scores_of(items):
            ids = torch.arange(ITEMS)[items] if isinstance(items, slice) else items
            rank = together.world().rank
            assert ((ids >= bounds[rank]) & (ids < bounds[rank + 1])).all(), "another process has them"
            widths.add(len(ids))
            assert len(widths) == 1, "every block has the shape of all others"
            return scores[:, ids].clone()

        return SplitItemBlocks(scores_of, counts, bounds, 2**20, torch.device("cpu"))

    return together, counts, bounds, blocks_of


def table(seed, ties):
    generator = torch.Generator().manual_seed(seed)
    shape = (ROWS, ITEMS)
    return torch.randint(0, 6, shape, generator=generator).float() if ties else torch.randn(shape, generator=generator)


TARGETS = torch.tensor([22, 3, 1, 12, 11, 7, 8, 16, 15])
LEFT_OUT = {0: {4, 9, 22}, 3: set(range(1, 20)), 5: {21}, 8: {15, 1}}
DRAWN = torch.randint(1, ITEMS, (ROWS, 3, 5), generator=torch.Generator().manual_seed(3))


def of_rank(counts, rank):
    begin = sum(counts[:rank])
    return slice(begin, begin + counts[rank])


def own_keys(rows):
    first = range(*rows.indices(ROWS))
    return torch.tensor([(row - rows.start) * ITEMS + item for row in first for item in sorted(LEFT_OUT.get(row, ()))])


@pytest.mark.parametrize("ties", [False, True])
def test_ranks_lists_and_candidates_are_those_of_the_whole_table(case, ties):
    together, counts, _, blocks_of = case
    scores = table(1, ties)

    def ranked(rank):
        rows, blocks = of_rank(counts, rank), blocks_of(scores)
        drawn = BestOfDrawn(blocks.all_rows(DRAWN[rows]))
        found, own = rank_in_blocks(blocks, TARGETS[rows], own_keys(rows).long(), (True, False), K, drawn)
        assert len(blocks) == counts[rank]
        return found, own, blocks.own_rows(blocks.largest(drawn.values))

    answers = together.call(ranked)
    plain = scores.numpy().astype(np.float64)
    plain[:, 0] = -np.inf
    for place, repeatable in enumerate((True, False)):
        ranks = torch.cat([found[place].ranks for found, _, _ in answers]).tolist()
        tops = torch.cat([found[place].top for found, _, _ in answers]).tolist()
        for row, target in enumerate(TARGETS.tolist()):
            allowed = set(range(1, ITEMS)) - (set() if repeatable else LEFT_OUT.get(row, set()) - {target})
            assert ranks[row] == sum(plain[row, item] >= plain[row, target] for item in allowed)
            best = sorted((plain[row, item] for item in allowed), reverse=True)[:K]
            assert [plain[row, item] for item in tops[row] if item] == best
            assert set(tops[row]) - {0} <= allowed and len(tops[row]) == K
    assert torch.equal(torch.cat([own for _, own, _ in answers]), scores[torch.arange(ROWS), TARGETS])
    of_drawn = torch.cat([largest for *_, largest in answers])
    assert torch.equal(of_drawn, scores.gather(1, DRAWN.flatten(1)).view(DRAWN.shape).amax(dim=2))


@pytest.mark.parametrize(("row", "item"), [(0, 22), (8, 5)])
def test_a_score_that_is_not_a_number_is_an_error_in_all_processes(case, row, item):
    together, counts, _, blocks_of = case
    scores = table(2, ties=False)
    scores[row, item] = torch.nan
    found = together.call(lambda rank: rank_in_blocks(blocks_of(scores), TARGETS[of_rank(counts, rank)], None, (True,)))
    assert all(isinstance(each, TrainingError) for each in found)


def test_weights_of_a_mix_are_ranked_as_with_whole_tables(case):
    together, counts, _, blocks_of = case
    own, other, weights = table(3, ties=False), table(4, ties=False) * 3, torch.linspace(0, 1, 5)

    def ranked(rank):
        rows = of_rank(counts, rank)
        keys = own_keys(rows).long()
        return mixed_ranks_in_blocks(blocks_of(own), blocks_of(other), TARGETS[rows], weights, keys)

    whole = log_probabilities(own.clone()), log_probabilities(other.clone())
    for row, items in LEFT_OUT.items():
        whole[0][row, sorted(items - {int(TARGETS[row])})] = -torch.inf
    expected = mixed_ranks(*whole, torch.arange(ROWS), TARGETS, weights)
    assert torch.equal(torch.cat(together.call(ranked), dim=1), expected)


def test_denominators_of_a_mix_are_summed_over_the_items_of_all(case):
    together, _, bounds, _ = case
    own, other, weight = table(5, ties=False), table(6, ties=False) * 30, torch.tensor(0.3)

    def of_all(sums):
        return together.stacked_of_all(sums).logsumexp(dim=0)

    def scores(rank):
        shape = (weight, ROWS, bounds[rank + 1], bounds[rank], of_all)
        found = MixedScores(lambda items: own[:, items], lambda items: other[:, items], *shape)
        return found(slice(bounds[rank], bounds[rank + 1]))

    expected = mixed(log_probabilities(own.clone()), log_probabilities(other.clone()), weight)
    found = torch.cat(together.call(scores), dim=1)
    torch.testing.assert_close(found[:, 1:], expected[:, 1:], rtol=1e-5, atol=1e-5)


def test_the_best_of_parts_are_the_best_of_all():
    """Three parts, of which the second has one item for the first row and none for the other."""
    none = -np.inf
    values = np.array([[[5, 3], [2, 1]], [[4, none], [none, none]], [[6, 0], [1.5, none]]], dtype=np.float32)
    items = np.array([[[1, 2], [3, 1]], [[7, 0], [0, 0]], [[9, 8], [9, 0]]])
    found = merged_best(torch.from_numpy(values), torch.from_numpy(items))
    for row in range(2):
        pairs = [(v, i) for v, i in zip(values[:, row].ravel(), items[:, row].ravel(), strict=True) if v > none]
        assert found[row].tolist() == [item for _, item in sorted(pairs, reverse=True)[:2]]
    nothing = torch.full((2, 1, 3), -torch.inf)
    assert merged_best(nothing, torch.ones(2, 1, 3, dtype=torch.int64)).tolist() == [[0, 0, 0]]
