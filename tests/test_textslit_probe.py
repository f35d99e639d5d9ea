"""The probe of TextSLIT against runs that were trained without what it takes away."""

from pathlib import Path

import pytest
import torch
from learnable_data import write_learnable
from small_data import small_settings

from recbole_llm.errors import SettingError
from recbole_llm.quick_start.run import run


@pytest.fixture(scope="module")
def finished(tmp_path_factory, tiny):
    """Make a run of TextSLIT with some settings; return its result."""
    root = write_learnable(tmp_path_factory.mktemp("textslit"))

    def make(**settings):
        given = {
            "model": "TextSLIT", "backbone": str(tiny["bert"]), "topk": [5, 10], "valid_metric": "NDCG@10",
            "repeatable": False, "ridge": 5.0, "MAX_ITEM_LIST_LENGTH": 6,
        }  # fmt: skip
        return run(settings=small_settings(root, **{**given, **settings}))

    return make


def test_lines_are_what_runs_without_it_find(finished, probe):
    whole = finished(text_similarity=0.2)
    folder = str(Path(whole["path"]).parent)
    lines = probe("what_textslit_reads", f"--run={folder}", f"--against={folder}")
    found = {line["scores"]: line for line in lines if line.get("part") == "test"}
    for name, result in (
        ("as it is", whole),
        ("without texts", finished(text_similarity=0)),
        ("texts alone", finished(epochs=0, text_similarity=0.2)),
    ):
        for metric in ("ndcg", "hit"):
            assert found[name][f"{metric}10"] == pytest.approx(result["test"][f"{metric}@10"], abs=1e-4), name
    assert found["another user's history"]["ndcg10"] < found["as it is"]["ndcg10"]
    overlap = lines[-1]
    assert overlap["both"] == pytest.approx(whole["test"]["hit@10"], abs=1e-4)
    assert overlap["run_alone"] == overlap["other_alone"] == 0
    assert overlap["better_of_both_ndcg10"] == pytest.approx(whole["test"]["ndcg@10"], abs=1e-4)


def test_last_items_of_padded_histories(probe):
    histories = torch.tensor([[4, 2, 7, 0], [5, 0, 0, 0], [1, 2, 3, 4]])
    last_items = probe("what_textslit_reads").last_items
    assert last_items(histories, 1).tolist() == [[7, 0, 0, 0], [5, 0, 0, 0], [4, 0, 0, 0]]
    assert last_items(histories, 2).tolist() == [[2, 7, 0, 0], [5, 0, 0, 0], [3, 4, 0, 0]]


def test_a_run_without_texts_is_refused(finished, probe):
    plain = finished(text_similarity=0)
    module = probe("what_textslit_reads")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["what_textslit_reads", f"--run={plain['path']}"])
        with pytest.raises(SettingError, match="is none of TextSLIT that reads texts"):
            module.main()
