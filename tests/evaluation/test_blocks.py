"""Ranks of scores that come in blocks of items are those of the whole, by counting in plain Python."""

import pytest
import torch

from recbole_llm.errors import TrainingError
from recbole_llm.evaluation import blocks as module
from recbole_llm.evaluation.blocks import ItemBlocks, rank_in_blocks
from recbole_llm.model.id_model import mixed_scores
from recbole_llm.model.id_model.mixed_ranks import mixed_ranks, mixed_ranks_in_blocks
from recbole_llm.model.id_model.mixed_scores import MixedScores
from recbole_llm.model.id_model.scores import log_probabilities, mixed

ITEMS, ROWS = 40, 11


@pytest.fixture(params=[1, 7, 39, 64])
def size(request, monkeypatch):
    monkeypatch.setattr(module, "_block_size", lambda *_: request.param)
    return request.param


def table(seed, ties=True):
    generator = torch.Generator().manual_seed(seed)
    shape = (ROWS, ITEMS)
    return torch.randint(0, 9, shape, generator=generator).float() if ties else torch.randn(shape, generator=generator)


def in_blocks(scores, widths=None):
    def scores_of(items):
        found = scores[:, items].clone()  # it may be overwritten
        if widths is not None:
            widths.append(found.shape[1])
        return found

    return ItemBlocks(scores_of, ROWS, ITEMS, 2**20, torch.device("cpu"))


def targets_of():
    return torch.randint(1, ITEMS, (ROWS,), generator=torch.Generator().manual_seed(2))


def by_loop(scores, targets, left_out):
    """What is left out does not count, unless it is the target; neither does the padding id."""
    ranks = []
    for row, target in enumerate(targets.tolist()):
        out = {0, *(left_out.get(row, set()) - {target})}
        ranks.append(sum(int(scores[row, item] >= scores[row, target]) for item in range(ITEMS) if item not in out))
    return ranks


LEFT = {0: {4, 9, 12}, 3: set(range(1, 30)), 5: {39}, 10: {7}}
KEYS = torch.tensor(sorted(row * ITEMS + item for row, items in LEFT.items() for item in items))


@pytest.mark.parametrize("protocols", [(True,), (False,), (True, False)])
def test_ranks_and_best_items_are_those_of_the_whole(size, protocols):
    scores, targets, widths = table(1), targets_of(), []
    found, own = rank_in_blocks(in_blocks(scores, widths), targets, KEYS, protocols, k=5)
    assert {row for row, items in LEFT.items() if int(targets[row]) in items}  # a target that its user knows
    assert set(widths) == {min(size, ITEMS)}  # every block has the shape of all others
    assert own.tolist() == scores[torch.arange(ROWS), targets].tolist()
    for repeatable, ranking in zip(protocols, found, strict=True):
        left_out = {} if repeatable else LEFT
        assert ranking.ranks.tolist() == by_loop(scores, targets, left_out)
        for row in range(ROWS):
            out = {0, *(left_out.get(row, set()) - {int(targets[row])})}
            best = sorted((scores[row, item].item() for item in range(ITEMS) if item not in out), reverse=True)[:5]
            top = ranking.top[row].tolist()
            assert [scores[row, item].item() for item in top] == best and len(set(top)) == 5 and not out & set(top)


def test_a_list_with_fewer_candidates_ends_with_item_0(size):
    scores = table(2)
    scores[1, 4:] = -torch.inf
    targets = targets_of()
    targets[1] = 3
    (ranking,), _ = rank_in_blocks(in_blocks(scores), targets, None, (True,), k=5)
    assert sorted(ranking.top[1].tolist()) == [0, 0, 1, 2, 3]


def test_scores_that_are_not_numbers_are_an_error(size):
    scores, targets = table(3), targets_of()
    scores[4, 33] = torch.nan
    with pytest.raises(TrainingError, match="not numbers"):
        rank_in_blocks(in_blocks(scores), targets, None, (True,))
    with pytest.raises(TrainingError, match="not numbers"):
        mixed_ranks_in_blocks(in_blocks(table(4)), in_blocks(scores), targets, torch.ones(1))


@pytest.mark.parametrize("piece", [1, 2**20])
@pytest.mark.parametrize("left_out", [None, KEYS])
def test_every_weight_ranks_as_with_tables(size, left_out, piece):
    """Of the tables the log-probabilities are mixed, of the blocks the scores: the order is the same."""
    own, other, targets = table(5, ties=False), table(6, ties=False) * 3, targets_of()
    rows = torch.arange(ROWS)
    weights = torch.linspace(0, 1, 21)
    found = mixed_ranks_in_blocks(in_blocks(own), in_blocks(other), targets, weights, left_out, piece)
    whole = log_probabilities(own.clone()), log_probabilities(other.clone())
    if left_out is not None:
        of_targets = whole[0][rows, targets]
        whole[0][KEYS // ITEMS, KEYS % ITEMS] = -torch.inf
        whole[0][rows, targets] = of_targets
    assert torch.equal(found, mixed_ranks(*whole, rows, targets, weights))
    assert len({tuple(ranks) for ranks in found.tolist()}) > 3


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("piece", [1, 7 * ROWS * 4, 2**20])
def test_mixed_scores_are_those_of_the_whole_tables(weight, piece, monkeypatch):
    monkeypatch.setattr(mixed_scores, "_BLOCK_BYTES", piece)
    own, other = table(7, ties=False), table(8, ties=False) * 30  # sums of e^90 are too large for float32
    of_items = MixedScores(
        lambda items: own[:, items], lambda items: other[:, items], torch.tensor(weight), ROWS, ITEMS
    )
    expected = mixed(log_probabilities(own.clone()), log_probabilities(other.clone()), torch.tensor(weight))
    torch.testing.assert_close(of_items(slice(3, 12)), expected[:, 3:12], rtol=1e-5, atol=1e-5)
    ids = torch.tensor([39, 1, 5])
    torch.testing.assert_close(of_items(ids), expected[:, ids], rtol=1e-5, atol=1e-5)
