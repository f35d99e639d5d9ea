"""The leaderboard's entries are what the kept runs say, and each dash has a reason."""

from pathlib import Path

import numpy as np
import pytest
import yaml
from kept_runs import all_kept

from recbole_llm.errors import DataError
from recbole_llm.utils.values import parse_value

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def board(probe, monkeypatch):
    monkeypatch.chdir(ROOT)
    return probe("leaderboard")


def rows_of(lines):
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]


def test_every_label_has_runs_with_the_settings_that_are_named(board):
    entries = board.entries()
    assert len({entry.system for entry in entries}) > 30
    assert any(entry.label for entry in entries)
    for entry in entries:
        assert bool(entry.label) == bool(entry.runs) == bool(entry.settings), entry
        assert board.unlike_the_run(entry, parse_value) == [], entry
        for word in entry.settings.split():
            if word.startswith("--config_files="):
                assert (ROOT / word.removeprefix("--config_files=")).is_file()


def test_a_setting_that_the_runs_do_not_have_is_found(board):
    entry = next(entry for entry in board.entries() if entry.label == "TextInitSASRec")
    wrong = board.Entry("", "", entry.dataset, entry.label, entry.settings + " --hidden_size=255")
    assert board.unlike_the_run(wrong, parse_value) == ["hidden_size=255"]


def test_numbers_are_those_of_the_kept_ranks(board):
    rows = {row[0]: row[2] for row in rows_of(board.table("systems"))}
    entries = [entry for entry in board.entries() if entry.dataset == "Scientific" and entry.label]
    kept = {}
    for run in all_kept():
        if run.archive.stem == "Scientific":
            kept.setdefault(run.label, []).append(run)
    checked = 0
    for entry in entries:
        shown = rows[entry.system].split(" ")[0]
        if shown == "–":  # noqa: RUF001
            continue
        found = [run.ranks()["rank"].to_numpy() for run in kept[entry.label]]  # such runs leave the history out
        means = [np.where(ranks <= 10, 1 / np.log2(ranks + 1.0), 0).mean() for ranks in found]
        assert float(shown) == pytest.approx(np.mean(means), abs=1.1e-4)
        checked += 1
    assert checked >= 8


def test_rows_are_sorted_and_every_dash_has_a_footnote(board):
    for dataset in ("Scientific", "Games", "ml-1m"):
        lines = board.table(dataset)
        notes = {line.split(" ")[0] for line in lines if line.startswith("[")}
        rows = rows_of(lines)[2:]
        first = [float(row[2].split(" ")[0]) for row in rows if row[2][0].isdigit()]
        assert first == sorted(first, reverse=True) and len(first) >= 1
        for row in rows:
            assert all(cell.split(" ")[1] in notes for cell in row[2:6] if not cell[0].isdigit()), row


def test_published_numbers_stand_beside_ours(board):
    lines = board.table("ml-1m")
    row = next(row for row in rows_of(lines) if row[0].startswith("SASRec, public code"))
    assert row[2:4] == ["0.1821", "0.3152"]
    number = row[0].split(" ")[-1]
    assert f"{number} As published: antklen/sasrec-bert4rec-recsys23, SASRec with cross-entropy" in lines


def test_a_system_without_run_number_or_reason_is_refused(board, tmp_path):
    file = tmp_path / "board.yaml"
    system = {"system": "P5", "reads": "text", "results": {"Games": {"why": "too slow"}}}
    file.write_text(yaml.safe_dump({"datasets": ["Games", "ml-1m"], "systems": [system]}))
    with pytest.raises(DataError, match="neither a run, nor a published number, nor a reason for P5 on ml-1m"):
        board.entries(file)


def test_a_dataset_without_a_table_is_told(board):
    with pytest.raises(DataError, match="has no dataset Music: there are Scientific, Games, ml-1m"):
        board.table("Music")
