"""Approximate search against numpy's whole ranking: recall, exact scores, what is left out, and what is refused."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from recbole_llm.errors import SettingError, TrainingError
from recbole_llm.inference import item_lists
from recbole_llm.inference.approximate_search import ApproximateBest, ApproximateSearch, recall_of
from recbole_llm.inference.best_items import best_in_blocks
from recbole_llm.inference.item_lists import ItemVectors
from recbole_llm.utils import packages
from recbole_llm.utils.item_products import ItemProducts
from recbole_llm.utils.paths import cache_folder

USERS, ITEMS, SIZE, K = 60, 3001, 12, 10


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("RECBOLE_LLM_CACHE", str(tmp_path / "cache"))


class Catalogue:
    """Items in groups, of unlike lengths; users near to groups; scores by numpy."""

    def __init__(self, interests=1, bias=False, seed=0):
        rng = np.random.default_rng(seed)
        groups = rng.normal(size=(80, SIZE))
        self.items = groups[rng.integers(80, size=ITEMS)] + 0.5 * rng.normal(size=(ITEMS, SIZE))
        self.items *= np.exp(0.4 * rng.normal(size=(ITEMS, 1)))
        self.items = self.items.astype(np.float32)
        users = groups[rng.integers(80, size=(USERS, interests))] + rng.normal(size=(USERS, interests, SIZE))
        self.users = users.astype(np.float32)
        self.bias = rng.normal(scale=2.0, size=ITEMS).astype(np.float32) if bias else None

    def products(self, begin=0, end=USERS):
        table, users = torch.from_numpy(self.items), torch.from_numpy(self.users[begin:end])
        bias = None if self.bias is None else torch.from_numpy(self.bias)

        def scores(items):
            found = torch.einsum("uks,is->kui", users, table[items]).amax(dim=0)
            return found if bias is None else found + bias[items]

        return ItemProducts(users, table.__getitem__, bias, scores)

    def scores(self, left_out=None):
        found = np.einsum("uks,is->kui", self.users.astype(np.float64), self.items.astype(np.float64)).max(axis=0)
        found = found if self.bias is None else found + self.bias
        found[:, 0] = -np.inf
        for row, items in enumerate(left_out or ()):
            found[row, items] = -np.inf
        return found

    def approximate(self, seen=None, items=ITEMS, **settings):
        return ApproximateBest(ApproximateSearch(K, **settings), self.products(), seen, items, "Model")


KINDS = [{}, {"interests": 3}, {"bias": True}, {"interests": 2, "bias": True}]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("leave_out", [False, True])
def test_it_finds_most_of_the_best_and_scores_them_exactly(kind, leave_out):
    catalogue = Catalogue(**kind)
    order = np.argsort(-catalogue.scores(), axis=1)
    # The best items are what is left out, of some users many and of one nothing, and some are left out twice.
    seen = [np.append(row[: 5 * (user % 5)], row[:1][: user % 5]) for user, row in enumerate(order)]
    seen = seen if leave_out else None
    search = catalogue.approximate(seen, min_recall=0.95)
    values, ids = search.best(catalogue.products, USERS, ITEMS, K, seen)
    truth = catalogue.scores(seen)
    best = np.argsort(-truth, axis=1)[:, :K]
    recall = np.mean([len(set(found) & set(exact)) / K for found, exact in zip(ids, best, strict=True)])
    # What is answered exactly because too little was found is not counted in favour of the search.
    assert recall >= search.recall - 1e-6 >= 0.95 - 1e-6
    assert leave_out or search.recall == pytest.approx(recall, abs=1e-6)
    assert search.nprobe < search.lists / 2, "it reads the whole catalogue"
    assert all(len(set(row)) == K for row in ids) and ids.min() > 0
    own = np.take_along_axis(truth, ids, axis=1)
    assert np.isfinite(own).all(), "an item that is left out was returned"
    np.testing.assert_allclose(values, own, rtol=1e-5, atol=1e-5)
    assert (np.diff(values, axis=1) <= 0).all()


def test_more_lists_find_more_and_all_lists_everything():
    catalogue = Catalogue()
    lists = catalogue.approximate(min_recall=0.5).lists
    assert lists == np.ceil(2 * np.sqrt(ITEMS - 1))
    recalls = [catalogue.approximate(min_recall=1e-9, nprobe=nprobe).recall for nprobe in (1, 4, 16)]
    assert recalls == sorted(recalls) and recalls[0] < 0.5
    whole = catalogue.approximate(nprobe=lists)
    values, ids = whole.best(catalogue.products, USERS, ITEMS, K, None)
    exact = best_in_blocks(catalogue.products, USERS, ITEMS, K, None)
    assert whole.recall == 1
    np.testing.assert_array_equal(ids, exact[1])
    np.testing.assert_allclose(values, exact[0], rtol=1e-6)


def test_lists_are_of_points_on_a_sphere_whose_distances_order_as_products_do():
    catalogue = Catalogue()
    vectors = ItemVectors(catalogue.products().with_bias, ITEMS)
    items = torch.from_numpy(catalogue.items[1:])
    points = vectors.scaled(items)
    torch.testing.assert_close(points.norm(dim=1), torch.ones(ITEMS - 1))
    users = torch.nn.functional.pad(torch.from_numpy(catalogue.users[:, 0]), (0, 1))
    nearest = torch.cdist(users, points).argsort(dim=1)[:, :K]
    best = (users[:, :-1] @ items.T).topk(K, dim=1).values
    torch.testing.assert_close((users[:, :-1] @ items.T).gather(1, nearest), best)


def test_vectors_of_any_length_are_found():
    """The index has 16-bit floats, which end at 65,504."""
    catalogue = Catalogue()
    catalogue.items *= 1e5
    assert catalogue.approximate(min_recall=0.9, nprobe=16).recall > 0.9


@pytest.mark.parametrize("left", [3, 12])
def test_still_k_answers_where_the_lists_hold_too_few(left):
    catalogue = Catalogue()
    # One user has met all but the `left` worst items, none of which is in the lists that are near.
    order = np.argsort(-catalogue.scores(), axis=1)
    seen = [row[: -left - 1] if user == 7 else row[:0] for user, row in enumerate(order)]
    search = catalogue.approximate(min_recall=1e-9, nprobe=1)
    values, ids = search.best(catalogue.products, USERS, ITEMS, K, seen)
    exact = best_in_blocks(catalogue.products, USERS, ITEMS, K, seen)
    count = min(left, K)
    assert (values[7] > -np.inf).sum() == count
    np.testing.assert_array_equal(ids[7, :count], exact[1][7, :count])
    assert ((values > -np.inf).sum(axis=1)[:7] == K).all()


def test_new_items_are_scored_without_being_in_the_index():
    catalogue = Catalogue()
    truth = catalogue.scores()
    behind = ITEMS - 40  # of which the index knows nothing
    catalogue.items[behind] = 100 * catalogue.users[0, 0]
    truth = catalogue.scores()
    seen = [np.array([behind + 1])] * USERS
    search = catalogue.approximate(items=behind, min_recall=0.95)
    ids = search.best(catalogue.products, USERS, ITEMS, K, seen)[1]
    assert ids[0, 0] == behind and not (ids == behind + 1).any()
    best = np.argsort(-np.where(np.arange(ITEMS) == behind + 1, -np.inf, truth), axis=1)[:, :K]
    new = [set(row[row >= behind]) for row in best]
    assert sum(map(len, new)) > USERS / 2
    assert [set(row[row >= behind]) & items for row, items in zip(ids, new, strict=True)] == new


# -- what is kept ------------------------------------------------------------------------------------------------------


def stored():
    return sorted(cache_folder("item_lists").glob("*"))


def test_lists_are_found_again_and_made_again_for_other_weights(monkeypatch):
    catalogue, made = Catalogue(), []
    monkeypatch.setattr(item_lists, "_made", lambda *args, made_of=item_lists._made: made.append(1) or made_of(*args))
    first = catalogue.approximate(min_recall=0.9)
    again = catalogue.approximate(min_recall=0.9)
    assert made == [1] and len(stored()) == 1
    assert (first.nprobe, first.recall) == (again.nprobe, again.recall)
    catalogue.items[17, 3] += 1e-3
    catalogue.approximate(min_recall=0.9)
    assert made == [1, 1] and len(stored()) == 2
    assert all(path.suffix == ".safetensors" for path in stored()), "a temporary file is left"


def test_the_same_vectors_give_the_same_lists():
    first, again = (item_lists._made(item_lists.ItemVectors(Catalogue().products().vectors, ITEMS), 50) for _ in "ab")
    assert torch.equal(first.list_of, again.list_of) and torch.equal(first.centroids, again.centroids)


@pytest.mark.parametrize("broken", ["cut", "other shape", "out of range"])
def test_broken_lists_are_made_again(broken, caplog):
    catalogue = Catalogue()
    recall = catalogue.approximate(min_recall=0.9).recall
    (path,) = stored()
    whole = load_file(path)
    if broken == "cut":
        path.write_bytes(path.read_bytes()[:-100])
    elif broken == "other shape":
        save_file({**whole, "list_of": whole["list_of"][:-1].clone()}, path)
    else:
        whole["list_of"][5] = len(whole["centroids"])
        save_file(whole, path)
    assert catalogue.approximate(min_recall=0.9).recall == recall
    assert "are broken and are made again" in caplog.text
    assert len(load_file(path)["list_of"]) == ITEMS - 1


# -- what is refused ---------------------------------------------------------------------------------------------------


def test_a_recall_below_the_bound_is_refused():
    with pytest.raises(SettingError, match=r"finds 0\.\d{4} of the exact best 10 with nprobe=1 of 110 lists, below "
                       r"min_recall=0\.99: raise nprobe, or leave it out$"):  # fmt: skip
        Catalogue().approximate(nprobe=1)


def test_vectors_without_any_order_are_refused():
    catalogue = Catalogue()
    rng = np.random.default_rng(0)
    catalogue.items = rng.normal(size=(60, SIZE)).astype(np.float32)
    with pytest.raises(SettingError, match=r"even if it reads half of its 16 lists, below min_recall=1\.0: "):
        catalogue.approximate(items=60, min_recall=1.0)


def test_too_many_lists_and_values_out_of_range_are_refused():
    with pytest.raises(SettingError, match="nprobe=111 is more than the 110 lists of the index"):
        Catalogue().approximate(nprobe=111)
    for wrong in ({"min_recall": 0}, {"min_recall": 1.5}, {"nprobe": 0}, {"nprobe": 2.5}):
        (name,) = wrong
        with pytest.raises(SettingError, match=f"{name}="):
            ApproximateSearch(**wrong)


def test_scores_that_are_no_products_are_refused():
    for scores in (None, lambda items: None):
        with pytest.raises(SettingError, match="those of Mixed with these settings are not: set search=exact"):
            ApproximateBest(ApproximateSearch(), scores, None, ITEMS, "Mixed")


@pytest.mark.parametrize("where", ["items", "users"])
def test_numbers_that_are_none_are_told(where):
    catalogue = Catalogue()
    getattr(catalogue, where)[3] = np.nan
    with pytest.raises(TrainingError, match="the scores of Model are not numbers: its training diverged"):
        catalogue.approximate()


def test_a_missing_package_is_one_sentence(monkeypatch):
    monkeypatch.setattr(packages, "find_spec", lambda name: None)
    with pytest.raises(SettingError, match=r"^search=approximate needs the package 'faiss': pip install 'recbole-llm"):
        Catalogue().approximate()


# -- recall ------------------------------------------------------------------------------------------------------------


def test_recall_counts_the_exact_best():
    exact = np.array([[5.0, 4.0, 3.0], [9.0, 8.0, -np.inf], [-np.inf] * 3], dtype=np.float32)
    assert recall_of(exact, exact) == 1
    found = np.array([[5.0, 3.0, 2.0], [8.0, -np.inf, -np.inf], [-np.inf] * 3], dtype=np.float32)
    assert recall_of(found, exact) == pytest.approx((2 / 3 + 1 / 2) / 2)
    # Of several items with the last score any will do.
    assert recall_of(np.array([[4.0, 4.0]]), np.array([[4.0, 4.0]])) == 1
