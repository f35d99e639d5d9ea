"""Whole runs of models that write the next item, on real data with a tiny language model, under both protocols."""

import contextlib
import io
import json

import numpy as np
import pytest
import torch
from test_end_to_end import cut_of_ml_100k

from recbole_llm.cli import main as cli
from recbole_llm.quick_start.run import load

MODELS = {
    "P5": ["--id_clusters=5", "--cluster_items=20"],
    "P5 in a beam": ["--indexing=sequential", "--decoding=beam", "--num_beams=15"],
    "P5 t5": ["--id_clusters=5", "--cluster_items=20"],
    "GPT4Rec": [
        "--num_queries=3", "--max_attribute_tokens=20", "--max_prompt_tokens=100", "--query_prompt={history} then",
    ],
}  # fmt: skip


@pytest.fixture(scope="module", params=MODELS)
def finished(request, tmp_path_factory, tiny):
    """The folder of a finished run of the command line."""
    root = tmp_path_factory.mktemp("generative")
    cut_of_ml_100k(root, 30)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setenv("RECBOLE_LLM_CACHE", str(root / "cache"))
        out = io.StringIO()
        backbone = tiny["t5" if request.param.endswith("t5") else "llama"]
        with contextlib.redirect_stdout(out):
            code = cli.main(
                [
                    "run", f"--model={request.param.split()[0]}", "--dataset=ml-100k", "--data_path=.",
                    f"--backbone={backbone}", "--MAX_ITEM_LIST_LENGTH=5", "--epochs=2", "--warmup_steps=0",
                    "--learning_rate=0.003", "--train_batch_size=32", "--use_gpu=False", "--show_progress=False",
                    "--state=WARNING", "--precision=fp32", "--valid_users=10", "--repeatable=False",
                    *MODELS[request.param],
                ]
            )  # fmt: skip
        assert code == 0
        yield root / out.getvalue().splitlines()[-1]


def test_both_protocols_are_counted_from_the_same_scores(finished):
    """Ranks by hand: all items, or without what a user met before; what is not ranked is behind all that is."""
    result = json.loads(finished.read_text())
    losses = [epoch["train_loss"] for epoch in result["history"]]
    assert losses[1] < losses[0]
    parts = load(finished.parent)
    assert len(parts.valid._dataset) == 10
    items = parts.dataset.item_num
    ranks = {"test": [], "test_other": []}
    for rows, *_ in parts.test:
        scores = parts.model.full_sort_predict(rows)
        assert scores.shape == (len(rows), items)
        for row, target in enumerate(rows["item_id"].tolist()):
            history = rows["item_id_list"][row][: int(rows["item_length"][row])].tolist()
            own = scores[row, target]
            left = torch.ones(items, dtype=torch.bool)
            left[[target, 0]] = False  # a tie counts against the target, but neither with itself nor with no item
            ranks["test_other"].append(1 + int((scores[row][left] >= own).sum()) + int(own == -torch.inf))
            left[history] = False
            without = int((scores[row][left] >= own).sum()) + (own == -torch.inf) * (len(set(history)) + 1)
            ranks["test"].append(1 + int(without))
    for part, found in ranks.items():
        found = np.array(found)
        hits = float((found <= 10).mean())
        assert result[part]["hit@10"] == pytest.approx(hits, abs=1e-4)
        gains = np.where(found <= 10, 1 / np.log2(found + 1), 0)
        assert result[part]["ndcg@10"] == pytest.approx(float(gains.mean()), abs=1e-4)
    assert result["ranked_items"] <= items - 1
