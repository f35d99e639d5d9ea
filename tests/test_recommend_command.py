"""The verb ``recommend`` on a finished run: what it prints, and what it says of bad input."""

import pytest
from small_data import TITLES, small_settings, write_dataset

from recbole_llm.cli import main
from recbole_llm.inference import Recommender
from recbole_llm.quick_start import run


@pytest.fixture(scope="module")
def finished(tiny, tmp_path_factory):
    """The folder of a run of one epoch."""
    root = write_dataset(tmp_path_factory.mktemp("recommend"))
    settings = small_settings(root, backbone=str(tiny["opt"]), tuning="ilp", epochs=1, alignment=False)
    return run(settings=settings)["path"].removesuffix("/result.json")


@pytest.fixture(autouse=True)
def _elsewhere(workdir):
    """Nothing is written into the folder that the tests are started from."""


def printed(capsys, *arguments):
    assert main(["recommend", *arguments]) == 0
    return [line.split("\t") for line in capsys.readouterr().out.splitlines() if line]


def test_prints_what_the_recommender_returns(finished, capsys, tmp_path):
    recommender = Recommender.from_run(finished)
    histories = [["a", "b", "c"], ["h"]]
    expected = recommender.recommend(histories, 3, exclude_seen=True)
    file = tmp_path / "histories.txt"
    file.write_text("a b c\nh\n")
    lines = printed(capsys, f"--run={finished}", f"--histories={file}", "--k=3", "--exclude_seen=true")
    assert [(number, rank) for number, rank, *_ in lines] == [(str(n), str(r)) for n in (1, 2) for r in (1, 2, 3)]
    assert [item for *_, item, _ in lines] == [item for row in expected for item in row.items]
    scores = [score for row in expected for score in row.scores]
    assert [float(line[3]) for line in lines] == pytest.approx(scores, rel=1e-4, abs=1e-5)
    single = printed(capsys, f"--run={finished}", "--history=a b c", f"--k={len(TITLES)}")
    assert printed(capsys, f"--run={finished}", "--history=a,b,c", f"--k={len(TITLES)}") == single
    assert [line[2] for line in single] == recommender.recommend(["a", "b", "c"], len(TITLES)).items


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--history=a"], "needs the folder of a finished run"),
        (["--run=R"], "either --history"),
        (["--run=R", "--history=a", "--histories=b"], "either --history"),
        (["--run=R", "--history=a", "--topk=3"], "no setting 'topk'"),
        (["--run=R", "history=a"], "'history=a' is not understood"),
        (["--run=R", "--history=a", "--exclude_seen=maybe"], "exclude_seen=maybe must be true or false"),
        (["--run=R", "--histories=none.txt"], "none.txt cannot be read"),
        (["--run=R", "--histories=empty.txt"], "empty.txt is empty"),
        (["--run=R", "--histories=gap.txt"], "line 2 of gap.txt is empty"),
        (["--run=R", "--history=", "--k=2"], "a history is empty"),
        (["--run=R", "--history=a", "--k=many"], "k=many must be a whole number"),
        (["--run=R", "--history=a", "--k=99"], "k=99 is more than the 8 items of small"),
        (["--run=R", "--history=nobody", "--k=2"], "there is no item 'nobody' in small"),
    ],
)
def test_bad_input(finished, capsys, workdir, arguments, message):
    (workdir / "empty.txt").write_text("")
    (workdir / "gap.txt").write_text("a b\n\nc\n")
    assert main(["recommend", *[a.replace("--run=R", f"--run={finished}") for a in arguments]]) in (1, 2)
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ")
    assert message in error
