"""Two stages around a table of item vectors: which table scored which epoch, on a catalogue of three items."""

import pytest
import torch
from small_data import build_parts, write_dataset

from recbole_llm.quick_start.run import load
from recbole_llm.runs import folder as run_folder

HISTORIES = {"u1": "abcab", "u2": "bcabc", "u3": "cabca", "u4": "abca"}
TITLES = {"a": "Toy", "b": "Guitar", "c": "Mario"}


class Watched:
    """A run in two stages whose validations are given, with what was seen in every epoch."""

    def __init__(self, parts, scores):
        self.parts, self.model = parts, parts.model
        self.trainer = trainer = parts.trainer()
        self.trained, self.fresh, self.ranked, self.rates = [], [], [], []
        train, validate, step = trainer._train_epoch, trainer._valid_epoch, trainer._step

        def train_epoch(*arguments, **options):
            self.rates.append([])
            loss = train(*arguments, **options)
            self.trained.append(self.model._training_table.clone())
            return loss

        def valid_epoch(*arguments, **options):
            _, result = validate(*arguments, **options)
            self.fresh.append(self.model.item_table())
            self.ranked.append(self.model.ranking_table().clone())
            return scores.pop(0), result

        def one_step(*arguments):
            self.rates[-1].append(trainer.optimizer.param_groups[0]["lr"])
            return step(*arguments)

        trainer._train_epoch, trainer._valid_epoch, trainer._step = train_epoch, valid_epoch, one_step
        self.first = self.model.item_table()
        trainer.fit(parts.train, parts.valid)


@pytest.fixture(params=["Recformer", "LLMRec"])
def watch(request, workdir, tiny):
    def make(scores, **settings):
        write_dataset(workdir, HISTORIES, TITLES)
        backbone = {"Recformer": "bert", "LLMRec": "llama"}[request.param]
        parts = build_parts(
            workdir, model=request.param, backbone=str(tiny[backbone]), item_loss="table", two_stage=True, topk=[1],
            train_prefixes="one", similarity="cosine", temperature=0.05, learning_rate=0.003, warmup_steps=0,
            valid_metric="NDCG@1", train_batch_size=2, **{"epochs": 10, "stopping_step": 0, **settings},
        )  # fmt: skip
        run_folder.write_settings(parts.context.folder, parts.settings)
        return Watched(parts, scores)

    return make


def test_the_second_stage_begins_with_the_best_of_the_first(watch):
    """Epochs 0 to 2, the best is 1; from epoch 3 its table is neither made again nor changed."""
    seen = watch([0.1, 0.3, 0.2, 0.4, 0.35])
    assert len(seen.trained) == 5
    # The first stage: every epoch has the table of the weights that it begins with, and ranks by those it ends with.
    for epoch, table in enumerate([seen.first, *seen.fresh[:2]]):
        assert torch.equal(seen.trained[epoch], table)
        assert torch.equal(seen.ranked[epoch], seen.fresh[epoch])
    assert not torch.equal(seen.fresh[0], seen.fresh[1])
    # The second: the table of the best weights, whatever the weights become.
    for epoch in (3, 4):
        assert torch.equal(seen.trained[epoch], seen.fresh[1])
        assert torch.equal(seen.ranked[epoch], seen.fresh[1])
        assert not torch.equal(seen.fresh[epoch], seen.fresh[1])
    # The best of both is epoch 3: its table lies with its weights.
    stored = load(seen.trainer.run_folder).model
    assert torch.equal(stored.ranking_table(), seen.fresh[1])
    assert torch.equal(stored.item_table(), seen.fresh[3])


def test_a_second_stage_without_a_better_epoch_leaves_the_first(watch):
    """The best is epoch 1 of the first stage, which has no table of its own."""
    seen = watch([0.1, 0.3, 0.2, 0.25])
    assert len(seen.trained) == 4
    stored = load(seen.trainer.run_folder).model
    assert torch.equal(stored.ranking_table(), seen.fresh[1])
    assert int(stored.stage) == 1


def test_each_stage_has_a_schedule_of_its_own(watch):
    """The rate falls to 0 over the epochs that a stage may have, and begins again: 2 steps an epoch."""
    seen = watch([0.1, 0.2, 0.3, 0.4, 0.5], epochs=5, first_stage_epochs=2, stopping_step=9)
    found = [rate for epoch in seen.rates for rate in epoch]
    expected = [1 - step / 4 for step in range(4)] + [1 - step / 6 for step in range(6)]
    assert found == pytest.approx([0.003 * share for share in expected])
    assert torch.equal(seen.trained[2], seen.fresh[1])
    assert torch.equal(seen.trained[4], seen.fresh[1])
