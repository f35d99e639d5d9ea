"""Rows of papers by name: on the command line, listed, misspelt, and in a file that is malformed."""

import pytest

from recbole_llm.cli import main as cli
from recbole_llm.config import config as config_module
from recbole_llm.config import paper as paper_rows
from recbole_llm.config.config import Config
from recbole_llm.config.paper import list_rows, printed_row, printed_values, row_settings
from recbole_llm.errors import DataError, SettingError
from recbole_llm.quick_start import run as quick_start


def settings_of_command(monkeypatch, tmp_path, *arguments):
    """The Config of `recbole-llm run`, and nothing trained."""
    configs = []

    def run_nothing(config_files, command_line, resume):
        configs.append(Config(config_file_list=config_files, command_line=[*command_line, "--use_gpu=False"]))
        return {"path": "result.json"}

    monkeypatch.setattr(config_module, "_dataset_folder", lambda named, data_path: tmp_path / named.name)
    monkeypatch.setattr(quick_start, "run", run_nothing)
    monkeypatch.setattr("recbole_llm.runs.table.result_table", lambda result: "")
    assert cli.main(["run", *arguments]) == 0
    return configs[0]


def test_a_row_stands_below_files_and_command_line(tmp_path, monkeypatch):
    file = tmp_path / "own.yaml"
    file.write_text("learning_rate: 7.0e-4\nalignment: True\nepochs: 4\n")
    row = "--paper=st2si/table3/Scientific/ilp-no-alignment"
    config = settings_of_command(monkeypatch, tmp_path, row, "--seed=7")
    assert (config["model"], config["dataset"], config["alignment"]) == ("ST2SI", "Scientific", False)
    assert (config["learning_rate"], config["seed"]) == (3e-4, 7)
    config = settings_of_command(monkeypatch, tmp_path, f"--config_files={file}", row, "--epochs=3", "--dataset=Arts")
    assert (config["learning_rate"], config["alignment"]) == (7e-4, True)
    assert (config["epochs"], config["dataset"], config["tuning"]) == (3, "Arts", "ilp")


def test_rows_are_listed(capsys):
    assert cli.main(["--paper=list:st2si/figure5/Games"]) == 0
    assert capsys.readouterr().out.split() == [f"st2si/figure5/Games/{epochs}" for epochs in (5, 10, 15, 20, 25, 30)]
    assert list_rows("st2si/table3/Arts/full") == ["st2si/table3/Arts/full"], "full-no-both is another row"
    assert cli.main(["run", "--paper=list"]) == 0
    listed = capsys.readouterr().out.splitlines()
    assert listed == list_rows()
    assert "idle_adapter/lambda/ml-1m/0.5" in listed


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("st2si", "paper/table/dataset/row"),
        ("st2s/table2/Games/st2si", "no paper 'st2s' .*did you mean 'st2si'"),
        ("st2si/tabel2/Games/st2si", "no table or figure 'tabel2' in st2si .*list:st2si prints.*did you mean 'table2'"),
        ("st2si/table2/games/st2si", "no dataset 'games' in st2si/table2 .*did you mean 'Games'"),
        ("st2si/table2/Games/sasrek", "no row 'sasrek' in st2si/table2/Games .*did you mean 'sasrec'"),
        ("../paper/st2si/table2/Games/st2si", "paper/table/dataset/row"),
        ("list:st2si/table22", "no table or figure 'table22'"),
        ("list:st2si/table", "no table or figure 'table'"),
        ("list:a/b/c/d/e", "four parts"),
    ],
)
def test_a_row_that_is_not_there(name, message):
    with pytest.raises(SettingError, match=message) as error:
        list_rows(name.removeprefix("list:")) if name.startswith("list:") else row_settings(name)
    assert "\n" not in str(error.value)


SOUND = """
settings: {model: SASRec, hidden_size: 8}
datasets: {Games: {n_heads: 1, n_layers: 2}, Pet: }
rows:
  first: {settings: {hidden_size: 16, n_layers: 1}, without: [n_heads], method: First}
  second: {}
  third: {implemented: False}
printed:
  metrics: [mrr, hit@5]
  values: {Games: {first: [0.1, 1], third: [0.2, 0.3]}}
"""


@pytest.fixture
def papers(tmp_path, monkeypatch):
    monkeypatch.setattr(paper_rows, "shipped", lambda folder: tmp_path / folder)
    folder = tmp_path / "properties" / "paper" / "one"
    folder.mkdir(parents=True)
    return folder


def test_later_settings_override_earlier_ones(papers):
    (papers / "table1.yaml").write_text(SOUND)
    assert list_rows() == [f"one/table1/{row}" for row in ("Games/first", "Games/second", "Pet/first", "Pet/second")]
    own = {"model": "SASRec", "dataset": "Games", "hidden_size": 16, "n_layers": 1}
    assert row_settings("one/table1/Games/first") == own
    assert row_settings("one/table1/Pet/second") == {"model": "SASRec", "dataset": "Pet", "hidden_size": 8}
    assert printed_row("one/table1/Games/first") == {"mrr": 0.1, "hit@5": 1}
    assert printed_row("one/table1/Games/third") == {"mrr": 0.2, "hit@5": 0.3}
    assert printed_row("one/table1/Pet/first") is None
    assert printed_values(["Games"]) == {"Games": {"First": {"mrr": 0.1, "hit@5": 1}}}
    for read, message in ((row_settings, "not implemented"), (list_rows, "no row .* can be run")):
        with pytest.raises(SettingError, match=message):
            read("one/table1/Games/third")


@pytest.mark.parametrize(
    ("part", "other", "message"),
    [
        ("rows:", "row:", "the table has no 'row'.*did you mean 'rows'"),
        ("settings: {model: SASRec, hidden_size: 8}", "", "the row first has no model"),
        ("{model: SASRec, hidden_size: 8}", "SASRec", "settings must be 'name: value' lines"),
        ("  second: {}", "  5: {}", "the name 5 in rows must be text: put it in quotes"),
        ("  second: {}", "  a/b: {}", "'a/b' in rows"),
        ("datasets: {Games: {n_heads: 1, n_layers: 2}, Pet: }", "datasets:", "names no datasets"),
        ("method: First", "methud: First", "first has no 'methud'.*did you mean 'method'"),
        ("method: First", "method: 3", "method of first must be text"),
        ("implemented: False", "implemented: 0", "implemented of third must be True or False"),
        ("without: [n_heads]", "without: [n_head]", "first is without 'n_head'.*did you mean 'n_heads'"),
        ("without: [n_heads]", "without: n_heads", "without of first must be a list of names"),
        ("[mrr, hit@5]", "mrr", "metrics must be a list of names"),
        ("[0.1, 1]", "[0.1]", "first on Games must have 2 numbers"),
        ("[0.1, 1]", "[0.1, .1.]", "first on Games must have 2 numbers"),
        ("values: {Games", "values: {Game", "printed has no 'Game'.*did you mean 'Games'"),
        ("{first: [", "{fist: [", "Games has no 'fist'.*did you mean 'first'"),
        ("rows:\n", "rows: [\n", "not valid YAML"),
    ],
)
def test_a_malformed_table_is_one_sentence(papers, part, other, message):
    assert SOUND.count(part) == 1
    (papers / "table1.yaml").write_text(SOUND.replace(part, other))
    with pytest.raises(DataError, match=message) as error:
        row_settings("one/table1/Games/first")
    assert "\n" not in str(error.value) and "table1.yaml" in str(error.value)
