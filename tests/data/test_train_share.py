"""`train_share`: fewer training rows, the same held-out ones."""

import pytest
from small_data import build_parts, small_settings

from recbole_llm.config.config import Config
from recbole_llm.errors import SettingError
from recbole_llm.quick_start.run import build


def parts_of(small, **settings):
    given = small_settings(small, model="GRU4Rec", **settings)
    given = {name: value for name, value in given.items() if name not in ("max_sequence_tokens", "train_batch_tokens")}
    return build(Config(config_dict=given))


def rows_of(part):
    return {
        tuple(row) for row in zip(*(part.inter_feat[name].tolist() for name in ("user_id", "timestamp")), strict=True)
    }


def test_share_of_the_rows(small):
    whole, half = parts_of(small), parts_of(small, train_share=0.5)
    assert len(half.train._dataset) == round(0.5 * len(whole.train._dataset))
    assert rows_of(half.train._dataset) < rows_of(whole.train._dataset)
    assert rows_of(half.valid._dataset) == rows_of(whole.valid._dataset)
    assert rows_of(half.train._dataset) == rows_of(parts_of(small, train_share=0.5).train._dataset)
    assert rows_of(half.train._dataset) != rows_of(parts_of(small, train_share=0.5, seed=1).train._dataset)


@pytest.mark.parametrize("share", [0, 1.5, "half", True])
def test_wrong_share_is_refused(small, share):
    with pytest.raises(SettingError, match="train_share"):
        parts_of(small, train_share=share)


def test_models_of_whole_histories_refuse_it(small, tiny):
    with pytest.raises(SettingError, match="whole histories"):
        build_parts(small, backbone=str(tiny["llama"]), train_share=0.5)
