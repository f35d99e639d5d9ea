"""The one parser of all verbs: both ways to write an option, mistakes, and the help."""

from importlib import import_module

import pytest

from recbole_llm.cli.main import VERBS, help_text, main
from recbole_llm.errors import SettingError


def parser_of(verb):
    return import_module(f"recbole_llm.cli.{verb}").parser()


# Every own option of every verb, with a value that it takes.
VALUES = {
    "seeds": "3", "papers": "true", "significance": "false", "algo": "bayes", "pruner": "none", "trials": "5",
    "max_evals": "5", "early_stop": "2", "defaults_first": "true", "exclude_seen": "true", "allow_untrained": "true",
    "cuda_graph": "false", "rule": "strict", "format": "csv", "dry_run": "all", "port": "80", "max_batch": "8",
    "max_waiting": "8", "max_k": "8", "window_ms": "0.5", "search": "approximate", "min_recall": "0.9", "nprobe": "4",
    "search_k": "8",
}  # fmt: skip
OPTIONS = [(verb, name) for verb in VERBS for name in parser_of(verb).names]


@pytest.mark.parametrize(("verb", "name"), OPTIONS)
def test_both_ways_to_write_an_option(verb, name):
    value = VALUES.get(name, "x")
    with_equals = parser_of(verb).read([f"--{name}={value}"])
    with_space = parser_of(verb).read([f"--{name}", value])
    with_dashes = parser_of(verb).read([f"--{name.replace('_', '-')}", value])
    assert with_equals.options == with_space.options == with_dashes.options
    assert list(with_equals.options) == [name]


def test_a_command_line_of_all_kinds():
    given = parser_of("run").read(
        ["--hidden_size", "16", "-d", "ml-100k", "--learning-rate=-1e-3", "-m", "SASRec", "--shift", "-0.5",
         "--config_files", "a.yaml", "b.yaml", "--config_files=c.yaml d.yaml", "--dry-run"]
    )  # fmt: skip
    assert given.options == {
        "dataset": "ml-100k",
        "model": "SASRec",
        "config_files": ["a.yaml", "b.yaml", "c.yaml", "d.yaml"],
        "dry_run": "given",
    }
    assert given.settings == ["--hidden_size=16", "--learning_rate=-1e-3", "--shift=-0.5"]


def test_the_order_does_not_matter():
    words = [["-m", "SASRec"], ["--dataset=ml-100k"], ["--epochs", "3"], ["--resume=x"]]
    first = parser_of("run").read([word for pair in words for word in pair])
    second = parser_of("run").read([word for pair in reversed(words) for word in pair])
    assert first.options == second.options
    assert first.settings == second.settings


@pytest.mark.parametrize(
    ("verb", "arguments", "message"),
    [
        ("run", ["--model"], "--model has no value: settings are written --model=value or --model value"),
        ("run", ["--model", "--dataset=D"], "--model has no value"),
        ("run", ["--epochs", "-m", "X"], "--epochs has no value"),
        ("run", ["-m", "A", "-m", "B"], "--model is given twice, as 'A' and 'B'"),
        ("run", ["-m", "A", "--model=B"], "--model is given twice"),
        ("run", ["--epochs=1", "--epochs", "2"], "--epochs is given twice, as '1' and '2'"),
        ("run", ["SASRec"], "'SASRec' is not understood"),
        ("run", ["-m", "A", "B"], "'B' is not understood"),
        ("run", ["-x"], "run has no setting '-x'"),
        ("run", ["--"], "run has no setting '--'"),
        ("run", ["--=3"], "run has no setting '--=3'"),
        ("doctor", ["--data-pth=x"], "doctor has no setting 'data_pth'; did you mean 'data_path'?"),
        ("doctor", ["dataset"], "'dataset' is not understood"),
        ("prepare", ["--datset=x"], "prepare has no setting 'datset'; did you mean 'dataset'?"),
        ("recommend", ["--histoy=x"], "recommend has no setting 'histoy'; did you mean 'history'?"),
        ("recommend", ["--exclude_seen=yes"], "exclude_seen=yes must be true or false"),
        ("report", ["--output=x"], "report has no setting 'output'; did you mean 'out'?"),
        ("plot", ["--kin", "bars"], "plot has no setting 'kin'; did you mean 'kind'?"),
        ("compare", ["--papers=perhaps"], "papers=perhaps must be true or false"),
        ("tune", ["--algo=baye"], "algo=baye is not one of exhaustive, random, bayes; did you mean 'bayes'?"),
    ],
)
def test_mistakes(verb, arguments, message):
    with pytest.raises(SettingError) as error:
        parser_of(verb).read(arguments)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-m", "SASReq", "-d", "ml-100k"], "there is no model 'SASReq'; did you mean 'SASRec'?"),
        (["-m", "SASRec", "-d", "ml-100kk"], "there is no dataset 'ml-100kk'"),
        (["-m", "SASRec", "-d", "ml-100k", "--hiden_size", "3"], "'hiden_size'; did you mean 'hidden_size'?"),
        (["tune", "-m", "SASRec", "-d", "ml-100k", "--trial=3"], "'trial'; did you mean 'trials'?"),
        (["pretrain", "--pretrain_epoch=3"], "'pretrain_epoch'; did you mean 'pretrain_epochs'?"),
        (["compare", "--models=SASReq", "-d", "ml-100k"], "there is no model 'SASReq'"),
        (["compare", "--models=SASRec", "-d", "ml-100kk"], "there is no dataset 'ml-100kk'"),
        (["compare", "--models=SASRec", "-d", "ml-100k", "--epoch=1"], "'epoch'; did you mean 'epochs'?"),
        (["doctor", "--data=x"], "doctor has no setting 'data'; did you mean 'data_path'?"),
        (["doctor", "--help=all"], "doctor takes no settings"),
        (["run", "--help=SASReq"], "there is no model 'SASReq'"),
        (["run", "-m", "SASRec", "-d", "ml-100k", "--dry-run=most"], "dry_run=most is not one of all"),
    ],
)
def test_mistakes_end_with_code_2(workdir, capsys, arguments, message):
    assert main(arguments) == 2
    printed = capsys.readouterr()
    assert message in printed.err
    assert printed.err.count("\n") == 1
    assert printed.out == ""


@pytest.mark.parametrize("verb", VERBS)
def test_help_of_a_verb(verb):
    options = parser_of(verb)._actions
    text = help_text(parser_of(verb))
    assert text.startswith(f"usage: recbole-llm {verb} ")
    for action in options:
        for option in action.option_strings:
            assert f"{option}" in text
        assert action.help
    assert max(map(len, text.splitlines())) <= 100


@pytest.mark.parametrize("verb", ["run", "pretrain", "tune", "compare"])
@pytest.mark.parametrize("topic", ["all", "ST2SI", "IDLEAdapter", "SASRec", "ComiRec"])
def test_help_of_settings(verb, topic):
    from recbole_llm.config import names

    text = help_text(parser_of(verb), topic)
    assert max(map(len, text.splitlines())) <= 100
    if topic != "all":
        for name in names.names_of_model(topic):
            assert f"--{name}=" in text


def test_help_tells_type_and_default():
    text = " ".join(help_text(parser_of("run"), "ST2SI").split())
    assert "--epochs=INT" in text and "(default: 30)" in text
    assert "--tuning=STR" in text and "(default: full)" in text
    text = " ".join(help_text(parser_of("run")).split())
    assert "--topk=LIST" in text and "(default: [5, 10])" in text


@pytest.mark.parametrize(
    "arguments",
    [["run", "--help"], ["--model=SASReq", "-h"], ["run", "-m", "X", "--help"], ["help", "run"], ["--help", "run"]],
)
def test_ways_to_ask_for_help(capsys, arguments):
    assert main(arguments) == 0
    assert capsys.readouterr().out.startswith("usage: recbole-llm run ")


@pytest.mark.parametrize("arguments", [["--help"], ["-h"], ["help"]])
def test_help_of_the_whole(capsys, arguments):
    assert main(arguments) == 0
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 100
    for verb in VERBS[1:]:
        assert f"\n  recbole-llm {verb} " in text


def test_help_takes_a_topic_after_a_space(capsys):
    assert main(["run", "--help", "SASRec"]) == 0
    assert "--hidden_size=INT" in capsys.readouterr().out
