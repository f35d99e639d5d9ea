"""Whole runs of prompted models on a cut of ml-100k with a tiny decoder, compared in one table."""

import json
import shutil
from pathlib import Path

import pytest
from small_data import of_model
from test_end_to_end import cut_of_ml_100k

from recbole_llm.cli.main import main
from recbole_llm.comparison.compare import compare_models
from recbole_llm.quick_start.run import run
from recbole_llm.utils.paths import shipped

COMMON = {
    "dataset": "ml-100k", "data_path": ".", "use_gpu": False, "precision": "fp32", "show_progress": False,
    "state": "ERROR", "epochs": 1, "candidates": 5, "candidate_seeds": 3, "MAX_ITEM_LIST_LENGTH": 3,
}  # fmt: skip
PROMPT = {
    "max_attribute_tokens": 90, "max_sequence_tokens": 1000, "max_answer_tokens": 20,
    "item_text_fields": ["movie_title"], "list_prompt": "{history}; {candidates}:",
    "judge_prompt": "{liked}; {disliked}; {item}?",
}  # fmt: skip
MODELS = {
    "LLMPrompt": {"model": "LLMPrompt"},
    "Likely": {"model": "LLMPrompt", "answer": "likelihood"},
    "TALLRec": {"model": "TALLRec", "task": "listwise"},
    "Judge": {"model": "TALLRec"},
    "LLaRA": {"model": "LLaRA", "id_model": "GRU4Rec", "id_model_settings": {"epochs": 1}},
    "SASRec": {"model": "SASRec"},
}


@pytest.fixture
def decoder(workdir, tiny):
    """The tiny Llama with positions for prompts of bytes: they rotate, and so need no weights."""
    folder = workdir / "decoder"
    shutil.copytree(tiny["llama"], folder)
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "max_position_embeddings": 1024}))
    return str(folder)


def test_every_model_on_the_same_lists(workdir, decoder):
    cut_of_ml_100k(workdir, 30)
    runs = []
    for label, own in MODELS.items():
        settings = of_model(own["model"], {**COMMON, **PROMPT, "backbone": decoder})
        if own["model"] == "SASRec":
            settings = {name: value for name, value in settings.items() if name not in PROMPT}
        result = run(settings={**settings, **own})
        assert result["candidates"]["size"] == 5 and result["candidates"]["seeds"] == 3
        assert (result["test"] is None) == (label != "SASRec")
        runs.append(f"{label}:{Path(result['path']).parent}")
    table = compare_models(runs=runs, out="together")
    assert table["models"] == list(MODELS)
    cells = {cell["label"]: cell["extras"]["candidates"] for cell in table["cells"]}
    for label in ("Likely", "Judge", "SASRec"):
        assert cells[label]["valid_ratio"] == {"mean": 1.0, "std": 0.0}
    lines = Path("together/comparison.md").read_text().splitlines()
    found = [line for line in lines if line.startswith("| LLaRA |")]
    hits = cells["LLaRA"]["hit@1"]
    assert f"| {hits['mean']:.4f} ± {hits['std']:.4f} |" in found[0]
    assert json.loads(Path("together/comparison.json").read_text())["columns"] == [
        "candidates.hit@1", "candidates.valid_ratio",
    ]  # fmt: skip


def test_papers_values_stand_beside_ours(workdir, decoder, capsys):
    """What LLaRA's authors print is in the table of a comparison on that dataset, and nothing else of Table 9."""
    cut_of_ml_100k(workdir, 30)
    own = {**COMMON, **PROMPT, "backbone": decoder, "model": "LLMPrompt"}
    result = run(settings=of_model("LLMPrompt", own))
    folder = Path(result["path"]).parent
    for name in ("result.json", "config.yaml"):
        path = folder / name
        path.write_text(path.read_text().replace("ml-100k", "ml-100k-llara"))
    table = compare_models(runs=[str(folder)], out="papers", papers=True, significance=False)
    rows = [line for line in Path("papers/comparison.md").read_text().splitlines() if "as printed |" in line]
    assert [row.split(" | ") for row in rows] == [
        ["| LLaRA (GRU4Rec), as printed", "0.4000", "0.9684 |"],
        ["| LLaRA (Caser), as printed", "0.4211", "0.9684 |"],
        ["| LLaRA (SASRec), as printed", "0.4526", "0.9789 |"],
    ]
    assert table["columns"][0] == "candidates.hit@1"
    assert main(["report", "--comparison=papers/comparison.json", "--out=page.html"]) == 0
    page = Path("page.html").read_text()
    assert "HitRatio@1" in page and f"{result['candidates']['hit@1']['mean']:.4f}" in page
    assert main(["plot", "--kind=bars", "--comparison=papers/comparison.json"]) == 1
    assert "no run has test metrics: there is nothing to draw" in capsys.readouterr().err


@pytest.mark.parametrize("metric", ["candidates.hit@1", "candidates.valid_ratio"])
def test_columns_can_be_shown(workdir, metric):
    cut_of_ml_100k(workdir, 20)
    result = run(settings={**of_model("GRU4Rec", COMMON), "model": "GRU4Rec"})
    table = compare_models(runs=[result["path"]], show=["ndcg@10", metric], out="c", significance=False)
    assert table["columns"] == ["ndcg@10", metric]
    head = Path("c/comparison.md").read_text().splitlines()[2]
    assert head == f"| Model | NDCG@10 | {'HitRatio@1' if metric.endswith('1') else 'ValidRatio'} |"


def test_ratings_are_judged(workdir, decoder):
    """The shipped settings of TALLRec's own task: AUC of held-out ratings, and no candidates."""
    cut_of_ml_100k(workdir, 30)
    own = {"backbone": decoder, "task": "pointwise", "train_samples": 40, "max_attribute_tokens": 30, "epochs": 1}
    place = {name: COMMON[name] for name in ("data_path", "use_gpu", "precision", "show_progress", "state")}
    result = run("TALLRec", "ml-100k", [shipped("properties") / "task" / "ratings.yaml"], {**place, **own})
    assert result["valid"].keys() >= {"auc"} and 0 <= result["test"]["auc"] <= 1
    assert "candidates" not in result and len(result["history"]) == 1
