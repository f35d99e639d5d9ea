"""Roles say what shapes a result, what an ID model shares, what a search may vary, and what a hash holds."""

import hashlib
import json
from pathlib import Path

import pytest
from kept_runs import all_kept
from recbole.utils.argument_list import dataset_arguments

from recbole_llm.config import declared, fingerprint, roles
from recbole_llm.config.config import Config
from recbole_llm.config.kinds import Flag
from recbole_llm.config.renamed import OLD
from recbole_llm.config.schema import FIRST_VERSION, Role, Setting
from recbole_llm.stages.store import digest

RUNS = Path(__file__).resolve().parents[2] / "results" / "runs"

# The lists that roles took the place of, as they were.
NOT_SHAPING = (
    *("seed", "gpu_id", "worker", "use_gpu", "device", "state", "show_progress", "log_wandb", "reproducibility"),
    *("data_path", "checkpoint_dir", "run_folder", "config_files", "save_dataset", "dataset_save_path"),
    *("resume_seconds", "eval_batch_size", "eval_batch_tokens"),
)
SHARED = (
    *(name for name in dataset_arguments if name != "MAX_ITEM_LIST_LENGTH"),
    *("attribute_field", "attribute_separator", "encoding", "item_text_fields", "items_without_text"),
    *("benchmark_filename", "eval_args", "metrics", "topk"),
    *("valid_metric", "valid_metric_bigger", "repeatable", "seed", "reproducibility"),
)
IN_SAME_PLACE = (
    *("device_table", "use_gpu", "gpu_id", "show_progress", "state", "checkpoint_dir", "resume_seconds", "data_path"),
    "eval_batch_size",
)
PROTOCOL = (
    *("eval_args", "repeatable", "topk", "candidates", "candidate_seeds", "benchmark_filename"),
    *("items_without_text", "user_inter_num_interval", "item_inter_num_interval", "filter_inter_by_user_or_item"),
    *("val_interval", "rm_dup_inter"),
)
PRETRAINING = (
    *("weights", "precision", "query_token", "multi_query", "alignment", "alignment_instruction", "alignment_token"),
    *("max_attribute_tokens", "MAX_ITEM_LIST_LENGTH", "max_sequence_tokens", "weight_decay", "warmup_steps"),
    *("lr_scheduler", "clip_grad_norm", "train_batch_size"),
)
IN_PRETRAINING = (
    *("gradient_checkpointing", "compile", "train_batch_tokens", "eval_batch_tokens"),
    *("use_gpu", "gpu_id", "show_progress", "state", "checkpoint_dir", "resume_seconds"),
)


def test_roles_say_what_the_lists_said():
    assert not any(roles.shapes_result(name) for name in NOT_SHAPING)
    for name in (
        "learning_rate",
        "eval_args",
        "backbone",
        "train_batch_size",
        "id_model",
        "topk",
        "load_col",
        "nosuch",
    ):
        assert roles.shapes_result(name)
    assert all(roles.shared_with_id_model(name) for name in SHARED)
    for name in ("learning_rate", "epochs", "MAX_ITEM_LIST_LENGTH", "candidates", "prompt", "backbone", "gpu_id"):
        assert not roles.shared_with_id_model(name)
    assert all(roles.in_same_place(name) for name in IN_SAME_PLACE)
    assert set(PROTOCOL) <= set(roles.protocol_settings())
    assert not {"metrics", "valid_metric", "load_col", "seed"} & set(roles.protocol_settings())
    assert set(roles.pretraining_settings("ST2SI")) == set(PRETRAINING)
    assert set(IN_PRETRAINING) <= set(roles.pretraining_settings("ST2SI", shaping=False))
    of_s3rec = set(roles.pretraining_settings("S3Rec"))
    assert {"learner", "learning_rate", "mask_ratio", "pretrain_epochs", "shuffle", "transform"} <= of_s3rec
    assert not {"train_stage", "pre_model_path", "save_step", "loss_type", "precision", "epochs"} & of_s3rec


def test_the_size_of_a_pass_shapes_only_what_is_computed_by_pass():
    assert not roles.shapes_result("train_batch_tokens", "ST2SI")
    assert roles.shapes_result("train_batch_tokens", "IDLEAdapter") and roles.shapes_result("train_batch_tokens")


@pytest.mark.parametrize("name", ["seed", "eval_args", "data_path", "gpu_id", "metrics", "load_col", "topk"])
def test_a_search_varies_no_protocol_and_no_place(name):
    assert not roles.searchable(name, "ST2SI")


@pytest.mark.parametrize(
    "name", ["learning_rate", "max_items", "item_text_fields", "id_weight", "MAX_ITEM_LIST_LENGTH"]
)
def test_a_search_varies_the_model(name):
    assert roles.searchable(name, "ST2SI")


# -- hashes ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def merged():
    return Config("SASRec", "ml-100k").merged


def digest_of(settings, model="SASRec"):
    return digest({"settings": fingerprint.of_id_model(settings, model), "files": {"ml-100k.inter": "abc"}})


def test_a_new_setting_changes_no_hash(merged, monkeypatch):
    before = digest_of(merged)
    new = Setting("tie_weights", Flag(), False, Role.TRAINING, "A setting of tomorrow.", since="0.3.0")
    known = {**declared.settings_of("SASRec"), "tie_weights": new}
    monkeypatch.setattr(fingerprint, "settings_of", lambda model: known)
    assert digest_of({**merged, "tie_weights": False}) == before
    assert digest_of({**merged, "tie_weights": True}) != before


def test_only_what_version_0_1_0_had_is_hashed_with_its_default():
    """A setting that was declared later and does not say so would train everything that is stored again."""
    kept = [run.result["settings"] for run in all_kept()]
    had = {name: {s["model"] for s in kept if name in s} for name in {name for s in kept for name in s}}
    first = {name for name, setting in declared.general().items() if setting.since == FIRST_VERSION}
    defaults = {name for name in first if name in Config("SASRec", "ml-100k").merged}
    assert defaults <= had.keys()
    for model in ("ST2SI", "IDLEAdapter", "ComiRec"):
        for setting in declared.of_sections(declared.OURS[model]):
            old = {name for name, old in OLD.items() if old.new == setting.name and model in old.models}
            if setting.since == FIRST_VERSION:
                assert any(model in had.get(name, ()) for name in {setting.name, *old}), (model, setting.name)


@pytest.mark.parametrize(
    ("name", "value"),
    [("n_layers", 3), ("seed", 1), ("learning_rate", 0.01), ("eval_args", {"mode": "uni100"}), ("rm_dup_inter", "last"),
     ("load_col", None), ("MAX_ITEM_LIST_LENGTH", 20), ("item_text_fields", ["brand"])],
)  # fmt: skip
def test_what_shapes_a_model_changes_its_hash(merged, name, value):
    assert digest_of({**merged, name: value}) != digest_of(merged)


@pytest.mark.parametrize(
    ("name", "value"),
    [("gpu_id", "1"), ("data_path", "elsewhere"), ("show_progress", False), ("device_table", False), ("worker", 2),
     ("eval_batch_size", 1), ("resume_seconds", 1), ("prompt", "{history}"), ("precision", "fp32")],
)  # fmt: skip
def test_what_does_not_leaves_it(merged, name, value):
    assert digest_of({**merged, name: value}) == digest_of(merged)


def test_a_text_model_reads_prompts_and_precision():
    merged = Config("IDLEAdapter", "ml-100k").merged
    for name, value in {"prompt": "{history}", "precision": "fp32", "id_model_settings": {"num_interests": 2}}.items():
        assert digest_of({**merged, name: value}, "IDLEAdapter") != digest_of(merged, "IDLEAdapter")
    assert digest_of({**merged, "eval_batch_tokens": 1}, "IDLEAdapter") == digest_of(merged, "IDLEAdapter")


def test_the_hash_is_that_of_version_0_1_0(merged):
    """Computed as it was then: all settings but those of place, of what SASRec does not read, and newer ones."""
    left_out = (
        *("device_table", "use_gpu", "gpu_id", "show_progress", "state", "checkpoint_dir", "resume_seconds"),
        *("data_path", "prompt", "prompt_item", "prompt_noun", "precision", "candidates", "candidate_seeds"),
        *(name for name, setting in declared.general().items() if setting.since != FIRST_VERSION),
    )
    settings = {k: v for k, v in merged.items() if k not in left_out} | {"mask_history": False, "repeatable": True}
    shape = {"settings": settings, "files": {"ml-100k.inter": "abc"}}
    merged["repeatable"] = True
    assert digest_of(merged) == hashlib.sha256(json.dumps(shape, sort_keys=True).encode()).hexdigest()[:10]
