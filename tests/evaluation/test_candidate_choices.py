"""Lists of candidates in a drawn order, choices from them, and the two rules by which answers are read."""

import gzip
import json

import numpy as np
import pytest
from small_data import small_settings, write_dataset

from recbole_llm.config.config import Config
from recbole_llm.errors import DataError
from recbole_llm.evaluation.answers import NONE, strict, substring
from recbole_llm.evaluation.candidate_choices import ANSWERS, CandidateChoices, CandidateLists
from recbole_llm.evaluation.candidates import CandidateRanking
from recbole_llm.quick_start.run import build

ITEMS, USERS, SIZE, DRAWS = 40, 60, 20, 20


@pytest.fixture
def parts(workdir):
    rng = np.random.default_rng(0)
    histories = {f"u{user}": [f"i{item}" for item in rng.permutation(ITEMS)[:6]] for user in range(USERS)}
    write_dataset(workdir, histories, {f"i{item}": f"Title {item}" for item in range(ITEMS)})
    return build(Config(config_dict=small_settings(workdir, model="GRU4Rec")))


@pytest.fixture
def lists(parts):
    earlier = [parts.train._dataset, parts.valid._dataset]
    return CandidateLists.drawn(parts.test._dataset, earlier, SIZE, DRAWS)


def test_lists_hold_what_a_ranking_draws(parts, lists):
    ranking = CandidateRanking(parts.test._dataset, [parts.train._dataset, parts.valid._dataset], SIZE, DRAWS)
    whole = np.concatenate(
        [np.broadcast_to(lists.targets[:, None, None], (USERS, DRAWS, 1)), ranking._others.numpy()], axis=2
    )
    assert np.array_equal(np.sort(whole, axis=2), np.sort(lists.shown, axis=2))
    again = CandidateLists.drawn(parts.test._dataset, [parts.train._dataset, parts.valid._dataset], SIZE, DRAWS)
    assert np.array_equal(again.shown, lists.shown)


@pytest.mark.parametrize("place", [0, 7, SIZE - 1])
def test_an_oracle_that_takes_one_place_hits_one_in_twenty(lists, place):
    """Every place has the target equally often, whatever the draw; an answer that is a candidate is valid."""
    titles = np.array([f"title {item}" for item in range(ITEMS + 1)], dtype=object)
    choices = CandidateChoices(lists)
    answers = [[titles[lists.shown[row, draw, place]] for draw in range(DRAWS)] for row in range(USERS)]
    choices.read(slice(0, 25), answers[:25], titles)
    choices.read(slice(25, USERS), answers[25:], titles)
    found = choices.metrics("strict")
    rows = USERS * DRAWS
    assert abs(found["hit@1"] - 1 / SIZE) < 3.3 * np.sqrt(1 / SIZE / rows)
    assert found["hit@1"] == round((lists.places == place).mean(), 4)
    assert found["valid_ratio"] == 1.0


def test_the_right_titles_are_all_hits_and_invalid_answers_are_misses(parts, lists, tmp_path):
    titles = np.array([f"title {item}" for item in range(ITEMS + 1)], dtype=object)
    right = [[f'"{titles[target].upper()}".\nbecause' for _ in range(DRAWS)] for target in lists.targets]
    choices = CandidateChoices(lists)
    choices.read(slice(None), right, titles)
    assert choices.metrics("strict") == {"hit@1": 1.0, "valid_ratio": 1.0}
    right[0] = ["I do not know"] * DRAWS
    choices.read(slice(None), right, titles)
    entry = choices.entry("strict")
    expected = {"mean": round((USERS - 1) / USERS, 4), "std": 0.0}
    assert entry["hit@1"] == entry["valid_ratio"] == expected
    assert entry["size"] == SIZE and entry["seeds"] == DRAWS and entry["rule"] == "strict"
    assert entry["strict_rule"] == {"hit@1": expected, "valid_ratio": expected}
    choices.write_of(tmp_path, parts.test._dataset, "strict")
    lines = [json.loads(line) for line in gzip.decompress((tmp_path / ANSWERS).read_bytes()).splitlines()]
    assert len(lines) == USERS * DRAWS
    assert lines[0]["chosen"] is None and lines[-1]["chosen"] == lines[-1]["target"] in lines[-1]["candidates"]


def test_a_list_without_its_target_is_refused():
    with pytest.raises(DataError, match="row 1 in draw 0 hold the target no times"):
        CandidateLists(np.array([[[1, 2]], [[3, 4]]]), np.array([2, 5]))
    with pytest.raises(DataError, match="hold the target 2 times"):
        CandidateLists(np.array([[[1, 1]]]), np.array([1]))


def test_unanswered_lists_are_no_result(lists):
    choices = CandidateChoices(lists)
    choices.choose(slice(0, 3), lists.places[:3])
    with pytest.raises(ValueError, match="lists were answered"):
        choices.entry("strict")


@pytest.mark.parametrize(
    ("answer", "by_strict", "by_substring"),
    [
        ("Alien", 0, 0),
        ("Aliens", 1, NONE),  # LLaRA's rule finds both titles in it
        ("  the GODFATHER.\nIt is a classic.", 2, 2),
        ("\n\n1. 'The Godfather'", NONE, 2),
        ("I would take The  Godfather", NONE, 2),
        ("The Godfather, Alien", NONE, NONE),
        ("", NONE, NONE),
        ("Aliens, Alien", NONE, NONE),
        ("Twins", NONE, NONE),  # two candidates have this title
        ("Godfather", NONE, NONE),
    ],
)
def test_rules(answer, by_strict, by_substring):
    titles = ["Alien", "Aliens", "The Godfather", "Twins", "Twins"]
    assert strict(answer, titles) == by_strict
    assert substring(answer, titles) == by_substring
