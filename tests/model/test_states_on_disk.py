"""A second run, a resumed one and a loaded model take hidden states from the disk; equal prompts are read once."""

from pathlib import Path

import numpy as np
import pytest
import torch
from adapter_parts import trainer_of
from small_data import HISTORIES, TITLES, small_settings, write_dataset
from st2si_parts import fill, prefix_rows

from recbole_llm.backbone import stored_states
from recbole_llm.model.sequential_recommender.idleadapter import IDLEAdapter
from recbole_llm.model.sequential_recommender.st2si import ST2SI
from recbole_llm.quick_start.run import load, run


@pytest.fixture
def read(monkeypatch):
    """How many sequences the language models of ST2SI and IDLE-Adapter (for H~) have read."""
    counted = []
    query_states, language_states = ST2SI.query_states, IDLEAdapter.language_states

    def of_queries(self, batch):
        counted.extend(batch.bounds.lengths)
        return query_states(self, batch)

    def of_prompts(self, prompts):
        counted.extend(prompts.packed.bounds.lengths)
        return language_states(self, prompts)

    monkeypatch.setattr(ST2SI, "query_states", of_queries)
    monkeypatch.setattr(IDLEAdapter, "language_states", of_prompts)
    return counted


def test_a_second_fill_reads_nothing_and_has_the_same_bits(build_st2si, read):
    first = fill(build_st2si()).state_cache.store.table.clone()
    count = len(read)
    assert count > 0
    second = fill(build_st2si()).state_cache.store.table
    assert len(read) == count
    assert torch.equal(first, second)


@pytest.mark.parametrize(
    "change",
    [
        {"titles": {**TITLES, "c": "Digital Watch"}},
        {"max_attribute_tokens": 2},
        {"MAX_ITEM_LIST_LENGTH": 3},
        {"query_token": ","},
        {"alignment": False},
        {"precision": "bf16"},
        {"eval_batch_tokens": 64},
        {"backbone": "opt"},
    ],
    ids=str,
)
def test_states_of_anything_else_are_computed(build_st2si, read, change):
    fill(build_st2si())
    count = len(read)
    changed = fill(build_st2si(**change)).state_cache.store.table.clone()
    assert len(read) > count
    for file in Path("cache/states").iterdir():
        file.unlink()
    alone = fill(build_st2si(**change)).state_cache.store.table
    assert torch.equal(changed, alone)


def test_other_weights_of_the_same_name_are_computed(build_st2si, read, tiny, monkeypatch):
    fill(build_st2si())
    count = len(read)
    monkeypatch.setattr(stored_states, "content_hash", lambda _: "another config.json")
    fill(build_st2si())
    assert len(read) == 2 * count


def test_nothing_is_stored_without_room_for_it(build_st2si, read, monkeypatch):
    model = build_st2si(stored_states_gb=0)
    monkeypatch.setattr(stored_states, "fingerprint", lambda _: pytest.fail("all weight files are read for nothing"))
    fill(model)
    assert read
    assert not list(Path("cache").glob("states/*"))


def test_progress_counts_sequences(build_st2si):
    class Bar:
        def __init__(self, total):
            self.total, self.done = total, []
            bars.append(self)

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def update(self, n):
            self.done.append(n)

    bars = []
    parts = build_st2si(alignment=True, max_items=1, eval_batch_tokens=40)
    parts.model.fill_state_cache([parts.valid.dataset, parts.test.dataset], parts.context.folder, Bar)
    (bar,) = bars
    # one per item that stands before another one, and an alignment input for each item
    before = {item for history in HISTORIES.values() for item in history[:-1]}
    assert bar.total == sum(bar.done) == len(before) + len(TITLES)
    assert len(bar.done) > 3


@pytest.mark.parametrize("kind", ["finished", "interrupted"])
def test_a_loaded_and_a_resumed_run_read_nothing(small, tiny, read, monkeypatch, kind):
    settings = small_settings(small, backbone=str(tiny["llama"]), tuning="ilp", epochs=2, max_items=1)
    if kind == "interrupted":
        real, steps = ST2SI.pass_loss_sum, []

        def stops(self, part):
            steps.append(part)
            if len(steps) == 2:
                raise RuntimeError("the power fails")
            return real(self, part)

        monkeypatch.setattr(ST2SI, "pass_loss_sum", stops)
        with pytest.raises(RuntimeError, match="the power fails"):
            run(settings=settings)
        (folder,) = (small / "saved").iterdir()
        count = len(read)
        result = run(resume=folder)
    else:
        result = run(settings=settings)
        folder, count = Path(result["path"]).parent, len(read)
    assert count == len({item for history in HISTORIES.values() for item in history[:-1]}) + len(TITLES)
    parts = load(folder)
    trainer = parts.trainer(folder=small / "evaluated")
    found = trainer.evaluate(parts.test, load_best_model=False)
    assert {name: round(float(value), 4) for name, value in found.items()} == result["test"]
    assert len(read) == count


def test_a_loaded_last_item_model_reads_each_item_once(small, tiny, read):
    """Also where the states are gone: 6 + 6 targets after 8 different items or fewer."""
    settings = small_settings(small, backbone=str(tiny["llama"]), tuning="ilp", epochs=1, max_items=1)
    folder = Path(run(settings=settings)["path"]).parent
    for file in Path("cache/states").iterdir():
        file.unlink()
    parts = load(folder, {"eval_batch_size": 2})
    read.clear()
    last = {history[place] for history in HISTORIES.values() if len(history) > 2 for place in (-2, -3)}
    rows = [rows for part in (parts.valid, parts.test) for rows, _ in prefix_rows(part)]
    with torch.no_grad():
        found = [parts.model.full_sort_predict(part) for part in rows]
    assert len(read) == len(last)
    alone = load(folder).model
    with torch.no_grad():
        for part, scores in zip(rows, found, strict=True):
            for number in range(len(part)):
                states = alone.states_of(alone._prefixes(part[np.array([number])]))
                expected = alone.projection(states.float())[0]
                torch.testing.assert_close(scores[number], expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("backbone", ["bert", "llama"])
def test_prompts_of_the_last_item_are_read_once(build, read, backbone):
    """H~ of every row is that of its own prompt, and the language model reads one prompt per item."""
    parts = build(backbone, max_items=1)
    trainer_of(parts)
    model, inputs = parts.model, parts.model.inputs
    last = inputs.items[inputs.ends - 1]
    assert len(read) == len(set(last.tolist())) < len(last)
    states = inputs.language_states.take(torch.arange(len(last)))
    for row in range(len(last)):
        prompts = inputs.plain_prompts(np.array([row]))
        alone = model.language_states(prompts).flatten(1)
        torch.testing.assert_close(states[row], alone[0], atol=1e-5, rtol=1e-4)
    read.clear()
    again = build(backbone, max_items=1)
    trainer_of(again)
    assert read == []
    assert torch.equal(again.model.inputs.language_states.take(torch.arange(len(last))), states)


def test_prompts_are_not_stored_without_room_for_them(build, read, monkeypatch):
    monkeypatch.setattr(stored_states, "fingerprint", lambda _: pytest.fail("all weight files are read for nothing"))
    trainer_of(build("bert", max_items=1, stored_states_gb=0))
    assert read
    assert not list(Path("cache").glob("states/*"))


def test_equal_titles_are_one_prompt(small, build, read):
    write_dataset(small, titles=dict.fromkeys(TITLES, "Pump"))
    trainer_of(build("bert", max_items=1))
    assert len(read) == 1


def test_nothing_is_found_for_other_data(small, tiny, read):
    settings = small_settings(small, backbone=str(tiny["llama"]), tuning="ilp", epochs=1)
    folder = Path(run(settings=settings)["path"]).parent
    write_dataset(small, titles={**TITLES, "a": "Another Story"})
    assert load(folder).model.state_cache is None
