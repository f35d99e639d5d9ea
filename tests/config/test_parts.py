"""Settings with parts, the splits and labels that a run can have, and the sentences for the others."""

import itertools

import pytest
from small_data import HISTORIES, build_parts, small_settings, write_dataset

from recbole_llm.config.config import Config
from recbole_llm.config.parts import merged
from recbole_llm.errors import DataError, SettingError
from recbole_llm.quick_start.run import run

DEFAULT = {
    "split": {"LS": "valid_and_test"},
    "order": "TO",
    "group_by": "user",
    "mode": {"valid": "full", "test": "full"},
}
BOTH = {"valid": "uni10", "test": "uni10"}
PARTS = {
    "mode": ({"mode": "uni10"}, {"mode": BOTH}),
    "mode of one": ({"mode": {"test": "uni10"}}, {"mode": {"valid": "full", "test": "uni10"}}),
    "split": ({"split": {"RS": [8, 1, 1]}}, {"split": {"RS": [8, 1, 1]}}),
    "order": ({"order": "RO"}, {"order": "RO"}),
    "group": ({"group_by": "none"}, {"group_by": "none"}),
    "nothing": ({}, {}),
}


@pytest.mark.parametrize("source", ["file", "dict", "command line"])
@pytest.mark.parametrize(("given", "changed"), PARTS.values(), ids=PARTS)
def test_the_other_parts_stay(small, given, changed, source):
    base = {name: value for name, value in small_settings(small, model="BPR").items()}
    config = {
        "file": lambda: Config(config_file_list=[{**base, "eval_args": given}]),
        "dict": lambda: Config(config_dict={**base, "eval_args": given}),
        "command line": lambda: Config(config_dict=base, command_line=[f"--eval_args={given}"]),
    }[source]()
    assert config["eval_args"] == {**DEFAULT, **changed}
    again = Config(config_dict=config.merged)  # what a run stores is the same run
    assert again["eval_args"] == config["eval_args"] and again.merged == config.merged


def test_each_source_overrides_its_parts(small):
    files = [
        {"eval_args": {"split": {"RS": [6, 2, 2]}, "group_by": "none"}},
        {"eval_args": {"split": {"RS": [8, 1, 1]}, "mode": "uni5"}},
    ]
    config = Config(
        config_file_list=files,
        config_dict=small_settings(small, model="BPR", eval_args={"mode": {"valid": "full"}}),
        command_line=["--eval_args={'order':'RO'}"],
    )
    assert config["eval_args"] == {
        "split": {"RS": [8, 1, 1]},
        "group_by": "none",
        "mode": {"valid": "full", "test": "uni5"},
        "order": "RO",
    }


@pytest.mark.parametrize(
    ("below", "above", "right"),
    [
        ({"distribution": "popularity"}, {"sample_num": 3}, {"distribution": "popularity", "sample_num": 3}),
        ({"distribution": "popularity"}, None, None),
        (None, {"sample_num": 3}, {"sample_num": 3}),
        ({"distribution": "popularity"}, "None", "None"),
    ],
)
def test_negative_samples_of_two_sources(below, above, right):
    first, second = {"train_neg_sample_args": below, "load_col": {"a": 1}}, {"train_neg_sample_args": above}
    assert merged(first, second) == {"train_neg_sample_args": right, "load_col": {"a": 1}}
    assert first == {"train_neg_sample_args": below, "load_col": {"a": 1}}
    # other settings are replaced as a whole, as in RecBole
    assert merged(first, {"load_col": {"b": 2}})["load_col"] == {"b": 2}


@pytest.mark.parametrize("number", [1, 2, 5])
def test_the_number_of_negative_samples_is_what_is_asked_for(workdir, number):
    histories = {user: items for user, items in HISTORIES.items() if user not in ("u4", "u7")}
    write_dataset(workdir, {**histories, **{f"v{n}": "abc" for n in range(5)}})
    parts = build_parts(workdir, model="BPR", train_neg_sample_args={"sample_num": number})
    rows = sum(len(batch) for batch in parts.train)
    assert rows == number * len(parts.train._dataset)


UNKNOWN = [
    ({"eval_args": {"splt": {}}}, "eval_args has no 'splt'; did you mean 'split'"),
    ({"eval_args": {"uni10": 1}}, "eval_args has no 'uni10'"),
    ({"eval_args": {"mode": {"tset": "full"}}}, "eval_args.mode has no 'tset'; did you mean 'test'"),
    ({"eval_args": {"split": {"LO": 1}}}, "eval_args.split has no 'LO'"),
    ({"eval_args": "uni10"}, "eval_args=uni10 must be a mapping"),
    ({"eval_args": None}, "eval_args=None must be a mapping"),
    ({"eval_args": ["RS"]}, "eval_args=.* must be a mapping"),
    (
        {"train_neg_sample_args": {"uniform": 2}},
        "train_neg_sample_args={'uniform': 2} must be .*distribution, sample_num",
    ),
    ({"train_neg_sample_args": {"sample_number": 2}}, "sample_number.* must be .*sample_num"),
    ({"train_neg_sample_args": {"distribution": "uniform", "by": "x"}}, "by.* must be .*distribution, sample_num"),
    ({"train_neg_sample_args": 2}, "train_neg_sample_args=2 must be"),
    ({"train_neg_sample_args": {"sample_num": 0}}, "train_neg_sample_args"),
]


@pytest.mark.parametrize(("settings", "words"), UNKNOWN, ids=[str(settings) for settings, _ in UNKNOWN])
def test_unknown_parts_are_refused(small, settings, words):
    with pytest.raises(SettingError, match=words):
        Config(config_dict=small_settings(small, model="BPR", **settings))


# -- splits ------------------------------------------------------------------------------------------------------------

RATIO = {"RS": [0.6, 0.2, 0.2]}
REFUSED = [
    ("SASRec", {"order": "RO"}, "order=RO of eval_args is not that of time, in which SASRec reads histories"),
    ("SASRec", {"order": "RO", "split": RATIO}, "order=RO of eval_args is not that of time"),
    ("BPR", {"order": "RO", "split": {"TS": [0.6, 0.2, 0.2]}}, "in the order of time: set order to TO"),
    ("BPR", {"split": {"RS": [0, 0, 0]}}, "has no part above 0"),
    ("BPR", {"split": {"TS": [0.8, 0.2]}}, "must name three parts"),
    ("BPR", {"split": {"TS": [0, 0, 1]}}, "must name three parts"),
    ("SASRec", {"mode": "labeled"}, "mode=labeled of eval_args ranks no items, which the metrics Recall"),
    ("BPR", {"mode": "labeled"}, "mode=labeled of eval_args ranks no items"),
    ("BPR", {"mode": {"valid": "full", "test": "labeled"}}, "mode=labeled of eval_args ranks no items"),
]


@pytest.mark.parametrize(("model", "given", "words"), REFUSED, ids=[f"{m} {given}" for m, given, _ in REFUSED])
def test_what_cannot_be_split_or_ranked_is_refused(small, model, given, words):
    with pytest.raises(SettingError, match=words):
        Config(config_dict=small_settings(small, model=model, eval_args=given))


@pytest.mark.parametrize(
    ("split", "words"),
    [
        ({"LS": "valid_only"}, "split={'LS': 'valid_only'} of eval_args leaves none"),
        ({"RS": [0.8, 0.2, 0]}, "split={'RS': .* of eval_args leaves none"),
        ({"RS": [0.8, 0.2]}, "a run needs three, the last for the test"),
    ],
)
@pytest.mark.parametrize("model", ["SASRec", "Pop"])
def test_a_run_needs_a_test_part(workdir, model, split, words):
    write_dataset(workdir, {user: items for user, items in HISTORIES.items() if user != "u4"})
    with pytest.raises(DataError, match=words):
        run(settings=small_settings(workdir, model=model, eval_args={"split": split}))


@pytest.mark.parametrize("model", ["SASRec", "ST2SI", "BPR"])
def test_a_test_without_a_validation_is_of_the_last_epoch(workdir, tiny, model):
    write_dataset(workdir, {user: items for user, items in HISTORIES.items() if user != "u4"})
    more = {"backbone": str(tiny["llama"])} if model == "ST2SI" else {}
    given = small_settings(workdir, model=model, epochs=2, eval_args={"split": {"LS": "test_only"}}, **more)
    result = run(settings=given)
    users = [items for user, items in HISTORIES.items() if user != "u4"]
    tested = [items for items in users if len(items) > 2]
    rows = sum(map(len, users)) - len(tested)
    rows -= 0 if model == "BPR" else len(users)  # of a sequential model the first is no target
    counted = {"train": rows, "valid": 0, "test": len(tested)}
    assert {part: result["counts"][part] for part in counted} == counted
    assert result["valid"] is None and result["epochs"] == 2 and result["test"]["mrr"] > 0


# -- labels ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["full", "uni2", "pop2", {"valid": "full", "test": "labeled"}])
@pytest.mark.parametrize("model", ["SASRec", "BPR"])
def test_a_threshold_without_effect_is_refused(small, model, mode):
    values = {"metrics": ["AUC"], "valid_metric": "AUC"} if mode != "full" and isinstance(mode, str) else {}
    with pytest.raises(SettingError, match=r"val_interval={rating: '\[4,inf\)'}|mode=labeled of eval_args ranks no"):
        Config(
            config_dict=small_settings(small, model=model, threshold={"rating": 4}, eval_args={"mode": mode}, **values)
        )


def with_ratings(root, column):
    path = root / "small" / "small.inter"
    lines = path.read_text().splitlines()
    path.write_text(
        "\n".join([f"{lines[0]}\t{column}:float", *(f"{line}\t{n % 5}" for n, line in enumerate(lines[1:]))]) + "\n"
    )


VALUES = {"metrics": ["AUC", "LogLoss"], "valid_metric": "AUC", "eval_args": {"mode": "labeled"}}


@pytest.mark.parametrize("model", ["SASRec", "Pop", "FM"])
def test_a_threshold_labels_the_rows(small, model):
    write_dataset(small, {user: items for user, items in HISTORIES.items() if user != "u4"})
    with_ratings(small, "rating")
    load = {"inter": ["user_id", "item_id", "timestamp", "rating"]}
    settings = small_settings(small, model=model, threshold={"rating": 3}, load_col=load, **VALUES)
    ratings = {}
    for line in (small / "small" / "small.inter").read_text().splitlines()[1:]:
        user, _, time, rating = line.split("\t")
        ratings[user, float(time)] = float(rating)
    parts = build_parts(small, **{name: value for name, value in settings.items() if name != "data_path"})
    rows = list(itertools.chain.from_iterable(zip(
        part._dataset.id2token("user_id", part._dataset.inter_feat["user_id"]),
        part._dataset.inter_feat["timestamp"].tolist(), part._dataset.inter_feat["label"].tolist(), strict=True,
    ) for part in (parts.train, parts.valid, parts.test)))  # fmt: skip
    assert len(rows) >= 28
    assert all(label == (ratings[user, time] >= 3) for user, time, label in rows)


@pytest.mark.parametrize("model", ["SASRec", "Pop", "FM"])
def test_labels_that_are_not_there_are_one_sentence(small, model):
    with pytest.raises(
        DataError, match=r"mode labeled of eval_args reads the column 'label', which .*small.inter lacks"
    ):
        run(settings=small_settings(small, model=model, **VALUES))
