"""Which settings a model has, and whether their values can be: `config/settings/` by model."""

import dataclasses
import functools
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from recbole_llm.config.kinds import Matching, Maybe, Text
from recbole_llm.config.schema import RECBOLE, Role, Section, Setting
from recbole_llm.config.settings import (
    generative_models,
    id_models,
    idleadapter,
    overall,
    prompt_models,
    recbole_data,
    recbole_models,
    recbole_run,
    st2si,
    text_towers,
    vector_models,
)
from recbole_llm.errors import SettingError
from recbole_llm.utils.paths import shipped
from recbole_llm.utils.values import is_finite

RUN = Section(
    "Run",
    (
        Setting(
            "model",
            Matching("the name of a model, or a class", lambda value: True),
            None,
            Role.IDENTITY,
            "The name of the model.",
        ),
        Setting(
            "dataset",
            Maybe(Text("the name of a dataset", numbers=True)),
            None,
            Role.IDENTITY,
            "The name of the dataset.",
        ),
    ),
)
# What RecBole says of every run; `overall.OVERALL` replaces some of it.
RECBOLE_GENERAL = (*recbole_run.RUN, recbole_data.FILES, recbole_data.ROWS, recbole_data.HISTORIES)
# Sections of this package's own files, by model.
OURS: dict[str, tuple[Section, ...]] = {
    "AlphaFuse": vector_models.ALPHAFUSE,
    "ComiRec": id_models.COMIREC,
    "GPT4Rec": generative_models.GPT4REC,
    "IDLEAdapter": idleadapter.IDLEADAPTER,
    "LLMPrompt": prompt_models.LLMPROMPT,
    "LLMRec": text_towers.LLMREC,
    "LLaRA": prompt_models.LLARA,
    "MLP4Rec": id_models.MLP4REC,
    "MoRec": text_towers.MOREC,
    "P5": generative_models.P5,
    "Recformer": text_towers.RECFORMER,
    "S3Rec": id_models.S3REC,
    "ST2SI": st2si.ST2SI,
    "TALLRec": prompt_models.TALLREC,
    "TwinBERT": text_towers.TWINBERT,
    "TextInitSASRec": vector_models.TEXTINITSASREC,
    "TextSLIT": vector_models.TEXTSLIT,
    "UniSRec": vector_models.UNISREC,
    "ZESRec": vector_models.ZESREC,
}
TITLES = {
    "AlphaFuse": vector_models.ALPHAFUSE_TITLE,
    "ComiRec": id_models.COMIREC_TITLE,
    "GPT4Rec": generative_models.GPT4REC_TITLE,
    "IDLEAdapter": idleadapter.TITLE,
    "LLMPrompt": prompt_models.LLMPROMPT_TITLE,
    "LLMRec": text_towers.LLMREC_TITLE,
    "LLaRA": prompt_models.LLARA_TITLE,
    "MLP4Rec": id_models.MLP4REC_TITLE,
    "MoRec": text_towers.MOREC_TITLE,
    "P5": generative_models.P5_TITLE,
    "Recformer": text_towers.RECFORMER_TITLE,
    "S3Rec": id_models.S3REC_TITLE,
    "ST2SI": st2si.TITLE,
    "TALLRec": prompt_models.TALLREC_TITLE,
    "TwinBERT": text_towers.TWINBERT_TITLE,
    "TextInitSASRec": vector_models.TEXTINITSASREC_TITLE,
    "TextSLIT": vector_models.TEXTSLIT_TITLE,
    "UniSRec": vector_models.UNISREC_TITLE,
    "ZESRec": vector_models.ZESREC_TITLE,
}


def of_sections(sections: tuple[Section, ...]) -> tuple[Setting, ...]:
    """Return the settings of some sections, in their order."""
    return tuple(setting for section in sections for setting in section.settings)


@functools.cache
def general() -> Mapping[str, Setting]:
    """Return the settings that every run has, by name."""
    defaults = recbole_models.recbole_defaults()
    found = {}
    for setting in of_sections((RUN, *RECBOLE_GENERAL, *overall.OVERALL)):
        known = setting.default is not RECBOLE
        found[setting.name] = setting if known else dataclasses.replace(setting, default=defaults.get(setting.name))
    return MappingProxyType(found)


@functools.cache
def own(model: str) -> Mapping[str, Setting]:
    """Return the settings that are declared for a model: its own, and general ones with another default."""
    settings = list(recbole_models.recbole_model(model))
    if model in OURS:
        settings += of_sections(OURS[model])
    else:  # a model that somebody added, with a file alone
        settings += recbole_models.of_file(shipped("properties") / "model" / f"{model}.yaml")
    return MappingProxyType({setting.name: setting for setting in settings})


@functools.cache
def settings_of(model: str | None = None) -> Mapping[str, Setting]:
    """Return all settings that a model has, by name; those of every run for None and for somebody's own model.

    A model's own declaration takes the place of the general one: `learning_rate` of ST2SI may be ``~``.
    """
    return MappingProxyType({**general(), **(own(model) if model is not None else {})})


# What `trainer.packed_trainer.PackedTrainer` and the batches of its models have of their own, by setting: the values
# that say what it does anyway, and what it does.
_OF_PACKED_MODELS: dict[str, tuple[tuple[Any, ...], str]] = {
    "learner": (("adamw",), "always trains with AdamW"),
    "enable_amp": ((False,), "takes its arithmetic from the setting precision"),
    "enable_scaler": ((False,), "takes its arithmetic from the setting precision"),
    "shuffle": ((True,), "always draws the order of its samples from the seed"),
    "transform": ((None,), "makes its own batches"),
    "train_neg_sample_args": ((None, "None"), "takes no negative samples"),
}


@functools.cache
def is_packed(model: str | None) -> bool:
    """Tell whether a model packs its own batches, and so has a trainer of its own."""
    return model is not None and "train_batch_tokens" in own(model)


def without_effect(model: str, name: str) -> bool:
    """Tell whether a setting that every run has is not read by `model`."""
    return is_packed(model) and name in _OF_PACKED_MODELS


def ignored(model: str, name: str, value: Any) -> str | None:
    """Return one sentence if `model` would not do what a setting says, else None.

    A value that is the default, or what the model does anyway, asks for nothing.
    """
    if not without_effect(model, name):
        return None
    values, instead = _OF_PACKED_MODELS[name]
    if value in values or value == settings_of(model)[name].default:
        return None
    return f"{name}={value} has no effect on {model}, which {instead}: leave it out"


@functools.cache
def models_with_settings() -> tuple[str, ...]:
    """Return the names of all models that have settings of their own, this package's first."""
    return (*OURS, *sorted({path.stem for path in (recbole_models.FOLDER / "model").glob("*.yaml")} - set(OURS)))


@functools.cache
def names_of_all_models() -> frozenset[str]:
    """Return the names that are settings of any model."""
    return frozenset(name for model in models_with_settings() for name in own(model))


def has_setting(model: str, name: str) -> bool:
    """Tell whether `model` reads a setting; an unknown name is left to `Config`."""
    if without_effect(model, name):
        return False
    return name in settings_of(model) or name not in names_of_all_models()


def reads_text(model: str | None) -> bool:
    """Tell whether a model of this package reads item text with a language model: it then has `backbone`."""
    return model is not None and "backbone" in own(model)


def fault(settings: Mapping[str, Any], model: str | None) -> str | None:
    """Return one sentence on the first setting whose value cannot be, or None; names that `model` lacks are skipped."""
    declared = settings_of(model)
    for name, value in settings.items():
        wrong = declared[name].kind.fault(name, value) if name in declared else None
        if wrong is None and not is_finite(value):  # no file that a run leaves could hold it
            wrong = f"{name}={value} must not hold a number that is infinite or nan"
        if wrong is not None:
            return wrong
    return None


def validate(settings: Mapping[str, Any], model: str | None) -> None:
    """Refuse settings whose values cannot be, before anything is loaded, made or trained.

    Args:
        settings: all settings of a run.
        model: the name of its model; None for somebody's own.

    Raises:
        SettingError: ``name=value must be ...``, and the nearest choice where there are choices.
    """
    wrong = fault(settings, model)
    if wrong is not None:
        raise SettingError(wrong)
