"""What every model must do, RecBole's own included; the tests of a model inherit it.

    class TestSASRec(ModelTests):
        model = "SASRec"
        settings = {"hidden_size": 8}

Something that cannot hold for a kind of model is declared by an attribute of the class, and its test is skipped with
the reason.
"""

import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from recbole.data.interaction import Interaction
from safetensors.torch import load_file
from small_data import small_settings, write_dataset
from torch import Tensor

from recbole_llm.config.config import Config
from recbole_llm.config.hooks import hooks_of_class, scores_in_blocks
from recbole_llm.evaluation import blocks
from recbole_llm.evaluation.candidate_choices import candidate_choices
from recbole_llm.quick_start.run import Parts, build, fit, load
from recbole_llm.runs import folder as run_folder

ITEMS = "abcdefghijkl"
COLOURS = ("red", "green", "blue")
# An item is followed by the next one of the alphabet, so there is something to learn; nobody knows all items.
HISTORIES = {
    f"u{user}": [ITEMS[(user * 5 + step) % len(ITEMS)] for step in range(5 + user % 4)] for user in range(len(ITEMS))
}
LATER = {  # other last items; not of the first users, after whose items RecBole numbers the catalogue
    user: items if number < 3 else [*items[:-1], ITEMS[(ITEMS.index(items[-1]) + 1) % len(ITEMS)]]
    for number, (user, items) in enumerate(HISTORIES.items())
}
TITLES = {item: [f"{item} {COLOURS[number % 3]} thing", COLOURS[number % 3]] for number, item in enumerate(ITEMS)}


class Interrupted(Exception):
    """Ends a training."""


class ModelTests:
    """The contract of a model.

    Attributes:
        model: its name.
        settings: that make it small and quick; `tiny/<name>` as a backbone is that tiny language model.
        learns: whether its training has a loss, and several epochs that can be interrupted.
        reads_texts: whether it reads item texts with a language model: its padding id then scores -inf by itself.
        chooses: whether it is shown lists of candidates and ranks nothing; what is compared are then its choices.
        ranks_all: whether it ranks every item; else those that it does not rank score -inf.
    """

    model: ClassVar[str]
    settings: ClassVar[dict[str, Any]] = {}
    learns: ClassVar[bool] = True
    reads_texts: ClassVar[bool] = False
    chooses: ClassVar[bool] = False
    ranks_all: ClassVar[bool] = True

    # -- what is trained once for all tests of a class ---------------------------------------------------------------

    @pytest.fixture(scope="class")
    def place(self, tmp_path_factory: pytest.TempPathFactory, tiny: dict[str, Path]) -> Iterator[dict[str, Any]]:
        """An empty working folder with a dataset, and the settings of a run there."""
        root = tmp_path_factory.mktemp(self.model)
        write_dataset(root, HISTORIES, TITLES, columns=("title", "class"))
        given = small_settings(root, model=self.model, epochs=4, train_batch_size=16, resume_seconds=0, topk=[1, 10])
        given.update({"MAX_ITEM_LIST_LENGTH": 6, "valid_metric": "NDCG@10", **self.settings})
        if str(given.get("backbone", "")).startswith("tiny/"):
            given["backbone"] = str(tiny[given["backbone"].removeprefix("tiny/")])
        if not self.reads_texts:
            del given["precision"]
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(root)
            patch.setenv("RECBOLE_LLM_CACHE", str(root / "cache"))
            patch.setenv("HF_HUB_OFFLINE", "1")
            yield given

    @pytest.fixture(scope="class")
    def trained(self, place: dict[str, Any]) -> tuple[Parts, Any]:
        """The parts and the trainer of a run whose model, in memory, has its best weights."""
        folder = Path("trained").resolve()
        config = Config(config_dict=place)
        parts = build(config, folder=folder)
        folder.mkdir()
        run_folder.write_settings(folder, parts.settings)
        trainer = parts.trainer()
        trainer.precompute(parts.valid)  # what `fit` computes, too
        trainer.fit(parts.train, parts.valid)
        trainer.evaluate(parts.test)
        return parts, trainer

    # -- the contract --------------------------------------------------------------------------------------------------

    def test_blocks_of_items_give_the_ranks_of_the_whole(
        self, trained: tuple[Parts, Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Under both answers to `repeatable`, and without a table of all scores."""
        parts, trainer = trained
        if not scores_in_blocks(type(parts.model), parts.config):
            pytest.skip("it scores all items at once")
        monkeypatch.setattr(trainer, "both_protocols", True)
        monkeypatch.setattr(blocks, "_block_size", lambda *_: 7)
        trainer.eval_collector.data_collect(parts.train)
        results, ranks = [], []
        for in_blocks in (False, True):
            monkeypatch.setattr(parts.test, "in_blocks", in_blocks, raising=False)
            if in_blocks:
                monkeypatch.setattr(parts.model, "full_sort_predict", None)
            results.append((trainer.evaluate(parts.test, load_best_model=False), trainer.other_result))
            ranks.append(np.array(trainer.eval_collector.collected()))
        assert results[0] == results[1]
        assert len(ranks[0]) == 4 and np.array_equal(*ranks)

    def test_loss_falls(self, trained: tuple[Parts, Any]) -> None:
        """The last epoch's loss is less than the first's."""
        if not self.learns:
            pytest.skip(f"{self.model} has no loss")
        losses = [entry["train_loss"] for entry in trained[1].history]
        assert len(losses) > 1
        assert losses[-1] < losses[0]

    def test_predict_is_the_full_ranking_at_that_item(self, trained: tuple[Parts, Any]) -> None:
        """`predict` of an item is what `full_sort_predict` says of it among all."""
        if self.chooses:
            pytest.skip(f"{self.model} scores no item by itself")
        model = trained[0].model
        for rows in batches_of(trained[0]):
            scores = full_scores(model, rows)
            for item in range(1, scores.shape[1], 4):
                one = Interaction({**rows.interaction, model.ITEM_ID: torch.full((len(rows),), item)})
                with torch.no_grad():
                    found = model.predict(one)
                torch.testing.assert_close(found, scores[:, item].to(found.dtype), atol=1e-5, rtol=1e-4)

    def test_padding_never_wins(self, trained: tuple[Parts, Any]) -> None:
        """The padding id is in nobody's ranking, and all items are, but for a model that ranks some alone."""
        if self.chooses:
            pytest.skip(f"{self.model} ranks no catalogue")
        parts = trained[0]
        users = parts.user_recommender.users
        assert len(users) == len(HISTORIES)
        for found in parts.recommend_to(users, k=len(ITEMS), exclude_seen=False):
            assert set(found.items) <= set(ITEMS)
            assert len(set(found.items)) == len(found.items)
            assert len(found.items) == len(ITEMS) or not self.ranks_all
        if self.reads_texts:
            for rows in batches_of(parts):
                scores = full_scores(parts.model, rows)
                assert (scores[:, 0] == -torch.inf).all()
                assert scores[:, 1:].isfinite().all() or not self.ranks_all

    def test_save_and_load_give_the_same_scores(self, trained: tuple[Parts, Any]) -> None:
        """A model that is built again from its folder scores to the last bit as the one in memory."""
        parts, trainer = trained
        assert torch.equal(all_scores(load(trainer.run_folder)), all_scores(parts))

    def test_resumed_training_gives_the_weights_of_an_uninterrupted_one(
        self, trained: tuple[Parts, Any], place: dict[str, Any]
    ) -> None:
        """Losses, validation and best weights are the same to the last bit."""
        if not self.learns:
            pytest.skip(f"{self.model} is trained in one pass")

        def interrupt(epoch: int, _: float) -> None:
            if epoch == 1:
                raise Interrupted

        folder = Path("interrupted").resolve()
        with pytest.raises(Interrupted):
            fit(Config(config_dict=place), folder, interrupt)
        resumed = fit(Config(config_dict=place), folder)
        assert resumed["history"] == trained[1].history
        assert_same_weights(folder, trained[1].run_folder)

    def test_evaluation_batch_size_changes_no_score(self, trained: tuple[Parts, Any]) -> None:
        """Rows are scored one by one as together."""
        parts, trainer = trained
        smaller = {"eval_batch_size": 1, **({"eval_batch_tokens": 32} if self.reads_texts else {})}
        one_by_one = load(trainer.run_folder, smaller)
        assert len(list(batches_of(one_by_one))) > len(list(batches_of(parts)))
        torch.testing.assert_close(all_scores(one_by_one), all_scores(parts), atol=1e-5, rtol=1e-4)

    def test_no_future_is_seen(self, trained: tuple[Parts, Any], place: dict[str, Any], tmp_path: Path) -> None:
        """With other test items nothing of training and validation changes."""
        write_dataset(tmp_path, LATER, TITLES, columns=("title", "class"))
        settings = {**place, "data_path": str(tmp_path), "checkpoint_dir": str(tmp_path / "saved")}
        fitted = fit(Config(config_dict=settings), tmp_path / "run")
        assert fitted["history"] == trained[1].history
        assert_same_weights(tmp_path / "run", trained[1].run_folder, some=self.learns)


def batches_of(parts: Parts) -> Iterator[Interaction]:
    """The rows of the test part, as the evaluation gives them to the model."""
    for rows, *_ in parts.test:
        yield rows


@torch.no_grad()
def full_scores(model: Any, rows: Interaction) -> Tensor:
    """The scores of all items for a batch: [batch, items]."""
    model.eval()
    return model.full_sort_predict(rows).view(len(rows), -1)


def all_scores(parts: Parts) -> Tensor:
    """The scores of all items for the whole test part: [rows, items]; the choices of a model that chooses."""
    if hooks_of_class(type(parts.model)).chooses(parts.config):
        return all_choices(parts)
    return torch.cat([full_scores(parts.model, rows) for rows in batches_of(parts)])


@torch.no_grad()
def all_choices(parts: Parts) -> Tensor:
    """What a model chooses from every list of the test part, and hashes of its answers in words: float [lists, 2]."""
    parts.model.eval()
    choices = candidate_choices(parts.config, parts.test, [parts.train, parts.valid])
    assert choices is not None
    begin = 0
    for rows in batches_of(parts):
        parts.model.choose(rows, choices, slice(begin, begin + len(rows)))
        begin += len(rows)
    found = [choices.chosen("strict").ravel()]
    if choices.answers is not None:
        found.append([zlib.crc32(answer.encode()) for answer in choices.answers.ravel()])
    return torch.tensor(np.array(found), dtype=torch.float64)


def assert_same_weights(found: Path, expected: Path, some: bool = True) -> None:
    """Compare what two runs stored, bit by bit; with `some` they stored any weights."""
    weights, other = (load_file(folder / "model.safetensors") for folder in (found, expected))
    assert weights.keys() == other.keys()
    assert weights or not some
    for name, tensor in other.items():
        assert torch.equal(weights[name], tensor), name
