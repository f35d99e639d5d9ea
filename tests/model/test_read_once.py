"""What evaluation reads: each history once per epoch, a frozen ID model's part once per run, on the host alone."""

import numpy as np
import pytest
import torch
from recbole.data.interaction import Interaction
from recbole.model.sequential_recommender import SASRec
from small_data import build_parts, small_settings

from recbole_llm.model.id_model.memory import RowMemory
from recbole_llm.model.sequential_recommender.idleadapter import IDLEAdapter
from recbole_llm.model.sequential_recommender.st2si import ST2SI
from recbole_llm.packing.sequences import pack
from recbole_llm.quick_start.run import run

SASREC = {"hidden_size": 8, "inner_size": 8, "n_layers": 1, "n_heads": 2, "epochs": 1}
EPOCHS = 3


def settings_of(model, tiny, **settings):
    own = {
        "ST2SI": {"backbone": str(tiny["llama"]), "tuning": "ilp"},
        "IDLEAdapter": {"backbone": str(tiny["bert"]), "max_prompt_tokens": 128},
    }[model]
    with_id = {"id_model": "SASRec", "id_model_settings": SASREC}
    shared = {"model": model, "MAX_ITEM_LIST_LENGTH": 6, "epochs": EPOCHS, "train_batch_size": 8, "stopping_step": 9}
    return {**shared, **own, **with_id, **settings}


def rows_read(monkeypatch, model_class, method):
    """The number of rows in every call of a method."""
    counted, real = [], getattr(model_class, method)

    def counting(self, interaction, *arguments):
        counted.append(len(interaction))
        return real(self, interaction, *arguments)

    monkeypatch.setattr(model_class, method, counting)
    return counted


@pytest.mark.parametrize("model", ["ST2SI", "IDLEAdapter"])
def test_language_model_reads_validation_once_per_epoch(small, tiny, monkeypatch, model):
    """Also with ``id_weight: ~``, where the weight is chosen before the validation that uses it."""
    read = rows_read(monkeypatch, {"ST2SI": ST2SI, "IDLEAdapter": IDLEAdapter}[model], "row_states")
    given = small_settings(small, **settings_of(model, tiny, id_weight=None))
    result = run(settings=given)
    assert result["epochs"] == EPOCHS
    counts = result["counts"]
    # The best epoch is evaluated on the test part, and once more on validation for its ranks.
    assert sum(read) == EPOCHS * counts["valid"] + counts["test"] + counts["valid"]


@pytest.mark.parametrize("id_weight", [None, 0.3])
def test_id_model_scores_validation_once_per_run(small, tiny, monkeypatch, id_weight):
    parts = build_parts(small, **settings_of("ST2SI", tiny, id_weight=id_weight))
    trainer = parts.trainer()
    trainer.precompute(parts.valid)
    read = rows_read(monkeypatch, SASRec, "full_sort_predict")
    trainer.fit(parts.train, parts.valid)
    assert trainer.epochs_done == EPOCHS
    assert sum(read) == len(parts.valid._dataset)


def test_user_vectors_of_validation_are_computed_once_per_run(small, tiny, monkeypatch):
    parts = build_parts(small, **settings_of("IDLEAdapter", tiny, id_weight=0))
    trainer = parts.trainer()
    trainer.precompute(parts.valid)
    read = rows_read(monkeypatch, IDLEAdapter, "user_vectors")
    trainer.fit(parts.train, parts.valid)
    assert trainer.epochs_done == EPOCHS
    assert sum(read) == len(parts.valid._dataset)


def test_memory_keeps_what_fits_and_gives_copies():
    rows = [Interaction({"history_end": torch.tensor([n, n + 1])}) for n in range(3)]
    by_hand = Interaction({"item_length": torch.tensor([1, 1])})
    computed = []

    def compute(number):
        computed.append(number)
        return torch.full((2, 4), 0.0 if number == "by hand" else float(number))  # 32 bytes

    memory = RowMemory(limit=64)
    for _ in range(2):
        for number in range(3):
            found = memory.get(rows[number], lambda number=number: compute(number))
            assert (found == number).all()
            found.fill_(-1.0)
        memory.get(by_hand, lambda: compute("by hand"))
    assert computed == [0, 1, 2, "by hand", 2, "by hand"]


@pytest.mark.parametrize("model", ["ST2SI", "IDLEAdapter"])
def test_evaluated_rows_stay_on_the_host(small, tiny, monkeypatch, model):
    """Only the ID model's three columns go to the device, where they are read; nothing comes back from there."""
    parts = build_parts(small, **settings_of(model, tiny, **({"id_weight": 0} if model == "IDLEAdapter" else {})))
    moved, real = [], Interaction.to

    def to(self, device, selected_field=None):
        if "item_length" in self:  # not the item features, once
            moved.append(set(self.interaction))
        return real(self, device, selected_field)

    monkeypatch.setattr(Interaction, "to", to)
    trainer = parts.trainer()
    trainer.evaluate(parts.test, load_best_model=False)
    assert len(moved) == len(parts.test)
    assert all("history_end" not in fields for fields in moved)
    if model == "IDLEAdapter":
        assert all(fields == {"item_id_list", "item_length", "user_id"} for fields in moved)


# -- windows by position -----------------------------------------------------------------------------------------------

LIMITS = [
    {}, {"max_items": 2}, {"max_sequence_tokens": 60}, {"max_sequence_tokens": 60, "multi_query": False},
    {"MAX_ITEM_LIST_LENGTH": 3},
]  # fmt: skip


@pytest.mark.parametrize("limits", LIMITS)
def test_windows_cut_by_position_are_those_of_the_histories(build_st2si, limits):
    """Every row of every part: the same tokens are read, at the same places, as from the row's own list."""
    parts = build_st2si(**limits)
    inputs = parts.model.inputs
    for part in (parts.train._dataset, parts.valid._dataset, parts.test._dataset):
        rows = part[np.arange(len(part))]
        lengths = rows["item_length"].numpy()
        found = pack(inputs.sequences_before(rows["history_end"].numpy(), lengths), inputs.table)
        expected = pack(inputs.prefix_sequences(rows["item_id_list"].numpy(), lengths), inputs.table)
        assert torch.equal(found.token_ids, expected.token_ids)
        assert torch.equal(found.query_index, expected.query_index)
        assert found.bounds.lengths == expected.bounds.lengths
        assert len(found.query_index) == len(part)


@pytest.mark.parametrize("limits", [{}, {"max_items": 2}, {"max_prompt_tokens": 60}])
def test_prompts_cut_by_position_are_those_of_the_histories(build, limits):
    parts = build(**limits)
    inputs = parts.model.inputs
    for part in (parts.train._dataset, parts.valid._dataset, parts.test._dataset):
        rows = part[np.arange(len(part))]
        lengths = rows["item_length"].numpy()
        found = list(inputs.prompts_before(rows["history_end"].numpy(), lengths, 150))
        expected = list(inputs.prompts_of(rows["item_id_list"].numpy(), lengths, 150))
        assert len(found) == len(expected) > 1
        for (which, prompts), (other, others) in zip(found, expected, strict=True):
            assert np.array_equal(which, other)
            assert torch.equal(prompts.packed.token_ids, others.packed.token_ids)
            assert torch.equal(prompts.packed.positions, others.packed.positions)
