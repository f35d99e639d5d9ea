"""The schema of result.json: every kept result reads without loss, and a wrong one is refused in one sentence."""

import copy
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kept_runs import all_kept, kept_result
from recbole.utils import ModelType

from recbole_llm.comparison.protocol import protocol_of
from recbole_llm.config import registry
from recbole_llm.errors import CheckpointError
from recbole_llm.plots.records import from_results
from recbole_llm.runs.folder import finished_runs
from recbole_llm.runs.result import RESULT, RunResult, has_result, is_sequential
from recbole_llm.runs.table import result_table

ROOT = Path(__file__).parents[2]
KEPT = all_kept()
NEEDED = [
    *("model", "dataset", "backbone", "tuning", "seed", "valid", "test", "epochs", "best_epoch", "seconds"),
    *("parameters", "device", "counts", "history", "settings", "commit"),
]


def values():
    return copy.deepcopy(kept_result("ml-100k", "ST2SI-ILP-50-items"))


def changed(path, value):
    """The fields of a kept result with one of them, whose way is given by dots, changed."""
    fields = values()
    *way, last = path.split(".")
    place = fields
    for part in way:
        place = place[int(part)] if isinstance(place, list) else place[part]
    place[int(last) if isinstance(place, list) else last] = value
    return fields


# -- what is kept ------------------------------------------------------------------------------------------------------


def test_every_kept_result_is_written_back_as_it_was(tmp_path):
    assert len(KEPT) > 200
    for run in KEPT:
        path, fields = run.path, run.result
        result = RunResult.from_dict(fields, path)
        result.write(tmp_path)
        written = json.loads((tmp_path / RESULT).read_text())
        assert json.dumps(written) == json.dumps(fields), path
        assert fields == {name: fields[name] for name in (*NEEDED, *fields)}, path
        for name in NEEDED:
            assert getattr(result, name) == fields[name], (path, name)
        assert result.extras == {
            name: value
            for name, value in fields.items()
            if name in ("id_model", "ids", "ilp_accuracy", "prompt", "pretraining", "ranked_items")
        }, path


# Of those that are kept, the models with a language model.
TEXT_MODELS = {
    *("ST2SI", "IDLEAdapter", "ZESRec", "UniSRec", "AlphaFuse", "TextInitSASRec", "TextSLIT"),
    *("MoRec", "TwinBERT", "Recformer", "LLMRec", "P5", "GPT4Rec", "LLMPrompt", "TALLRec", "LLaRA"),
}


def test_kept_results_say_what_their_models_are():
    for run in KEPT:
        path, result = run.path, RunResult.from_dict(run.result, run.path)
        assert result.is_sequential == (result.model not in ("BPR", "Pop")), path
        assert result.reads_text == (result.model in TEXT_MODELS), path


@pytest.mark.parametrize("model", registry.known_models())
def test_a_model_is_sequential_if_its_class_says_so(model):
    """Names alone tell what RecBole's class of the model tells."""
    try:
        kind = registry.model_class(model).type
    except Exception as error:  # a model whose own package is not installed
        pytest.skip(str(error))
    assert is_sequential(model) == (kind == ModelType.SEQUENTIAL)


def test_the_kind_in_a_result_counts_more_than_its_name():
    assert RunResult.from_dict({**values(), "model": "Mine"}, "run").is_sequential
    assert not RunResult.from_dict({**values(), "model": "Mine", "kind": "general"}, "run").is_sequential
    assert RunResult.from_dict({**values(), "model": "BPR", "kind": "sequential"}, "run").is_sequential


def test_fields_are_written_in_the_order_of_the_file(tmp_path):
    more = {"candidates": {"size": 20, "seeds": 2, "hit@1": {"mean": 0.5, "std": 0.1}}, "kind": "sequential"}
    fields = {**values(), **more}
    shuffled = dict(sorted(fields.items()))
    RunResult.from_dict(shuffled, "run").write(tmp_path)
    assert list(json.loads((tmp_path / RESULT).read_text())) == list(fields)


def test_label_and_given_settings_the_defaults():
    result = RunResult.from_dict(values(), "run")
    assert result.label == "ST2SI, smollm2-135m, ilp"
    defaults = {**result.settings, "epochs": -1, "seed": -1, "model": "Other"}
    assert result.given_settings(defaults) == {"epochs": result.settings["epochs"]}
    everything = {name: one for name, one in result.settings.items() if name not in ("model", "dataset", "seed")}
    assert result.given_settings(None) == everything
    assert RunResult.from_dict(changed("backbone", None) | {"tuning": None}, "run").label == "ST2SI"


def test_protocol_is_equal_where_the_same_is_said_in_other_words():
    modes = {"valid": "full", "test": "full"}
    first = RunResult.from_dict(changed("settings.user_inter_num_interval", None), "run")
    other = RunResult.from_dict(changed("settings.eval_args.mode", modes), "run")
    other.settings["user_inter_num_interval"] = "[0, inf)"
    assert first.settings["eval_args"]["mode"] == "full"
    assert protocol_of(first.settings) == protocol_of(other.settings)
    other.settings["eval_args"]["mode"] = {"valid": "full", "test": "uni100"}
    assert protocol_of(first.settings)["mode of eval_args"] != protocol_of(other.settings)["mode of eval_args"]


# -- what is broken ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NEEDED)
def test_a_missing_field_is_named(tmp_path, name):
    fields = values()
    del fields[name]
    (tmp_path / RESULT).write_text(json.dumps(fields))
    with pytest.raises(CheckpointError) as error:
        RunResult.read(tmp_path)
    assert str(error.value) == f"{tmp_path / RESULT} is not the result of a run: it lacks '{name}'; run it again"


WRONG = [
    ("model", None, "'model' must be text, but is None"),
    ("model", "", "'model' must be text, but is ''"),
    ("dataset", ["ml-100k"], "'dataset' must be text, but is ['ml-100k']"),
    ("backbone", 3, "'backbone' must be text, but is 3"),
    ("tuning", True, "'tuning' must be text, but is True"),
    ("seed", -1, "'seed' must be a whole number from 0, but is -1"),
    ("seed", True, "'seed' must be a whole number from 0, but is True"),
    ("seed", 2020.0, "'seed' must be a whole number from 0, but is 2020.0"),
    ("valid", [0.5], "'valid' must be a mapping of names to values, but is [0.5]"),
    ("test.mrr", "high", "'test.mrr' must be a number, but is 'high'"),
    ("test.mrr", None, "'test.mrr' must be a number, but is None"),
    ("test.mrr", 10**400, "'test.mrr' must be a number, but is 1000"),
    ("epochs", "ten", "'epochs' must be a whole number from 0, but is 'ten'"),
    ("epochs", 10**400, "'epochs' must be a whole number from 0, but is 1000"),
    ("best_epoch", 0.5, "'best_epoch' must be a whole number from 0, but is 0.5"),
    ("seconds.fit", "long", "'seconds.fit' must be a number, but is 'long'"),
    ("seconds", {"prepare": 1, "fit": 1}, "'seconds' lacks 'evaluate'"),
    ("parameters.trained", -5, "'parameters.trained' must be a whole number from 0, but is -5"),
    ("peak_memory_bytes", "much", "'peak_memory_bytes' must be a whole number from 0, but is 'much'"),
    ("device", 0, "'device' must be text, but is 0"),
    ("counts", {"users": 3}, "'counts' lacks 'items'"),
    ("counts.test", None, "'counts.test' must be a whole number from 0, but is None"),
    ("history", {}, "'history' must be a list, but is {}"),
    ("history.1", 4, "'history[1]' must be a mapping of names to values, but is 4"),
    ("history.0.train_loss", "low", "'history[0].train_loss' must be a number, but is 'low'"),
    ("history.0.valid.mrr", [], "'history[0].valid.mrr' must be a number, but is []"),
    ("settings", [], "'settings' must be a mapping of names to values, but is []"),
    ("settings.eval_args", "full", "'settings.eval_args' must be a mapping of names to values, but is 'full'"),
    ("commit", 7, "'commit' must be text, but is 7"),
    ("candidates", {"size": 20, "seeds": 2}, "'candidates' lacks 'hit@1'"),
    ("kind", 1, "'kind' must be text, but is 1"),
]


@pytest.mark.parametrize(("path", "value", "message"), WRONG, ids=[f"{path}-{n}" for n, (path, *_) in enumerate(WRONG)])
def test_a_field_changed_by_hand_is_refused_in_one_sentence(tmp_path, path, value, message):
    (tmp_path / RESULT).write_text(json.dumps(changed(path, value)))
    with pytest.raises(CheckpointError) as error:
        RunResult.read(tmp_path)
    said = str(error.value)
    assert said.startswith(f"{tmp_path / RESULT} is not the result of a run: {message}")
    assert said.endswith("; run it again") and len(said.splitlines()) == 1 and len(said) < 300 + len(str(tmp_path))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not a readable result of a run"),
        ("", "is not a readable result of a run"),
        ("[]", "is not a result of a run: it holds a list"),
        ('{"seed": NaN}', "it holds NaN, which is not a number"),
        ('{"seed": -Infinity}', "it holds -Infinity, which is not a number"),
        ("[" * 100_000, "is not a readable result of a run"),
        (b"\xff\xfe{", "is not UTF-8 text"),
    ],
    ids=["cut", "empty", "list", "nan", "infinity", "deep", "bytes"],
)
def test_a_file_that_is_no_result_is_refused_in_one_sentence(tmp_path, text, message):
    (tmp_path / RESULT).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(CheckpointError, match=message) as error:
        RunResult.read(tmp_path)
    assert str(tmp_path / RESULT) in str(error.value) and len(str(error.value).splitlines()) == 1


def test_an_unfinished_run_has_no_result(tmp_path):
    assert not has_result(tmp_path)
    with pytest.raises(CheckpointError, match=r"is not a finished run: it has no result\.json"):
        RunResult.read(tmp_path)
    with pytest.raises(CheckpointError, match=r"\* names no finished run"):
        finished_runs(f"{tmp_path}/*")


def test_finished_runs_by_folder_by_file_and_by_pattern(tmp_path):
    for name in ("b", "a", "unfinished"):
        (tmp_path / name).mkdir()
    for name in ("a", "b"):
        (tmp_path / name / RESULT).write_text("{")
    assert finished_runs(str(tmp_path / "a")) == finished_runs(str(tmp_path / "a" / RESULT)) == [tmp_path / "a"]
    assert finished_runs(f"{tmp_path}/*") == finished_runs(f"{tmp_path}/*/{RESULT}") == [tmp_path / "a", tmp_path / "b"]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=5,
)
ORIGINAL = values()


@pytest.mark.parametrize("name", [*NEEDED, "peak_memory_bytes", "peak_gpu_memory_bytes", "candidates", "kind", "other"])
@given(value=JSON)
def test_any_value_is_read_or_refused_in_one_sentence(name, value):
    """What is read can also be shown, drawn, compared and written; nothing ends in a traceback."""
    fields = {**copy.deepcopy(ORIGINAL), name: value}
    try:
        result = RunResult.from_dict(fields, "saved/run/result.json")
    except CheckpointError as error:
        said = str(error)
        assert said.startswith(f"saved/run/result.json is not the result of a run: '{name}") and "\n" not in said
        return
    dropped = value is None and name in ("peak_memory_bytes", "peak_gpu_memory_bytes", "candidates", "kind")
    assert result.to_dict() == {key: one for key, one in fields.items() if key != name or not dropped}
    result_table(result)
    assert isinstance(protocol_of(result.settings), dict) and isinstance(result.is_sequential, bool)
    (record,) = from_results([("run", result)]).records
    assert record.test == (result.test or {})
