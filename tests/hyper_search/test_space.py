"""Parameter files mean what they mean to RecBole's HyperTuning, for hyperopt and for Optuna."""

import math

import hyperopt
import numpy as np
import optuna
import pytest

from recbole_llm.compat import repairs as compat
from recbole_llm.config import registry
from recbole_llm.config.config import Config
from recbole_llm.errors import DataError, SettingError
from recbole_llm.hyper_search.space import Parameter, default_file, read_space
from recbole_llm.utils.paths import shipped

LINES = """\
learning_rate loguniform -8,-2
dropout_prob uniform 0.1,0.7
num_layers quniform 1,4,1
hidden_size choice [8, 16]
loss_type choice ['CE','BPR']

topk choice ['[5,10]','[20]']
"""


def written(tmp_path, text):
    path = tmp_path / "a.hyper"
    path.write_text(text)
    return path


def recboles(path):
    """The space that RecBole itself makes of a file."""
    return compat.hyper_tuning().HyperTuning._build_space_from_file(str(path))


def recboles_from(space):
    return compat.hyper_tuning().HyperTuning._build_space_from_dict(space.for_hyperopt())


def test_file_is_read_as_recbole_reads_it(tmp_path):
    path = written(tmp_path, LINES)
    ours, theirs = recboles_from(read_space(path)), recboles(path)
    assert {name: str(node) for name, node in ours.items()} == {name: str(node) for name, node in theirs.items()}


@pytest.mark.parametrize(
    "parameter",
    [
        Parameter("x", "quniform", (0.3, 2.2, 0.5)),
        Parameter("x", "quniform", (1.0, 4.0, 1.0)),
        Parameter("x", "quniform", (-3.0, 40.0, 8.0)),
        Parameter("x", "choice", ("a", None, 3)),
    ],
)
def test_optuna_draws_the_values_that_hyperopt_draws(parameter):
    form = {parameter.kind: {"x": list(parameter.values)}}
    space = compat.hyper_tuning().HyperTuning._build_space_from_dict(form)
    rng = np.random.default_rng(0)
    theirs = {hyperopt.pyll.stochastic.sample(space, rng=rng)["x"] for _ in range(300)}
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    assert {parameter.suggest(study.ask()) for _ in range(300)} == theirs


def test_optuna_draws_from_the_same_range():
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    drawn = np.log([Parameter("x", "loguniform", (-8.0, -2.0)).suggest(study.ask()) for _ in range(400)])
    # uniform in the exponent: the 400 draws' ends and mean, whose deviation is 6 / sqrt(12 * 400) = 0.09
    assert drawn.min() > -8 - 1e-9 and drawn.min() < -7.8 and drawn.max() < -2 + 1e-9 and drawn.max() > -2.2
    assert abs(drawn.mean() + 5) < 0.4


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("learning_rate", "line 1 of .*'name kind values'"),
        ("learning_rate  choice [1]", "'' is not one of choice"),
        ("learning_rate chioce [1,2]", "did you mean 'choice'"),
        ("learning_rate choice 1,x", "needs a list"),
        ("learning_rate choice []", "needs a list"),
        ("learning_rate choice [__import__('os').getcwd()]", "needs a list"),
        ("learning_rate choice [1,1]", "twice"),
        ("size choice [[64,64],[128]]", "written as text"),
        ("learning_rate uniform 1,0", "low below high"),
        ("learning_rate quniform 0,1", "needs low,high,step"),
        ("learning_rate uniform 0,nan", "needs low,high"),
        ("a choice [1]\na choice [2]", "line 2 of .* names a again"),
        ("\n", "is empty"),
    ],
)
def test_bad_lines(tmp_path, line, said):
    with pytest.raises(SettingError, match=said):
        read_space(written(tmp_path, line))


def test_missing_file(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        read_space(tmp_path / "none.hyper")


def test_combinations(tmp_path):
    space = read_space(written(tmp_path, "a choice [1,2]\nb choice ['x','y','z']"))
    assert len(space.combinations()) == 6
    assert {tuple(row.items()) for row in space.combinations()} == {
        (("a", a), ("b", b)) for a in (1, 2) for b in ("x", "y", "z")
    }
    with pytest.raises(SettingError, match="lr is uniform"):
        read_space(written(tmp_path, "lr uniform 0,1")).combinations()


def test_drawn_values_become_settings(tmp_path, small):
    base = Config("GRU4Rec", "small", config_dict={"data_path": str(small)})
    space = read_space(written(tmp_path, LINES))
    drawn = {p.name: p.examples()[0] for p in space.parameters}
    assert drawn["num_layers"] == 2.0 and math.isclose(drawn["learning_rate"], math.exp(-5))
    settings = space.settings(drawn, base)
    assert settings["num_layers"] == 2 and isinstance(settings["num_layers"], int)
    assert settings["topk"] == [5, 10]
    assert list(settings) == [p.name for p in space.parameters]


def test_settings_of_a_config_are_drawn_values(tmp_path, small):
    base = Config("GRU4Rec", "small", config_dict={"data_path": str(small), "dropout_prob": 0.25, "topk": [5, 10]})
    lines = "topk choice ['[1]','[5,10]']\nlearning_rate loguniform -8,-5"
    lines += "\nnum_layers quniform 1,3,1\nloss_type choice ['CE']"
    assert read_space(written(tmp_path, lines)).values_of(base) == {
        "topk": "[5,10]", "learning_rate": 0.001, "num_layers": 1, "loss_type": "CE"
    }  # fmt: skip
    for line in ("dropout_prob quniform 0,1,0.1", "learning_rate loguniform -6,-5", "loss_type choice ['BPR']"):
        with pytest.raises(SettingError, match=f"its {line.split()[0]}=.* add it, or leave out"):
            read_space(written(tmp_path, line)).values_of(base)


def test_names_and_values_are_checked_before_anything_runs(tmp_path, small):
    given = {"data_path": str(small), "hidden_size": 8}
    base = Config("GRU4Rec", "small", config_dict=given)
    for line, said in (
        ("learning_rat choice [1]", "GRU4Rec has no setting 'learning_rat' to search; did you mean 'learning_rate'"),
        ("n_heads choice [1]", "GRU4Rec has no setting 'n_heads'"),  # of SASRec
        ("hidden_size choice [4]", "both given"),
        ("learning_rate choice [0.1,-1]", "learning_rate=-1"),
        ("train_batch_size choice [16,'x']", "train_batch_size=x"),
    ):
        with pytest.raises(SettingError, match=said):
            read_space(written(tmp_path, line)).check(base, given)


def test_shipped_files(small):
    names = {path.stem for path in (shipped("properties") / "hyper").glob("*.hyper")}
    baselines = {"ComiRec", "SASRec", "GRU4Rec", "BERT4Rec", "FDSA", "Caser", "FPMC", "BPR"}
    vectors = {"AlphaFuse", "TextInitSASRec", "TextSLIT", "UniSRec", "ZESRec"}
    towers = {"LLMRec", "MoRec", "Recformer", "TwinBERT"}
    prompted = {"GPT4Rec", "LLaRA", "P5", "TALLRec"}
    assert names == {"ST2SI", "IDLEAdapter", *baselines, *vectors, *towers, *prompted}
    for name in sorted(names):
        path = default_file(name)
        space = read_space(path)
        assert {n: str(v) for n, v in recboles_from(space).items()} == {n: str(v) for n, v in recboles(path).items()}
        assert space.combinations()
        if name in registry.known_models():
            given = {"data_path": str(small)}
            space.check(Config(name, "small", config_dict=given), given)
    with pytest.raises(SettingError, match=r"no parameter file ships for NARM .*--params_file"):
        default_file("NARM")
