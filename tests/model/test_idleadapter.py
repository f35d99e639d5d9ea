"""IDLE-Adapter: its loss written out in float64, what is trained and kept in memory, its samples and its steps."""

import numpy as np
import pytest
import torch
from adapter_parts import CLEAN, SIZE, loss_of, steps_of, trainer_of
from plain_layers import PlainModel, plain_mmd, plain_virtual_tokens, softmax
from small_data import HISTORIES, TITLES
from torch import nn
from transformers import AutoModel, AutoTokenizer

from recbole_llm.backbone import loading
from recbole_llm.backbone.preset import BackbonePreset
from recbole_llm.errors import BackboneError, SettingError, TrainingError
from recbole_llm.model.sequential_recommender.idleadapter import model as adapter_model
from recbole_llm.model.sequential_recommender.idleadapter import trainer as adapter_trainer
from recbole_llm.quick_start.run import load

WIDTH, LAYERS = 32, 2  # of the tiny language models
ITEMS = len(TITLES)


def trained_names(model):
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


# -- the loss ----------------------------------------------------------------------------------------------------------


class PlainAdapter:
    """The loss of every training row, from the equations, the tokenizer and the ID model's own run."""

    def __init__(self, parts, folder, id_path):
        settings = parts.model.settings
        self.parts, self.settings = parts, settings
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model = PlainModel(AutoModel.from_pretrained(folder, dtype=torch.float32))
        self.pool = (lambda rows: rows.mean(axis=0)) if self.model.kind == "bert" else (lambda rows: rows[-1])
        self.weights = {name: p.detach().double().numpy() for name, p in parts.model.adapter.named_parameters()}
        self.projection = parts.model.projection.weight.detach().double().numpy()
        own = load(id_path)  # its own rows, cut by itself
        rows = own.train._dataset[np.arange(len(own.train._dataset))]
        with torch.no_grad():
            vectors = own.model.user_vectors(rows).double().numpy()
        keys = zip(rows["user_id"].tolist(), rows["timestamp"].tolist(), strict=True)
        self.vectors = dict(zip(keys, vectors, strict=True))
        self.rows = parts.train._dataset[np.arange(len(parts.train._dataset))]

    def prompt(self, row):
        history = self.rows["item_id_list"][row, : int(self.rows["item_length"][row])].numpy()
        titles = [CLEAN[token] for token in self.parts.dataset.id2token("item_id", history)]
        text = self.parts.config["prompt"].format(noun="products", history=", ".join(titles))
        return self.tokenizer(text)["input_ids"]

    def tokens(self, row):
        """D of one row: [layers, virtual, width]."""
        vectors = self.vectors[int(self.rows["user_id"][row]), float(self.rows["timestamp"][row])]
        made = [
            [plain_virtual_tokens(self.weights, vector, layer, self.settings.virtual_tokens) for vector in vectors]
            for layer in range(LAYERS if self.settings.layerwise else 1)
        ]
        return np.stack([np.concatenate(made[layer % len(made)]) for layer in range(LAYERS)])

    def cross_entropy(self, row, tokens=True):
        state = self.pool(self.model.states(self.prompt(row), self.tokens(row) if tokens else None)[1])
        probabilities = softmax(self.projection[1:] @ state)  # eq. 14, without the padding item
        return -np.log(probabilities[int(self.rows["item_id"][row]) - 1])  # eq. 13

    def discrepancy(self, rows):
        """The mean over rows of eq. 12."""
        adapted = np.stack([self.tokens(row).mean(axis=1) for row in rows])  # [rows, layers, width]
        language = np.stack([[self.pool(h) for h in self.model.inputs(self.prompt(row))] for row in rows])
        if self.settings.mmd_rows == "batch":
            adapted, language = adapted.swapaxes(0, 1), language.swapaxes(0, 1)
        sets = [np.concatenate(pair) for pair in zip(adapted, language, strict=True)]
        upper = np.triu_indices(len(sets[0]), 1)
        distances = [((s[:, None] - s[None]) ** 2).sum(axis=2)[upper] for s in sets]
        rho = np.percentile(distances, 50, method="lower")
        return np.mean([plain_mmd(x, y, rho) for x, y in zip(adapted, language, strict=True)])

    def loss(self, rows):
        """Eq. 15."""
        return np.mean([self.cross_entropy(row) for row in rows]) + self.settings.mmd_weight * self.discrepancy(rows)


CASES = [
    ("bert", 1, {}),
    ("bert", 2, {"num_virtual_tokens": 3}),
    ("bert", 1, {"mmd_rows": "batch", "layerwise": False}),
    ("opt", 1, {"mmd_rows": "batch", "refinement": False}),
    ("llama", 2, {"num_virtual_tokens": 1}),
]


@pytest.mark.parametrize(("backbone", "interests", "settings"), CASES)
def test_loss_is_that_of_the_equations(build, rough_models, id_runs, backbone, interests, settings):
    parts = build(backbone, interests=interests, mmd_weight=0.5, **settings)
    trainer_of(parts)
    plain = PlainAdapter(parts, rough_models[backbone], id_runs(interests=interests))
    rows = list(range(0, len(plain.rows), 3))
    assert parts.model.virtual == interests * parts.model.settings.virtual_tokens
    found = loss_of(parts, rows)
    assert float(found) == pytest.approx(plain.loss(rows), rel=2e-4)
    assert 0.5 * plain.discrepancy(rows) > 0.01, "the discrepancy must be seen"
    assert np.abs(np.stack(list(plain.vectors.values()))).mean() > 0.1, "and so must the vectors"
    parts.model.settings.__dict__["mmd_weight"] = 0
    found = np.array([float(loss_of(parts, [row]).detach()) for row in rows])
    cross_entropy, without = (np.array([plain.cross_entropy(row, tokens) for row in rows]) for tokens in (True, False))
    np.testing.assert_allclose(found, cross_entropy, rtol=1e-4)
    assert np.abs(without - cross_entropy).max() > 1e-2, "and what they do to the scores"


def test_recboles_own_batches_have_the_same_cross_entropy(build):
    parts = build(mmd_weight=0)
    trainer_of(parts)
    rows = parts.train._dataset[np.arange(len(parts.train._dataset))]
    assert float(parts.model.calculate_loss(rows)) == pytest.approx(float(loss_of(parts)), rel=1e-5)


@pytest.mark.parametrize("mmd_rows", ["layers", "batch"])
def test_stored_language_states_are_those_of_the_step(build, monkeypatch, mmd_rows):
    """H~ from a table and H~ computed in every step: one loss, one gradient."""
    losses, gradients = [], []
    for room in (2**30, 0):
        monkeypatch.setattr(adapter_trainer, "_HOST_BYTES", room)
        parts = build(mmd_rows=mmd_rows)
        trainer_of(parts)
        assert (parts.model.inputs.language_states is None) == (room == 0)
        assert all((part.plain is None) == (room > 0) for part in steps_of(parts)[1])
        loss = loss_of(parts)
        loss.backward()
        losses.append(float(loss))
        gradients.append([parameter.grad for parameter in parts.model.parameters() if parameter.grad is not None])
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    for stored, computed in zip(*gradients, strict=True):
        torch.testing.assert_close(stored, computed, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("backbone", ["bert", "llama"])
def test_step_does_not_depend_on_the_budget_of_tokens(build, backbone, monkeypatch):
    """But for the kernel's width, which is taken from one pass: it is the same here."""
    monkeypatch.setattr(adapter_model, "median_rho", lambda x, y: 50.0)

    def weights_after_an_epoch(tokens):
        parts = build(backbone, train_batch_tokens=tokens, train_batch_size=7, clip_grad_norm={"max_norm": 0.5})
        trainer = trainer_of(parts)
        # With plain steps a wrong scale of the gradient shows; AdamW would hide it.
        trainer.optimizer = torch.optim.SGD(trainer.optimizer.param_groups, lr=0.1)
        passes = len(steps_of(parts)[1])
        loss = trainer._train_epoch(parts.train, 0)
        return passes, loss, parts.model.stored_state()

    one_passes, one_loss, one = weights_after_an_epoch(10**6)
    many_passes, many_loss, many = weights_after_an_epoch(200)
    assert one_passes == 1
    assert many_passes > 3
    assert many_loss == pytest.approx(one_loss, rel=1e-5)
    for name, weights in one.items():
        torch.testing.assert_close(many[name], weights, atol=1e-5, rtol=1e-4, msg=name)


# -- what is trained ---------------------------------------------------------------------------------------------------

ADAPTER = {"adapter.projection_weight", "adapter.projection_bias"}  # W_u, b_u
REFINEMENT = {"adapter.prefix", "adapter.gate_weight"}  # C, W_g
PROJECTION = {"projection.weight"}  # W_y


@pytest.mark.parametrize("backbone", ["bert", "opt", "opt_projected", "llama"])
def test_gradients_reach_adapter_and_head_alone(build, backbone):
    parts = build(backbone)
    model = parts.model
    trainer = trainer_of(parts)
    assert trained_names(model) == ADAPTER | REFINEMENT | PROJECTION
    loss_of(parts).backward()
    with_gradient = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert with_gradient == ADAPTER | REFINEMENT | PROJECTION
    for name, parameter in model.named_parameters():
        if name in ADAPTER | REFINEMENT:  # of every layer, or of the one gate of all
            assert parameter.grad.flatten(1 if parameter.dim() > 1 else 0).any(dim=-1).all(), name
    assert not model.projection.weight.grad[0].any(), "the padding item"
    trainer.optimizer.step()
    own = {id(parameter): name for name, parameter in model.named_parameters()}
    assert {own[id(parameter)] for parameter in trainer.optimizer.state} == ADAPTER | REFINEMENT | PROJECTION
    assert set(model.stored_state()) == ADAPTER | REFINEMENT | PROJECTION


def test_ablations_leave_out_what_they_are_named_after(build):
    assert trained_names(build(refinement=False).model) == ADAPTER | PROJECTION
    model = build(layerwise=False).model
    assert {len(parameter) for parameter in (model.adapter.projection_weight, model.adapter.prefix)} == {1}
    parts = build(mmd_weight=0)
    trainer_of(parts)
    assert parts.model.inputs.language_states is None, "nothing is computed for a discrepancy that is not asked for"
    assert all(part.plain is None for part in steps_of(parts)[1])


@pytest.mark.parametrize(("interests", "tokens"), [(1, 2), (2, 1), (1, 4)])
def test_trainable_parameters_are_those_of_the_formula(build, interests, tokens):
    parts = build(interests=interests, num_virtual_tokens=tokens)
    adapter = LAYERS * (WIDTH * SIZE + WIDTH + tokens * WIDTH) + 2 * WIDTH
    trained = sum(parameter.numel() for parameter in parts.model.parameters() if parameter.requires_grad)
    assert trained == adapter + (ITEMS + 1) * WIDTH


@pytest.mark.parametrize("backbone", ["bert", "opt"])  # both have dropout
def test_frozen_models_stay_as_they_were(build, backbone):
    parts = build(backbone, learning_rate=0.1)
    model = parts.model
    before = {name: weights.clone() for name, weights in model.state_dict().items()}
    trainer = trainer_of(parts)
    model.train()
    assert model.adapter.training
    assert not any(module.training for frozen in (model.backbone, model.id_model) for module in frozen.modules())
    torch.manual_seed(1)
    first = float(loss_of(parts).detach())
    torch.manual_seed(2)
    assert float(loss_of(parts).detach()) == first, "no dropout"
    trainer._train_epoch(parts.train, 0)
    for name, weights in model.state_dict().items():
        frozen = name.startswith(("backbone.", "id_model."))
        assert torch.equal(weights, before[name]) == frozen, name


def saved_storages(model, loss):
    """The storages that the backward pass keeps, by address with their size, parameters left out."""
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept, alive = {}, []

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
            alive.append(tensor)  # an address is given away again otherwise
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        value = loss()
    return kept, value


def test_no_activations_are_kept_for_frozen_weights(build):
    """A linear layer's input is needed for the gradient of its weights alone."""
    parts = build("bert", mmd_weight=0)
    trainer_of(parts)
    model = parts.model.train()
    _, passes = steps_of(parts)
    inputs = []
    linear = [module for module in model.backbone.modules() if isinstance(module, nn.Linear)]
    hooks = [module.register_forward_pre_hook(lambda _, args: inputs.append(args[0])) for module in linear]
    frozen, _ = saved_storages(model, lambda: model.pass_loss_sum(passes[0]))
    frozen_inputs = {tensor.untyped_storage().data_ptr() for tensor in inputs}
    assert len(inputs) == 6 * LAYERS
    assert not frozen_inputs & frozen.keys()
    inputs.clear()
    model.backbone.requires_grad_(True)
    trainable, _ = saved_storages(model, lambda: model.pass_loss_sum(passes[0]))
    assert {tensor.untyped_storage().data_ptr() for tensor in inputs} <= trainable.keys()
    assert sum(frozen.values()) < 0.75 * sum(trainable.values())
    for hook in hooks:
        hook.remove()


# -- samples -----------------------------------------------------------------------------------------------------------


def test_all_prefixes_are_those_of_leave_one_out(build):
    inputs = build().model.inputs
    targets = [len(history) - 1 for history in HISTORIES.values()]  # all but the first
    assert len(inputs.ends) == sum(count - min(2, count - 1) for count in targets)  # RecBole leaves one to train on


# -- bad input ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_virtual_tokens": 0}, "num_virtual_tokens=0 must be a whole number from 1"),
        ({"num_virtual_tokens": 1.5}, "num_virtual_tokens=1.5 must be a whole number from 1"),
        ({"layerwise": "no"}, "layerwise=no must be True or False"),
        ({"mmd_weight": -0.1}, "mmd_weight=-0.1 must be a number from 0"),
        ({"mmd_rows": "layer"}, r"mmd_rows=layer must be layers or batch; did you mean 'layers'\?"),
        ({"max_prompt_tokens": 129}, "max_prompt_tokens=129 is more than the 128 positions of the backbone"),
        ({"prompt": "Recommend {nuon}: {history}"}, r"unknown place \{nuon\}; did you mean 'noun'\?"),
        ({"id_model_path": None, "id_model": "SASrec"}, r"there is no model 'SASrec'; did you mean 'SASRec'\?"),
        ({"id_model_path": None, "id_model": None}, "id_model=None must be the name of a model"),
        ({"id_model_path": None, "id_model_settings": {"embeding_size": 8}}, "did you mean 'embedding_size'"),
        ({"id_model_path": None, "id_model_settings": 3}, "id_model_settings=3 must be a mapping such as"),
    ],
)
def test_bad_settings(build, small, settings, message):
    with pytest.raises(SettingError, match=message):
        build(**settings)
    assert not list(small.glob("saved/id-*")), "nothing was trained before"


def test_backbone_without_the_listed_layers(build, monkeypatch):
    real = loading.resolve

    def other(name, **more):
        found = real(name, **more)
        values = {**vars(found.preset), "name": "tiny-bert", "layers": "encoder.layers"}
        return type(found)(**{**vars(found), "preset": BackbonePreset(**values)})

    monkeypatch.setattr(loading, "resolve", other)
    with pytest.raises(
        BackboneError, match=r"has no 2 layers at 'encoder.layers': it is not the model that 'tiny-bert'"
    ):
        build()


def test_user_vector_that_is_no_number(build):
    parts = build()
    with torch.no_grad():
        parts.model.id_model.item_embedding.weight[3] = torch.nan
    with pytest.raises(TrainingError, match=r"\d+ of \d+ user vectors of ComiRec are not numbers: train it again"):
        trainer_of(parts)
    with pytest.raises(TrainingError, match="user vectors of ComiRec are not numbers"):
        parts.model.full_sort_predict(next(iter(parts.test))[0])
