"""TextSLIT against ridge regression by loops and numpy, alone and with another model's scores."""

import numpy as np
import pytest
import torch
from small_data import build_parts, small_settings

from recbole_llm.errors import SettingError
from recbole_llm.model.layers.item_transitions import decayed_sum, item_transitions
from recbole_llm.model.sequential_recommender import textslit
from recbole_llm.quick_start.run import load, run

DECAY, RIDGE = 0.6, 2.0
SETTINGS = {
    "history_decay": DECAY, "ridge": RIDGE, "text_similarity": 0.1, "similarity_decay": 0.2,
    "whitening": 0.5, "temperature": 0.5,
}  # fmt: skip
# Rows of histories, the oldest first, and what follows; item 3 stands twice in one of them.
ROWS = [([1, 2], 3), ([1, 2, 3], 4), ([4], 1), ([3, 1, 3], 2), ([2, 4], 3)]
ITEMS = 6


def row_of(history, items=ITEMS, decay=DECAY):
    row = np.zeros(items)
    for place, item in enumerate(history):
        row[item] += decay ** (len(history) - 1 - place)
    return row


def tables_by_hand(rows, items=ITEMS):
    return np.array([row_of(history, items) for history, _ in rows]), np.eye(items)[[target for _, target in rows]]


def ridge_by_hand(rows, items=ITEMS):
    histories, following = tables_by_hand(rows, items)
    return np.linalg.solve(histories.T @ histories + RIDGE * np.eye(items), histories.T @ following)


def trained_rows(part):
    """The rows of a dataset's part, read one by one."""
    rows = [part[torch.tensor([number])] for number in range(len(part.inter_feat))]
    return [
        (row["item_id_list"][0, : int(row["item_length"])].tolist(), int(row["item_id"])) for row in rows
    ]  # fmt: skip


@pytest.fixture
def built(small, tiny):
    def build(**settings):
        given = {"backbone": str(tiny["bert"]), **SETTINGS, **settings}
        parts = build_parts(small, model="TextSLIT", **given)
        parts.model.solve(parts.train._dataset)
        return parts

    return build


def scores_of(parts):
    rows = next(iter(parts.test))[0]
    with torch.no_grad():
        return rows, parts.model.eval().full_sort_predict(rows).numpy()


def test_transitions_are_ridge_regression(monkeypatch):
    """In one piece and in pieces of two rows."""
    flat = np.concatenate([history for history, _ in ROWS])
    lengths = np.array([len(history) for history, _ in ROWS])
    given = (flat, lengths.cumsum(), lengths, np.array([target for _, target in ROWS]), DECAY, RIDGE, ITEMS)
    for piece in (100, 2):
        monkeypatch.setattr("recbole_llm.model.layers.item_transitions._ROWS", piece)
        transitions, squares = item_transitions(*given, torch.device("cpu"))
        found = transitions.numpy()
        np.testing.assert_allclose(found, ridge_by_hand(ROWS), atol=1e-6)
        histories, following = tables_by_hand(ROWS)
        assert squares == pytest.approx(np.square(following - histories @ ridge_by_hand(ROWS)).sum(), rel=1e-5)
    assert not found[0].any() and not found[:, 0].any()


def test_decayed_sum_is_the_row_times_the_table():
    table = torch.randn(ITEMS, 4, generator=torch.Generator().manual_seed(0))
    table[0] = 0
    histories = torch.tensor([[1, 2, 3, 0], [3, 1, 3, 2], [5, 0, 0, 0]])
    rows = np.array([row_of([item for item in history if item]) for history in histories.tolist()])
    np.testing.assert_allclose(decayed_sum(table, histories, DECAY).numpy(), rows @ table.numpy(), atol=1e-6)


def cosines_by_hand(vectors, whitening):
    """Of centred vectors, by the singular value decomposition; the texts span fewer directions than their width."""
    centred = vectors[1:] - vectors[1:].mean(axis=0)
    left, values, _ = np.linalg.svd(centred, full_matrices=False)
    some = values > 1e-3 * values[0]
    mapped = left[:, some] * values[some] ** (1 - whitening)
    norms = np.linalg.norm(mapped, axis=1)
    found = np.zeros((len(vectors), len(vectors)))
    found[1:, 1:] = mapped @ mapped.T / np.outer(norms, norms)
    return found


def test_scores_are_the_formula_with_cosines_of_texts(built):
    parts = built()
    items = parts.dataset.item_num
    transitions = ridge_by_hand(trained_rows(parts.train._dataset), items)
    vectors = textslit.ItemTexts.from_config(parts.config).of_items(parts.dataset).numpy().astype(np.float64)
    cosines = cosines_by_hand(vectors, 0.5)
    rows, found = scores_of(parts)
    histories = [[i for i in line if i] for line in rows["item_id_list"].tolist()]
    for_transitions, for_texts = (np.array([row_of(h, items, decay) for h in histories]) for decay in (DECAY, 0.2))
    expected = for_transitions @ transitions + 0.1 * for_texts @ cosines
    np.testing.assert_allclose(found[:, 1:], expected[:, 1:] / 0.5, atol=2e-5)
    assert np.isneginf(found[:, 0]).all()


def test_whole_whitening_gives_every_direction_one_variance():
    """Before lengths are made equal, which leaves the directions' order: seen where all lengths are equal anyway."""
    corners = torch.tensor([[0.0, 0.0], [3.0, 1.0], [3.0, -1.0], [-3.0, 1.0], [-3.0, -1.0]])
    whole, none = (textslit.unit_vectors(corners, power)[1:] for power in (1.0, 0.0))
    torch.testing.assert_close(whole.T @ whole / 4, torch.eye(2) / 2, atol=1e-6, rtol=0)
    torch.testing.assert_close((none.T @ none / 4).diagonal().sort().values, torch.tensor([0.1, 0.9]))


def test_solution_has_no_gradient(built):
    """The ridge objective is least there: its gradient vanishes, and not at other transitions."""
    parts = built()
    model, part = parts.model, parts.train._dataset
    count = len(part.inter_feat)

    def gradient():
        model.zero_grad()
        whole = model.calculate_loss(part[torch.arange(count)]) * count + RIDGE * model.transitions.square().sum()
        whole.backward()
        return float(model.transitions.grad.abs().max())

    assert gradient() < 1e-4
    with torch.no_grad():
        model.transitions[1, 2] += 0.1
    assert gradient() > 0.1


def test_without_likeness_no_text_is_read(built, monkeypatch):
    monkeypatch.setattr(textslit.ItemTexts, "of_items", lambda *_: pytest.fail("a text was read"))
    parts = built(text_similarity=0)
    rows, found = scores_of(parts)
    transitions = ridge_by_hand(trained_rows(parts.train._dataset), parts.dataset.item_num)
    histories = [row_of([i for i in line if i], parts.dataset.item_num) for line in rows["item_id_list"].tolist()]
    np.testing.assert_allclose(found[:, 1:], (np.array(histories) @ transitions)[:, 1:] / 0.5, atol=1e-5)


def test_a_run_mixes_the_id_models_scores_in(small, tiny, tmp_path, monkeypatch):
    """(1 - w) log p + w log p_id of both models' own scores, by the weight in the result; a loaded run has the same."""
    monkeypatch.chdir(tmp_path)
    sizes = {"hidden_size": 8, "inner_size": 8, "n_heads": 2, "n_layers": 1, "epochs": 2}
    given = small_settings(
        small, model="TextSLIT", backbone=str(tiny["bert"]), **SETTINGS, id_model="SASRec", id_model_settings=sizes,
        id_weight=0.3, epochs=7,
    )  # fmt: skip
    result = run(settings=given)
    assert result["epochs"] == 1
    assert result["id_model"]["weight"] == pytest.approx(0.3)
    parts = load(result["path"])
    rows, found = scores_of(parts)
    with torch.no_grad():
        own, other = parts.model.scores_of(rows["item_id_list"]), parts.model.id_scores.model.full_sort_predict(rows)
    own, other = (torch.log_softmax(scores.view(len(rows), -1)[:, 1:].double(), dim=1) for scores in (own, other))
    np.testing.assert_allclose(found[:, 1:], (0.7 * own + 0.3 * other).numpy(), atol=1e-5)


def test_a_catalogue_that_is_too_large_is_refused(small, tiny, monkeypatch):
    monkeypatch.setattr(textslit, "_MAX_ITEMS", 5)
    with pytest.raises(SettingError, match="TextSLIT solves for a table of items by items, and small has 8 items"):
        build_parts(small, model="TextSLIT", backbone=str(tiny["bert"]))
