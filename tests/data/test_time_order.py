"""Interactions are ordered by the times that the file has, not by what float32 leaves of them."""

import logging
from pathlib import Path

import numpy as np
import pandas as pd
import polars as pl
import pytest
import recbole
from hypothesis import given, settings
from hypothesis import strategies as st
from recbole.data.dataset import SequentialDataset
from small_data import small_settings

from recbole_llm.config.config import Config
from recbole_llm.data.build import create_dataset
from recbole_llm.data.dataset import HistoryDataset, PrefixDataset
from recbole_llm.data.sources import read_source
from recbole_llm.errors import DataError, SettingError
from recbole_llm.inference.user_histories import user_histories
from recbole_llm.prepare.formats.base import ITEM, TIME, USER
from recbole_llm.prepare.write import inter_file

SEQUENTIAL = {"ours": HistoryDataset, "prefixes": PrefixDataset, "recbole's": SequentialDataset}
BY_RATIO = {"split": {"RS": [0.6, 0.2, 0.2]}}
# First times of 10 digits (seconds since 1970) and of 13 (milliseconds), with steps that float32 does not tell apart.
STEPS = {"seconds": (1_700_000_000, 20), "milliseconds": (1_700_000_000_000, 30_000), "microseconds": (17 * 10**14, 1)}


def write_rows(root: Path, rows, header="user_id:token\titem_id:token\ttimestamp:float", name="small") -> Path:
    folder = root / name
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.inter").write_text("\n".join([header, *("\t".join(map(str, row)) for row in rows)]) + "\n")
    return root


def backwards(first, step, users=4, items=7):
    """Rows in which later interactions stand first, the users mixed; and what is right: items of a user in order."""
    rows = [
        (f"u{user}", f"i{(place * (user + 2)) % 11}", first + step * place)
        for place in reversed(range(items))
        for user in range(users)
    ]
    right = {f"u{user}": [f"i{(place * (user + 2)) % 11}" for place in range(items)] for user in range(users)}
    return rows, right


def dataset_of(root, dataset_class=None, model="SASRec", **changes):
    given = {"items_without_text": "keep", "topk": [1], "valid_metric": "NDCG@1", **changes}
    return create_dataset(Config(config_dict=small_settings(root, model=model, **given)), dataset_class)


def histories(dataset):
    table = user_histories(dataset)
    tokens = dataset.field2id_token[dataset.iid_field]
    users = dataset.field2id_token[dataset.uid_field]
    return {str(users[row]): tokens[table.row(row)].tolist() for row in range(1, dataset.user_num)}


def targets(part):
    """The last item that a part holds of each user."""
    rows = part.inter_feat
    users, items = (part.id2token(name, rows[name]) for name in (part.uid_field, part.iid_field))
    return dict(zip(map(str, users), map(str, items), strict=True))


@pytest.mark.parametrize("unit", STEPS)
@pytest.mark.parametrize("split", [{}, BY_RATIO], ids=["leave-one-out", "ratios"])
@pytest.mark.parametrize("kind", SEQUENTIAL)
def test_histories_and_targets_of_sequential_models(workdir, unit, split, kind):
    rows, right = backwards(*STEPS[unit])
    dataset = dataset_of(write_rows(workdir, rows), SEQUENTIAL[kind], eval_args=split)
    parts = dataset.build()
    users, items = (dataset.field2id_token[name] for name in ("user_id", "item_id"))
    for part in parts:
        read = part[np.arange(len(part))]
        columns = (read[name].numpy() for name in ("user_id", "item_length", "item_id_list", "item_id"))
        for user, length, history, target in zip(*columns, strict=True):
            assert [*items[history[:length]], items[target]] == right[users[user]][: length + 1]
    assert targets(parts[2]) == {user: items[-1] for user, items in right.items()}
    if kind != "recbole's":  # whose rows hold the most recent items alone
        assert histories(dataset) == right


@pytest.mark.parametrize("unit", STEPS)
@pytest.mark.parametrize("split", [{}, BY_RATIO], ids=["leave-one-out", "ratios"])
def test_general_models(workdir, unit, split):
    rows, right = backwards(*STEPS[unit])
    dataset = dataset_of(write_rows(workdir, rows), model="BPR", eval_args=split)
    train, valid, test = dataset.build()
    assert histories(dataset) == right
    for place, part in ((-1, test), (-2, valid), (-3, train)):
        assert targets(part) == {user: items[place] for user, items in right.items()}


def test_a_general_model_with_a_random_split_knows_what_was_last(workdir):
    rows, right = backwards(*STEPS["seconds"])
    dataset = dataset_of(write_rows(workdir, rows), model="BPR", eval_args={**BY_RATIO, "order": "RO"})
    dataset.build()
    assert histories(dataset) == right


@pytest.mark.parametrize("kind", ["ours", "recbole's", "general"])
def test_a_split_at_a_time_is_at_the_exact_time(workdir, kind):
    """The boundary is the 60th percentile of all times, in float64; RecBole's narrowed one puts all on one side."""
    rows, _ = backwards(*STEPS["seconds"], users=3, items=11)
    model = "BPR" if kind == "general" else "SASRec"
    split = {"split": {"TS": [0.4, 0.2, 0.4]}}
    dataset = dataset_of(write_rows(workdir, rows), SEQUENTIAL.get(kind), model, eval_args=split)
    test = dataset.build()[2]
    times = [time for _, _, time in rows]
    if kind != "general":  # the first interaction of a user is no target
        times = [time for time in times if time != min(times)]
    late = sum(time > np.percentile(times, 60) for time in times)
    assert len(test) == late and 0 < late < len(times)
    narrow = test.inter_feat["timestamp"].dtype
    assert str(narrow) == ("torch.float64" if kind == "general" else "torch.float32")


@pytest.mark.parametrize(
    "changes",
    [
        {"normalize_all": True},
        {"normalize_field": ["timestamp"]},
        {"numerical_features": ["timestamp"]},
        {
            "numerical_features": ["timestamp"],
            "discretization": {"timestamp": {"method": "ED", "bucket": 3}},
        },
    ],
    ids=lambda changes: ",".join(changes),
)
def test_scaled_times_sort_as_before(workdir, changes):
    rows, right = backwards(*STEPS["seconds"])
    dataset = dataset_of(write_rows(workdir, rows), HistoryDataset, **changes)
    dataset.build()
    assert histories(dataset) == right


@settings(max_examples=40)
@given(
    st.lists(st.tuples(st.integers(0, 2), st.integers(0, 5)), min_size=9, max_size=24),
    st.sampled_from(["seconds", "milliseconds"]),
)
def test_any_order_of_rows_with_ties(tmp_path_factory, drawn, unit):
    first, step = STEPS[unit]
    rows = [(f"u{user}", f"i{number}", first + step * place) for number, (user, place) in enumerate(drawn)]
    frame = pd.DataFrame(rows, columns=["user", "item", "time"])
    if frame["user"].value_counts().max() < 2:
        return
    right = {user: group["item"].tolist() for user, group in frame.sort_values("time", kind="stable").groupby("user")}
    right = {user: items for user, items in right.items() if len(items) > 1}
    dataset = dataset_of(write_rows(tmp_path_factory.mktemp("rows"), rows), HistoryDataset)
    dataset.build()
    assert {user: items for user, items in histories(dataset).items() if items} == right


def test_many_ties_keep_the_order_of_the_file_when_duplicates_leave(workdir):
    """Enough rows for a sort that is not stable to mix them."""
    random = np.random.default_rng(0)
    rows = [(f"u{user}", f"i{item}", 1) for user in range(5) for item in random.integers(0, 400, size=300)]
    for keep in ("first", "last"):
        frame = pd.DataFrame(rows, columns=["user", "item", "time"]).drop_duplicates(["user", "item"], keep=keep)
        right = {user: group["item"].tolist() for user, group in frame.groupby("user")}
        dataset = dataset_of(write_rows(workdir, rows), HistoryDataset, rm_dup_inter=keep)
        dataset.build()
        assert histories(dataset) == right


def test_ml_100k_has_no_target_before_a_users_last_event(workdir):
    """Its own file under another name: 149 of 943 test targets once were."""
    path = Path(recbole.__file__).parent / "dataset_example" / "ml-100k" / "ml-100k.inter"
    (workdir / "other").mkdir()
    (workdir / "other" / "other.inter").write_bytes(path.read_bytes())
    frame = pd.read_csv(path, sep="\t", dtype={"user_id:token": str, "item_id:token": str})
    times = frame.set_index(["user_id:token", "item_id:token"])["timestamp:float"].astype(np.float64)
    last = frame.groupby("user_id:token")["timestamp:float"].max()
    for name, dataset_class, model in (("other", HistoryDataset, "SASRec"), ("ml-100k", None, "BPR")):
        dataset = dataset_of(workdir, dataset_class, model, dataset=name)
        found = targets(dataset.build()[2])
        assert len(found) == 943
        assert [user for user, item in found.items() if times[user, item] < last[user]] == []


def test_a_source_of_pretraining_is_read_in_order(workdir):
    rows, right = backwards(*STEPS["seconds"])
    write_rows(workdir, rows)
    lines = "".join(f"i{item}\tthing {item}\n" for item in range(11))
    (workdir / "small" / "small.item").write_text("item_id:token\ttitle:token_seq\n" + lines)
    source = read_source(Config(config_dict=small_settings(workdir, model="SASRec", topk=[1], valid_metric="NDCG@1")))
    assert {user: source.items[source.users == user].tolist() for user in right} == right


@pytest.mark.parametrize("unit", STEPS)
def test_what_prepare_writes_is_read_in_order(workdir, unit):
    rows, right = backwards(*STEPS[unit])
    frame = pl.DataFrame(rows, schema=[USER, ITEM, TIME], orient="row")
    (workdir / "small").mkdir()
    inter_file(workdir / "small" / "small.inter", frame)
    dataset = dataset_of(workdir, HistoryDataset)
    dataset.build()
    assert histories(dataset) == right


# -- times that are none -----------------------------------------------------------------------------------------------

BAD = {"empty": "", "nan": "nan", "NaN": "NaN", "inf": "inf", "minus inf": "-inf", "NA": "NA", "too large": "1e400"}


def with_bad_time(root, text):
    rows, _ = backwards(*STEPS["seconds"])
    rows[9] = (*rows[9][:2], text)
    rows[20] = (*rows[20][:2], text)
    return write_rows(root, rows)


@pytest.mark.parametrize("model", ["SASRec", "BPR"])
@pytest.mark.parametrize("text", BAD.values(), ids=BAD)
def test_a_missing_time_is_refused_with_count_and_first_line(workdir, model, text):
    with pytest.raises(DataError, match=r"2 interactions of .*small.inter have no finite .* the first in line 11"):
        dataset_of(with_bad_time(workdir, text), model=model)


def test_a_row_that_ends_early_has_no_time(workdir):
    rows, _ = backwards(*STEPS["seconds"])
    rows[3] = rows[3][:2]
    with pytest.raises(DataError, match=r"1 interactions of .* the first in line 5"):
        dataset_of(write_rows(workdir, rows))


def test_rows_without_a_time_can_be_left_out(workdir):
    dataset = dataset_of(with_bad_time(workdir, "nan"), val_interval={"timestamp": "(-inf,inf)"})
    assert len(dataset.inter_feat) == 26 and np.isfinite(dataset.inter_feat["timestamp"]).all()


def test_a_random_split_needs_no_times_and_warns(workdir, caplog):
    with caplog.at_level(logging.WARNING):
        dataset_of(with_bad_time(workdir, "nan"), model="BPR", eval_args={**BY_RATIO, "order": "RO"})
    assert "2 interactions of" in caplog.text and "the first in line 11" in caplog.text


@pytest.mark.parametrize("kind", ["token", "token_seq", "float_seq"])
@pytest.mark.parametrize("model", ["SASRec", "BPR"])
def test_times_of_another_type_are_refused(workdir, model, kind):
    """As text '9' comes after '10'."""
    header = f"user_id:token\titem_id:token\ttimestamp:{kind}"
    with pytest.raises(DataError, match=f"'timestamp' of .*small.inter has the type '{kind}', but must be .*:float'"):
        dataset_of(write_rows(workdir, [("u", "a", 9), ("u", "b", 10)], header), model=model)


def test_labels_in_the_place_of_times_are_refused(workdir):
    rows, _ = backwards(*STEPS["seconds"])
    labelled = {"metrics": ["AUC"], "valid_metric": "AUC", "eval_args": {"mode": "labeled"}}
    with pytest.raises(SettingError, match=r"threshold=.*'timestamp', by which interactions are sorted"):
        dataset_of(write_rows(workdir, rows), threshold={"timestamp": STEPS["seconds"][0] + 40}, **labelled)
