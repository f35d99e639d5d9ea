"""Settings of older versions: refused by name when they are given, read under today's names when they are stored."""

from pathlib import Path

import pytest
from kept_runs import all_kept
from small_data import small_settings

from recbole_llm.config import renamed
from recbole_llm.config.config import Config
from recbole_llm.errors import CheckpointError, SettingError
from recbole_llm.utils.files import read_yaml
from recbole_llm.utils.paths import shipped

RUNS = Path(__file__).resolve().parents[2] / "results" / "runs"
PROPERTIES = shipped("properties")
NEW_NAMES = {
    "max_window_items": "max_items", "max_prompt_items": "max_items", "ilp_dropout": "head_dropout",
    "backbone_tuning": "tuning",
}  # fmt: skip
# What properties/model/ had in version 0.1.0.
OLD_DEFAULTS = {
    "ST2SI": {
        "max_window_items": None, "ilp_dropout": 0.0, "backbone_dropout": None, "ilp_learning_rate": None,
        "initial_projection": None, "label_smoothing": 0.0, "id_states": False,
    },
    "IDLEAdapter": {"backbone_tuning": "frozen", "mmd_rho": "median", "max_prompt_items": None,
                    "prefixes_per_user": None},
}  # fmt: skip
# The kept runs on Scientific whose settings have something that left.
OF_SETTINGS_THAT_LEFT = {
    "ST2SI-LoRA-label-smoothing": "label_smoothing",
    "ST2SI-LoRA-mixed-windows": "train_window",
    "ST2SI-LoRA-ilp-rate": "ilp_learning_rate",
    "ST2SI-LoRA-id-states": "id_states",
    "ST2SI-SASRec-id-states": "id_states",
    "ST2SI-LoRA-after-ILP": "initial_projection",
    "ST2SI-LoRA-after-ILP-slow": "initial_projection",
    "ST2SI-full-after-ILP": "initial_projection",
    "ST2SI-full-after-ILP-slow": "initial_projection",
}


def everything_given(folder):
    """Every setting of a YAML file below a folder, those of nested ID models and labels included."""
    stack = [read_yaml(file) for file in sorted(folder.rglob("*.yaml"))]
    while stack:
        for name, value in stack.pop().items():
            yield name, value
            if isinstance(value, dict):
                stack.append(value)


# -- given -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["ST2SI", "IDLEAdapter", "SASRec"])
@pytest.mark.parametrize("name", renamed.OLD)
def test_an_old_name_is_refused_with_the_new_one_or_the_last_version(small, name, model):
    settings = small_settings(small, model=model, **{name: 1})
    with pytest.raises(SettingError) as found:
        Config(config_dict=settings)
    message = str(found.value)
    assert f"the setting '{name}' of " in message
    if name in NEW_NAMES:
        assert f"is called '{NEW_NAMES[name]}' since version 0.2.0" in message
    else:
        assert " left, " in message and "version 0.1.0 (commit ef675e4) had it last" in message


def test_a_value_that_left_is_refused_with_the_last_version(small):
    with pytest.raises(SettingError, match=r"train_window=mixed left, .* version 0.1.0 \(commit ef675e4\) had it last"):
        Config(config_dict=small_settings(small, train_window="mixed"))


def test_old_names_are_those_of_no_setting_of_today():
    assert {name for name, old in renamed.OLD.items() if old.new is None} == renamed.OLD.keys() - NEW_NAMES.keys()
    for name, old in renamed.OLD.items():
        for model in old.models:
            today = read_yaml(PROPERTIES / "model" / f"{model}.yaml")
            assert name not in today
            assert old.new == NEW_NAMES.get(name) and (old.new is None or old.new in today)


def test_files_that_ship_have_no_old_name():
    given = list(everything_given(PROPERTIES))
    assert len(given) > 1000
    for name, value in given:
        renamed.refuse(name, value)


# -- stored ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", OLD_DEFAULTS)
def test_old_defaults_are_the_defaults(small, model):
    default = Config(config_dict=small_settings(small, model=model)).merged
    stored = {name: value for name, value in default.items() if name not in NEW_NAMES.values() or name == "tuning"}
    if model == "IDLEAdapter":  # head_dropout was its name already
        stored = {**stored, "head_dropout": 0.0}
        del stored["tuning"]
    assert renamed.loadable({**stored, **OLD_DEFAULTS[model]}, "saved/run", training=True) == default


def test_what_is_renamed_keeps_its_value_in_id_models_too():
    adapter = {"max_prompt_items": 1, "backbone_tuning": "full", "mmd_rho": "median", "head_dropout": 0.2}
    stored = {"model": "ST2SI", "max_window_items": 3, "ilp_dropout": 0.1, "tuning": "ilp", "id_states": False,
              "id_model": "IDLEAdapter", "id_model_settings": adapter}  # fmt: skip
    assert renamed.translate(stored) == {
        "model": "ST2SI", "max_items": 3, "head_dropout": 0.1, "tuning": "ilp", "id_model": "IDLEAdapter",
        "id_model_settings": {"max_items": 1, "tuning": "full", "head_dropout": 0.2},
    }  # fmt: skip
    assert stored["id_model_settings"] is adapter and "max_prompt_items" in adapter, "changed in place"


def test_settings_of_other_models_are_left_alone():
    stored = {"model": "MyModel", "label_smoothing": 0.3, "mmd_rho": 2}
    assert renamed.translate(stored) == stored == renamed.loadable(stored, "saved/run", training=True)


@pytest.mark.parametrize(
    ("model", "name", "value"),
    [
        ("ST2SI", "label_smoothing", 0.1), ("ST2SI", "ilp_learning_rate", 0.01), ("ST2SI", "backbone_dropout", 0.0),
        ("ST2SI", "initial_projection", "saved/a/scenario.safetensors"), ("ST2SI", "train_window", "mixed"),
        ("ST2SI", "id_states", True), ("IDLEAdapter", "prefixes_per_user", 3), ("IDLEAdapter", "mmd_rho", 2.0),
    ],
)  # fmt: skip
def test_what_left_and_had_an_effect_is_refused(model, name, value):
    """A finished run scores as it did where the training alone was different; else it is refused, too."""
    stored = {"model": model, "epochs": 3, name: value}
    message = rf"the run saved/run has {name}={value}, which left after version 0.1.0 \(commit ef675e4\)"
    assert renamed.translate(stored) == stored, "a comparison can show it"
    with pytest.raises(CheckpointError, match=message):
        renamed.loadable(stored, "saved/run", training=True)
    if name == "id_states":
        with pytest.raises(CheckpointError, match=message):
            renamed.loadable(stored, "saved/run", training=False)
    else:
        assert renamed.loadable(stored, "saved/run", training=False) == {"model": model, "epochs": 3}
    assert renamed.known(stored) == {"model": model, "epochs": 3}


def test_all_kept_runs_are_read_under_todays_names():
    left = {}
    runs = all_kept()
    for run in runs:
        stored = run.result["settings"]
        settings = renamed.translate(stored)
        assert not settings.keys() & NEW_NAMES.keys()
        for name, value in renamed.known(settings).items():
            renamed.refuse(name, value)
        for name, value in settings.items():
            if name in renamed.OLD or (name, value) == ("train_window", "mixed"):
                left[run.label] = name
        for old, new in NEW_NAMES.items():
            if old in stored:
                assert settings[new] == stored[old]
    assert left == OF_SETTINGS_THAT_LEFT
    assert len(runs) > 200


def test_a_masked_history_is_one_that_is_not_repeatable():
    """Until version 0.2 RecBole's own `repeatable` was stored beside it, and no evaluation read that."""
    stored = {"model": "BPR", "mask_history": False, "repeatable": False}
    assert renamed.translate(stored) == {"model": "BPR", "repeatable": True}
    assert renamed.loadable({**stored, "mask_history": True}, "saved/run", training=True) == {
        "model": "BPR", "repeatable": False,
    }  # fmt: skip
