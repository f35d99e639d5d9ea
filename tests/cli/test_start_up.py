"""What is not imported before it is needed; the times themselves are measured by hand."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import recbole_llm

ROOT = Path(recbole_llm.__file__).resolve().parents[1]
HEAVY = ("torch", "transformers", "recbole", "pandas", "matplotlib")


def imported_by(code):
    code = f"import json, sys\n{code}\nprint(json.dumps([name for name in {HEAVY!r} if name in sys.modules]))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, timeout=120
    )
    return json.loads(done.stdout.splitlines()[-1]), done


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--help"], 0),
        *(([verb, "--help"], 0) for verb in ("run", "tune", "compare", "plot", "recommend", "doctor", "prepare")),
        (["run", "--help=ST2SI"], 0),
        (["-m", "SASRec", "-d", "ml-100k", "--learning_rat=1"], 2),
        (["-m", "SASReq", "-d", "ml-100k"], 2),
        (["-m", "SASRec", "-d", "ml-100kk"], 2),
        (["tune", "-m", "SASRec", "-d", "ml-100k", "--trial=1"], 2),
        (["compare", "--models=SASRec", "-d", "ml-100k", "--learning_rat=1"], 2),
        (["plot", "--kind=bar"], 2),
        (["doctor", "--data=x"], 2),
    ],
)
def test_help_and_mistakes_import_nothing_heavy(arguments, code):
    found, _ = imported_by(f"from recbole_llm.cli.main import main\nassert main({arguments!r}) == {code}")
    assert found == []


def test_the_package_imports_nothing_heavy():
    found, _ = imported_by("import recbole_llm\nassert 'Recommender' in dir(recbole_llm)")
    assert found == []


def test_the_public_names_are_what_they_say():
    from recbole_llm.comparison.compare import compare_models
    from recbole_llm.hyper_search.search import tune
    from recbole_llm.inference.recommender import Recommender
    from recbole_llm.quick_start.run import load, pretrain, run

    expected = {
        "run": run, "load": load, "pretrain": pretrain, "tune": tune, "compare": compare_models,
        "Recommender": Recommender, "__version__": recbole_llm.__version__,
    }  # fmt: skip
    assert set(recbole_llm.__all__) == set(expected)
    for name, value in expected.items():
        assert getattr(recbole_llm, name) is value
    with pytest.raises(AttributeError, match="has no attribute 'tun'"):
        _ = recbole_llm.tun


def test_python_m():
    done = subprocess.run(
        [sys.executable, "-m", "recbole_llm", "--help"], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0
    assert done.stdout.startswith("recbole-llm: ")
