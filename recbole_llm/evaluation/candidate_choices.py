"""Models that are shown a list of candidates and choose one: the lists, and what is measured of the choices.

The draws are those of `candidates.draw_candidates`, so that models which score all items meet the same candidates. The
order in which a list is shown is a permutation by the seed of its draw: the target stands at every place equally often.
"""

import gzip
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from recbole_llm.data.known_histories import KnownHistories
from recbole_llm.errors import DataError
from recbole_llm.evaluation.answers import NONE, RULES
from recbole_llm.evaluation.candidates import (
    CandidateRanking,
    candidate_ranking,
    draw_candidates,
    excluded_items,
    mean_and_std,
)
from recbole_llm.utils.files import replacing

ANSWERS = "answers-test.jsonl.gz"
_ORDER = 1  # beside the seed of a draw: another stream of numbers than that which draws the items


class CandidateLists:
    """The candidates of every row of an evaluated part, in the order in which they are shown.

    Args:
        shown: int64 [rows, draws, size], item ids.
        targets: int64 [rows], item ids.

    Attributes:
        places: int64 [rows, draws], where the target stands.

    Raises:
        DataError: if a list does not hold its target exactly once.
    """

    def __init__(self, shown: np.ndarray, targets: np.ndarray) -> None:
        found = shown == targets[:, None, None]
        wrong = np.argwhere(found.sum(axis=2) != 1)
        if len(wrong):
            row, draw = wrong[0]
            times = int(found[row, draw].sum())
            raise DataError(
                f"the candidates of row {row} in draw {draw} hold the target {times or 'no'} times, and must hold it "
                f"once: make the lists again"
            )
        self.shown, self.targets = shown, targets
        self.places = found.argmax(axis=2)

    @classmethod
    def drawn(
        cls, part: Any, earlier: Sequence[Any], size: int, draws: int, known: KnownHistories | None = None
    ) -> "CandidateLists":
        """Draw the lists of a part.

        Args:
            part: the evaluated part of a dataset.
            earlier: the parts before it in time.
            size: candidates, the target included.
            draws: how often they are drawn, with the seeds 0 to ``draws - 1``.
            known: what the part's users met before, where it is at hand.

        Raises:
            DataError: if the catalogue is too small.
        """
        excluded = excluded_items(part, list(earlier), known)
        targets = part.inter_feat[part.iid_field].numpy().astype(np.int64)
        lists = []
        for seed in range(draws):
            others = draw_candidates(excluded, part.item_num, size - 1, seed)
            whole = np.concatenate([targets[:, None], others], axis=1)
            order = np.random.default_rng([seed, _ORDER]).random(whole.shape).argsort(axis=1)
            lists.append(np.take_along_axis(whole, order, axis=1))
        return cls(np.stack(lists, axis=1), targets)

    @property
    def size(self) -> int:
        """Candidates of a list."""
        return int(self.shown.shape[2])

    @property
    def seeds(self) -> int:
        """How often lists were drawn."""
        return int(self.shown.shape[1])

    def __len__(self) -> int:
        return len(self.shown)


class CandidateChoices:
    """What a model chose from every list, and how good that is.

    Args:
        lists: what was shown.

    Attributes:
        answers: [rows, draws], the texts of answers; None for a model that chooses without words.
    """

    def __init__(self, lists: CandidateLists) -> None:
        self.lists = lists
        self.clear()

    @property
    def size(self) -> int:
        """Candidates of a list."""
        return self.lists.size

    @property
    def seeds(self) -> int:
        """How often lists were drawn."""
        return self.lists.seeds

    def clear(self) -> None:
        """Forget all choices."""
        empty = np.full(self.lists.places.shape, NONE, dtype=np.int64)
        self._chosen = {rule: empty.copy() for rule in RULES}
        self._seen = np.zeros(self.lists.places.shape, dtype=bool)
        self.answers: np.ndarray | None = None

    def choose(self, rows: slice, places: np.ndarray) -> None:
        """Take choices that were made without words.

        Args:
            rows: which rows they are of.
            places: int64 [rows, draws], places in the lists as shown.
        """
        for chosen in self._chosen.values():
            chosen[rows] = places
        self._seen[rows] = True

    def read(self, rows: slice, answers: Sequence[Sequence[str]], titles: np.ndarray) -> None:
        """Take answers in words, read by both rules.

        Args:
            rows: which rows they are of.
            answers: [rows][draws].
            titles: object [items], the title of every item as the model was shown it.
        """
        if self.answers is None:
            self.answers = np.full(self.lists.places.shape, "", dtype=object)
        for row, of_row in zip(range(*rows.indices(len(self.lists))), answers, strict=True):
            for draw, answer in enumerate(of_row):
                shown = titles[self.lists.shown[row, draw]]
                self.answers[row, draw] = answer
                for rule, read in RULES.items():
                    self._chosen[rule][row, draw] = read(answer, shown)
        self._seen[rows] = True

    def chosen(self, rule: str) -> np.ndarray:
        """Return the chosen places: int64 [rows, draws], `NONE` for an answer that is not valid."""
        return self._chosen[rule]

    def metrics(self, rule: str) -> dict[str, float]:
        """Return ``hit@1`` and ``valid_ratio``, means over rows and draws."""
        return {name: found["mean"] for name, found in self._measured(rule).items()}

    def _measured(self, rule: str) -> dict[str, dict[str, float]]:
        if not self._seen.all():
            raise ValueError(f"{int(self._seen.sum())} of {self._seen.size} lists were answered")
        chosen = self._chosen[rule]
        hits, valid = chosen == self.lists.places, chosen != NONE
        return {"hit@1": mean_and_std(hits.mean(axis=0)), "valid_ratio": mean_and_std(valid.mean(axis=0))}

    def entry(self, rule: str) -> dict[str, Any]:
        """Return what `result.json` holds: means and deviations over the draws, by the rule of the run and by both.

        ``hit@1`` counts hits over all rows: an answer that is not valid is a miss.
        """
        by_rule = {f"{name}_rule": self._measured(name) for name in RULES} if self.answers is not None else {}
        return {"size": self.size, "seeds": self.seeds, **self._measured(rule), "rule": rule, **by_rule}

    def write_of(self, folder: Path, part: Any, rule: str) -> None:
        """Write one line of JSON per list, gzipped: row, draw, user, the candidates as shown, the choice, the answer.

        Args:
            folder: of the run; the file is ``answers-test.jsonl.gz``.
            part: the evaluated part of a RecBole dataset, whose tokens name users and items.
            rule: by which answers are read.

        Raises:
            StorageError: if it cannot be written.
        """
        tokens = part.field2id_token[part.iid_field]
        names = part.field2id_token[part.uid_field][part.inter_feat[part.uid_field].numpy()]
        lines = []
        for row, draw in np.ndindex(self.lists.places.shape):
            shown, place = self.lists.shown[row, draw], int(self._chosen[rule][row, draw])
            line = {
                "row": row,
                "draw": draw,
                "user": str(names[row]),
                "candidates": [str(token) for token in tokens[shown]],
                "target": str(tokens[self.lists.targets[row]]),
                "chosen": None if place == NONE else str(tokens[shown[place]]),
            }
            if self.answers is not None:
                line["answer"] = self.answers[row, draw]
            lines.append(json.dumps(line, ensure_ascii=False))
        with replacing(folder / ANSWERS) as temporary:
            temporary.write_bytes(gzip.compress(("\n".join(lines) + "\n").encode(), mtime=0))


def candidate_choices(config: Any, part: Any, earlier: Sequence[Any]) -> CandidateChoices | None:
    """Return the lists that a model which chooses is shown; None for a part that is not there.

    Args:
        config: the settings `candidates` and `candidate_seeds`.
        part: the loader of the evaluated part.
        earlier: the loaders of the parts before it.
    """
    if part is None:
        return None
    loaded = [each._dataset for each in earlier if each is not None]
    return CandidateChoices(
        CandidateLists.drawn(part._dataset, loaded, config["candidates"], config["candidate_seeds"])
    )


def candidate_measure(
    config: Any, chooses: bool, part: Any, earlier: list[Any]
) -> CandidateChoices | CandidateRanking | None:
    """Return what measures a run among candidates: choices of lists, or scores of all items.

    Args:
        config: the settings.
        chooses: whether the model chooses, see `ModelHooks.chooses_candidates`.
        part: the loader of the evaluated part.
        earlier: the loaders of the parts before it.
    """
    return (candidate_choices if chooses else candidate_ranking)(config, part, earlier)


def results(
    test: CandidateChoices | CandidateRanking | None, valid: CandidateChoices | CandidateRanking | None, rule: str
) -> dict[str, Any]:
    """Return what `result.json` holds of candidates: nothing without the setting.

    Args:
        test: of the test part.
        valid: of the validation part; None if it was not evaluated.
        rule: by which answers in words are read.
    """
    if test is None:
        return {}
    entry = test.entry(rule)
    if valid is not None:
        entry["valid_hit@1"] = valid.entry(rule)["hit@1"]
    return {"candidates": entry}
