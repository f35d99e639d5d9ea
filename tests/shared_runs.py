"""Small runs of one and of several processes, and what it means that they end alike."""

import gzip
import json
import random

import pytest
import torch
from child_runs import command_line
from safetensors.torch import load_file
from several_processes import command_lines
from small_data import write_dataset

from recbole_llm.config.declared import has_setting

ITEMS = [f"i{n}" for n in range(13)]
EPOCHS = 4
SOON = 25  # seconds: by itself, within one or two, and not when somebody's patience ends, after 30 seconds or minutes
# 23 users and 13 alignment inputs in steps of 5: the last of 8 steps has one sample, and one process none.
MODELS = {
    "full": ["--model=ST2SI", "--tuning=full", "--learning_rate=0.001", "--train_batch_tokens=150"],
    "lora": [
        "--model=ST2SI", "--tuning=lora", "--learning_rate=0.003", "--lora_dropout=0", "--weight_average=0.9",
        "--clip_grad_norm={'max_norm': 0.5}", "--candidates=5", "--eval_batch_size=2", "--projection_init=texts",
    ],
    "ilp": ["--model=ST2SI", "--tuning=ilp", "--learning_rate=0.01", "--eval_batch_tokens=100"],
    "mixed": [
        "--model=ST2SI", "--tuning=ilp", "--learning_rate=0.01", "--id_model=SASRec", "--id_weight=~",
        "--id_model_settings={hidden_size: 8, inner_size: 8, n_layers: 1, epochs: 1}", "--eval_batch_size=2",
    ],
    "codes": ["--model=ST2SI", "--tuning=ilp", "--learning_rate=0.01", "--item_codes=4x5", "--eval_batch_size=2"],
    # AUC within a user reads all scores: the projection is whole while items are ranked.
    "tables": [
        "--model=ST2SI", "--tuning=ilp", "--learning_rate=0.01", "--eval_batch_size=2",
        "--metrics=['Recall','NDCG','ItemCoverage','GAUC']",
    ],
    "SASRec": [
        "--model=SASRec", "--train_positions=all", "--n_layers=1", "--hidden_size=16", "--inner_size=16",
        "--hidden_dropout_prob=0", "--attn_dropout_prob=0", "--clip_grad_norm={'max_norm': 0.5}",
    ],
    "GRU4Rec": [
        "--model=GRU4Rec", "--train_positions=all", "--embedding_size=8", "--hidden_size=8", "--dropout_prob=0",
    ],
    "IDLEAdapter": [
        "--model=IDLEAdapter", "--id_model=SASRec", "--id_weight=~", "--learning_rate=0.01", "--max_prompt_tokens=120",
        "--id_model_settings={hidden_size: 8, inner_size: 8, n_layers: 1, epochs: 1}",
    ],
    "IDLEAdapter from texts": [
        "--model=IDLEAdapter", "--id_model=SASRec", "--id_weight=~", "--learning_rate=0.01", "--max_prompt_tokens=120",
        "--id_model_settings={hidden_size: 8, inner_size: 8, n_layers: 1, epochs: 1}", "--projection_init=texts",
    ],
    **{
        model: [
            f"--model={model}", "--train_positions=all", "--hidden_size=8", "--hidden_dropout_prob=0",
            "--attn_dropout_prob=0", "--adaptor_dropout=0", "--num_experts=1", "--null_size=4",
        ]
        for model in ("ZESRec", "UniSRec", "AlphaFuse", "TextInitSASRec")
    },
}  # fmt: skip


def write_histories(folder):
    """Write the dataset of all these runs."""
    rng = random.Random(0)
    histories = {f"u{user}": rng.sample(ITEMS, rng.randint(4, 9)) for user in range(23)}
    write_dataset(folder, histories, {item: f"Item {item} of {rng.choice(['Zelda', 'Mario'])}" for item in ITEMS})
    return folder


def arguments_of(name, tiny, folder, use_gpu=False, epochs=EPOCHS):
    arguments = [
        *MODELS[name], "--dataset=small", "--data_path=.", f"--use_gpu={use_gpu}", f"--epochs={epochs}", "--topk=[1,5]",
        "--valid_metric=NDCG@5", "--train_batch_size=5", "--show_progress=False", "--state=ERROR", "--precision=fp32",
        "--resume_seconds=0", "--stored_states_gb=0", f"--checkpoint_dir={folder}", "--metric_decimal_place=8",
        "--metrics=['Recall','NDCG','ItemCoverage']", "--max_sequence_tokens=128", "--warmup_steps=3",
        f"--backbone={tiny['bert' if '--hidden_size=8' in MODELS[name] else 'llama']}",
    ]  # fmt: skip
    model = MODELS[name][0].removeprefix("--model=")
    names = [one[2:].partition("=")[0] for one in arguments]
    first = [names.index(each) == place for place, each in enumerate(names)]  # a model's own values come first
    return [
        one
        for one, each, is_first in zip(arguments, names, first, strict=True)
        if is_first and has_setting(model, each)
    ]


def only_run(folder):
    (run,) = (one for one in folder.iterdir() if one.is_dir() and not one.name.startswith("id-"))
    return run


def ranks_of(run, part):
    lines = gzip.decompress((run / f"ranks-{part}.tsv.gz").read_bytes()).decode().splitlines()
    return [line.split("\t") for line in lines]


def assert_ends_alike(run, expected, within=1e-5, weights=True):
    """Losses, metrics and, if asked for, weights are alike; at most two ranks differ, by one place: near-ties."""
    found, known = (json.loads((folder / "result.json").read_text()) for folder in (run, expected))
    assert found.keys() - {"processes"} == known.keys() - {"processes"}
    for own, other in zip(found["history"], known["history"], strict=True):
        assert own["train_loss"] == pytest.approx(other["train_loss"], rel=within)
        assert own["valid"] == pytest.approx(other["valid"], abs=within)
    for name in ("valid", "test", "valid_other", "test_other", "ilp_accuracy", "parameters", "counts"):
        assert found.get(name) == pytest.approx(known.get(name), abs=within), name
    assert found.get("candidates") == known.get("candidates")
    assert (found["epochs"], found["best_epoch"]) == (known["epochs"], known["best_epoch"])
    own_weights, other_weights = (load_file(folder / "model.safetensors") for folder in (run, expected))
    assert own_weights.keys() == other_weights.keys()
    for name, weight in other_weights.items() if weights else ():
        torch.testing.assert_close(own_weights[name], weight, rtol=0, atol=within)
    for part in ("valid", "test"):
        pairs = list(zip(ranks_of(run, part), ranks_of(expected, part), strict=True))
        different = [(own, other) for own, other in pairs if own != other]
        assert len(different) <= 2
        for own, other in different:
            assert own[:2] == other[:2]
            assert all(abs(int(a) - int(b)) <= 1 for a, b in zip(own[2:], other[2:], strict=True))


def resume(workspace, run, processes):
    arguments = ["run", f"--resume={run}"]
    if processes == 1:
        code, _, error = command_line(workspace, arguments)
        assert code == 0, error
        return
    ended = command_lines(workspace, arguments, processes)
    assert [one.code for one in ended] == [0] * processes, [one.error for one in ended]
