"""Row by row updates against plain formulas and torch's own, and that no other row is touched."""

import copy

import numpy as np
import pytest
import torch
from atomic_files import quick_settings, write_atomic_files
from recbole.utils import init_seed
from small_data import small_settings, write_dataset

from recbole_llm.config.config import Config
from recbole_llm.errors import SettingError
from recbole_llm.quick_start.run import build, run
from recbole_llm.trainer import row_sparse
from recbole_llm.trainer.row_sparse import ITEM_OPTIMIZERS, ROWS, RowSparse, with_rows

ROWS_OF_STEPS = [[1, 3, 3], [3, 4], [1, 1, 6]]  # of a table of 8
SMALL = {"hidden_size": 8, "inner_size": 8, "n_layers": 1, "learning_rate": 0.01, "train_positions": "all"}


def made(kind, weights, decay=0.0, others=()):
    groups = [{"params": [weights], ROWS: kind, "lr": 0.1}, *({"params": [other]} for other in others)]
    return with_rows(torch.optim.AdamW)(groups, lr=0.01, weight_decay=decay)


def trained(optimizer, table):
    """Take the steps; return the gradient [8, 2] of each, rows twice in a step added up."""
    torch.manual_seed(1)
    gradients = []
    for rows in ROWS_OF_STEPS:
        part = torch.randn(len(rows), 2).double()
        table.grad = torch.sparse_coo_tensor(torch.tensor([rows]), part, table.shape)
        gradients.append(table.grad.to_dense().numpy())
        optimizer.step()
        optimizer.zero_grad()
    return gradients


def start():
    torch.manual_seed(0)
    return torch.nn.Parameter(torch.randn(8, 2).double())


@pytest.mark.parametrize("decay", [0.0, 0.3])
def test_adamw_of_rows_is_the_plain_formula(decay):
    table = start()
    weights = table.detach().numpy().copy()
    gradients = trained(made("adamw", table, decay), table)
    mean, square = np.zeros((8, 2)), np.zeros((8, 2))
    for t, (rows, gradient) in enumerate(zip(ROWS_OF_STEPS, gradients, strict=True), start=1):
        for row in set(rows):
            mean[row] = 0.9 * mean[row] + 0.1 * gradient[row]
            square[row] = 0.999 * square[row] + 0.001 * gradient[row] ** 2
            weights[row] *= 1 - 0.1 * decay
            weights[row] -= 0.1 * mean[row] / (1 - 0.9**t) / (np.sqrt(square[row] / (1 - 0.999**t)) + 1e-8)
    np.testing.assert_allclose(table.detach().numpy(), weights, rtol=1e-12)


def test_a_gradient_of_more_numbers_than_torch_adds_up_at_once(monkeypatch):
    rows, values = torch.tensor([[6, 1, 3, 1, 6, 1]]), torch.randn(6, 5)
    expected = torch.zeros(8, 5).index_add(0, rows[0], values)  # in the order of the rows, as here
    for most in (0, 11, 12, 29):  # columns at once: 1, 1, 2, 4
        monkeypatch.setattr(row_sparse, "_MOST", most)
        found, added = row_sparse._coalesced(torch.sparse_coo_tensor(rows, values, (8, 5)))
        assert found.tolist() == [1, 3, 6]
        torch.testing.assert_close(added, expected[found])


def test_adamw_of_rows_is_torchs_sparse_adam():
    tables = start(), start()
    trained(made("adamw", tables[0]), tables[0])
    trained(torch.optim.SparseAdam([tables[1]], lr=0.1), tables[1])
    torch.testing.assert_close(*tables)


def test_adamw_of_all_rows_is_plain_adamw():
    tables = start(), start()
    ours, plain = made("adamw", tables[0], 0.1), torch.optim.AdamW([tables[1]], lr=0.1, weight_decay=0.1)
    for seed in range(4):
        torch.manual_seed(seed)
        gradient = torch.randn(8, 2).double()
        tables[0].grad, tables[1].grad = gradient.to_sparse(1), gradient
        ours.step()
        plain.step()
    torch.testing.assert_close(*tables)


@pytest.mark.parametrize("decay", [0.0, 0.3])
def test_rowwise_adagrad_is_the_plain_formula(decay):
    table = start()
    weights, total = table.detach().numpy().copy(), np.zeros(8)
    gradients = trained(made("rowwise_adagrad", table, decay), table)
    for rows, gradient in zip(ROWS_OF_STEPS, gradients, strict=True):
        for row in set(rows):
            total[row] += (gradient[row] ** 2).mean()
            weights[row] *= 1 - 0.1 * decay
            weights[row] -= 0.1 * gradient[row] / (np.sqrt(total[row]) + 1e-10)
    np.testing.assert_allclose(table.detach().numpy(), weights, rtol=1e-12)


@pytest.mark.parametrize("kind", ITEM_OPTIMIZERS)
def test_other_rows_stay_to_the_bit_and_other_weights_are_adamws(kind):
    table, other, plain = start(), torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.ones(3))
    before = table.detach().clone()
    optimizer = made(kind, table, 0.3, [other])
    beside = torch.optim.AdamW([plain], lr=0.01, weight_decay=0.3)
    other.grad = plain.grad = torch.tensor([1.0, -2.0, 3.0])
    table.grad = torch.sparse_coo_tensor(torch.tensor([[2, 5]]), torch.ones(2, 2).double(), table.shape)
    optimizer.step()
    beside.step()
    changed = (table.detach() != before).any(dim=1).nonzero().flatten().tolist()
    assert changed == [2, 5]
    assert torch.equal(other, plain)


def test_the_state_is_one_number_a_row_or_two_a_weight():
    for kind, numbers in (("adamw", 2 * 8 * 2), ("rowwise_adagrad", 8)):
        table = start()
        optimizer = made(kind, table)
        trained(optimizer, table)
        assert sum(value.numel() for value in optimizer.state[table].values()) - 1 == numbers


@pytest.mark.parametrize("kind", ITEM_OPTIMIZERS)
def test_a_stored_state_goes_on(kind):
    tables = start(), start()
    first, second = (made(kind, table, others=[torch.nn.Parameter(torch.ones(1))]) for table in tables)
    trained(first, tables[0])
    with torch.no_grad():
        tables[1].copy_(tables[0])
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    for optimizer, table in ((first, tables[0]), (second, tables[1])):
        trained(optimizer, table)
    assert torch.equal(*tables)


def test_a_gradient_of_all_rows_is_no_use():
    table = start()
    table.grad = torch.ones_like(table)
    with pytest.raises(ValueError, match="gradient for all rows"):
        made("adamw", table).step()


# -- in runs -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_atomic_files(tmp_path_factory.mktemp("data") / "tiny", items=40)


def parts_of(folder, model="SASRec", **settings):
    config = Config(model, config_dict=quick_settings(folder, **{**SMALL, **settings}))
    init_seed(config["seed"], True)
    return build(config)


def step_of(parts, workdir):
    """Take one step of a run's trainer; return the item table before and after it."""
    trainer = parts.trainer(workdir)
    table = trainer.windows(parts.train)
    width, windows = next(iter(table.epoch(0, 0)))
    before = parts.model.item_table().detach().clone()
    torch.manual_seed(5)
    trainer._step_on(table, width, windows[:2], torch.amp.GradScaler("cpu", enabled=False))
    return before, parts.model.item_table().detach(), trainer


@pytest.mark.parametrize(
    ("model", "own"),
    [("SASRec", {"inner_size": 8, "n_layers": 1}), ("GRU4Rec", {"embedding_size": 8})],
)
@pytest.mark.parametrize("kind", ITEM_OPTIMIZERS)
def test_a_step_of_an_id_model_moves_what_it_read(folder, workdir, kind, model, own):
    settings = quick_settings(
        folder, train_positions="all", hidden_size=8, loss_type="SampledCE", num_negatives=4, item_optimizer=kind, **own
    )
    config = Config(model, config_dict=settings)
    init_seed(config["seed"], True)
    before, after, trainer = step_of(build(config), workdir)
    assert isinstance(trainer.optimizer, RowSparse)
    moved = (before != after).any(dim=1)
    assert not moved[0]
    assert 3 < moved.sum() < 39


def test_the_gradient_is_the_plain_ones(folder, workdir):
    """Lazy and plain AdamW take the same first step in every row that has a gradient."""
    tables, means = [], []
    for settings in ({}, {"item_optimizer": "adamw"}):
        parts = parts_of(folder, loss_type="gBCE", num_negatives=3, learner="adamw", **settings)
        _, table, trainer = step_of(parts, workdir)
        tables.append(table)
        means.append(trainer.optimizer.state[parts.model.item_embedding.weight]["exp_avg"])
    torch.testing.assert_close(*tables, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(*means, rtol=1e-5, atol=1e-8)  # a tenth of the gradient


def test_item_learning_rate_is_the_tables_own(folder, workdir):
    parts = parts_of(folder, loss_type="SampledCE", item_optimizer="rowwise_adagrad", item_learning_rate=0.5)
    rates = {ROWS in group: group["lr"] for group in parts.trainer(workdir).optimizer.param_groups}
    assert rates == {True: 0.5, False: 0.01}


@pytest.mark.parametrize("tuning", ["ilp", "full"])
def test_st2si_learns_by_rows(small, tiny, tuning):
    write_dataset(small)
    settings = small_settings(
        small, backbone=str(tiny["llama"]), tuning=tuning, epochs=8, loss_type="SampledCE", num_negatives=100,
        item_optimizer="adamw", learning_rate=0.01, warmup_steps=0, train_batch_size=4, stopping_step=10,
    )  # fmt: skip
    result = run(settings=settings)
    losses = [entry["train_loss"] for entry in result["history"]]
    assert losses[-1] < losses[0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "item_optimizer=adamw updates the items that a step has read, but loss_type=CE reads all"),
        ({"loss_type": "gBCE", "clip_grad_norm": {"max_norm": 1.0}}, "clip_grad_norm needs the gradient of all items"),
        ({"loss_type": "gBCE", "learner": "sgd"}, "set learner to adam, not sgd"),
        ({"loss_type": "gBCE", "enable_scaler": True}, "enable_scaler scales"),
        ({"train_positions": "last", "loss_type": "CE"}, "is for train_positions=all and for ST2SI"),
    ],
)
def test_what_cannot_be_together_is_refused(folder, settings, message):
    with pytest.raises(SettingError, match=message):
        Config("SASRec", config_dict=quick_settings(folder, **{**SMALL, "item_optimizer": "adamw", **settings}))


def test_an_average_of_all_weights_is_refused(small):
    settings = small_settings(small, loss_type="SampledCE", item_optimizer="adamw", weight_average=0.9)
    with pytest.raises(SettingError, match="weight_average averages all items after every step"):
        Config(config_dict=settings)


def test_a_rate_without_an_optimiser_is_refused(folder):
    with pytest.raises(SettingError, match=r"item_learning_rate=0\.1 has no effect without item_optimizer"):
        Config("SASRec", config_dict=quick_settings(folder, **SMALL, item_learning_rate=0.1))


def test_item_vectors_that_are_computed_are_refused(folder, workdir):
    parts = parts_of(folder, loss_type="SampledCE", item_optimizer="adamw")
    parts.model.item_table = lambda: parts.model.item_embedding.weight * 2
    with pytest.raises(SettingError, match="item_optimizer needs a trained vector for each item"):
        parts.trainer(workdir)
