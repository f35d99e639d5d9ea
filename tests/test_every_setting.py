"""Every setting with values that nobody means: a run ends well or in one sentence, never in a traceback."""

import re

import pytest
from child_runs import command_line
from small_data import write_dataset

from recbole_llm.config.declared import OURS, general, own, reads_text, settings_of
from recbole_llm.utils.values import parse_value

VALUES = ("-1", "abc", "1e400", "~", "[]", "{}")
# Without them a run of a minute would be asked for, or a service that is elsewhere.
LEFT_ALONE = {"model", "dataset", "data_path", "checkpoint_dir", "epochs", "show_progress", "url", "config_files"}
ONE_SENTENCE = re.compile(r"[^\n]{20,}")
MODELS = ("SASRec", *OURS)
SMALL_TRANSFORMER = ("--hidden_size=8", "--inner_size=8", "--n_heads=2", "--n_layers=1")
# What a run of each model needs on this dataset beside its backbone.
NEEDED = {
    "AlphaFuse": (*SMALL_TRANSFORMER, "--null_size=4"),
    "GPT4Rec": ("--num_queries=3", "--max_attribute_tokens=8", "--max_prompt_tokens=90", "--query_prompt={history}"),
    "IDLEAdapter": ("--id_model=GRU4Rec", "--id_model_settings={'epochs': 1}", "--max_prompt_tokens=128"),
    "LLMRec": ("--max_sequence_tokens=100",),
    "MLP4Rec": ("--selected_features=['title']", "--load_col={'inter': '*', 'item': '*'}"),
    "MoRec": SMALL_TRANSFORMER,
    "P5": ("--id_clusters=3", "--cluster_items=3"),
    "Recformer": ("--max_sequence_tokens=100",),
    "S3Rec": ("--item_attribute=title", "--load_col={'inter': '*', 'item': '*'}", "--pretrain_epochs=1"),
    "ST2SI": ("--max_sequence_tokens=100",),
    "TextInitSASRec": SMALL_TRANSFORMER,
    "TwinBERT": ("--max_sequence_tokens=100",),
    "UniSRec": (*SMALL_TRANSFORMER, "--num_experts=2"),
    "ZESRec": SMALL_TRANSFORMER,
}  # fmt: skip
DECODERS = ("GPT4Rec", "LLMRec", "P5", "ST2SI")


def quick(model: str, tiny: dict) -> list[str]:
    """Return the arguments of a run that takes a second."""
    arguments = [
        f"--model={model}", "--dataset=small", "--data_path=.", "--use_gpu=False", "--epochs=1", "--topk=[1,5]",
        "--valid_metric=NDCG@5", "--show_progress=False", "--checkpoint_dir=saved", *NEEDED.get(model, ()),
    ]  # fmt: skip
    if reads_text(model):
        arguments.append(f"--backbone={tiny['opt' if model in DECODERS else 'bert']}")
    return arguments


def cases() -> list[tuple[str, str, tuple[str, ...]]]:
    """Return each model with each setting that it reads, and the values to try; those of every run with SASRec.

    Where an earlier model has the same setting with the same kind, the values that the kind refuses are tried with that
    one alone: they are refused before a model is made.
    """
    found, tried = [], []
    for model in MODELS:
        for name, setting in ({**general(), **own(model)} if model == "SASRec" else own(model)).items():
            if name in LEFT_ALONE:
                continue
            known = (name, setting.kind) in tried
            values = tuple(v for v in VALUES if not known or setting.kind.fault(name, parse_value(v)) is None)
            tried.append((name, setting.kind))
            if values:
                found.append((model, name, values))
    return found


CASES = cases()


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("settings")
    write_dataset(folder)
    return folder


def given(arguments: list[str], name: str, value: str) -> list[str]:
    """Return the arguments with a setting in the place of the same one."""
    return [*(argument for argument in arguments if not argument.startswith(f"--{name}=")), f"--{name}={value}"]


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
def test_the_run_in_which_values_are_tried_ends_well(place, tiny, model):
    code, _, error = command_line(place, quick(model, tiny))
    assert code == 0, error


@pytest.mark.slow
@pytest.mark.parametrize(("model", "name", "values"), CASES, ids=[f"{model}-{name}" for model, name, _ in CASES])
def test_a_value_that_nobody_means_ends_well_or_in_a_sentence(place, tiny, model, name, values):
    faults = []
    for value in values:
        code, out, error = command_line(place, given(quick(model, tiny), name, value))
        if code not in (0, 1, 2) or "Traceback" in out + error or (code and not ONE_SENTENCE.search(error)):
            faults.append((value, code, error.strip().splitlines()[-2:]))
    assert not faults, faults


@pytest.mark.parametrize("model", MODELS)
def test_what_a_kind_refuses_is_said_with_the_name_of_the_setting(model):
    for name, setting in settings_of(model).items():
        for value in VALUES:
            sentence = setting.kind.fault(name, parse_value(value))
            assert sentence is None or name in sentence
