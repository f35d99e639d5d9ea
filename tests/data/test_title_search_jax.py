"""bm25s without JAX, which takes most of a GPU's memory when it first computes; in processes with a JAX of our own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import recbole_llm
from recbole_llm.utils.packages import hidden_package

ROOT = Path(recbole_llm.__file__).resolve().parents[1]
OURS = "from recbole_llm.data.title_search import TitleSearch"


@pytest.fixture
def computed(tmp_path):
    """Runs code where a JAX is installed; returns what the code calls `said`, and whether JAX has computed."""
    package, mark = tmp_path / "jax", tmp_path / "computed"
    package.mkdir()
    (package / "__init__.py").write_text("from jax import lax\n")  # as in JAX itself
    (package / "lax.py").write_text(
        f"import pathlib\n\ndef top_k(values, k):\n    pathlib.Path({str(mark)!r}).touch()\n    return values, k\n"
    )

    def run(code):
        done = subprocess.run(
            [sys.executable, "-c", f"import json, os, sys\n{code}\nprint(json.dumps(said))"],
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])},
            capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        assert not done.returncode, done.stderr
        return json.loads(done.stdout.splitlines()[-1]), mark.exists()

    return run


def test_bm25s_alone_computes_with_jax(computed):
    """Or the tests below would show nothing; once it does not, nothing need be hidden from it."""
    assert computed("import bm25s\nsaid = 'jax' in sys.modules") == (True, True)


def test_titles_are_found_without_jax(computed):
    code = f"""
before = dict(os.environ)
{OURS}
said = [sorted(name for name in sys.modules if name.split(".")[0] == "jax"), dict(os.environ) == before]
said.append(TitleSearch(["", "black guitar", "light strings"], 1.2, 0.75).best("strings", 5)[0].tolist())
"""
    assert computed(code) == ([[], True, [2]], False)


def test_jax_is_there_for_who_imports_it_afterwards(computed):
    code = f"{OURS}\nimport jax.lax\njax.lax.top_k([1], 1)\nsaid = jax.__file__ is not None"
    assert computed(code) == (True, True)


def test_jax_imported_before_is_not_computed_with(computed):
    code = f"import jax\nbefore = jax, jax.lax\n{OURS}\nimport jax, jax.lax\nsaid = before == (jax, jax.lax)"
    assert computed(code) == (True, False)


@pytest.mark.parametrize("before", [{}, {"json": None}, {"json": json}])
def test_a_package_is_hidden_for_a_while(monkeypatch, before):
    monkeypatch.delitem(sys.modules, "json")
    for name, module in before.items():
        monkeypatch.setitem(sys.modules, name, module)
    with pytest.raises(ImportError, match="json"), hidden_package("json"):
        import json  # noqa: F401
    assert {name: module for name, module in sys.modules.items() if name == "json"} == before
