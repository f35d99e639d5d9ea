"""Pop counts every training interaction of an item, once."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import recbole
from atomic_files import quick_settings, write_atomic_files

from recbole_llm.quick_start.run import load, run


@pytest.mark.parametrize("settings", [{}, {"train_batch_size": 7}, {"train_neg_sample_args": None}])
def test_counts_are_those_of_the_training_part(settings, workdir):
    data = write_atomic_files(workdir / "data" / "tiny", users=30, items=25)
    parts = load(run("Pop", settings=quick_settings(data, **settings))["path"])
    expected = np.bincount(parts.train._dataset.inter_feat["item_id"].numpy(), minlength=parts.dataset.item_num)
    assert parts.model.item_cnt.flatten().tolist() == expected.tolist()
    assert parts.model.max_cnt.item() == expected.max()


def test_ml_100k_is_ranked_as_by_hand(workdir):
    """Whole ranking, a tie against the target; the file's times and order, narrowed to nothing."""
    result = run(
        "Pop", "ml-100k", settings={"use_gpu": False, "show_progress": False, "state": "ERROR", "repeatable": True}
    )
    file = Path(recbole.__file__).parent / "dataset_example" / "ml-100k" / "ml-100k.inter"
    rows = pd.read_csv(file, sep="\t", names=["user", "item", "rating", "time"], header=0)
    rows = rows.sort_values(["user", "time"], kind="stable")
    left = rows.groupby("user").cumcount(ascending=False)
    counts = rows[left >= 2].groupby("item").size().reindex(rows["item"].unique(), fill_value=0)
    own = counts[rows.loc[left == 0, "item"]].to_numpy()
    ranks = (counts.to_numpy()[None] >= own[:, None]).sum(axis=1)
    assert result["test"]["mrr"] == pytest.approx((1 / ranks).mean(), abs=5e-5)  # .0216
    assert result["test"]["recall@10"] == pytest.approx((ranks <= 10).mean(), abs=5e-5)  # .0498
