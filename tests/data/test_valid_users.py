"""`valid_users`: validation on a seeded sample of users, the same training and test."""

import pytest
from small_data import HISTORIES, small_settings, write_dataset

from recbole_llm.config.config import Config
from recbole_llm.errors import SettingError
from recbole_llm.quick_start.run import build


def parts_of(small, **settings):
    given = small_settings(small, **{"model": "GRU4Rec", **settings})
    given = {name: value for name, value in given.items() if name not in ("max_sequence_tokens", "train_batch_tokens")}
    return build(Config(config_dict=given))


def users_of(loader):
    return loader._dataset.inter_feat["user_id"].tolist()


@pytest.mark.parametrize("model", ["GRU4Rec", "Pop"])
def test_some_users_are_validated(small, model):
    write_dataset(small, {user: items for user, items in HISTORIES.items() if user != "u4"})  # who knows all items
    whole, some = parts_of(small, model=model), parts_of(small, model=model, valid_users=3)
    assert len(set(users_of(some.valid))) == 3
    assert set(users_of(some.valid)) < set(users_of(whole.valid))
    assert users_of(some.valid) == users_of(parts_of(small, model=model, valid_users=3).valid)
    others = [users_of(parts_of(small, model=model, valid_users=3, seed=seed).valid) for seed in (1, 2, 3)]
    assert any(users_of(some.valid) != other for other in others)
    assert users_of(some.train) == users_of(whole.train)
    assert users_of(some.test) == users_of(whole.test)
    assert users_of(parts_of(small, model=model, valid_users=100).valid) == users_of(whole.valid)


def test_ranks_are_those_of_the_same_users(small, tmp_path):
    whole, some = parts_of(small), parts_of(small, valid_users=3)
    ranks = []
    for number, parts in enumerate((whole, some)):
        folder = tmp_path / str(number)
        folder.mkdir()
        trainer = parts.trainer(folder)
        trainer.model.load_state_dict(whole.model.state_dict())
        trainer.evaluate(parts.valid, load_best_model=False)
        users, items, own, *_ = trainer.eval_collector.collected()
        ranks.append({(int(user), int(item)): int(rank) for user, item, rank in zip(users, items, own, strict=True)})
    assert len(ranks[1]) == 3
    assert ranks[1].items() <= ranks[0].items()


@pytest.mark.parametrize("count", [0, -1, 2.5, "few"])
def test_wrong_numbers_are_refused(small, count):
    with pytest.raises(SettingError, match="valid_users"):
        parts_of(small, valid_users=count)
