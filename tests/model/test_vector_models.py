"""Models on text vectors, each against a second computation: RecBole's own models, or numpy by hand."""

import numpy as np
import pytest
import torch
from recbole.data.interaction import Interaction
from small_data import HISTORIES, TITLES, build_parts, write_dataset
from torch.nn import functional as F
from vector_parts import SIZES

from recbole_llm.model.layers.contrastive_loss import in_batch_loss
from recbole_llm.model.layers.sequence_encoder import without_some_items
from recbole_llm.model.layers.text_table import FusedTable, projection_to
from recbole_llm.model.sequential_recommender.unisrec.adaptor import WhiteningAdaptor

TOKENS = sorted(TITLES)


@pytest.fixture
def recboles(small):
    """Build a model of RecBole on the dataset `small`, in eval mode."""

    def build(model, **settings):
        return build_parts(small, model=model, **settings).model.eval()

    return build


def test_rows(parts):
    return next(iter(parts.test))[0]


test_rows.__test__ = False


def give_transformer(sasrec, encoder):
    """Put an encoder's weights into RecBole's SASRec."""
    sasrec.position_embedding.load_state_dict(encoder.position_embedding.state_dict())
    sasrec.LayerNorm.load_state_dict(encoder.norm.state_dict())
    sasrec.trm_encoder.load_state_dict(encoder.transformer.state_dict())


def scores_of(model, rows):
    with torch.no_grad():
        return model.full_sort_predict(rows).view(len(rows), -1)


# -- ZESRec ------------------------------------------------------------------------------------------------------------


def test_zesrec_is_gru4rec_with_mapped_text_vectors(vector_model, recboles):
    """Without offsets, on RecBole's GRU4Rec with the same weights and the item table W x + b; the loss, too."""
    parts = vector_model("ZESRec", offset_weight=None, n_layers=1)
    model, rows = parts.model, test_rows(parts)
    gru = recboles("GRU4Rec", embedding_size=8, hidden_size=12, num_layers=1)
    with torch.no_grad():
        gru.item_embedding.weight.copy_(model.text_vectors @ model.item_map.weight.T + model.item_map.bias)
    gru.gru_layers.load_state_dict(model.encoder.gru.state_dict())
    gru.dense.load_state_dict(model.encoder.dense.state_dict())
    expected = scores_of(gru, rows)
    torch.testing.assert_close(scores_of(model, rows)[:, 1:], expected[:, 1:], atol=1e-5, rtol=1e-5)
    logits = expected[:, 1:].double().numpy()
    targets = rows["item_id"].numpy() - 1
    by_hand = (np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(len(logits)), targets]).mean()
    assert model.calculate_loss(rows).item() == pytest.approx(by_hand, abs=1e-5)


def test_zesrec_ranks_without_offsets_and_trains_with_them(vector_model):
    """The offsets enter the table in training, and the ranking only where asked; the prior's part of the loss."""
    parts = vector_model("ZESRec", offset_weight=0.5)
    model, rows = parts.model, test_rows(parts)
    plain, loss = scores_of(model, rows), model.calculate_loss(rows)
    with torch.no_grad():
        model.offsets.weight.normal_()
    assert torch.equal(scores_of(model, rows), plain)
    prior = 0.25 * float((model.offsets.weight.detach().double() ** 2).sum())
    assert model.calculate_loss(rows).item() == pytest.approx(loss.item() + prior, rel=1e-5)
    own = model.item_map(model.text_vectors) + model.offsets.weight
    assert torch.equal(model.train().item_table(), own)
    asked = vector_model("ZESRec", offset_weight=0.5, offsets_in_ranking=True)
    assert not asked.model.reads_text_only
    asked.model.load_state_dict(model.state_dict())
    assert not torch.allclose(scores_of(asked.model, rows), plain)


def test_a_large_weight_is_no_offset(vector_model):
    """With a strong prior the offsets stay at its mean, and what is learned is what is learned without them."""

    def trained(weight):
        torch.manual_seed(3)
        parts = vector_model("ZESRec", offset_weight=weight, hidden_dropout_prob=0.0)
        model, rows = parts.model.train(), next(iter(parts.train))
        # Plain gradient steps: Adam would move an offset by its rate however strong the prior.
        optimizer = torch.optim.SGD([w for n, w in model.named_parameters() if "offsets" not in n], lr=0.5)
        for _ in range(20):
            optimizer.zero_grad()
            loss = model.calculate_loss(rows)
            loss.backward()
            optimizer.step()
            if model.offsets is not None:  # the exact step of the prior's part, implicit, of the rest explicit
                with torch.no_grad():
                    own = model.offsets.weight.grad - weight * model.offsets.weight
                    model.offsets.weight.sub_(0.5 * own).div_(1 + 0.5 * weight)
                model.offsets.weight.grad = None
        return model.eval(), rows

    strong, rows = trained(1e6)
    weak, _ = trained(0.0)
    without, _ = trained(None)
    expected = scores_of(without, rows)
    torch.testing.assert_close(scores_of(strong, rows), expected, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(scores_of(weak, rows), expected, atol=1e-3)
    assert float(strong.offsets.weight.abs().max()) < 1e-5 < float(weak.offsets.weight.abs().max())


@pytest.mark.parametrize("model", ["ZESRec", "UniSRec"])
def test_permuted_ids_give_permuted_scores(model, tiny, tmp_path, workdir):
    """Zero-shot: the same weights on a catalogue whose items have other numbers score each item as before."""
    found = []
    for name, users in (("one", list(HISTORIES)), ("two", list(reversed(HISTORIES)))):
        root = write_dataset(tmp_path / name, {user: HISTORIES[user] for user in users})
        parts = build_parts(root, model=model, backbone=str(tiny["bert"]), **SIZES)
        tokens = parts.dataset.field2id_token["item_id"].tolist()
        if found:
            assert tokens != found[0][0]  # RecBole numbers items as they come
            parts.model.load_state_dict(found[0][2].model.transferred_state(), strict=False)
        parts.model.eval()
        ids = {token: number for number, token in enumerate(tokens)}
        history = torch.zeros(1, parts.model.max_seq_length, dtype=torch.long)
        history[0, :4] = torch.tensor([ids[token] for token in "chad"])
        rows = Interaction({"item_id_list": history, "item_length": torch.tensor([4])})
        scores = scores_of(parts.model, rows)[0]
        found.append((tokens, torch.stack([scores[ids[token]] for token in TOKENS]), parts))
    torch.testing.assert_close(found[0][1], found[1][1], atol=1e-5, rtol=1e-5)


# -- UniSRec -----------------------------------------------------------------------------------------------------------


def test_one_identity_expert_is_cosine_sasrec(vector_model, recboles):
    """W = I, b = 0, one expert: RecBole's SASRec on the text vectors themselves, compared by the cosine."""
    parts = vector_model("UniSRec", num_experts=1, hidden_size=32, temperature=0.5)
    model, rows = parts.model, test_rows(parts)
    with torch.no_grad():
        model.adaptor.weight.copy_(torch.eye(32)[None])
    sasrec = recboles("SASRec", hidden_size=32, inner_size=12, n_layers=2, n_heads=2)
    give_transformer(sasrec, model.encoder)
    with torch.no_grad():
        sasrec.item_embedding.weight.copy_(model.text_vectors)
        users = sasrec(rows["item_id_list"], rows["item_length"]).double().numpy()
    items = model.text_vectors.double().numpy()[1:]
    cosine = users @ items.T / np.linalg.norm(users, axis=1)[:, None] / np.linalg.norm(items, axis=1)
    np.testing.assert_allclose(scores_of(model, rows)[:, 1:].numpy(), cosine / 0.5, atol=1e-5)
    logits, targets = cosine / 0.5, rows["item_id"].numpy() - 1
    by_hand = (np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(len(logits)), targets]).mean()
    assert model.calculate_loss(rows).item() == pytest.approx(by_hand, abs=1e-5)


def test_adaptor_by_hand():
    """Two experts, their shifts before the map, and a gate; without training no noise."""
    rng = np.random.default_rng(0)
    adaptor = WhiteningAdaptor(5, 3, experts=2, dropout=0.4, deviation=0.02).eval()
    weight, shift, gate, noise = (rng.normal(size=shape) for shape in ((2, 5, 3), (2, 5), (5, 2), (5, 2)))
    with torch.no_grad():
        for own, value in zip(adaptor.parameters(), (weight, shift, gate, noise), strict=True):
            own.copy_(torch.from_numpy(value))
    vectors = rng.normal(size=(4, 5))
    gates = np.exp(vectors @ gate)
    gates /= gates.sum(axis=1, keepdims=True)
    expected = sum(gates[:, [k]] * ((vectors - shift[k]) @ weight[k]) for k in range(2))
    given = torch.from_numpy(vectors).float()
    np.testing.assert_allclose(adaptor(given).detach().numpy(), expected, atol=1e-5)
    assert not torch.allclose(adaptor.train()(given), adaptor(given))  # noise and dropout
    assert not any(p.any() for p in (WhiteningAdaptor(5, 3, 2, 0.0, 0.02).gate, WhiteningAdaptor(5, 3, 2, 0, 1).noise))


def test_an_expert_can_whiten():
    """With the ZCA of the vectors as W and their mean as b, what comes out has covariance I."""
    rng = np.random.default_rng(1)
    vectors = rng.normal(size=(200, 6)) @ rng.normal(size=(6, 6)) + rng.normal(size=6)
    values, directions = np.linalg.eigh(np.cov(vectors, rowvar=False))
    adaptor = WhiteningAdaptor(6, 6, experts=1, dropout=0.0, deviation=0.02).eval()
    with torch.no_grad():
        adaptor.weight[0] = torch.from_numpy(directions @ np.diag(values**-0.5) @ directions.T)
        adaptor.shift[0] = torch.from_numpy(vectors.mean(axis=0))
    found = adaptor(torch.from_numpy(vectors).float()).detach().numpy()
    np.testing.assert_allclose(np.cov(found, rowvar=False), np.eye(6), atol=1e-4)
    np.testing.assert_allclose(found.mean(axis=0), 0, atol=1e-5)


def test_in_batch_loss_by_hand():
    """Three rows, of which the first and the last have the same item: neither is the other's negative."""
    rng = np.random.default_rng(2)
    users, items = rng.normal(size=(3, 4)), rng.normal(size=(3, 4))
    items[2] = items[0]
    cosine = users @ items.T / np.linalg.norm(users, axis=1)[:, None] / np.linalg.norm(items, axis=1)
    weights = np.exp(cosine / 0.07)
    rows = [
        weights[0, 0] / (weights[0, 0] + weights[0, 1]),
        weights[1, 1] / weights[1].sum(),
        weights[2, 2] / (weights[2, 1] + weights[2, 2]),
    ]
    found = in_batch_loss(*(torch.from_numpy(x) for x in (users, items)), torch.tensor([5, 9, 5]), 0.07)
    assert found.item() == pytest.approx(-np.log(rows).mean(), rel=1e-9)
    alone = in_batch_loss(*(torch.from_numpy(x) for x in (users, items)), torch.tensor([5, 5, 5]), 0.07)
    assert alone.item() == 0


def test_pretraining_loss_by_hand(vector_model):
    """Without dropout: the contrast of states and next items, and with the states after some items left."""
    parts = vector_model("UniSRec", item_drop=0.5, item_drop_batches=1.0, contrast_weight=0.25)
    model, rows = parts.model, next(iter(parts.train))
    histories, lengths, targets = (rows[name] for name in ("item_id_list", "item_length", "item_id"))
    torch.manual_seed(7)
    with torch.no_grad():
        found = model.pretraining_loss(rows)
        torch.manual_seed(7)
        torch.rand(())
        kept = torch.rand(histories.shape) >= 0.5
        kept[:, 0] = True
        table = model.item_table()
        users = model.users_of(table, rows)
        again = []
        for history, length, stays in zip(histories, lengths, kept, strict=True):
            left = torch.tensor([int(i) for i, s in zip(history[:length], stays[:length], strict=True) if s])
            again.append(model.encoder(table[left][None], left[None], torch.tensor([len(left)])))
        first = in_batch_loss(users, table[targets], targets, model.temperature)
        second = in_batch_loss(users, torch.cat(again), targets, model.temperature)
    assert found.item() == pytest.approx((first + 0.25 * second).item(), abs=1e-5)


def test_word_drop_reads_other_vectors(vector_model):
    """Where all items are read with words left out, the second view is that of the other table."""
    parts = vector_model("UniSRec", item_drop_batches=0.0, contrast_weight=1.0, word_drop=0.9)
    model, rows = parts.model, next(iter(parts.train))
    model.before_pretraining(parts.train._dataset)
    other, targets = model._shortened, rows["item_id"]
    assert not torch.allclose(other, model.text_vectors)
    torch.manual_seed(5)
    with torch.no_grad():
        found = model.pretraining_loss(rows)
        torch.manual_seed(5)
        torch.rand(())
        replaced = torch.rand(rows["item_id_list"].shape) < 0.9
        table, short = model.item_table(), model.adaptor(other)
        vectors = torch.where(replaced[:, :, None], short[rows["item_id_list"]], table[rows["item_id_list"]])
        users = model.users_of(table, rows)
        again = model.encoder(vectors, rows["item_id_list"], rows["item_length"])
        first = in_batch_loss(users, table[targets], targets, model.temperature)
        second = in_batch_loss(users, again, targets, model.temperature)
    assert found.item() == pytest.approx((first + second).item(), abs=1e-5)


def test_histories_move_together():
    """By hand."""
    histories = torch.tensor([[4, 5, 6, 7], [8, 9, 0, 0]])
    kept = torch.tensor([[True, False, True, False], [False, True, True, True]])
    left, lengths = without_some_items(histories, kept)
    assert left.tolist() == [[4, 6, 0, 0], [9, 0, 0, 0]]
    assert lengths.tolist() == [2, 1]


def test_tuned_parts(vector_model):
    """With the encoder frozen, adaptor, normalisation and learned vectors are what is trained."""
    trained = {
        parts: {
            name
            for name, w in vector_model("UniSRec", tuned_parts=parts, item_ids=True).model.named_parameters()
            if w.requires_grad
        }
        for parts in (None, "adaptor")
    }
    adaptor = {f"adaptor.{name}" for name in ("weight", "shift", "gate", "noise")}
    assert trained["adaptor"] == {*adaptor, "encoder.norm.weight", "encoder.norm.bias", "item_embedding.weight"}
    assert trained[None] > trained["adaptor"]


# -- AlphaFuse and its control -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("covered", [False, True])
def test_fused_table_by_hand(covered):
    """numpy's singular value decomposition, standardised; the learned part is added to its last columns, or is them."""
    rng = np.random.default_rng(4)
    vectors = rng.normal(size=(40, 6)) @ rng.normal(size=(6, 6)) + 3
    table = FusedTable(torch.from_numpy(vectors).float(), 5, 2, standardised=True, covered=covered, deviation=1.0)
    directions, values, _ = np.linalg.svd(np.cov(vectors[1:], rowvar=False))
    directions *= np.sign(directions[np.abs(directions).argmax(axis=0), np.arange(6)])
    expected = (vectors - vectors[1:].mean(axis=0)) @ directions[:, :5] / np.sqrt(values[:5])
    expected[:, 3:] = table.learned.detach().numpy() + (0 if covered else expected[:, 3:])
    np.testing.assert_allclose(table().detach().numpy()[1:], expected[1:], atol=1e-4)


def test_row_space_is_untouched_by_training(vector_model):
    """After steps of Adam with weight decay the text's columns are bit for bit what they were, the others are not."""
    parts = vector_model("AlphaFuse", null_size=3, learning_rate=0.05)
    model, rows = parts.model.train(), next(iter(parts.train))
    before = model.item_table().detach().clone()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05, weight_decay=0.1)
    for _ in range(5):
        optimizer.zero_grad()
        model.calculate_loss(rows).backward()
        optimizer.step()
    after = model.item_table().detach()
    assert torch.equal(after[:, :5], before[:, :5])
    assert (after[1:, 5:] != before[1:, 5:]).all()


def test_alphafuse_scores_are_those_of_cosine_sasrec(vector_model, recboles):
    """With the fused table in RecBole's SASRec."""
    parts = vector_model("AlphaFuse", null_size=3, temperature=0.2)
    model, rows = parts.model, test_rows(parts)
    sasrec = recboles("SASRec", **SIZES)
    give_transformer(sasrec, model.encoder)
    with torch.no_grad():
        sasrec.item_embedding.weight.copy_(model.item_table())
        users = F.normalize(sasrec(rows["item_id_list"], rows["item_length"]), dim=1)
        expected = users @ F.normalize(model.item_table(), dim=1).T / 0.2
    torch.testing.assert_close(scores_of(model, rows)[:, 1:], expected[:, 1:], atol=1e-5, rtol=1e-5)


def test_text_init_is_sasrec_from_another_start(vector_model, recboles):
    """The scores of RecBole's SASRec with that table; the start keeps the texts' distances but for one scale."""
    parts = vector_model("TextInitSASRec", hidden_size=32)
    model, rows = parts.model, test_rows(parts)
    sasrec = recboles("SASRec", **{**SIZES, "hidden_size": 32})
    give_transformer(sasrec, model.encoder)
    with torch.no_grad():
        sasrec.item_embedding.weight.copy_(model.item_embedding)
    torch.testing.assert_close(scores_of(model, rows)[:, 1:], scores_of(sasrec, rows)[:, 1:], atol=1e-5, rtol=1e-5)
    start = model.item_embedding.detach()[1:]
    assert float(start.std()) == pytest.approx(0.02, rel=1e-4)
    texts = parts.model.item_texts.of_items(parts.dataset)[1:]
    ratio = torch.pdist(start) / torch.pdist(texts)
    torch.testing.assert_close(ratio, ratio[:1].expand_as(ratio), rtol=1e-3, atol=0)


def test_directions_without_variance_are_zero():
    """Five items span four directions: standardising must not divide by nothing."""
    vectors = torch.randn(5, 8, generator=torch.Generator().manual_seed(0))
    mean, projection = projection_to(vectors, 6, standardised=True)
    found = (vectors - mean) @ projection
    assert not found[:, 4:].any()
    torch.testing.assert_close(torch.cov(found[:, :4].T), torch.eye(4), atol=1e-4, rtol=0)
