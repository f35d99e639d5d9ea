"""The experiment that holds items out of all training."""

from pathlib import Path

import numpy as np
import pytest
from learnable_data import ITEMS, write_learnable
from small_data import small_settings

from recbole_llm.errors import DataError
from recbole_llm.quick_start.run import load, run
from recbole_llm.runs.ranks import read_ranks


def test_held_out_items_are_targets_alone(tiny, probe, tmp_path):
    """No history has one; each that ends a history is its test target; and the metrics are those of the ranks."""
    write_learnable(tmp_path)
    (line,) = probe("new_items", "--hold=small", f"--data_path={tmp_path}", "--share=0.25", "--seed=3")
    held = set((tmp_path / "small-new" / "held-out-items.txt").read_text().split())
    assert len(held) == line["held_out"] == ITEMS // 4
    given = small_settings(
        tmp_path, model="ZESRec", dataset="small-new", backbone=str(tiny["bert"]), epochs=1, topk=[5, 10],
        hidden_size=8, inner_size=8, MAX_ITEM_LIST_LENGTH=6,
    )  # fmt: skip
    folder = Path(run(settings={**given, "valid_metric": "NDCG@10"})["path"]).parent
    parts = load(folder)
    histories, targets = [], {}
    for name in ("train", "valid", "test"):
        part = getattr(parts, name)._dataset
        rows = part[np.arange(len(part))]
        histories += rows["item_id_list"].numpy().ravel().tolist()
        targets[name] = set(part.id2token("item_id", rows["item_id"].numpy()))
    assert not held & set(parts.dataset.id2token("item_id", sorted(set(histories) - {0})))
    assert not held & (targets["train"] | targets["valid"])
    assert len(held & targets["test"]) == line["new_items"] > 0
    (told,) = probe("new_items", f"--runs={folder}")
    frame = read_ranks(folder / "ranks-test.tsv.gz")
    ranks = frame["rank"][frame["item"].isin(held)].to_numpy()
    assert told["new_targets"] == len(ranks) == line["new_targets"]
    assert told["new_hit10"] == pytest.approx((ranks <= 10).mean())
    assert told["times_chance"] == pytest.approx((ranks <= 10).mean() * line["items"] / 10)
    with pytest.raises(DataError, match="small-new is there already"):
        probe("new_items", "--hold=small", f"--data_path={tmp_path}")
