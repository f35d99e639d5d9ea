"""Approximate search behind `Recommender`, `recommend` and `serve`: with all lists it is the exact one."""

import json
from dataclasses import replace

import pandas as pd
import pytest
from fastapi.testclient import TestClient
from small_data import HISTORIES, TITLES, build_parts, small_settings, write_dataset

from recbole_llm.cli.main import main
from recbole_llm.errors import SettingError
from recbole_llm.inference import recommender as recommending
from recbole_llm.inference.approximate_search import ApproximateBest, ApproximateSearch
from recbole_llm.inference.recommender import Recommendation, Recommender
from recbole_llm.inference.users import UserRecommender
from recbole_llm.quick_start.run import load, run
from recbole_llm.serving.app import Batching, make_app
from recbole_llm.serving.service import Limits, Question, Service
from recbole_llm.utils import packages

LISTS = 6  # of 8 items: twice the root
SEARCH = ApproximateSearch(k=5, nprobe=LISTS)
WAYS = ("--search=approximate", f"--nprobe={LISTS}")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a run of one epoch."""
    root = write_dataset(tmp_path_factory.mktemp("search"))
    sizes = {"hidden_size": 8, "inner_size": 8, "n_heads": 2, "train_neg_sample_args": None}
    return run(settings=small_settings(root, model="SASRec", epochs=1, **sizes))["path"].removesuffix("/result.json")


@pytest.fixture(autouse=True)
def _cache(workdir, monkeypatch):
    monkeypatch.setenv("RECBOLE_LLM_CACHE", str(workdir / "cache"))


@pytest.fixture
def parts(finished):
    return load(finished)


@pytest.fixture
def searched(monkeypatch):
    """How many items each approximate search was asked for."""
    asked, best = [], ApproximateBest.best
    monkeypatch.setattr(ApproximateBest, "best", lambda self, *args: asked.append(args[3]) or best(self, *args))
    return asked


def same(found, exact):
    assert found.items == exact.items
    assert found.scores == pytest.approx(exact.scores, rel=1e-5)


@pytest.mark.parametrize("exclude_seen", [None, True, False])
def test_the_recommendations_are_those_of_the_exact_search(parts, searched, exclude_seen):
    search, exact = (Recommender(parts.model, parts.train._dataset, search=search) for search in (SEARCH, None))
    histories = [list(history) for history in HISTORIES.values()]
    for k in (1, 5):
        for found, expected in zip(
            search.recommend(histories, k, exclude_seen), exact.recommend(histories, k, exclude_seen), strict=True
        ):
            same(found, expected)
        same(search.recommend(histories[0], k, exclude_seen), exact.recommend(histories[0], k, exclude_seen))
    assert searched == [1, 1, 5, 5]
    # The recall was measured for 5 items: whoever asks for more is answered exactly.
    assert search.recommend(histories, 6, exclude_seen) == exact.recommend(histories, 6, exclude_seen)
    assert searched == [1, 1, 5, 5]


@pytest.mark.parametrize("exclude_seen", [True, False])
def test_users_of_the_dataset(parts, searched, exclude_seen):
    users = list(HISTORIES)[:5]
    found, exact = (
        UserRecommender(parts, search=search).recommend(users, 5, exclude_seen) for search in (SEARCH, None)
    )
    for own, expected in zip(found, exact, strict=True):
        same(own, expected)
    assert searched == [5]


def test_what_else_was_seen_is_left_out(parts):
    recommender = Recommender(parts.model, parts.train._dataset, allow_untrained=True)
    history, others = ["a", "b"], ["c", "h"]
    whole = recommender.recommend(history, 8, True)
    for k in (2, 8):
        found = recommender.recommend(history, k, True, also_seen=others)
        assert found.items == [item for item in whole.items if item not in others][:k]
    assert recommender.recommend([history], 8, False, also_seen=[others])[0].items == (
        recommender.recommend(history, 8, False).items
    )


def test_the_sample_is_the_users_as_they_are_evaluated(finished, monkeypatch):
    made = []

    class Noted(ApproximateBest):
        def __init__(self, settings, sample, seen, *others):
            made.append((len(sample.users), seen))
            super().__init__(settings, sample, seen, *others)

    monkeypatch.setattr(recommending, "ApproximateBest", Noted)
    monkeypatch.setattr(recommending, "SAMPLE", 4)
    for repeatable in (True, False):
        parts = load(finished)
        parts.train._dataset.item_protocol = type("Protocol", (), {"repeatable": repeatable})
        for exclude_seen in (None, not repeatable, repeatable):
            search = replace(SEARCH, exclude_seen=exclude_seen)
            Recommender(parts.model, parts.train._dataset, search=search)
    assert [users for users, _ in made] == [4] * 6
    assert [seen is None for _, seen in made] == [True, True, False, False, False, True], "as asked, or as evaluated"
    left_out = made[3][1]
    rows = ["".join(parts.dataset.id2token("item_id", row)) for row in left_out]
    # Each is what a user did before what is held out.
    assert len(set(rows)) == 4
    assert all(any(history.startswith(row) and history != row for history in HISTORIES.values()) for row in rows)


def test_new_items_are_ranked_exactly(small, tiny, searched):
    new = pd.DataFrame({"title": ["Xylophone"]}, index=["x"])
    parts = build_parts(small, model="UniSRec", backbone=str(tiny["bert"]), epochs=0)
    search = ApproximateSearch(k=8, nprobe=LISTS)
    recommender = Recommender(parts.model, parts.train._dataset, new_items=new, search=search)
    exact = recommender.recommend(["a"], 9)  # more than 8
    assert "x" in exact.items and searched == []
    same(recommender.recommend(["a"], 8), Recommendation(exact.items[:8], exact.scores[:8]))
    assert searched == [8]


def test_requests_are_answered(parts, searched):
    service = Service(parts, Limits(), search=ApproximateSearch(k=3, nprobe=LISTS))
    with TestClient(make_app(service, Batching(0.0))) as client:
        answer = client.post("/recommend", json={"history": ["a", "b"], "k": 3}).json()["items"]
    assert [item["item"] for item in answer] == parts.recommend(["a", "b"], 3).items
    assert searched == [8]  # the 16 that the server makes of 3, or all


def test_who_asks_for_more_than_is_searched_for_slows_nobody_else(parts, searched):
    service = Service(parts, Limits(), search=SEARCH)
    service._searched = 3  # of a catalogue this small the server would search for all
    found = service.answer([Question(("a", "b"), None, k) for k in (3, 5, 2)])
    assert [len(row.items) for row in found] == [3, 5, 2]
    assert len(searched) == 2, "two in one batch, and one alone"


def test_the_command_recommend(finished, searched, capsys):
    lines = []
    for ways in (WAYS, ()):
        assert main(["recommend", f"--run={finished}", "--user=u1", "--k=4", "--format=jsonl", *ways]) == 0
        out, error = capsys.readouterr()
        lines.append(json.loads(out))
        summary = "approximate search reads 6 of 6 lists of items: recall@4 1.0000 of 7 users\n"
        assert error == (summary if ways else "")
    assert searched == [4]
    found, exact = ([(item["item"], item["title"]) for item in line["items"]] for line in lines)
    assert found == exact and len(found) == 4 and all(TITLES[item] == title for item, title in found)


@pytest.mark.parametrize("verb", ["recommend", "serve"])
def test_mistakes_are_one_sentence(finished, capsys, monkeypatch, verb):
    def refused(*arguments):
        who = ["--user=u1"] if verb == "recommend" else ["--port=0"]
        assert main([verb, f"--run={finished}", *who, *arguments]) == 2
        out, error = capsys.readouterr()
        assert out == "" and error.count("\n") == 1
        return error.removeprefix("error: ").rstrip()

    assert refused("--search=fast").startswith("search=fast is not one of exact, approximate")
    assert refused("--nprobe=3") == "--nprobe is of an approximate search: give --search=approximate, too"
    assert refused("--search=approximate", "--min_recall=2") == "min_recall=2 must be a number above 0, and 1 at most"
    assert refused("--search=approximate", "--nprobe=0") == "nprobe=0 must be a whole number from 1"
    assert refused("--search=approximate", "--nprobe=7") == "nprobe=7 is more than the 6 lists of the index"
    monkeypatch.setattr(packages, "find_spec", lambda name: None if name == "faiss" else object())
    told = "search=approximate needs the package 'faiss': pip install 'recbole-llm[ann]'"
    assert refused("--search=approximate") == told


def test_a_model_that_is_asked_by_id_is_refused(workdir):
    write_dataset(workdir, {"u1": "abc", "u2": "bcd", "u3": "dba"}, titles=None)
    with pytest.raises(SettingError, match=r"BPR is asked by the user's id: set search=exact$"):
        UserRecommender(build_parts(workdir, model="BPR"), search=SEARCH)
