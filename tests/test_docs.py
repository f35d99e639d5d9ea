"""The pages: built without a warning, and everything in them that can be typed is run, or at least read, here.

A command of README.md or docs/ stands in `doc_commands.RUN`, with options that make it small, or in its `READ`, with
what it needs that is not here; the tables of kept runs in README.md are made by test_results.py. A new one that stands
in neither fails a test. `doc_pages.World` says what stands for `saved/<run>`.
"""

import ast
import contextlib
import io
import json
import re
import shlex
import sys
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import yaml
from doc_commands import KEPT, READ, RUN
from doc_pages import PAGES, ROOT, SMALL, World, blocks, commands, with_options
from kept_runs import all_kept
from small_data import of_model

from recbole_llm.cli import main as cli
from recbole_llm.cli import prepare as prepare_verb
from recbole_llm.cli.compare import parse_options
from recbole_llm.cli.settings import merged, run_settings
from recbole_llm.comparison import child_runs
from recbole_llm.config import config, names, registry
from recbole_llm.config.paper import list_rows, row_settings
from recbole_llm.errors import RecBoleLLMError
from recbole_llm.hyper_search.space import default_file
from recbole_llm.prepare.spec import load_spec
from recbole_llm.quick_start import run as quick_start
from recbole_llm.runs.ranks import read_ranks

ALL = {page.name: commands(page) for page in PAGES}
SETTINGS_VERBS = ("run", "pretrain", "tune", "compare")


@pytest.fixture(scope="module")
def world(tmp_path_factory, tiny):
    root = tmp_path_factory.mktemp("world")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setenv("RECBOLE_LLM_CACHE", str(root / "cache"))
        patch.setenv("HF_HUB_OFFLINE", "1")
        yield World(root, tiny)


def arguments_of(command):
    """The verb of a command of this package, and its arguments; None for another program."""
    words = shlex.split(re.sub(r"[\[\]]", "", command) if " [--" in command else command)
    if words[:2] == ["python", "run_recbole_llm.py"]:
        words = words[2:]
    elif Path(words[0]).name == "recbole-llm":
        words = words[1:]
    elif words[0] == "torchrun":
        words = words[words.index("recbole_llm") + 1 :]
    else:
        return None
    if words == ["--help"]:
        return "help", []
    verb, rest = (words[0], words[1:]) if words and not words[0].startswith("-") else ("run", words)
    return verb, rest


# -- commands ----------------------------------------------------------------------------------------------------------


def test_every_command_is_in_one_list():
    written = {command for found in ALL.values() for command in found}
    assert len(written) > 30, "the commands are not found any more"
    assert not RUN.keys() & READ.keys()
    remade = {command for command in ALL["README.md"] if command.startswith(KEPT)}
    new = written - RUN.keys() - READ.keys() - remade
    assert not new, f"add to RUN or READ of tests/doc_commands.py: {sorted(new)}"
    old = (RUN.keys() | READ.keys()) - written
    assert not old, f"these stand on no page any more: {sorted(old)}"


@pytest.mark.parametrize("command", RUN)
def test_command_runs(command, world, monkeypatch):
    verb, given = arguments_of(world.named(command))
    options = {**small_options(verb, given), **RUN[command]}
    places = {"TINY": world.tiny["llama"], "TINY_BERT": world.tiny["bert"]}
    arguments = with_options(given, {name: places.get(value, value) for name, value in options.items()})
    if verb == "compare":
        # Its runs are processes, which tests/test_compare.py has; here each would import everything anew.
        monkeypatch.setattr(child_runs, "start_run", run_here)
    code, out, error = in_process(verb, arguments)
    assert code == 0, error
    CHECKS.get(verb, lambda *_: None)(out, arguments)


def small_options(verb, given):
    """Those of `SMALL` that a command takes."""
    if verb not in SETTINGS_VERBS or any(argument.startswith(("--resume", "--runs")) for argument in given):
        return {}
    if verb == "compare":  # refuses a setting that no model has
        models = [name for name in parse_options(given).models if name in registry.known_models()]
        return {k: v for k, v in SMALL.items() if any(names.has_setting(model, k) for model in models)}
    if verb == "tune":  # refuses a setting that is searched
        model = next(argument.partition("=")[2] for argument in given if argument.startswith("--model="))
        searched = [line.split()[0] for line in default_file(model).read_text().splitlines() if line.strip()]
        return {name: value for name, value in of_model(model, SMALL).items() if name not in searched}
    if verb == "pretrain":
        return of_model("ST2SI", SMALL)
    if "--help" in given:
        return {}
    own = import_module("recbole_llm.cli.run").parser().read(given)
    row = row_settings(own.options["paper"]) if "paper" in own.options else {}
    return of_model(str({**row, **merged(own)}["model"]), SMALL)


def in_process(verb, arguments):
    out, error = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(error):
        code = cli.main([verb, *arguments])
    return code, out.getvalue(), error.getvalue()


def run_here(arguments, log, lock, environment):
    code, out, error = in_process("run", arguments)
    log.write_text(out + error)
    return code


def check_run(out, arguments):
    if "--help" in arguments:
        assert out.startswith("usage: recbole-llm run ")
        return
    if "--dry-run" in arguments:
        assert "\nrun folder\n  " in out
        return
    result = json.loads(Path(out.splitlines()[-1]).read_text())
    ranks = read_ranks(Path(out.splitlines()[-1]).with_name("ranks-test.tsv.gz"))["rank"]
    assert result["test"]["mrr"] == pytest.approx((1 / ranks).mean(), abs=1e-4)
    assert result.keys() <= described_fields()
    if result["model"] == "IDLEAdapter":
        assert result.keys() >= OF_ADAPTER
    if result["model"] == "P5":
        assert result.keys() >= OF_WRITERS


def check_compare(out, arguments):
    comparison = json.loads(Path(out.splitlines()[-1]).read_text())
    reasons = [cell["reason"] for cell in comparison["cells"] if cell["status"] != "done"]
    assert not reasons
    of_groups = set() if "--significance=false" in arguments else {"popularity", "history_length", "text_length"}
    assert {group["by"] for group in comparison["groups"]} == of_groups
    if "--data_path=nothing-cut" in arguments:
        assert comparison["counts"]["ml-100k"]["users"] == 943
        assert r"\toprule" in out or "| SASRec-default |" in out
    asked = next((a.partition("=")[2].split(",") for a in arguments if a.startswith("--models=")), [])
    assert set(asked) <= set(comparison["models"])
    assert ("--papers" in arguments) == (comparison["papers"] is not None)


def check_tune(out, arguments):
    outcome = json.loads(Path(out.splitlines()[-1]).read_text())
    assert [trial["state"] for trial in outcome["trials"]].count("failed") == 0
    assert len(outcome["trials"]) == 2


def check_pictures(out, arguments):
    assert {Path(line).suffix for line in out.split()} >= {".png", ".svg"}
    assert all(Path(line).stat().st_size > 1000 for line in out.split())


def check_recommend(out, arguments):
    if "--out=best.csv" in arguments:
        assert len(Path("best.csv").read_text().splitlines()) == 1 + 40 * 10
    else:
        assert len(out.splitlines()) >= 2
        assert re.search(r"\(19\d\d\)", out) or "score" in out


CHECKS = {
    "run": check_run,
    "compare": check_compare,
    "tune": check_tune,
    "plot": check_pictures,
    "recommend": check_recommend,
    "pretrain": lambda out, _: next(Path(out.splitlines()[-1]).glob("*.safetensors")),
    "report": lambda out, _: Path(out.strip()).read_text().index("</html>"),
    "doctor": lambda out, _: out.index("What to do"),
    "help": lambda out, _: [out.index(f"recbole-llm {verb} ") for verb in cli.VERBS if verb != "run"],
}


@pytest.fixture
def no_data(monkeypatch):
    """A dataset that is not here is neither looked for nor prepared."""
    monkeypatch.setattr(config, "_dataset_folder", lambda named, data_path: data_path / named.name)


@pytest.mark.parametrize("command", READ)
def test_command_is_read(command, world, no_data):
    read(command)


def test_reading_finds_what_running_would(world, no_data):
    for command in RUN:
        if "saved/" not in command:
            read(world.named(command))
    for command, message in (
        ("recbole-llm --model=SASRec --dataset=ml-100k --learning_rat=1", "no setting 'learning_rat'"),
        ("recbole-llm tune --model=SASRec --dataset=ml-100k --trial=20", "no setting 'trial'"),
        ("recbole-llm compare --models=SASRec,GRU5Rec --dataset=ml-100k", "no model 'GRU5Rec'"),
        ("recbole-llm pretrain --pretrain_datasets=Food --pretrain_epoch=40", "no setting 'pretrain_epoch'"),
        ("recbole-llm run --config_files=properties/none.yaml", "properties/none.yaml does not exist"),
        ("recbole-llm run --paper=st2si/table2/Scientific/sasrek", "no row 'sasrek'"),
        ("recbole-llm run --paper=list:st2si/table22", "no table or figure 'table22'"),
        ("recbole-llm prepare --dataset=Scientifc", "Scientific"),
        ("recbole-llm prepare --dataset=Scientific --raws=FOLDER", "raws"),
    ):
        with pytest.raises(RecBoleLLMError, match=message):
            read(command)
    for command in ("recbole-llm runn --model=SASRec", "make runn", "python -m pytesd", "python benchmarks/none.py"):
        with pytest.raises((AssertionError, FileNotFoundError)):
            read(command)


def read(command):
    """Check that a command could run: its verb, the names of its settings, the files and programs that it names."""
    own = arguments_of(command)
    if own is None:
        read_program(shlex.split(command))
        return
    verb, given = own
    assert verb in {*cli.VERBS, "help"}
    if verb == "prepare":
        load_spec(prepare_verb.parser().read(given).options["dataset"])
    elif verb in SETTINGS_VERBS and not any(
        argument.startswith(("--resume", "--runs", "--help")) for argument in given
    ):
        read_settings(verb, given)


def read_settings(verb, given):
    own = import_module(f"recbole_llm.cli.{verb}").parser().read(given)
    row = own.options.get("paper")
    if row is not None and row.startswith("list:"):
        list_rows(row[5:])
        return
    rows = [] if row is None else [row_settings(row)]
    files, settings = [*rows, *own.options.get("config_files", [])], run_settings(own)
    if verb == "compare":
        options = parse_options(given)
        own = (
            yaml.safe_load(Path(options.model_settings).read_text()) if isinstance(options.model_settings, str) else {}
        )
        for label in options.models:
            model = own.get(label, {}).get("model", label)
            known = {name: value for name, value in options.settings.items() if names.has_setting(model, name)}
            config.Config(model, options.dataset[0], files, known)
        return
    if verb == "pretrain":  # of no dataset: any stands for it
        settings = with_options(settings, {"model": "ST2SI", "dataset": "ml-100k"})
    config.Config(config_file_list=files, command_line=settings)


def read_program(words):
    """Check a command of another program: its target, module or file and the options are there."""
    program, rest = Path(words[0]).name, words[1:]
    if program == "make":
        targets = set(re.findall(r"^([\w.-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
        assert {word for word in rest if "=" not in word} <= targets
    elif program == "python" and rest[0] == "-m":
        assert (Path(sys.executable).parent / rest[1]).exists()
    elif program == "python":
        text = (ROOT / rest[0]).read_text()
        for word in rest[1:]:
            assert word.removeprefix("--").partition("=")[0] in text
    else:
        assert (Path(sys.executable).parent / program).exists()


# -- code --------------------------------------------------------------------------------------------------------------

PYTHON = {page.name: [b.text for b in blocks(page) if b.language == "python"] for page in PAGES}


def test_all_code_is_known_code():
    languages = {block.language for page in PAGES for block in blocks(page)}
    assert languages <= {"", "python", "yaml", "text"}  # text: what is printed, or a file
    for page in PAGES:
        for block in blocks(page):
            if block.language == "python":
                ast.parse(block.text)
            if block.language == "yaml":
                assert isinstance(yaml.safe_load(block.text), dict)


@pytest.mark.parametrize("page", [name for name, found in PYTHON.items() if found])
def test_code_runs(page, world, monkeypatch, capsys):
    names = {"__name__": "page"}
    real = quick_start.run

    def small_run(model=None, dataset=None, settings=None, **more):
        own = SMALL if isinstance(model, type) else of_model(model, SMALL)
        return real(model, dataset, settings={**own, **(settings or {})}, **more)

    monkeypatch.setattr(quick_start, "run", small_run)
    for text in PYTHON[page]:
        exec(compile(world.named(text), page, "exec"), names)
    PAGE_CHECKS.get(page, lambda *_: None)(names, capsys.readouterr().out)


def check_first_run(names, out):
    assert len(names["best"].items) == 5
    assert names["result"]["epochs"] == 5


def check_ranks(names, out):
    ndcg, stored, mrr, stored_mrr = map(float, out.split())
    assert ndcg == pytest.approx(stored, abs=5e-5)
    assert mrr == pytest.approx(stored_mrr, abs=5e-5)


def check_model(names, out):
    losses = [epoch["train_loss"] for epoch in names["result"]["history"]]
    assert losses[-1] < 0.7 * losses[0], "it learns"
    model, dataset = names["parts"].model, names["parts"].dataset
    # the numbers once more, word by word
    title = dataset.item_texts_by_id(["movie_title"]).iloc[:, 0]
    item = dataset.field2token_id["item_id"]["242"]
    known = sorted({word for text in title for word in text.lower().split()})
    vectors = model.word_vectors.weight.detach().numpy()
    own = np.mean([vectors[known.index(word)] for word in title.iloc[item].lower().split()], axis=0)
    user = own + model.item_vectors.weight.detach().numpy()[item]
    scores = model.next_vectors.weight.detach().numpy() @ user
    best = names["parts"].recommend(["242"], k=3)
    ids = [dataset.field2token_id["item_id"][token] for token in best.items]
    np.testing.assert_allclose(best.scores, scores[ids], rtol=1e-4)
    np.testing.assert_allclose(best.scores, np.sort(scores[1:])[::-1][:3], rtol=1e-4)
    assert names["parts"].recommend_to("196", 3).items


PAGE_CHECKS = {"first_run.md": check_first_run, "read_a_result.md": check_ranks, "add_a_model.md": check_model}


def test_the_model_of_the_page_has_the_settings_of_its_file():
    """The YAML under "A name for it" holds what the class reads and what its run is given."""
    texts = [block for block in blocks(ROOT / "docs" / "add_a_model.md") if block.language in ("python", "yaml")]
    settings = yaml.safe_load(next(block.text for block in texts if block.language == "yaml"))
    read = set(re.findall(r'config\["(\w+)"\]', texts[0].text)) - {"item_text_fields"}
    assert read | {"learning_rate", "train_neg_sample_args"} == settings.keys()


# -- what the pages say ------------------------------------------------------------------------------------------------


OF_ADAPTER = {"id_model", "prompt"}
OF_WRITERS = {"ranked_items", "ids"}  # of models that write the next item
OF_SEVERAL = {"processes"}  # of runs that several processes shared


def described_fields():
    page = (ROOT / "docs" / "read_a_result.md").read_text()
    rows = re.findall(r"^\| (`.*?) \|", page[page.index("## result.json") : page.index("## Ranks")], re.MULTILINE)
    return {name for row in rows for name in re.findall(r"`(\w+)`", row)}


def test_the_fields_of_a_result_are_those_of_real_ones(world):
    real = [run.result for run in all_kept()]
    assert len(real) > 200
    real.append(json.loads(Path(world.finished("SASRec", "ml-100k"), "result.json").read_text()))
    written = {name for result in real for name in result}
    # the runs of IDLE-Adapter and P5 above have their own
    assert described_fields() >= OF_SEVERAL
    others = OF_ADAPTER | OF_WRITERS | OF_SEVERAL
    assert written - others == described_fields() - others
    for result in real:
        assert set(result["seconds"]) <= {"prepare", "fit", "evaluate", "pretrain"}
        assert set(result["parameters"]) == {"trained", "frozen"}
        assert all(
            {"epoch", "train_loss"} <= set(epoch) <= {"epoch", "train_loss", "valid"} for epoch in result["history"]
        )
        assert result["best_epoch"] is None or 0 <= result["best_epoch"] < result["epochs"]
        for name in {"ndcg@5", "ndcg@10"} & (result["test"] or {}).keys():
            assert 0 <= result["test"][name] <= 1


def test_files_of_a_run(world):
    page = (ROOT / "docs" / "read_a_result.md").read_text()
    table = page[: page.index("## result.json")]
    named = set(re.findall(r"`([\w.-]+\.(?:json|yaml|safetensors|gz))`", table))
    folders = [Path(world.finished(model, data)) for model, data in (("SASRec", "ml-100k"), ("ST2SI", "Games"))]
    assert named == {file.name for folder in folders for file in folder.iterdir()}
