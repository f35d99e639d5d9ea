"""Whole runs: the packaged SmolLM2 on real data, a model that really learns, and what a run leaves behind."""

import contextlib
import io
import itertools
import json
import random
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import recbole
import torch
import yaml
from small_data import small_settings, write_dataset

from recbole_llm.cli import main as cli
from recbole_llm.config.config import Config, parse_command_line
from recbole_llm.quick_start.run import load, run
from recbole_llm.runs.ranks import read_ranks

ML_100K = Path(recbole.__file__).parent / "dataset_example" / "ml-100k"


def cut_of_ml_100k(root, users):
    """The first `users` users of the ml-100k that comes with RecBole, as a dataset of the same name."""
    folder = root / "ml-100k"
    folder.mkdir(parents=True)
    inter = pd.read_csv(ML_100K / "ml-100k.inter", sep="\t", dtype=str)
    kept = sorted(inter["user_id:token"].unique(), key=int)[:users]
    inter = inter[inter["user_id:token"].isin(kept)]
    # six interactions each are enough to train, validate and test
    inter = inter.sort_values("timestamp:float", kind="stable").groupby("user_id:token").head(6)
    inter.to_csv(folder / "ml-100k.inter", sep="\t", index=False)
    for kind in ("item", "user"):
        (folder / f"ml-100k.{kind}").write_bytes((ML_100K / f"ml-100k.{kind}").read_bytes())
    return folder


@pytest.fixture(scope="module")
def finished(tmp_path_factory, packaged):
    """One run of the command line: ST2SI with the packaged SmolLM2, the projection tuned; its folder and output."""
    root = tmp_path_factory.mktemp("end_to_end")
    cut_of_ml_100k(root, 40)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            code = cli.main(
                [
                    "run", "--model=ST2SI", "--dataset=ml-100k", "--data_path=.", "--backbone=smollm2-135m",
                    "--tuning=ilp", "--MAX_ITEM_LIST_LENGTH=4", "--alignment=False", "--epochs=3", "--use_gpu=False",
                    "--warmup_steps=0", "--learning_rate=0.003", "--train_batch_size=16", "--show_progress=False",
                    "--state=WARNING",
                ]
            )  # fmt: skip
    assert code == 0
    return root, out.getvalue()


def result_of(finished):
    root, output = finished
    path = root / output.splitlines()[-1]
    assert path.name == "result.json"
    return path.parent, json.loads(path.read_text())


def test_last_line_is_the_path_of_the_result(finished):
    folder, _ = result_of(finished)
    assert folder.parent.name == "saved"
    assert folder.name.startswith("ST2SI-ml-100k-")
    assert "ndcg@10" in finished[1], "the run ends with a table for people"


def test_result_holds_all_that_tables_need(finished):
    _, result = result_of(finished)
    assert {
        "model", "dataset", "backbone", "tuning", "seed", "valid", "test", "epochs", "best_epoch", "seconds",
        "parameters", "peak_memory_bytes", "settings", "commit", "device", "counts", "history",
    } <= result.keys()  # fmt: skip
    assert (result["model"], result["dataset"], result["backbone"]) == ("ST2SI", "ml-100k", "smollm2-135m")
    assert result["tuning"] == "ilp"
    assert set(result["seconds"]) == {"prepare", "fit", "evaluate"}
    items, width = result["counts"]["items"] + 1, 576  # SmolLM2-135M
    assert result["parameters"]["trained"] == items * width
    assert 134e6 < result["parameters"]["frozen"] < 135e6
    assert result["counts"]["users"] == 40
    assert result["counts"]["test"] == 40
    assert 100e6 < result["peak_memory_bytes"] < 6 * 2**30
    assert result["epochs"] == 3
    assert len(result["history"]) == 3
    for part in ("valid", "test"):
        assert {"ndcg@5", "ndcg@10", "recall@10", "mrr@10", "mrr"} <= result[part].keys()
    assert result["settings"]["MAX_ITEM_LIST_LENGTH"] == 4


@pytest.mark.parametrize("part", ["valid", "test"])
def test_metrics_follow_from_the_ranks(finished, part):
    folder, result = result_of(finished)
    frame = read_ranks(folder / f"ranks-{part}.tsv.gz")
    assert frame["user"].is_unique
    assert len(frame) == 40
    # the targets are the users' last items in the file itself
    inter = pd.read_csv(finished[0] / "ml-100k" / "ml-100k.inter", sep="\t", dtype=str)
    inter["timestamp:float"] = inter["timestamp:float"].astype(float)
    place = {"test": -1, "valid": -2}[part]
    by_user = dict(iter(inter.sort_values("timestamp:float", kind="stable").groupby("user_id:token")))
    for user, item in zip(frame["user"], frame["item"], strict=True):
        times = by_user[user]["timestamp:float"].to_numpy()
        candidates = by_user[user][times == times[place]]["item_id:token"]  # several items may have one time
        assert item in set(candidates)
    ranks = frame["rank"].to_numpy()
    assert ranks.min() >= 1
    assert ranks.max() <= result["counts"]["items"]
    for k in (5, 10):
        inside = ranks <= k
        assert result[part][f"recall@{k}"] == pytest.approx(inside.mean(), abs=1e-4)
        assert result[part][f"ndcg@{k}"] == pytest.approx(np.where(inside, 1 / np.log2(ranks + 1), 0).mean(), abs=1e-4)
        assert result[part][f"mrr@{k}"] == pytest.approx(np.where(inside, 1 / ranks, 0).mean(), abs=1e-4)
    assert result[part]["mrr"] == pytest.approx((1 / ranks).mean(), abs=1e-4)


def test_training_on_real_text_lowers_the_loss(finished):
    _, result = result_of(finished)
    losses = [epoch["train_loss"] for epoch in result["history"]]
    assert losses[0] < 2 * np.log(result["counts"]["items"])
    assert losses[-1] < losses[0] - 0.5


def test_run_folder_holds_weights_settings_and_ranks_alone(finished):
    folder, result = result_of(finished)
    assert sorted(file.name for file in folder.iterdir()) == [
        "config.yaml", "model.safetensors", "ranks-test.tsv.gz", "ranks-valid.tsv.gz", "result.json",
        "scenario.safetensors",
    ]  # fmt: skip
    assert yaml.safe_load((folder / "config.yaml").read_text()).keys() == result["settings"].keys()
    size = (folder / "model.safetensors").stat().st_size
    assert size < 1.01 * 4 * result["parameters"]["trained"] + 10_000, "a frozen backbone is named, not stored"


def test_loaded_run_ranks_as_it_did(finished, monkeypatch):
    folder, result = result_of(finished)
    monkeypatch.chdir(finished[0])
    parts = load(folder)
    assert not parts.model.training
    among_all = "rank" if result["protocol"]["repeatable"] else "other_rank"
    frame = read_ranks(folder / "ranks-test.tsv.gz").set_index("user")
    with torch.no_grad():
        for interaction, _, _, targets in parts.test:
            scores = parts.model.full_sort_predict(interaction)
            own = scores[torch.arange(len(targets)), targets]
            ranks = (scores >= own[:, None]).sum(dim=1)
            users = parts.dataset.id2token("user_id", interaction["user_id"].numpy())
            # bf16 states (where the CPU has it) of other batches round otherwise: almost all, and never far
            stored = frame.loc[users, among_all].to_numpy()
            assert (np.abs(ranks.numpy() - stored) <= 0.02 * scores.shape[1]).all()


# -- learning ----------------------------------------------------------------------------------------------------------

WORDS = [
    "Zelda",
    "Mario",
    "Guitar",
    "Multimeter",
    "Filament",
    "Comedy",
    "Toy",
    "Light",
    "Black",
    "Strings",
    "Galaxy",
    "Time",
]


def write_chain(folder, users=60, length=7):
    """Item i is always followed by item i + 1, round and round; starts are random."""
    rng = random.Random(0)
    items = [f"i{n}" for n in range(len(WORDS))]
    histories = {}
    for user in range(users):
        start = rng.randrange(len(items))
        histories[f"u{user}"] = list(itertools.islice(itertools.cycle(items), start, start + length))
    return write_dataset(folder, histories, dict(zip(items, WORDS, strict=True)))


@pytest.mark.parametrize(
    ("tuning", "window", "epochs", "rate"),
    [("full", "random", 25, 0.01), ("full", "full", 25, 0.01), ("lora", "full", 60, 0.02)],
)
def test_planted_transitions_are_learned(workdir, tiny, tuning, window, epochs, rate):
    settings = small_settings(
        write_chain(workdir), backbone=str(tiny["llama"]), tuning=tuning, train_window=window, epochs=epochs,
        learning_rate=rate, warmup_steps=5, train_batch_size=16, stopping_step=99,
        lr_scheduler="constant", clip_grad_norm={"max_norm": 1.0},
    )  # fmt: skip
    result = run(settings=settings)
    losses = [epoch["train_loss"] for epoch in result["history"]]
    assert losses[0] > 0.5 * np.log(len(WORDS))
    assert losses[-1] < 0.2 * losses[0]
    assert result["test"]["recall@1"] > 8 / len(WORDS), "the next of twelve items must come first for most users"


def test_loaded_run_scores_as_at_its_end(workdir, tiny):
    settings = small_settings(
        write_chain(workdir), backbone=str(tiny["opt"]), tuning="full", epochs=3, learning_rate=0.01, warmup_steps=0
    )
    result = run(settings=settings)
    folder = Path(result["path"]).parent
    for given in (folder, folder / "result.json"):
        parts = load(given)
        trainer = parts.trainer()
        trainer.eval_collector.data_collect(parts.train)
        found = trainer.evaluate(parts.test, load_best_model=False)
        assert dict(found) == pytest.approx(result["test"], abs=1e-6)
        _, _, ranks = trainer.eval_collector.collected()
        assert ranks.tolist() == read_ranks(folder / "ranks-test.tsv.gz")["rank"].tolist()


def test_same_seed_same_run(workdir, tiny):
    settings = small_settings(write_chain(workdir), backbone=str(tiny["opt"]), tuning="full", epochs=2)
    first, second, other = (run(settings={**settings, "seed": seed}) for seed in (1, 1, 2))
    assert first["history"] == second["history"]
    assert first["test"] == second["test"]
    assert first["history"] != other["history"]
    assert Path(first["path"]).parent != Path(second["path"]).parent


# -- settings ----------------------------------------------------------------------------------------------------------


def config_of(workdir, **parts):
    return Config(
        **{
            "model": "ST2SI",
            "dataset": "small",
            **parts,
            "config_dict": {"data_path": str(workdir), **parts.get("config_dict", {})},
        }
    )


def test_precedence(small):
    """Command line > dict > files (the later wins) > ours > RecBole's."""
    Path("one.yaml").write_text("epochs: 11\nmax_attribute_tokens: 11\nstopping_step: 11\nseed: 11\n")
    Path("two.yaml").write_text("max_attribute_tokens: 12\nstopping_step: 12\nseed: 12\n")
    config = config_of(
        small, config_file_list=["one.yaml", "two.yaml"], config_dict={"stopping_step": 13, "seed": 13},
        command_line=["--seed=14"],
    )  # fmt: skip
    found = [config[name] for name in ("epochs", "max_attribute_tokens", "stopping_step", "seed")]
    assert found == [11, 12, 13, 14]
    assert config["train_batch_size"] == 128  # ours, for ST2SI; RecBole's is 2048
    assert config["eval_batch_size"] == 4096  # RecBole's own
    assert config_of(small, model="SASRec")["train_batch_size"] == 2048
    assert config.given.keys() == {"epochs", "max_attribute_tokens", "stopping_step", "seed", "data_path"}


def test_data_set_file_comes_before_the_models(small):
    config = Config("ST2SI", "ml-100k", config_dict={"data_path": str(small)})
    assert config["item_text_fields"] == ["movie_title"]
    assert Config("SASRec", "ml-100k")["item_text_fields"] == ["movie_title"]
    given = Config("ST2SI", "ml-100k", command_line=["--item_text_fields=movie_title,class"])
    assert given["item_text_fields"] == ["movie_title", "class"]


def test_all_settings_handed_in_again_give_the_same(small):
    first = config_of(
        small, command_line=["--learning_rate=1e-3", "--query_token=.", "--clip_grad_norm={'max_norm': 2}"]
    )
    again = Config(config_dict=first.merged)
    assert {**again.merged, "gpu_id": "0"} == first.merged  # a number in text is a number
    assert again["learning_rate"] == 1e-3
    assert again["clip_grad_norm"] == {"max_norm": 2}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("5e-5", 5e-5), ("True", True), ("false", False), ("None", None), ("[1, 5]", [1, 5]), (".", "."),
        ("[Q]", ["Q"]), ("'[Q]'", "[Q]"), ("opt-125m", "opt-125m"), ("Please give: ", "Please give: "),
        ("__import__('os').getcwd()", "__import__('os').getcwd()"),
    ],
)  # fmt: skip
def test_values_of_the_command_line(text, value):
    assert parse_command_line([f"--name={text}"]) == {"name": value}


def test_nothing_is_read_from_the_process_arguments(small, monkeypatch):
    monkeypatch.setattr("sys.argv", ["pytest", "--seed=99", "--epochs=99"])
    assert config_of(small)["seed"] != 99
