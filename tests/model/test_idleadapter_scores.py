"""IDLE-Adapter's scores: of every item and of one, of RecBole's metrics, and of what they depend on."""

import numpy as np
import pytest
import torch
from adapter_parts import steps_of, trainer_of
from small_data import HISTORIES, TITLES

from recbole_llm.quick_start.run import load

ITEMS = len(TITLES)


@pytest.mark.parametrize(("backbone", "id_run", "interests"), [("bert", "ComiRec", 2), ("llama", "GRU4Rec", 1)])
def test_full_sort_equals_predict_and_the_states_of_training(build, backbone, id_run, interests):
    parts = build(backbone, id_run, interests)
    trainer_of(parts)
    model = parts.model.eval()
    rows = parts.train._dataset[np.arange(len(parts.train._dataset))]
    with torch.no_grad():
        scores = model.full_sort_predict(rows)
        assert torch.isneginf(scores[:, 0]).all()
        for item in range(1, ITEMS + 1):
            rows.interaction["item_id"] = torch.full((len(rows),), item)
            torch.testing.assert_close(model.predict(rows), scores[:, item], atol=1e-4, rtol=1e-4)
        _, (part,) = steps_of(parts)
        tokens = model.virtual_tokens(model.inputs.vectors[part.rows])
        states = model.pooled_states(part.prompts, tokens)
        torch.testing.assert_close(model.projection(states)[:, 1:], scores[part.rows, 1:], atol=1e-4, rtol=1e-4)


def test_scores_depend_on_the_user_vector_and_on_the_text(build):
    parts = build()
    interaction = next(iter(parts.test))[0]
    with torch.no_grad():
        scores = parts.model.full_sort_predict(interaction)
        for parameter in parts.model.id_model.parameters():
            parameter.mul_(1.5)
        assert (parts.model.full_sort_predict(interaction) - scores)[:, 1:].abs().max() > 1e-3
    with torch.no_grad():
        parts.model.adapter.projection_weight.zero_()
        no_user = parts.model.full_sort_predict(interaction)[:, 1:]
    assert no_user.std(dim=0).max() > 1e-4, "the prompt alone tells users apart"


def test_small_passes_score_as_one(build):
    parts = build()
    interaction = next(iter(parts.test))[0]
    with torch.no_grad():
        scores = parts.model.full_sort_predict(interaction)
        parts.model.settings.__dict__["eval_batch_tokens"] = 60
        torch.testing.assert_close(parts.model.full_sort_predict(interaction), scores, atol=1e-5, rtol=1e-5)


def test_evaluation_is_recboles_metric_of_the_scores(build):
    parts = build()
    trainer = trainer_of(parts)
    trainer.eval_collector.data_collect(parts.train)
    found = trainer.evaluate(parts.test, load_best_model=False)
    ranks = []
    with torch.no_grad():
        for interaction, _, _, targets in parts.test:
            scores = parts.model.full_sort_predict(interaction)
            ranks += (scores > scores[torch.arange(len(targets)), targets][:, None]).sum(dim=1).add(1).tolist()
    ranks = np.array(ranks)
    assert len(ranks) == sum(len(history) > 2 for history in HISTORIES.values())
    assert found["recall@3"] == pytest.approx((ranks <= 3).mean(), abs=1e-4)
    assert found["ndcg@3"] == pytest.approx(np.where(ranks <= 3, 1 / np.log2(ranks + 1), 0).mean(), abs=1e-4)
    assert found["mrr"] == pytest.approx((1 / ranks).mean(), abs=1e-4)


@pytest.mark.parametrize("longest", [2, 6, 9])
def test_histories_of_the_id_models_own_length(build, id_runs, longest):
    """Whatever the adapter's histories hold, the ID model reads its six most recent items of them."""
    parts = build(MAX_ITEM_LIST_LENGTH=longest)
    own = load(id_runs())
    mine, theirs = (p.train._dataset[np.arange(len(p.train._dataset))] for p in (parts, own))
    assert mine["item_id_list"].shape[1] == longest
    assert theirs["item_id_list"].shape[1] == 6
    before = mine["item_id_list"].clone()
    found = parts.model.user_vectors(mine)
    assert torch.equal(mine["item_id_list"], before), "the adapter's own rows are left alone"
    assert torch.equal(mine["item_id"], theirs["item_id"])
    with torch.no_grad():
        if longest < 6:
            lengths = theirs["item_length"]
            for row in np.flatnonzero((lengths > longest).numpy()):
                recent = theirs["item_id_list"][row, int(lengths[row]) - longest : int(lengths[row])].clone()
                theirs["item_id_list"][row] = 0
                theirs["item_id_list"][row, :longest] = recent
            theirs["item_length"].clamp_(max=longest)
        torch.testing.assert_close(found, own.model.user_vectors(theirs), atol=1e-6, rtol=1e-5)
