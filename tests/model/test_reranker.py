"""The network that orders TextSLIT's best items anew, against loops and numpy."""

import numpy as np
import pytest
import torch
from small_data import build_parts, small_settings, write_dataset

from recbole_llm.errors import DataError, SettingError
from recbole_llm.model.layers import reranker
from recbole_llm.model.layers.reranker import FEATURES, Reranker, linear_scores
from recbole_llm.model.sequential_recommender import textslit
from recbole_llm.quick_start.run import load, run

ITEMS, DECAYS, WEIGHTS, RIDGE = 9, (0.6, 0.3), (2.0, 0.5), 2.0
HISTORIES = [[1, 2, 3], [4], [8, 1]]
SETTINGS = {
    "history_decay": 0.6, "ridge": RIDGE, "text_similarity": 0.1, "similarity_decay": 0.2, "whitening": 0.5,
    "temperature": 0.5, "rerank": 3, "rerank_epochs": 2, "repeatable": False,
}  # fmt: skip


def padded(histories):
    width = max(map(len, histories))
    return torch.tensor([history + [0] * (width - len(history)) for history in histories])


@pytest.fixture
def linear():
    numbers = torch.Generator().manual_seed(0)
    table = torch.rand(ITEMS, ITEMS, generator=numbers)
    texts = torch.nn.functional.normalize(torch.randn(ITEMS, 5, generator=numbers), dim=1)
    table[0] = table[:, 0] = texts[0] = 0
    counts = torch.arange(ITEMS).float()
    return linear_scores(padded(HISTORIES), table, texts, counts, DECAYS, WEIGHTS)


def parts_by_hand(linear, history):
    """Return both parts of the scores of all items."""
    table, texts = linear.table.double().numpy(), linear.texts.double().numpy()
    behind = len(history) - 1 - np.arange(len(history))
    transitions = WEIGHTS[0] * (DECAYS[0] ** behind) @ table[history]
    return transitions, WEIGHTS[1] * (DECAYS[1] ** behind) @ texts[history] @ texts.T


def candidates_by_hand(scores, history, number):
    allowed = [item for item in range(1, ITEMS) if item not in history]
    return sorted(allowed, key=lambda item: -scores[item])[:number]


def test_candidates_are_the_best_items_that_the_history_does_not_hold(linear):
    for history, found in zip(HISTORIES, linear.candidates(4).tolist(), strict=True):
        assert found == candidates_by_hand(sum(parts_by_hand(linear, history)), history, 4)


def test_features_are_what_they_are_called(linear, monkeypatch):
    """In one piece and row by row."""
    candidates = linear.candidates(4)
    texts, table = linear.texts.double().numpy(), linear.table.double().numpy()
    for piece in (256, 1):
        monkeypatch.setattr(reranker, "_ROWS", piece)
        found = linear.features(candidates).numpy()
        assert found.shape == (3, 4, len(FEATURES))
        for row, history in enumerate(HISTORIES):
            transitions, likeness = parts_by_hand(linear, history)
            for place, item in enumerate(candidates[row].tolist()):
                expected = [
                    transitions[item] + likeness[item], transitions[item], likeness[item], np.log(place + 1),
                    texts[history[-1]] @ texts[item], max(texts[met] @ texts[item] for met in history),
                    WEIGHTS[0] * table[history[-1], item], np.log(1 + item), np.log(1 + history[-1]),
                    np.log(len(history)),
                ]  # fmt: skip
                np.testing.assert_allclose(found[row, place], expected, atol=1e-5)


def test_scores_are_the_linear_ones_and_the_networks(linear):
    torch.manual_seed(1)
    model = Reranker(ITEMS, 4, 6)
    torch.nn.init.normal_(model.network[2].weight)
    model.mean.normal_()
    model.deviation.uniform_(0.5, 2)
    first, last = (model.network[place] for place in (0, 2))
    with torch.no_grad():
        found = model(linear).numpy()
        whole, candidates = linear.sum().numpy(), linear.candidates(4)
        inputs = (linear.features(candidates).numpy() - model.mean.numpy()) / model.deviation.numpy()
        hidden = np.maximum(inputs @ first.weight.numpy().T + first.bias.numpy(), 0)
        corrections = (hidden @ last.weight.numpy().T)[..., 0]
    assert np.ptp(corrections, axis=1).min() > 0.01
    for row, chosen in enumerate(candidates.numpy()):
        expected = whole[row].copy()
        expected[chosen] += corrections[row] - corrections[row].min()
        np.testing.assert_allclose(found[row], expected, atol=1e-5)
        others = [item for item in range(1, ITEMS) if item not in HISTORIES[row] and item not in chosen]
        assert found[row, chosen].min() >= found[row, others].max()


def test_before_training_the_scores_are_the_linear_ones(linear):
    torch.testing.assert_close(Reranker(ITEMS, 4, 6)(linear), linear.sum())


def test_training_learns_what_the_scores_do_not_know():
    """Targets are the candidates whose popularity is nearest to the last item's; scores are noise."""
    numbers = np.random.default_rng(0)
    features = numbers.normal(size=(1500, 5, len(FEATURES))).astype(np.float32)
    features[:, :, 8] = features[:, :1, 8]
    targets = np.abs(features[:, :, 7] - features[:, :, 8]).argmin(axis=1)
    torch.manual_seed(0)
    model = Reranker(ITEMS, 5, 16)
    given = torch.from_numpy(features)
    model.train_on(given[:1000], torch.from_numpy(targets[:1000]), 40, 0.02, 0)
    with torch.no_grad():
        chosen = (given[1000:, :, 0] + model.corrections(given[1000:])).argmax(dim=1)
    assert (chosen.numpy() == targets[1000:]).mean() > 0.8
    assert (features[1000:, :, 0].argmax(axis=1) == targets[1000:]).mean() < 0.3


def trained_rows(part):
    """The rows of a part, one by one: user, history, next item."""
    rows = [part[torch.tensor([number])] for number in range(len(part.inter_feat))]
    return [
        (int(row["user_id"]), row["item_id_list"][0, : int(row["item_length"])].tolist(), int(row["item_id"]))
        for row in rows
    ]


def test_training_rows_have_scores_that_have_not_seen_their_user(small, tiny, monkeypatch):
    """As many folds as users: the transitions of a row are the ridge regression of all other users' rows."""
    given = {}
    monkeypatch.setattr(
        Reranker, "train_on", lambda self, features, places, *_: given.update(found=(features, places)) or 0.0
    )
    parts = build_parts(small, model="TextSLIT", backbone=str(tiny["bert"]), **SETTINGS, rerank_folds=100)
    parts.model.solve(parts.train._dataset)
    features, places = given["found"]
    rows, items = trained_rows(parts.train._dataset), parts.dataset.item_num

    def row_of(history):
        row = np.zeros(items)
        for place, item in enumerate(history):
            row[item] += 0.6 ** (len(history) - 1 - place)
        return row

    expected = []
    for user, history, target in rows:
        others = [(row_of(each), np.eye(items)[following]) for other, each, following in rows if other != user]
        inputs, outputs = (np.array(column) for column in zip(*others, strict=True))
        table = np.linalg.solve(inputs.T @ inputs + RIDGE * np.eye(items), inputs.T @ outputs)
        expected.append((float(row_of(history) @ table[:, target] / 0.5), np.log1p(outputs.sum(axis=0)[target])))
    assert 3 < len(places) < len(rows)
    found = features[torch.arange(len(places)), places][:, [1, 7]].numpy()
    left = list(expected)
    for pair in found:  # every row that is trained is one of those computed here
        errors = [np.abs(np.subtract(pair, each)).max() for each in left]
        assert min(errors) < 1e-4
        del left[int(np.argmin(errors))]


def test_a_feature_that_training_rows_share_decides_nothing_later():
    """Such as the length of histories where every user has as many items, which is another at evaluation."""
    torch.manual_seed(2)
    features = torch.randn(1000, 4, len(FEATURES))
    features[:, :, [0, 9]] = 0
    places = features[:, :, 1].argmax(dim=1)  # the second feature tells the target
    model = Reranker(ITEMS, 4, 16)
    model.train_on(features, places, epochs=40, learning_rate=0.02, seed=0)
    longer = features.clone()
    longer[:, :, 9] = np.log(2)
    with torch.no_grad():
        shares = [(model.corrections(x).argmax(dim=1) == places).float().mean() for x in (features, longer)]
    assert min(shares) > 0.98, shares


def test_a_stored_run_orders_items_as_it_did(small, tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = run(settings=small_settings(small, model="TextSLIT", backbone=str(tiny["bert"]), **SETTINGS))
    scores = []
    for with_network in (True, False):
        model = load(result["path"]).model.eval()
        if not with_network:
            model.reranker = None
        with torch.no_grad():
            scores.append(model.scores_of(padded([[1, 2, 3], [4, 5]])))
    assert not torch.equal(*scores)
    parts = build_parts(small, model="TextSLIT", backbone=str(tiny["bert"]), **SETTINGS)
    parts.model.solve(parts.train._dataset)
    with torch.no_grad():
        torch.testing.assert_close(parts.model.scores_of(padded([[1, 2, 3], [4, 5]])), scores[0])


def test_items_that_users_meet_again_are_refused(small, tiny):
    """The small dataset has such interactions."""
    given = {**SETTINGS, "backbone": str(tiny["bert"]), "repeatable": "auto"}
    with pytest.raises(SettingError, match=r"interactions of small are with an item that their user met before: set"):
        build_parts(small, model="TextSLIT", **given)


def test_one_item_has_no_order(small, tiny):
    with pytest.raises(SettingError, match="rerank=1 puts one item into another order, which is none: set 2 or more"):
        build_parts(small, model="TextSLIT", **{**SETTINGS, "rerank": 1, "backbone": str(tiny["bert"])})


def test_one_user_is_too_few(tmp_path, tiny):
    data = write_dataset(tmp_path, {"u1": "abcdefgh"})
    parts = build_parts(data, model="TextSLIT", backbone=str(tiny["bert"]), **SETTINGS)
    with pytest.raises(DataError, match="rerank needs training rows of two users or more, and small has one's"):
        parts.model.solve(parts.train._dataset)


def test_rows_without_their_target_among_the_candidates_leave_the_order(small, tiny, monkeypatch):
    parts = build_parts(small, model="TextSLIT", backbone=str(tiny["bert"]), **SETTINGS)
    monkeypatch.setattr(textslit.LinearScores, "candidates", lambda self, number: self.histories[:, :1])
    parts.model.solve(parts.train._dataset)
    assert not parts.model.reranker.network[2].weight.any()
