"""One pass over a history: at every position what RecBole's row for that prefix has, loss and gradients too."""

import numpy as np
import pytest
import torch
from atomic_files import KNOWLEDGE, quick_settings, write_atomic_files
from recbole.model.abstract_recommender import SequentialRecommender
from recbole.utils import init_seed
from torch import nn

from recbole_llm.config.config import Config
from recbole_llm.config.hooks import hooks_of_class
from recbole_llm.config.names import known_models
from recbole_llm.data.position_windows import WindowTable, labelled_windows
from recbole_llm.errors import SettingError
from recbole_llm.model import one_pass
from recbole_llm.model.layers.balanced_clusters import balanced_clusters, interaction_vectors
from recbole_llm.model.one_pass import OnePass
from recbole_llm.quick_start.run import build

TRANSFORMER = {"n_layers": 2, "n_heads": 2, "hidden_size": 8, "inner_size": 8, "hidden_dropout_prob": 0.0,
               "attn_dropout_prob": 0.0}  # fmt: skip
GRU = {"embedding_size": 8, "hidden_size": 6, "num_layers": 2, "dropout_prob": 0.0}
FEATURES = {"selected_features": ["class", "category"]}
MODELS = {
    "SASRec": TRANSFORMER,
    "GRU4Rec": GRU,
    "SASRecF": {**TRANSFORMER, **FEATURES},
    "GRU4RecF": {**GRU, **FEATURES},
    "FDSA": {**TRANSFORMER, **FEATURES},
}
LONGEST = 20  # of write_atomic_files


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_atomic_files(tmp_path_factory.mktemp("data") / "tiny", users=25, items=40)


def parts_of(model, folder, **settings):
    given = quick_settings(folder, MAX_ITEM_LIST_LENGTH=LONGEST, **{**MODELS.get(model, {}), **settings})
    config = Config(model, config_dict=given)
    init_seed(config["seed"], True)
    return build(config)


def whole(parts):
    """All windows of the training part in one batch: histories and labels."""
    table = WindowTable(labelled_windows(parts.train._dataset, LONGEST), LONGEST, 1000, torch.device("cpu"))
    ((width, windows),) = table.epoch(0, 0)
    return table.rows(windows, width)


def rows_of(parts):
    part = parts.train._dataset
    return part[torch.arange(len(part))]


def test_every_model_that_can_is_compared():
    assert set(MODELS) == set(one_pass.RECBOLES)


@pytest.mark.parametrize("model", MODELS)
def test_loss_and_gradients_are_those_of_all_rows(model, folder):
    every, last = parts_of(model, folder, train_positions="all"), parts_of(model, folder)
    assert type(every.model).full_sort_predict is type(last.model).full_sort_predict
    # Weights of the one way are those of the other.
    every.model.load_state_dict(last.model.state_dict())
    for parts in (every, last):
        parts.model.double()
        parts.model.train()
    found = every.model.positions_loss(*whole(every))
    expected = last.model.calculate_loss(rows_of(last))  # all rows are one batch: the mean over them
    torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=1e-6)
    found.backward()
    expected.backward()
    weights = dict(last.model.named_parameters())
    assert weights
    for name, weight in every.model.named_parameters():
        if weights[name].grad is None:
            assert weight.grad is None, name
        else:
            torch.testing.assert_close(weight.grad, weights[name].grad, rtol=1e-5, atol=1e-6, msg=name)


@pytest.mark.parametrize("model", MODELS)
def test_bpr_is_recboles_for_the_same_items(model, folder, monkeypatch):
    every = parts_of(model, folder, train_positions="all", loss_type="BPR")
    last = parts_of(model, folder, loss_type="BPR", train_neg_sample_args={"distribution": "uniform", "sample_num": 1})
    every.model.load_state_dict(last.model.state_dict())
    monkeypatch.setattr(every.model.position_loss_of, "_others", lambda labels, _: labels[:, None] % 39 + 1)
    rows = rows_of(last)
    rows.interaction[last.model.NEG_ITEM_ID] = rows["item_id"] % 39 + 1
    found, expected = every.model.positions_loss(*whole(every)), last.model.calculate_loss(rows)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("model", MODELS)
def test_later_items_change_nothing(model, folder):
    parts = parts_of(model, folder, train_positions="all")
    parts.model.eval()
    histories, _ = whole(parts)
    assert histories.shape[1] > 8
    before = parts.model.states_at_all_positions(histories)
    changed = histories.clone()
    changed[:, 5:] = changed[:, 5:].flip(1)  # padding among them
    assert not torch.equal(changed, histories)
    after = parts.model.states_at_all_positions(changed)
    torch.testing.assert_close(after[:, :5], before[:, :5], rtol=1e-5, atol=1e-6)
    assert not torch.allclose(after[:, 5:], before[:, 5:], atol=1e-3)


def test_dropout_is_recboles(folder):
    rates = {"hidden_dropout_prob": 0.5, "attn_dropout_prob": 0.5}
    parts = parts_of("SASRec", folder, train_positions="all", **rates)
    histories, _ = whole(parts)
    lengths = (histories > 0).sum(1)
    parts.model.train()
    torch.manual_seed(3)
    found = parts.model.states_at_all_positions(histories)
    torch.manual_seed(3)
    last = parts.model(histories, lengths)  # RecBole's own forward draws the same
    torch.testing.assert_close(found[torch.arange(len(lengths)), lengths - 1], last)


@pytest.mark.parametrize("loss", ["BCE", "gBCE", "SampledCE"])
def test_other_losses_have_the_same_model(folder, loss):
    parts = parts_of("SASRec", folder, train_positions="all", loss_type=loss, num_negatives=5)
    plain = parts_of("SASRec", folder)
    assert parts.model.state_dict().keys() == plain.model.state_dict().keys()
    assert torch.isfinite(parts.model.positions_loss(*whole(parts)))


@pytest.mark.parametrize("model", sorted(MODELS))
def test_two_levels_rank_by_probabilities(folder, workdir, model):
    """The clusters are those of items that the same users met in training."""
    parts = parts_of(model, folder, train_positions="all", loss_type="TwoLevel")
    parts.trainer(workdir).windows(parts.train)
    softmax, dataset = parts.model.position_loss_of, parts.train._dataset
    users, items = (dataset.inter_feat[name].numpy() for name in (dataset.uid_field, dataset.iid_field))
    vectors = interaction_vectors(users, items - 1, dataset.item_num - 1, softmax.cluster_weight.shape[1], 2020)
    expected = balanced_clusters(vectors, softmax.clusters, 2020)
    np.testing.assert_array_equal(softmax.cluster_of[1:].numpy(), expected)
    rows = rows_of(parts)
    with torch.no_grad():
        scores = parts.model.eval().full_sort_predict(rows)
        torch.testing.assert_close(scores.exp().sum(dim=1), torch.ones(len(rows)))
        blocks = parts.model.scores_of_items(rows)
        torch.testing.assert_close(blocks(slice(1, 9)), scores[:, 1:9])
        found = parts.model.predict(rows)
        torch.testing.assert_close(found, scores.gather(1, rows[parts.model.ITEM_ID][:, None])[:, 0])
        histories, labels = whole(parts)
        loss = parts.model.positions_loss(histories, labels)
    chances = scores.gather(1, rows[parts.model.POS_ITEM_ID][:, None])
    assert loss.item() == pytest.approx(-chances.mean().item(), rel=1e-4)


def test_two_levels_are_for_models_of_recbole(folder):
    settings = quick_settings(folder, train_positions="all", loss_type="TwoLevel")
    with pytest.raises(SettingError, match=r"loss_type=TwoLevel is for FDSA, .* and ST2SI, not for Causal"):
        Config(Causal, config_dict=settings)


@pytest.mark.parametrize("model", sorted(set(known_models()) - set(MODELS)))
def test_others_are_refused_by_name(model):
    class Stand(SequentialRecommender):
        pass

    Stand.__name__ = model
    with pytest.raises(SettingError, match=f"train_positions=all is not for {model}: it|: its|: the") as refused:
        one_pass.one_pass_class(Stand)
    assert "SASRec" in str(refused.value)


@pytest.mark.parametrize(
    ("model", "why"),
    [
        ("BERT4Rec", "both directions"),
        ("Caser", "whole history"),
        ("FPMC", "last items alone"),
        ("NARM", "weighs all earlier items anew"),
        ("ComiRec", "weighs all earlier items anew"),
        ("BPR", "does not read the items of a history"),
    ],
)
def test_a_run_of_others_is_refused(folder, model, why):
    with pytest.raises(SettingError, match=rf"train_positions=all is not for {model}: .*{why}"):
        Config(model, config_dict=quick_settings(folder, train_positions="all"))


def test_every_sequential_model_has_a_reason():
    """No model of RecBole that reads histories gets the sentence for those that do not."""
    named = {*one_pass._WHY_NOT, *MODELS}
    import recbole.model.sequential_recommender as recboles

    assert {name for name in vars(recboles) if isinstance(getattr(recboles, name), type)} <= named


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"loss_type": "gBCE"}, "loss_type=gBCE needs train_positions=all"),
        ({"train_positions": "every"}, "train_positions=every must be"),
        (
            {"train_positions": "all", "loss_type": "BPR", "train_neg_sample_args": {"distribution": "uniform"}},
            "train_neg_sample_args has no effect",
        ),
        ({"train_positions": "all", "benchmark_filename": ["a", "b", "c"]}, "benchmark_filename gives one"),
    ],
)
def test_what_cannot_be_together_is_refused(folder, settings, message):
    with pytest.raises(SettingError, match=message):
        Config("SASRec", config_dict=quick_settings(folder, **settings))


class Causal(OnePass, SequentialRecommender):
    """A model of somebody's own: the mean of the items so far."""

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        self.item_embedding = nn.Embedding(self.n_items, 8, padding_idx=0)

    def states_at_all_positions(self, item_seq):
        seen = torch.arange(1, item_seq.shape[1] + 1)[:, None]
        return self.item_embedding(item_seq).cumsum(1) / seen

    def forward(self, rows):
        states = self.states_at_all_positions(rows[self.ITEM_SEQ])
        return self.gather_indexes(states, rows[self.ITEM_SEQ_LEN] - 1)

    def full_sort_predict(self, interaction):
        return self(interaction) @ self.item_embedding.weight.T


def test_a_model_of_ones_own_has_one_method(folder, workdir):
    settings = quick_settings(
        folder, train_positions="all", epochs=3, loss_type="CE", learning_rate=0.05, train_batch_size=8
    )
    config = Config(Causal, config_dict=settings)
    assert hooks_of_class(config.model_class).one_pass
    parts = build(config)
    trainer = parts.trainer(workdir)
    trainer.fit(parts.train, parts.valid)
    losses = [entry["train_loss"] for entry in trainer.history]
    assert losses[2] < losses[0]


def test_knowledge_models_are_refused(folder):
    with pytest.raises(SettingError, match="knowledge graph"):
        Config("GRU4RecKG", config_dict=quick_settings(folder, train_positions="all", **KNOWLEDGE))
