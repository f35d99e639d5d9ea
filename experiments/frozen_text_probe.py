"""What a linear head reaches on the frozen language model's state of the prompt alone, without virtual tokens.

    python experiments/frozen_text_probe.py --run=saved/<IDLEAdapter run> [--data_path=dataset/] [--rows=N]
        [--epochs=60] [--learning_rate=0.001] [--out=FILE.json]

The prompts are the run's own; the language model reads them with nothing before them. Its last hidden states are pooled
in several ways: the mean over the whole prompt, the mean over the history alone (the items' texts and the separators
between them, without the instruction around them), the last token, and the run's own pooling where that is another.
On each a linear head is trained on the training prefixes (with `rows`, so many of them, drawn at random) with AdamW,
and its epoch is chosen by validation NDCG@10. The head reads states whose every dimension has mean 0 and variance 1
over the training prefixes, so that one learning rate suits all; a linear head could do the same by itself.

Prints one JSON line a pooling with the test metrics. What IDLE-Adapter reaches beyond these and beyond
user_vector_probe.py comes of putting the two together. The states are kept as float16 on the device: rows x width x 2
bytes for each pooling.
"""

import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from probing import Lines, call, drawn_rows, head_metrics, load_run, parser, pieces, train_head
from torch import Tensor, nn

from recbole_llm.backbone.attention import packed_hidden_states
from recbole_llm.backbone.pooling import Segments
from recbole_llm.data.prompt_batches import PackedPrompts
from recbole_llm.errors import SettingError
from recbole_llm.model.sequential_recommender.idleadapter.model import IDLEAdapter

_ROWS = 4096


class LinearHead(nn.Module):
    """A linear map of standardised vectors to scores of all items.

    Args:
        vectors: [rows, width], that say mean and deviation of every dimension.
        items: number of item ids, the padding id included.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, vectors: Tensor, items: int) -> None:
        super().__init__()
        mean, square = (self._mean(vectors, power) for power in (1, 2))
        self.register_buffer("mean", mean.float())
        self.register_buffer("scale", (square - mean**2).clamp_min(1e-8).rsqrt().float())
        self.linear = nn.Linear(vectors.shape[1], items, device=vectors.device)

    @staticmethod
    def _mean(vectors: Tensor, power: int) -> Tensor:
        return sum(part.double().pow(power).sum(dim=0) for part in vectors.split(_ROWS)) / len(vectors)

    def forward(self, vectors: Tensor) -> Tensor:
        """Return the scores [rows, items] of vectors [rows, width] of any floating type."""
        return self.linear((vectors.float() - self.mean) * self.scale)


def poolings(model: Any, prompts: PackedPrompts) -> dict[str, Segments]:
    """Return by name which tokens of each prompt are pooled, and how.

    Args:
        model: an IDLE-Adapter.
        prompts: packed without virtual tokens.
    """
    table, items = model.inputs.prompts.table, model.inputs.prompts.items
    before, after = (int(length) for length in table.lengths[[2 * items + 1, 2 * items + 2]])
    lengths = np.asarray(prompts.packed.bounds.lengths)
    ends = np.cumsum(lengths)

    def bounds(begins: np.ndarray, ends: np.ndarray) -> Tensor:
        return torch.from_numpy(np.concatenate([[0], np.stack([begins, ends], axis=1).ravel()]))

    whole, history = bounds(ends - lengths, ends), bounds(ends - lengths + before, ends - after)
    found = {
        "mean of the whole prompt": Segments("mean", whole),
        # The last bound of a mean is the number of all tokens: what follows the last history is a segment, too.
        "mean of the history": Segments("mean", torch.cat([history, torch.from_numpy(ends[-1:])])),
        "last token": Segments("last", whole),
    }
    if prompts.segments.pooling == "cls":
        found["first token (the run's own)"] = Segments("cls", whole)
    return found


def passes(model: Any, dataset: Any, rows: np.ndarray) -> Iterator[tuple[np.ndarray, PackedPrompts]]:
    """Yield passes over `rows` of a part of the data: which of them (places in `rows`), and their plain prompts."""
    for part in pieces(len(rows), _ROWS):
        batch = dataset[rows[part]]
        histories, lengths = batch[model.ITEM_SEQ].cpu().numpy(), batch[model.ITEM_SEQ_LEN].cpu().numpy()
        for group, prompts in model.inputs.prompts_of(histories, lengths, model.settings.eval_batch_tokens, plain=True):
            yield part[group], prompts


@torch.no_grad()
def states_of(model: Any, dataset: Any, rows: np.ndarray) -> tuple[dict[str, Tensor], Tensor]:
    """Return by pooling the states [rows, width], float16, and the targets [rows] of rows of a part of the data."""
    states: dict[str, Tensor] = {}
    for places, prompts in passes(model, dataset, rows):
        hidden = packed_hidden_states(model.backbone, prompts.packed.to(model.device))
        index = torch.from_numpy(places).to(hidden.device)
        for name, segments in poolings(model, prompts).items():
            pooled = segments.to(hidden.device).pool(hidden)
            if name not in states:
                states[name] = torch.empty(len(rows), pooled.shape[1], dtype=torch.float16, device=hidden.device)
            states[name][index] = pooled.half()
    return states, dataset.inter_feat[model.POS_ITEM_ID][rows].to(model.device)


def main() -> None:
    """Print a line a pooling."""
    arguments_of = parser(__doc__)
    arguments_of.add_argument("--run", required=True)
    arguments_of.add_argument("--rows", type=int, help="the most training prefixes, drawn at random; all if not given")
    arguments_of.add_argument("--epochs", type=int, default=60)
    arguments_of.add_argument("--learning_rate", type=float, default=1e-3)
    arguments = arguments_of.parse_args()
    parts, lines = load_run(arguments.run, arguments.data_path), Lines("frozen_text_probe")
    model = parts.model
    if not isinstance(model, IDLEAdapter):
        raise SettingError(f"{arguments.run} is a run of {parts.config['model']}: give one of IDLEAdapter")
    train, valid, test = (
        states_of(model, loader._dataset, drawn_rows(len(loader._dataset), most))
        for loader, most in ((parts.train, arguments.rows), (parts.valid, None), (parts.test, None))
    )
    for name in list(train[0]):
        # What was read is not needed again.
        (vectors, targets), held, tested = ((states.pop(name), wanted) for states, wanted in (train, valid, test))
        torch.manual_seed(0)
        head = LinearHead(vectors, model.n_items)
        best, epoch = train_head(head, (vectors, targets), held, arguments.epochs, arguments.learning_rate)
        chosen = head_metrics(best, *held)["ndcg10"]
        lines.add(
            state=name, train_rows=len(targets), **head_metrics(best, *tested), valid_ndcg10=chosen, best_epoch=epoch
        )
    lines.write(arguments.out)


if __name__ == "__main__":
    sys.exit(call(main))
