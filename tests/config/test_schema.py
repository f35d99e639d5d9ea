"""Every declared setting refuses what it cannot be, in one sentence, and takes what RecBole and this package set."""

import logging
import math
import os

import numpy as np
import pytest
import torch
import yaml
from recbole.evaluator import metric_types
from recbole.utils.argument_list import (
    dataset_arguments,
    evaluation_arguments,
    general_arguments,
    training_arguments,
)

from recbole_llm.config import declared, kinds, registry
from recbole_llm.config.config import Config
from recbole_llm.config.settings.recbole_models import FOLDER
from recbole_llm.errors import SettingError
from recbole_llm.utils.files import read_yaml

# What no setting of a kind takes, written down apart from the kinds themselves.
NO_FLAG = ["yes", "no", "on", 0, 1, None, [True]]
NO_NUMBER = ["some", True, [1], {}, math.nan, math.inf, -math.inf]
NO_TEXT = [True, None, ["a"], {"a": 1}]
NO_MAPPING = ["some", 3, True, ["a"]]


def bad_values(kind):
    """Return values that a kind must refuse."""
    match kind:
        case kinds.Flag():
            return NO_FLAG
        case kinds.Whole():
            low = [] if kind.low is None else [kind.low - 1]
            high = [] if kind.high is None else [kind.high + 1]
            return [*NO_NUMBER, None, 1.5, *low, *high]
        case kinds.Number():
            beyond = [kind.above, kind.below]
            below = [] if kind.low is None else [kind.low - 0.1]
            above = [] if kind.high is None else [kind.high + 0.1]
            return [*NO_NUMBER, None, *below, *above, *(value for value in beyond if value is not None)]
        case kinds.Text():
            return [*NO_TEXT, *([] if kind.empty else [""]), *([] if kind.numbers else [3])]
        case kinds.Choice():
            return [*NO_TEXT, 3, "no such choice", ""]
        case kinds.Maybe():
            return [value for value in bad_values(kind.kind) if value is not None]
        case kinds.Items():
            entries = [[value] for value in bad_values(kind.kind)]
            alone = [value for value in bad_values(kind.kind) if not isinstance(value, list)] if kind.single else [3]
            return [*entries, *alone, *([[]] if kind.least else [])]
        case kinds.Pairs():
            return [*NO_MAPPING, *({"a": value} for value in bad_values(kind.kind)), {1: 1}]
        case kinds.Keys():
            known = [{key: value} for key, inner in kind.kinds.items() for value in bad_values(inner)]
            return [*NO_MAPPING, *known, {"no such key": 1}]
        case kinds.Either():
            return []  # in BAD
        case _:
            return []


# Kinds that are no table of a type.
BAD = {
    "gpu_id": ["first", -1, 1.5, True, None, [0, 1], "0,1", "0;1"],
    "encoding": ["utf-9", 8, True],
    "user_inter_num_interval": ["[5,", "5", 5, [4], ["a", "b"], [1, 2, 3], "[a,b]", ""],
    "item_inter_num_interval": ["[5,", "5", 5],
    "entity_kg_num_interval": ["[5,", "5", 5],
    "relation_kg_num_interval": ["[5,", "5", 5],
    "val_interval": [{"rating": 3}, {"rating": "3"}, "[3,inf)", {"rating": [None]}],
    "load_col": [["user_id"], {"inter": 3}, {"inter": "user_id"}, {"inter": None}, {3: ["user_id"]}],
    "train_neg_sample_args": [
        "some", 3, {"distribution": "unform"}, {"sample_num": 0}, {"alpha": -1}, {"dynamic": "no"},
        {"candidate_num": -1}, {"samples": 1},
    ],
    "eval_args": [
        {"mode": "ful"}, {"mode": "uni"}, {"mode": "uni0"}, {"mode": {"valid": "pop"}}, {"mode": {"train": "full"}},
        {"split": {"LS": "valid"}}, {"split": {"RS": []}}, {"split": {"RS": [0.8, "x"]}}, {"split": {}},
        {"split": {"LS": "valid_and_test", "RS": [1]}}, {"split": "LS"}, {"order": "OT"}, {"group_by": "item"},
    ],
    "port": [True, [1], -1],
    "nproc": [2], "world_size": [4], "offset": [1], "local_rank": [1], "ip": ["localhost"],
    "save_dataset": [True], "save_dataloaders": [True], "dataset_save_path": ["x"], "dataloaders_save_path": ["x"],
    "valid_metric": ["NDCG@4", "NDGC@10"],
    "metrics": [["NDGC"], "NDGC", []],
    "topk": [0, [0], [], "ten", [1.5], True, -1],
    "repeatable": ["never", "True", 0, 1, None, [True]],
    "item_codes": ["8", "0x256", "8x0", "8 x 256", "", 8, [8, 256], True],
}  # fmt: skip
FREE = {"config_files", "config_file"}  # read by nobody
MODELS = ("ST2SI", "IDLEAdapter", "ComiRec", "MLP4Rec", "S3Rec", "SASRec", "BERT4Rec", "NeuMF", "SHAN", "FEARec")


def cases():
    """Yield a model and one of its settings, each declaration once."""
    for name, setting in declared.general().items():
        if name not in {"model", "dataset", *FREE}:
            yield "SASRec", setting
    for model in MODELS:
        for setting in declared.own(model).values():
            yield model, setting


def bad_values_of(setting):
    return [*bad_values(setting.kind), *BAD.get(setting.name, [])]


@pytest.mark.parametrize(("model", "setting"), list(cases()), ids=lambda value: getattr(value, "name", value))
def test_a_value_that_cannot_be_is_refused(model, setting):
    bad = bad_values_of(setting)
    assert bad, f"no bad value is known for {setting.kind}"
    for value in bad:
        found = declared.fault({setting.name: value}, model)
        if found is None:  # a check of several settings together says it
            with pytest.raises(SettingError, match=setting.name):
                Config(model, "ml-100k", config_dict={setting.name: value})
        else:
            assert found.startswith(setting.name) and "\n" not in found


def test_a_config_refuses_what_the_declarations_refuse():
    """For a fourth of the settings: building a Config takes longer than checking a value."""
    for model, setting in list(cases())[::4]:
        value = bad_values_of(setting)[0]
        with pytest.raises(SettingError, match=setting.name):
            Config(model, "ml-100k", config_dict={setting.name: value})


@pytest.mark.parametrize(
    ("model", "argument", "words"),
    [
        ("ST2SI", "multi_query=no", "multi_query=no must be True or False"),
        ("ST2SI", "alignment=no", "alignment=no must be True or False"),
        ("ST2SI", "compile=on", "compile=on must be True or False"),
        ("ST2SI", "gradient_checkpointing=yes", "gradient_checkpointing=yes must be True or False"),
        ("ST2SI", "lr_scheduler=cosin", "lr_scheduler=cosin must be cosine, linear or constant; did you mean"),
        ("SASRec", "train_share=5", "train_share=5 must be a number above 0 and up to 1, or ~"),
        ("SASRec", "seed=4294967296", "seed=4294967296 must be a whole number from 0 to 4294967295"),
        ("SASRec", "worker=-2", "worker=-2 must be a whole number from 0"),
        ("SASRec", "learning_rate=1e400", "learning_rate=inf must be a number from 0"),
        ("SASRec", "hidden_act=gelo", "hidden_act=gelo must be gelu, relu, swish, tanh or sigmoid; did you mean"),
        ("SASRec", "hidden_dropout_prob=1", "hidden_dropout_prob=1 must be a number from 0 to below 1"),
        ("SASRec", "gpu_id=0,1", "gpu_id=0,1 names several devices"),
        ("SASRec", "nproc=2", "nproc=2 is for several processes"),
        ("SASRec", "clip_grad_norm={'max_norm': -1}", "clip_grad_norm.max_norm=-1 must be a number above 0"),
        ("SASRec", "clip_grad_norm={'maxnorm': 1}", "clip_grad_norm has no 'maxnorm'; did you mean 'max_norm'"),
        ("SASRec", "eval_args={'mode': 'ful'}", "eval_args.mode=ful must be full, labeled"),
        ("SASRec", "load_col={'inter': 5}", "load_col.inter=5 must be a list"),
        ("FEARec", "global_ratio=1.5", "global_ratio=1.5 must be a number from 0 to 1"),
        ("CDAE", "loss_type=CE", "loss_type=CE must be BCE or MSE"),
        ("HGN", "reg_weight=0.1", "reg_weight=0.1 must be a list"),
        ("ST2SI", "learner=sgd", "learner=sgd has no effect on ST2SI, which always trains with AdamW"),
        ("IDLEAdapter", "enable_amp=True", "enable_amp=True has no effect on IDLEAdapter"),
        ("ST2SI", "hidden_size=64", "the setting 'hidden_size' is not one of ST2SI and has no effect"),
        ("SASRec", "train_batch_tokens=64", "the setting 'train_batch_tokens' is not one of SASRec"),
        ("ST2SI", "id_model_settings={'epoch': 1}", "id_model_settings: there is no setting 'epoch'; did you mean"),
        ("IDLEAdapter", "id_model_settings={'epochs': -1}", "id_model_settings: epochs=-1 must be a whole number"),
        ("IDLEAdapter", "id_model_settings={'n_heads': 2}", "id_model_settings: the setting 'n_heads' is not one of"),
    ],
)  # fmt: skip
def test_the_sentence(model, argument, words):
    line = [f"--{argument}", *(["--id_model=SASRec"] if model == "ST2SI" and "id_model" in argument else [])]
    with pytest.raises(SettingError) as error:
        Config(model, "ml-100k", command_line=line)
    assert words in str(error.value)


@pytest.mark.parametrize(
    ("model", "settings"),
    [
        ("SASRec", {"learning_rate": 0, "clip_grad_norm": {"max_norm": 5, "norm_type": 2}, "hidden_dropout_prob": 0}),
        ("SASRec", {"eval_args": {"mode": "uni100"}, "metrics": "ndcg", "topk": 10, "valid_metric": "ndcg@10"}),
        ("SASRec", {"eval_args": {"mode": {"valid": "uni100", "test": "full"}}, "learner": "AdamW", "state": "Error"}),
        ("SASRec", {"val_interval": {"rating": "[3,inf)", "user_id": ["1", "2"]}, "load_col": {"inter": "*"}}),
        ("SASRec", {"user_inter_num_interval": [4, 24], "item_inter_num_interval": "[4,inf)"}),
        ("SASRec", {"user_inter_num_interval": "[5, inf)", "item_inter_num_interval": None, "rm_dup_inter": "first"}),
        ("SASRec", {"nproc": 1, "encoding": "latin-1", "gpu_id": "", "transform": "crop_itemseq"}),
        ("BPR", {"train_neg_sample_args": {"distribution": "popularity", "sample_num": 2}, "weight_decay": 1}),
        ("BPR", {"eval_args": {"split": {"RS": [8, 1, 1]}, "order": "RO", "group_by": "none"}}),
        ("ST2SI", {"learner": "adam", "learning_rate": 0, "lora_targets": ["q_proj"], "pretrain_datasets": "Food"}),
        ("ST2SI", {"learner": "adamw", "id_model": "SASRec", "id_model_settings": {"n_layers": 1}, "id_weight": 1}),
        ("IDLEAdapter", {"weight_average": 0.99, "max_items": 5, "precision": "fp32", "mmd_weight": 0}),
        ("NCEPLRec", {"reg_weight": 10, "beta": 1}),
    ],
)  # fmt: skip
def test_values_that_are_right_are_taken(model, settings):
    config = Config(model, "ml-100k", config_dict=settings)
    for name, value in settings.items():
        taken = config.merged[name]
        assert taken == value or (name == "eval_args" and {part: taken[part] for part in value} == value)


def test_every_model_builds_a_config_from_its_defaults():
    """Whose own package is missing (NCL, decision trees) is refused for that alone; its values are checked, too."""
    for model in registry.known_models():
        assert declared.fault({**declared.recbole_models.recbole_defaults(), **own_defaults(model)}, model) is None, (
            model
        )
        try:
            Config(model, "ml-100k")
        except SettingError as error:
            assert "which is not installed" in str(error), (model, error)


def own_defaults(model):
    return {name: setting.default for name, setting in declared.own(model).items()}


def test_no_name_of_recbole_is_undeclared():
    lists = (*general_arguments, *training_arguments, *evaluation_arguments, *dataset_arguments)
    files = [
        FOLDER / "overall.yaml",
        FOLDER / "dataset" / "sample.yaml",
        *(FOLDER / "quick_start_config").glob("*.yaml"),
    ]
    assert {*lists, *(name for file in files for name in read_yaml(file))} <= declared.general().keys()
    for file in (FOLDER / "model").glob("*.yaml"):
        assert read_yaml(file).keys() <= declared.own(file.stem).keys()


def test_metrics_are_recboles():
    for metric in metric_types:
        assert declared.general()["metrics"].kind.accepts([metric.upper()])
    assert len(declared.general()["metrics"].kind.kind.names) == len(metric_types)


def test_a_file_may_have_settings_of_other_models(tmp_path, caplog):
    file = tmp_path / "shared.yaml"
    file.write_text("hidden_size: 32\nlearner: sgd\ntrain_batch_tokens: 512\nepochs: 3\n")
    with caplog.at_level(logging.WARNING):
        config = Config("ST2SI", "ml-100k", [file])
    assert config["epochs"] == 3 and config["train_batch_tokens"] == 512
    assert "hidden_size" not in config.merged and config.merged["learner"] == "adam"
    assert config.given.keys() == {"epochs", "train_batch_tokens"}
    warned = [record.getMessage() for record in caplog.records]
    assert [text.split("'")[1] for text in warned] == ["hidden_size", "learner"]
    # what was built is built again from what it says of itself
    again = Config(config_dict=config.merged).merged
    assert {**again, "gpu_id": "0"} == config.merged


def test_an_unknown_name_in_a_file_is_refused(tmp_path):
    file = tmp_path / "misspelt.yaml"
    file.write_text("hiden_size: 32\n")
    with pytest.raises(SettingError, match="no setting 'hiden_size'; did you mean 'hidden_size'"):
        Config("SASRec", "ml-100k", [file])


def test_a_config_leaves_the_process_as_it_found_it():
    Config("IDLEAdapter", "ml-100k")  # importing the model's class is not what is tested
    root, cudnn = logging.getLogger(), torch.backends.cudnn
    given = {"gpu_id": "0", "id_model_settings": {"n_layers": 1}, "id_model": "SASRec"}

    def state():
        resolvers = sum(map(len, yaml.FullLoader.yaml_implicit_resolvers.values()))
        return (
            dict(os.environ), dict(vars(np)), (cudnn.benchmark, cudnn.deterministic, cudnn.enabled), resolvers,
            root.level, list(root.handlers), list(dataset_arguments), list(general_arguments), repr(given),
            torch.random.get_rng_state().tolist(), np.random.get_state()[1].tolist(),
        )  # fmt: skip

    before = state()
    Config("IDLEAdapter", "ml-100k", config_dict=given)
    Config("SASRec", "Scientific")
    assert state() == before


def test_a_config_makes_no_dataset(tmp_path, monkeypatch):
    monkeypatch.setattr("recbole_llm.prepare.make.prepare", lambda *_, **__: pytest.fail("a dataset was made"))
    config = Config("SASRec", "Scientific", config_dict={"data_path": str(tmp_path)})
    assert config["data_path"] == str(tmp_path / "Scientific") and not list(tmp_path.iterdir())
    with pytest.raises(SettingError, match=r"no dataset 'Scientifc'.*did you mean 'Scientific'"):
        Config("SASRec", "Scientifc", config_dict={"data_path": str(tmp_path)})


def test_the_device_is_that_of_gpu_id(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert Config("Pop", "ml-100k", config_dict={"gpu_id": 1})["device"] == torch.device("cuda", 1)
    assert Config("Pop", "ml-100k")["device"] == torch.device("cuda", 0)
    assert Config("Pop", "ml-100k", config_dict={"use_gpu": False})["device"] == torch.device("cpu")
    with pytest.raises(SettingError, match="gpu_id=2 must be below 2"):
        Config("Pop", "ml-100k", config_dict={"gpu_id": 2})


@pytest.mark.parametrize("number", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("place", [lambda n: n, lambda n: [n], lambda n: {"a": n}, lambda n: {"a": [1.0, {"b": (n,)}]}])
def test_a_number_that_no_file_can_hold_is_refused_wherever_it_stands(place, number):
    """Some settings take anything; a result is JSON, which has no such number."""
    assert "config_file=" in declared.fault({"config_file": place(number)}, None)
    assert declared.fault({"config_file": place(1e300)}, None) is None
    assert declared.fault({"numerical_features": None}, None).startswith("numerical_features=None must be")
