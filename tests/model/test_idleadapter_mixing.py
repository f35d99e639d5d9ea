"""IDLE-Adapter with its ID model's scores mixed in, and with fewer items in the prompt than the ID model reads."""

import numpy as np
import pytest
import torch
from small_data import small_settings

from recbole_llm.errors import SettingError
from recbole_llm.quick_start.run import load, run


@pytest.fixture
def settings_of(small, rough_models, id_runs):
    def settings(**more):
        found = small_settings(
            small, model="IDLEAdapter", backbone=str(rough_models["bert"]), id_model_path=id_runs(),
            max_prompt_tokens=128, MAX_ITEM_LIST_LENGTH=6, epochs=2, train_batch_size=8, learning_rate=0.01, **more,
        )  # fmt: skip
        return found

    return settings


def test_run_ranks_by_the_mixture_of_both(settings_of):
    """The ranks of the finished run are those of (1 - w) log p + w log p_id, w being stored with the weights."""
    result = run(settings=settings_of(id_weight=None))
    weight = result["id_model"]["weight"]
    parts = load(result["path"])
    ranks = []
    for interaction, *_ in parts.test:
        with torch.no_grad():
            own = parts.model.projection(parts.model.row_states(interaction))[:, 1:].double().log_softmax(1)
            theirs = parts.model.id_model.full_sort_predict(interaction)[:, 1:].double().log_softmax(1)
            predicted = parts.model.predict(interaction).numpy()
        scores = ((1 - weight) * own + weight * theirs).numpy()
        target = interaction["item_id"].numpy() - 1
        assert predicted == pytest.approx(scores[np.arange(len(scores)), target], abs=1e-4)
        ranks += list((scores >= scores[np.arange(len(scores)), target][:, None]).sum(axis=1))
    assert result["test"]["mrr"] == pytest.approx(np.mean(1 / np.array(ranks)), abs=6e-5)
    assert float(parts.model.id_scores.weight) == pytest.approx(weight, abs=1e-4)


def test_papers_ranking_has_no_id_scores(settings_of):
    result = run(settings=settings_of())
    assert load(result["path"]).model.id_scores is None
    assert "weight" not in result["id_model"]


def test_prompt_shows_the_last_items_and_the_id_model_reads_all(build):
    """Another last but one item changes the user vector, not the prompt; another last item the prompt."""
    parts = build(id_run="GRU4Rec", max_items=1, MAX_ITEM_LIST_LENGTH=6)
    model = parts.model
    interaction = next(iter(parts.test))[0]
    chosen = int(interaction["item_length"].argmax())
    row = interaction[chosen : chosen + 1]
    length = int(row["item_length"])
    assert length > 1

    def read(place):
        changed = {name: value.clone() for name, value in row.interaction.items()}
        if place is not None:
            item = changed["item_id_list"][0, place]
            changed["item_id_list"][0, place] = item % (model.n_items - 1) + 1
        rows = type(row)(changed)
        _, prompts = next(iter(model.inputs.prompts_of(
            rows["item_id_list"].numpy(), rows["item_length"].numpy(), 10_000, plain=True
        )))  # fmt: skip
        return prompts.packed.token_ids.tolist(), model.user_vectors(rows).detach()

    (text, vector), (other_text, other_vector), (last_text, _) = read(None), read(length - 2), read(length - 1)
    assert text == other_text and not torch.allclose(vector, other_vector)
    assert text != last_text
    assert model.inputs.prompt_counts()["mean_items"] == 1


def test_dropout_before_the_head_is_inverted_and_of_training_alone(build):
    """A share of .75 of the pooled states is 0 in training and the rest is four times as large; else nothing is."""
    parts = build(head_dropout=0.75, mmd_weight=0)
    model, seen = parts.model, []
    model.inputs.vectors = model.user_vectors(parts.train.dataset[np.arange(len(parts.train.dataset))])
    _, (batch, *_) = model.prepared_step(model.training_samples(np.random.default_rng(0)))
    projection_loss = model.projection.loss
    model.projection.loss = lambda states, *rest: seen.append(states.detach()) or projection_loss(states, *rest)
    for mode in (True, False):
        model.train(mode)
        model.pass_loss_sum(batch)
    dropped, whole = seen
    kept = dropped != 0
    assert kept.float().mean().item() == pytest.approx(0.25, abs=0.05)
    torch.testing.assert_close(dropped[kept], 4 * whole[kept])


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"max_items": 0}, "max_items"),
        ({"head_dropout": 1}, "head_dropout=1 must be a number from 0 to below 1"),
        ({"id_weight": 1.5}, "id_weight=1.5 must be a number from 0 to 1"),
    ],
)
def test_wrong_settings_are_refused(settings_of, more, message):
    with pytest.raises(SettingError, match=message):
        run(settings=settings_of(**more))


def test_id_weight_from_the_command_line():
    from recbole_llm.config.config import parse_command_line

    assert parse_command_line(["--id_weight=~"]) == {"id_weight": None}
