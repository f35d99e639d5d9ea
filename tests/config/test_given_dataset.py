"""A dataset by its name, its folder or a YAML file: the same data and settings for every verb."""

from pathlib import Path

import pytest
import yaml
from small_data import small_settings, write_dataset

from recbole_llm.cli.main import main
from recbole_llm.comparison.options import Options
from recbole_llm.comparison.plan import plan
from recbole_llm.config.config import Config
from recbole_llm.config.given_dataset import GivenDataset, given_dataset
from recbole_llm.errors import SettingError
from recbole_llm.hyper_search.search import tune
from recbole_llm.quick_start.run import load, pretrain, run

PREPARE = {
    "format": "table",
    "sources": {"interactions": {"file": "events.csv"}, "items": {"file": "titles.csv"}},
    "item_fields": ["title"],
}


@pytest.fixture
def place(workdir):
    """`small` in a folder of its own, and a file with settings of it."""
    write_dataset(workdir / "elsewhere")
    settings = {"MAX_ITEM_LIST_LENGTH": 3, "data_path": "elsewhere", "prompt_noun": "toys", "selected_features": ["x"]}
    (workdir / "small.yaml").write_text(yaml.safe_dump(settings))
    (workdir / "properties.yaml").write_text("epochs: 1\n")
    return workdir


WAYS = ["{}/elsewhere/small", "{}/elsewhere/small/", "elsewhere/small", "./elsewhere/../elsewhere/small", "small.yaml"]


def quick(model="SASRec", **more):
    own = {"epochs": 1, "hidden_size": 8, "inner_size": 8} if model == "SASRec" else {}
    found = small_settings(Path(), model=model, **own)
    return {k: v for k, v in found.items() if k not in ("data_path", "dataset", "checkpoint_dir")} | more


@pytest.mark.parametrize("way", WAYS)
def test_each_way_is_the_same_dataset(place, way):
    named = way.format(place)
    config = Config("SASRec", named)
    assert config["dataset"] == config.merged["dataset"] == config.given.get("dataset", "small") == "small"
    assert Path(config["data_path"]).resolve() == place / "elsewhere/small"
    assert config["MAX_ITEM_LIST_LENGTH"] == (3 if named == "small.yaml" else 50)
    assert "selected_features" not in config.given, "SASRec does not read it"
    again = Config(config_dict=config.merged).merged
    assert again | {"gpu_id": config.merged["gpu_id"]} == config.merged


@pytest.mark.parametrize("way", [WAYS[0], "small.yaml"])
def test_every_entry_takes_it(place, way):
    named = way.format(place)
    length = 3 if named == "small.yaml" else 50
    done = run(settings=quick(dataset=named))
    assert (done["dataset"], done["settings"]["MAX_ITEM_LIST_LENGTH"]) == ("small", length)
    assert load(done["path"]).config["MAX_ITEM_LIST_LENGTH"] == length
    (place / "space.txt").write_text("learning_rate choice [0.01]\n")
    tuned = tune(dataset=named, settings=quick(), params_file="space.txt", out="study")
    assert (tuned["dataset"], tuned["settings"].get("MAX_ITEM_LIST_LENGTH", 50)) == ("small", length)
    settings = {name: value for name, value in quick().items() if name != "model"}
    (cell,) = plan(Options(models=["SASRec"], dataset=[named], settings=settings))
    assert (cell.dataset, cell.merged["MAX_ITEM_LIST_LENGTH"]) == ("small", length)
    assert Config(command_line=cell.arguments()).merged == cell.merged, "what the run of the cell reads"


def test_a_file_that_says_how_is_prepared_by_the_verb(workdir):
    raw = workdir / "cache/raw/toys"
    raw.mkdir(parents=True)
    events = [f"u{user},i{(user * 3 + step) % 7},{step}" for user in range(6) for step in range(5)]
    (raw / "events.csv").write_text("\n".join(["user,item,timestamp", *events]) + "\n")
    (raw / "titles.csv").write_text("\n".join(["item,title", *(f"i{n},Toy {n}" for n in range(7))]) + "\n")
    (workdir / "toys.yaml").write_text(yaml.safe_dump({"MAX_ITEM_LIST_LENGTH": 4, "prepare": PREPARE}))
    done = run(settings=quick(dataset="toys.yaml", data_path="made"))
    assert (done["counts"]["users"], done["settings"]["MAX_ITEM_LIST_LENGTH"]) == (6, 4)
    assert (workdir / "made/toys/toys.inter").is_file()


def test_pretraining_takes_folders_and_files(place, tiny):
    write_dataset(place / "other", name="more")
    given = quick("ST2SI", backbone=str(tiny["llama"]), pretrain_epochs=1)
    mixed = pretrain(settings=given | {"pretrain_datasets": f"{place}/other/more,small.yaml"})
    assert mixed.parent.name.startswith("pretrain-more+small-")
    write_dataset(place / "other", name="small")
    by_path = pretrain(settings=given | {"pretrain_datasets": f"{place}/other/more,{place}/other/small"})
    by_name = pretrain(settings=given | {"pretrain_datasets": "more,small", "data_path": "other"})
    assert by_name == by_path != mixed, "the same files under the same names are the same pre-training"


@pytest.mark.parametrize("verb", ["run", "run --dry-run", "tune", "compare"])
@pytest.mark.parametrize(
    ("named", "message"),
    [
        ("nosuch.yaml", "dataset=nosuch.yaml names a file that does not exist"),
        ("{}/nosuch", "dataset={}/nosuch names a folder that does not exist"),
        ("{}/elsewhere", "dataset={}/elsewhere names a folder without elsewhere.inter"),
        ("{}/elsewhere/small/small.inter", "names a folder that does not exist"),
        ("empty.yaml", "empty.yaml has no settings under 'prepare:', and there is no folder empty in dataset"),
        ("bad.yaml", "bad.yaml: there is no setting 'MAX_ITEM_LIST_LENGHT'; did you mean 'MAX_ITEM_LIST_LENGTH'?"),
        ("small.yam", "there is no dataset 'small.yam' in dataset"),
    ],
)
def test_what_is_not_there_is_one_sentence(place, capsys, verb, named, message):
    (place / "empty.yaml").write_text("")
    (place / "bad.yaml").write_text("MAX_ITEM_LIST_LENGHT: 3\nprepare: {}\n")
    model = "--models=SASRec" if verb == "compare" else "--model=SASRec"
    assert main([*verb.split(), model, f"--dataset={named.format(place)}"]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("error: ")
    assert message.format(place) in line


def test_two_places_are_refused(place):
    with pytest.raises(SettingError, match=r"name two places: leave out data_path"):
        Config("SASRec", f"{place}/elsewhere/small", config_dict={"data_path": "dataset"})
    Config("SASRec", f"{place}/elsewhere/small", config_dict={"data_path": "elsewhere"})
    write_dataset(place / "there")
    with pytest.raises(SettingError, match="two datasets are called small"):
        plan(Options(models=["Pop"], dataset=["elsewhere/small", "there/small"]))


def test_names_stay_names(workdir):
    for name in ("ml-100k", "a.b", "x.yaml.d"):
        assert given_dataset(name) == GivenDataset(name)


def test_dry_run_says_where_settings_come_from(place, capsys):
    assert main(["run", "--dry-run=all", "--model=SASRec", "--dataset=small.yaml"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert ["MAX_ITEM_LIST_LENGTH:", "3", "#", "small.yaml"] in [line.split() for line in lines]
