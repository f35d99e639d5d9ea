"""Columns of numbers are read, alone and beside others, or refused in one sentence."""

from pathlib import Path

import pandas as pd
import pytest
import torch
from atomic_files import quick_settings, write_atomic_files

from recbole_llm.config.config import Config
from recbole_llm.errors import DataError
from recbole_llm.quick_start.run import build, load, run

READERS = ["FDSA", "GRU4RecF", "MLP4Rec", "SASRecF"]
COLUMNS = [["price"], ["price", "size"], ["category", "price"], ["class", "size", "category", "price"]]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = write_atomic_files(tmp_path_factory.mktemp("data") / "tiny", users=30, items=40)
    items = pd.read_csv(folder / "tiny.item", sep="\t")
    items["size:float"] = [n % 3 for n in range(len(items))]
    items["vector:float_seq"] = "0.5 0.25"
    items.to_csv(folder / "tiny.item", sep="\t", index=False)
    return folder


def settings_of(data: Path, model: str, columns) -> dict:
    load_col = {"inter": ["user_id", "item_id", "timestamp"], "item": ["item_id", *columns]}
    return quick_settings(data, model=model, load_col=load_col, selected_features=columns, MAX_ITEM_LIST_LENGTH=4)


def layer_of(model):
    return model.attribute_embedding if hasattr(model, "attribute_embedding") else model.feature_embed_layer


@pytest.mark.parametrize("columns", COLUMNS)
@pytest.mark.parametrize("model", READERS)
def test_scores_read_every_column(model, columns, data, workdir):
    parts = build(Config(config_dict=settings_of(data, model, columns)))
    interaction, *_ = next(iter(parts.test))
    parts.model.eval()
    before = parts.model.full_sort_predict(interaction).detach()
    features = layer_of(parts.model).item_feat
    for column in columns:
        own = features[column].clone()
        features[column][1:] = own[1:].flip(0)  # the items exchange their values
        assert not torch.allclose(parts.model.full_sort_predict(interaction), before), column
        features[column][:] = own
    assert torch.equal(parts.model.full_sort_predict(interaction), before)


def test_a_number_is_its_column_s_vector_times_the_number(data, workdir):
    model = build(Config(config_dict=settings_of(data, "FDSA", ["category", "size", "price"]))).model
    layer = model.feature_embed_layer
    items = torch.tensor([[1, 5, 9], [2, 0, 0]])
    found = layer(None, items)[1]["item"]
    table = layer.float_embedding_table["item"]
    for place, column in enumerate(["size", "price"]):
        values, buckets = layer.item_feat[column][items].unbind(-1)
        rows = table.embedding.weight[buckets.long() + int(layer.float_field_offsets["item"][place])]
        torch.testing.assert_close(found[:, :, place], values[..., None] * rows)
    tokens = layer.dataset.field2id_token["item_id"][[1, 5, 9]]
    file = pd.read_csv(data / "tiny.item", sep="\t").set_index("item_id:token")
    torch.testing.assert_close(
        layer.item_feat["price"][items[0]][:, 0], torch.tensor(file.loc[tokens, "price:float"].to_numpy()).float()
    )


def test_a_run_with_numbers_is_stored_and_loaded(data, workdir):
    result = run("SASRecF", settings=settings_of(data, "SASRecF", ["price", "category"]))
    parts = load(result["path"])
    assert parts.trainer().evaluate(parts.test, load_best_model=False) == result["test"]


@pytest.mark.parametrize(
    ("model", "column", "words"),
    [
        *(
            (model, "vector", "whose type is float_seq: name a column of type token, token_seq or float")
            for model in READERS
        ),
        ("S3Rec", "price", "whose type is float: name a column of type token or token_seq with item_attribute"),
    ],
)
def test_what_cannot_be_read_is_refused(model, column, words, data, workdir):
    settings = settings_of(data, model, [column])
    if model == "S3Rec":
        settings["item_attribute"] = column
        del settings["selected_features"]
    with pytest.raises(DataError, match=rf"{model} cannot read the attribute '{column}' of .*tiny\.item, {words}"):
        build(Config(config_dict=settings))
