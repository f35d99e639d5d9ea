"""The datasets that ship: their settings can be read, and hold the papers' numbers."""

import pytest

from recbole_llm.prepare.spec import known_datasets, load_spec
from recbole_llm.utils.files import read_yaml
from recbole_llm.utils.paths import shipped

# ST2SI's Tables 1 and 8, IDLE-Adapter's Table 1.
PAPERS = {
    "Food": ("st2si", 127_496, 41_280, 1_143_063),
    "Cell": ("st2si", 157_212, 48_172, 1_128_267),
    "Scientific": ("st2si", 11_041, 5_327, 76_896),
    "Instruments": ("st2si", 27_530, 10_611, 231_312),
    "Arts": ("st2si", 56_210, 22_855, 492_492),
    "Office": ("st2si", 101_501, 27_932, 798_914),
    "Games": ("st2si", 11_036, 15_402, 100_255),
    "Pet": ("st2si", 47_569, 37_970, 420_662),
    "ml-100k": ("st2si", 943, 1_682, 100_000),
    "ml-100k-llara": ("st2si", 943, 1_682, 100_000),
    "steam-llara": ("st2si", 11_938, 3_581, 274_726),
    "Steam": ("st2si", 11_938, 3_581, 274_726),
    "ml-1m": ("idle_adapter", 6_040, 3_706, 1_000_209),
    "Musical": ("idle_adapter", 26_397, 53_905, 274_878),
    "Clothing": ("idle_adapter", 50_000, 270_563, 562_371),
}
RECFORMER = ["Food", "Cell", "Scientific", "Instruments", "Arts", "Office", "Games", "Pet"]


@pytest.mark.parametrize("dataset", PAPERS)
def test_counts_of_the_papers(dataset):
    paper, users, items, interactions = PAPERS[dataset]
    assert load_spec(dataset).paper_counts[paper] == {"users": users, "items": items, "interactions": interactions}


def test_every_data_set_can_be_prepared_and_run():
    names = {path.stem for path in shipped("dataset_configs").glob("*.yaml")}
    assert set(PAPERS) <= names == set(known_datasets())
    for name in names:
        spec = load_spec(name)
        settings = read_yaml(shipped("dataset_configs") / f"{name}.yaml")
        assert set(settings["item_text_fields"]) <= set(spec.item_fields)
        if "benchmark_filename" in settings:
            assert settings["load_col"]["inter"] == ["user_id", "item_id_list", "item_id"]
            assert spec.benchmark.history == settings["MAX_ITEM_LIST_LENGTH"]
        elif name != "ml-100k":  # whose columns are RecBole's own defaults
            assert settings["load_col"]["inter"] == ["user_id", "item_id", "timestamp"]
        for source in spec.sources.values():
            if name != "ml-100k-llara":  # whose files come with RecBole, or have no address
                assert source.url is not None and source.url.startswith("https://")
            assert source.sha256 is None or len(source.sha256) == 64


@pytest.mark.parametrize("dataset", RECFORMER)
def test_recformers_preparation(dataset):
    spec = load_spec(dataset)
    assert [step.settings() for step in spec.filters] == [
        {"titles": {"empty": "drop", "max_characters": None, "containing": ()}},
        {"repeats": {"keep": "all"}},
        # The authors' logs of five count users with 3 interactions in validation and test; Pet's do not.
        {"minimum_length": {"interactions": 4 if dataset in ("Food", "Cell", "Pet") else 3}},
        {"sample_users": {"count": None, "one_in": None}},
    ]
    assert "_5.json.gz" in spec.sources["interactions"].file


@pytest.mark.parametrize("dataset", ["Musical", "Clothing", "ml-1m"])
def test_idle_adapters_preparation(dataset):
    steps = {name: values for step in load_spec(dataset).filters for name, values in step.settings().items()}
    assert steps["titles"]["max_characters"] == 200
    assert steps["minimum_length"] == {"interactions": 5}
    assert steps.get("sample_users", {}).get("count") == (50_000 if dataset == "Clothing" else None)


def test_the_known_discrepancy_of_games_is_told():
    games = load_spec("Games")
    assert games.paper_counts["st2si_log"]["users"] == 55_133
    assert "11,036" in games.notes[0] and "55,133" in games.notes[0]
