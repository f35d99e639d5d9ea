"""Which item columns a model reads: the dataset names them, the user may name others, and what is missing is said."""

import pytest
from atomic_files import quick_settings, write_atomic_files

from recbole_llm.config import attributes
from recbole_llm.config.config import Config
from recbole_llm.data.build import create_dataset
from recbole_llm.errors import DataError
from recbole_llm.prepare.spec import load_spec
from recbole_llm.quick_start.run import load, run
from recbole_llm.utils.files import read_yaml
from recbole_llm.utils.paths import shipped

READERS = {name: setting for name, setting in attributes.SETTINGS.items() if name != "MLP4Rec"}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_atomic_files(tmp_path_factory.mktemp("data") / "tiny", users=30, items=30)


def config_of(data, model, **settings):
    plain = quick_settings(data, model=model, **settings)
    if "load_col" not in settings:
        del plain["load_col"]
    return Config(config_dict=plain)


@pytest.mark.parametrize(("model", "setting"), READERS.items())
def test_the_data_set_names_the_column_and_it_is_loaded(model, setting, data, workdir):
    config = config_of(data, model, attribute_field="category")
    assert config[setting] == ("category" if model == "S3Rec" else ["category"])
    assert config["load_col"] == {"inter": ["user_id", "item_id", "timestamp"], "item": ["item_id", "category"]}
    assert config.merged[setting] == config[setting] and config.merged["load_col"] == config["load_col"]
    dataset = create_dataset(config)
    assert set(dataset.item_feat.columns) == {"item_id", "category"}
    assert dataset.num("category") == 6


def test_what_the_user_sets_stays(data, workdir):
    both = config_of(data, "FDSA", attribute_field="category", selected_features=["class", "category"])
    assert both["selected_features"] == ["class", "category"]
    assert both["load_col"]["item"] == ["item_id", "class", "category"]
    given = {"inter": ["user_id", "item_id", "timestamp"], "item": ["item_id", "class"]}
    assert config_of(data, "FDSA", attribute_field="class", load_col=given)["load_col"] == given
    assert config_of(data, "FDSA")["selected_features"] == ["class"]  # RecBole's own default
    assert config_of(data, "S3Rec", attribute_field=["class", "category"])["item_attribute"] == "class"


@pytest.mark.parametrize("model", ["SASRec", "BPR", "MLP4Rec"])
def test_other_models_load_no_item_column(model, data, workdir):
    config = config_of(data, model, attribute_field="category", attribute_separator=",")
    assert "item" not in config["load_col"]
    assert config["seq_separator"] == " "
    assert create_dataset(config).item_feat is None


def test_mlp4rec_reads_what_the_user_names(data, workdir):
    config = config_of(data, "MLP4Rec", attribute_field="category", selected_features=["class"])
    assert config["load_col"]["item"] == ["item_id", "class"]


@pytest.mark.parametrize("model", READERS)
def test_items_without_an_interaction_are_no_candidates(model, workdir):
    folder = write_atomic_files(workdir / "tiny", users=20, items=24)
    config = config_of(folder, model, attribute_field="category")
    others = create_dataset(config_of(folder, "SASRec", attribute_field="category"))
    before = create_dataset(config)
    with (folder / "tiny.item").open("a") as file:
        row = (folder / "tiny.item").read_text().splitlines()[1].split("\t")
        file.write("\t".join(["never", *row[1:]]) + "\n")
    dataset = create_dataset(config_of(folder, model, attribute_field="category"))
    assert dataset.item_num == others.item_num
    assert "never" not in dataset.field2id_token["item_id"]
    for field in before.item_feat.columns:  # every item keeps its attributes
        assert dataset.item_feat[field].tolist() == before.item_feat[field].tolist()


def test_values_are_split_at_the_data_sets_separator(workdir):
    folder = write_atomic_files(workdir / "tiny", users=20, items=24)
    kinds = ["Lab & Scientific,Glassware", "Tapes", "Lab & Scientific,Tapes", "Glassware"] * 6
    lines = ["item_id:token\tkinds:token_seq", *(f"i{n}\t{kind}" for n, kind in enumerate(kinds))]
    (folder / "tiny.item").write_text("\n".join(lines) + "\n")
    settings = {"item_text_fields": [], "attribute_field": "kinds", "attribute_separator": ","}
    dataset = create_dataset(config_of(folder, "FDSA", **settings))
    assert set(dataset.field2id_token["kinds"]) == {"[PAD]", "Lab & Scientific", "Glassware", "Tapes"}
    given = create_dataset(config_of(folder, "FDSA", **settings, seq_separator=" "))
    assert "Scientific,Glassware" in given.field2id_token["kinds"]


@pytest.mark.parametrize("model", READERS)
def test_a_data_set_without_the_attribute_is_refused_before_it_is_read(model, data, workdir):
    config = config_of(data, model, attribute_field="categories")
    (data / "tiny.inter").rename(data / "away")
    try:
        message = (
            rf"{model} reads the attribute 'categories' of items, but .*tiny.item has only title, category, class, "
            r"price; did you mean 'category'\?: name a column with "
            rf"{READERS[model]}, add one to the file, or take another model "
            r"\(FDSA, GRU4RecF, S3Rec and SASRecF need an attribute\)"
        )
        with pytest.raises(DataError, match=message):
            create_dataset(config)
        (data / "tiny.item").rename(data / "gone")
        with pytest.raises(DataError, match=rf"{model} reads an attribute of items, but .*tiny.item does not exist"):
            create_dataset(config)
        (data / "gone").rename(data / "tiny.item")
    finally:
        (data / "away").rename(data / "tiny.inter")


def test_every_attribute_of_a_data_set_is_one_of_its_columns():
    named = 0
    for path in sorted(shipped("dataset_configs").glob("*.yaml")):
        settings = read_yaml(path)
        columns = load_spec(path.stem).item_fields
        if "attribute_field" in settings:
            assert settings["attribute_field"] in columns, path
            named += 1
        else:
            assert set(columns) <= {"title"}, path
    assert named == 15


def test_run_is_stored_with_its_attribute(data, workdir):
    plain = quick_settings(data, attribute_field="category")
    del plain["load_col"]
    result = run("FDSA", settings=plain)
    assert result["settings"]["selected_features"] == ["category"]
    again = load(result["path"], {"attribute_field": "class"})  # the stored setting stands
    assert set(again.dataset.item_feat.columns) == {"item_id", "category"}
