"""(n) Exact and approximate search of the best 10 items on one core of a CPU: time, memory and recall.

Item vectors and users are those of a finished run of a model whose scores are products, such as SASRec. Its own
catalogue is searched, and generated ones of any size:

* ``variants``: an item is a trained one, drawn at random, moved by a normal vector with half the covariance of the
  steps from trained items to their nearest neighbours: two variants of one item are as far apart as such neighbours.
* ``lengths``: variants whose lengths are multiplied by exp(.5 z), z normal, as of a model with long popular items.
* ``normal``: normal vectors with the mean and the covariance of the trained items, in no groups: the hardest to search.

The number of lists that are read is chosen by 1,000 users, and recall measured again by others. Times are those that
the one core was busy, so other programs lengthen them little; they are without the model's own work, and beside those
of the exact search in the same process. `peak_mib` is of the process: for it, one catalogue at a time.

    python benchmarks/approximate_search.py --run=saved/<run> [--catalogues=trained,variants,lengths,normal]
                                            [--items=1000000] [--recall=0.99]
"""

import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from shapes import print_line
from torch import Tensor

from recbole_llm.config.hooks import hooks_of
from recbole_llm.errors import SettingError
from recbole_llm.inference.approximate_search import SAMPLE, ApproximateBest, ApproximateSearch, recall_of
from recbole_llm.inference.best_items import best_in_blocks
from recbole_llm.inference.item_index import ItemIndex
from recbole_llm.inference.item_lists import ItemVectors
from recbole_llm.inference.user_histories import user_histories
from recbole_llm.quick_start.run import load
from recbole_llm.utils.item_products import ItemProducts

K, BATCH, OTHERS = 10, 64, 512
_PART = 2**18  # items that are generated together


@torch.no_grad()
def trained(run: str) -> tuple[Tensor, Tensor]:
    """Return the item vectors [items, size] of a run, the padding id's first, and users' vectors [users, size]."""
    parts = load(run)
    recommender, histories = parts.recommender, user_histories(parts.train._dataset)
    users = np.random.default_rng(1).permutation(np.flatnonzero(histories.lengths))[: SAMPLE + OTHERS]
    interaction = recommender._interaction([histories.row(int(user)) for user in users], users)
    products = hooks_of(parts.model).scores_of_items(interaction)
    assert isinstance(products, ItemProducts) and products.bias is None
    return products.vectors(slice(0, parts.dataset.item_num)).clone(), products.users[:, 0].clone()


def generated(kind: str, table: Tensor, items: int) -> Tensor:
    """Return the vectors [items + 1, size] of a generated catalogue, see above, the padding id's first."""
    rng, own = torch.Generator().manual_seed(0), table[1:]
    steps = own - own.mean(dim=0)
    if kind != "normal":
        steps = (own - own[_neighbours(own)]) / 2**0.5
    spread = torch.linalg.cholesky(steps.T.cov() + 1e-6 * torch.eye(own.shape[1]))
    made = torch.zeros(items + 1, own.shape[1])
    for begin in range(1, items + 1, _PART):
        part = made[begin : begin + _PART]
        part.copy_(torch.randn(part.shape, generator=rng) @ spread.T)
        part += own.mean(dim=0) if kind == "normal" else own[torch.randint(len(own), (len(part),), generator=rng)]
        if kind == "lengths":
            part *= torch.exp(0.5 * torch.randn(len(part), 1, generator=rng))
    return made


def _neighbours(own: Tensor) -> Tensor:
    found = []
    for begin in range(0, len(own), BATCH):
        distances = torch.cdist(own[begin : begin + BATCH], own)
        distances[torch.arange(len(distances)), begin + torch.arange(len(distances))] = torch.inf
        found.append(distances.argmin(dim=1))
    return torch.cat(found)


def products_of(table: Tensor, users: Tensor) -> ItemProducts:
    """Return the products of users [users, size] with a table."""
    return ItemProducts(users[:, None], table.__getitem__)


def milliseconds(best: Callable[[Any, int], Any], table: Tensor, users: Tensor, at_once: int, calls: int) -> float:
    """Return the median time per user of a search for some users at once; the first call does not count."""
    times = []
    for call in range(calls + 1):
        some = users[torch.arange(call * at_once, (call + 1) * at_once) % len(users)]
        begun = time.process_time()
        best(lambda *_, some=some: products_of(table, some), len(some))
        times.append((time.process_time() - begun) / at_once * 1000)
    return float(np.median(times[1:]))


def measure(kind: str, table: Tensor, users: Tensor, recall: float) -> None:
    """Print one line for a catalogue."""
    items, known, others = len(table), users[:SAMPLE], users[SAMPLE:]

    def exactly(scorer: Any, rows: int) -> Any:
        return best_in_blocks(scorer, rows, items, K, None)

    with tempfile.TemporaryDirectory() as cache:
        os.environ["RECBOLE_LLM_CACHE"] = cache
        sample, begun = products_of(table, known), time.process_time()
        index = ItemIndex(ItemVectors(sample.with_bias, items))
        line = {"build_s": time.process_time() - begun}
        del index
        begun = time.process_time()
        try:
            search = ApproximateBest(ApproximateSearch(K, recall), sample, None, items, kind)
        except SettingError as error:
            print_line(name="approximate_search", catalogue=kind, items=items - 1, **line, refused=str(error))
            return
        line |= {"start_s": time.process_time() - begun, "lists": search.lists, "nprobe": search.nprobe}

        def approximately(scorer: Any, rows: int) -> Any:
            return search.best(scorer, rows, items, K, None)

        exact = exactly(lambda begin, end: products_of(table, others[begin:end]), len(others))
        found = approximately(lambda begin, end: products_of(table, others[begin:end]), len(others))
        line |= {"recall": search.recall, "recall_of_others": recall_of(found[0], exact[0])}
        for name, best in (("", approximately), ("exact_", exactly)):
            calls = (50, 8) if name == "" or items < 10**6 else (10, 3)
            line[f"{name}one_ms"] = milliseconds(best, table, others, 1, calls[0])
            line[f"{name}batch_ms"] = milliseconds(best, table, others, BATCH, calls[1])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    print_line(name="approximate_search", catalogue=kind, items=items - 1, **line, peak_mib=peak)


def main() -> None:
    """Print a line for each catalogue and size."""
    given = dict(argument.removeprefix("--").split("=", 1) for argument in sys.argv[1:])
    torch.set_num_threads(1)
    table, users = trained(given["run"])
    for kind in given.get("catalogues", "trained,variants,lengths,normal").split(","):
        for items in [int(size) for size in given.get("items", "1000000").split(",")] if kind != "trained" else [0]:
            vectors = generated(kind, table, items) if items else table
            measure(kind, vectors, users, float(given.get("recall", 0.99)))
            del vectors


if __name__ == "__main__":
    sys.exit(main())
