"""`mask_history` for sequential models: what the model reads is left out of its ranking, a repeated target excepted."""

from pathlib import Path

import pytest
import torch
from small_data import small_settings

from recbole_llm.quick_start.run import load, run
from recbole_llm.runs.ranks import read_ranks

MODELS = {
    "SASRec": {"hidden_size": 8, "inner_size": 8},
    "ST2SI": {"tuning": "ilp", "id_model": "SASRec", "id_model_settings": {"hidden_size": 8, "epochs": 1}},
}


@pytest.mark.parametrize("table", [True, False])
@pytest.mark.parametrize("model", MODELS)
def test_ranks_leave_the_history_out(small, tiny, model, table):
    settings = small_settings(
        small, model=model, MAX_ITEM_LIST_LENGTH=10, epochs=2, device_table=table, mask_history=True, **MODELS[model]
    )
    if model == "ST2SI":
        settings["backbone"] = str(tiny["llama"])
    folder = Path(run(settings=settings)["path"]).parent
    parts = load(folder)
    expected, repeated, masked = [], 0, 0
    with torch.no_grad():
        for interaction, *_ in parts.test:
            scores = parts.model.full_sort_predict(interaction).numpy()
            for row, target in enumerate(interaction["item_id"].tolist()):
                history = {item for item in interaction["item_id_list"][row].tolist() if item}
                repeated += target in history
                left = [item for item in range(1, scores.shape[1]) if item == target or item not in history]
                expected.append(int((scores[row, left] >= scores[row, target]).sum()))
                masked += int((scores[row, 1:] >= scores[row, target]).sum()) != expected[-1]
    assert repeated and masked  # both kinds are there
    assert expected == read_ranks(folder / "ranks-test.tsv.gz")["rank"].tolist()
