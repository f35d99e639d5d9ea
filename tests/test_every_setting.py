"""Every setting with values that nobody means: a run ends well or in one sentence, never in a traceback."""

import re

import pytest
from child_runs import command_line
from small_data import write_dataset

from recbole_llm.config.declared import general, models_with_settings, own

VALUES = ("-1", "abc", "1e400", "~", "[]", "{}")
OURS = ("ST2SI", "IDLEAdapter")
# Without them a run of a minute would be asked for, or a service that is elsewhere.
LEFT_ALONE = {"model", "dataset", "data_path", "checkpoint_dir", "epochs", "show_progress", "url", "config_files"}
ONE_SENTENCE = re.compile(r"[^\n]{20,}")


def quick(model: str, tiny: dict) -> list[str]:
    """Return the arguments of a run that takes a second."""
    arguments = [
        f"--model={model}", "--dataset=small", "--data_path=.", "--use_gpu=False", "--epochs=1", "--topk=[1,5]",
        "--valid_metric=NDCG@5", "--train_batch_size=64", "--show_progress=False", "--checkpoint_dir=saved",
    ]  # fmt: skip
    if model in OURS:
        arguments.append(f"--backbone={tiny['opt']}")
    if model == "IDLEAdapter":
        arguments += ["--id_model=GRU4Rec", "--id_model_settings={'epochs': 1}"]
    return arguments


def cases() -> list[tuple[str, str]]:
    """Return each setting with the model that reads it: those of every run with SASRec."""
    found = [("SASRec", name) for name in {**general(), **own("SASRec")}]
    found += [(model, name) for model in OURS for name in own(model)]
    others = [model for model in models_with_settings() if model not in (*OURS, "SASRec")]
    found += [(model, name) for model in others if model in ("ComiRec", "MLP4Rec", "S3Rec") for name in own(model)]
    return sorted({(model, name) for model, name in found if name not in LEFT_ALONE})


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("settings")
    write_dataset(folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(("model", "name"), cases())
def test_a_value_that_nobody_means_ends_well_or_in_a_sentence(place, tiny, model, name):
    faults = []
    for value in VALUES:
        code, out, error = command_line(place, [*quick(model, tiny), f"--{name}={value}"])
        if code not in (0, 1, 2) or "Traceback" in out + error or (code and not ONE_SENTENCE.search(error)):
            faults.append((value, code, error.strip().splitlines()[-2:]))
    assert not faults, faults
