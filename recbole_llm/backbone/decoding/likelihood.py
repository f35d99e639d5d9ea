"""How probable given answers are: the prompt is read once, whatever the number of answers to it."""

import numpy as np
import torch
from torch import Tensor

from recbole_llm.backbone.decoding.decoder import Decoder, PaddedPrompts, states_per_piece
from recbole_llm.packing.ragged import RaggedTable, ranges


@torch.no_grad()
def answer_log_likelihoods(
    decoder: Decoder, prompts: PaddedPrompts, answers: RaggedTable, counts: np.ndarray
) -> Tensor:
    """Return log P(answer | prompt), the sum over its tokens, of every answer: float32 [answers].

    Args:
        decoder: judges.
        prompts: of one batch.
        answers: token ids of all answers, those of one prompt together, in the order of the prompts; none is empty.
        counts: int64 [rows], how many answers each prompt has.
    """
    if (answers.lengths == 0).any():
        raise ValueError("an answer is empty")
    states, prefix = decoder.read(prompts)
    device, rows = states.device, len(counts)
    owners = np.repeat(np.arange(rows), counts)  # of answers
    fed = answers.lengths - 1  # nothing follows the last token
    per_row = np.bincount(owners, weights=fed, minlength=rows).astype(np.int64)
    width = max(int(per_row.max(initial=0)), 1)
    before = np.cumsum(fed) - fed  # tokens of earlier answers, of all rows
    begins = before - (np.cumsum(per_row) - per_row)[owners]  # the column of an answer's first token
    places = ranges(owners * width + begins, fed)
    tokens, branch, depths = (np.zeros(rows * width, dtype=np.int64) for _ in range(3))
    tokens[places] = answers.values[ranges(answers.offsets[:-1], fed)]
    branch[places] = np.repeat(np.arange(len(answers)) + 1, fed)
    depths[places] = ranges(np.zeros_like(fed), fed)
    fed_tokens, branches, at = (
        torch.from_numpy(each).to(device).view(rows, width) for each in (tokens, branch, depths)
    )
    sees = (branches[:, :, None] == branches[:, None]) & (at[:, None] <= at[:, :, None])
    sees |= torch.eye(width, dtype=torch.bool, device=device)
    branched = decoder.branch(prefix, fed_tokens, sees, at)
    # The state before each answer token: the prompt's last, or that of the token before it.
    table = torch.cat([states, branched.flatten(0, 1)])
    source = np.empty(len(answers.values), dtype=np.int64)
    source[answers.offsets[:-1]] = owners
    source[ranges(answers.offsets[:-1] + 1, fed)] = rows + places
    chances = token_log_probabilities(
        decoder, table, torch.from_numpy(source).to(device), torch.from_numpy(answers.values).to(device)
    )
    of_answer = torch.from_numpy(np.repeat(np.arange(len(answers)), answers.lengths)).to(device)
    return torch.zeros(len(answers), device=device).index_add(0, of_answer, chances)


def token_log_probabilities(decoder: Decoder, table: Tensor, source: Tensor, tokens: Tensor) -> Tensor:
    """Return log p(token) after states, float32 [tokens].

    Args:
        decoder: has the language head.
        table: [states, width].
        source: int64 [tokens], the state before each token.
        tokens: int64 [tokens].
    """
    piece = states_per_piece(len(decoder.weight()), table.device)
    found = torch.empty(len(tokens), device=table.device)
    order = source.argsort(stable=True)
    used, counts = torch.unique_consecutive(source[order], return_counts=True)
    ends = counts.cumsum(0)
    for start in range(0, len(used), piece):
        states = used[start : start + piece]
        first = 0 if start == 0 else int(ends[start - 1])
        some = order[first : int(ends[start + len(states) - 1])]
        logs = decoder.log_probabilities(table[states])
        found[some] = logs[torch.searchsorted(states, source[some]), tokens[some]]
    return found
