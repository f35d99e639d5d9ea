"""Constrained decoding: this package's trie against transformers' prefix function, on the same prompts in one run.

Both find the most probable IDs of a catalogue by beam search, as P5 does; the exact scores of all IDs are timed beside
them. transformers' processor asks a Python function for every beam at every step, and reads a prompt once per beam.

    python benchmarks/constrained_decoding.py [--shape=smollm2-135m] [--users=256] [--items=4344] [--beams=20]

One JSON line: users per second of each, how many times as fast, and the share of users with the same best items.
"""

import argparse
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from shapes import SHAPES, print_line
from transformers import AutoModelForCausalLM

from recbole_llm.backbone.decoding.beams import beam_items
from recbole_llm.backbone.decoding.decoder import Decoder, left_padded
from recbole_llm.backbone.decoding.exact import path_log_probabilities
from recbole_llm.backbone.decoding.trie import build_trie
from recbole_llm.packing.ragged import RaggedTable

_FIRST = 100  # the first token of an ID


def item_paths(items: int, branches: int) -> RaggedTable:
    """Return IDs of three tokens, as of clusters in clusters: row = item id."""
    paths = [[], *([item // branches**2, item // branches % branches, item % branches] for item in range(items))]
    return RaggedTable.from_rows([[_FIRST + level * branches + token for level, token in enumerate(p)] for p in paths])


def by_transformers(
    model: Any, prompts: torch.Tensor, paths: RaggedTable, beams: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the tokens and log-probabilities that transformers' generate finds: [users, beams, 3], [users, beams]."""
    children: dict[tuple[int, ...], set[int]] = {}
    for item in range(1, len(paths)):
        path = tuple(paths.row(item).tolist())
        for place in range(len(path)):
            children.setdefault(path[:place], set()).add(path[place])
    following = {beginning: sorted(tokens) for beginning, tokens in children.items()}
    read, depth = prompts.shape[1], int(paths.lengths.max())
    found = model.generate(
        prompts,
        attention_mask=torch.ones_like(prompts),
        num_beams=beams,
        num_return_sequences=beams,
        max_new_tokens=depth,
        do_sample=False,
        length_penalty=0.0,
        eos_token_id=None,
        pad_token_id=0,
        prefix_allowed_tokens_fn=lambda _, tokens: following[tuple(tokens[read:].tolist())],
        return_dict_in_generate=True,
        output_scores=True,
    )
    answers = found.sequences[:, read:].view(len(prompts), beams, depth)
    return answers, found.sequences_scores.view(len(prompts), beams)


def seconds(work: Callable[[], Any], device: str, repeats: int) -> tuple[float, Any]:
    """Return the least time of some repeats, and what the work returned; one more goes before.

    On a CPU it is the processor's time, over all threads, so that other processes do not count.
    """
    clock = time.perf_counter if device == "cuda" else time.process_time
    result, times = work(), []
    for _ in range(repeats):
        begun = clock()
        result = work()
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(clock() - begun)
    return min(times), result


def measure(shape: str, users: int, items: int, beams: int, tokens: int, repeats: int) -> dict[str, Any]:
    """Measure all three on one device, in the precision that the device is fast in."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(SHAPES[shape], dtype=dtype).to(device).eval()
    paths = item_paths(items, 20)
    trie = build_trie(paths).to(device)
    prompts = torch.randint(1, 5000, (users, tokens), generator=torch.Generator().manual_seed(0)).to(device)
    weight = model.get_output_embeddings().weight
    decoder = Decoder(model.base_model, lambda: weight, model.get_input_embeddings())

    @torch.no_grad()
    def padded() -> Any:
        return left_padded(decoder.embed(prompts.flatten()), np.full(users, tokens))

    own, (best, scores) = seconds(lambda: beam_items(decoder, padded(), trie, beams, False), device, repeats)
    exact, every = seconds(lambda: path_log_probabilities(decoder, padded(), trie, False), device, repeats)
    theirs, (answers, their_scores) = seconds(lambda: by_transformers(model, prompts, paths, beams), device, 1)
    # By tokens: in half precision the order of near ties is a matter of rounding.
    rows = paths.values.reshape(-1, 3)
    own_first = torch.from_numpy(rows[best[:, 0].cpu().numpy() - 1])
    same = (own_first == answers[:, 0].cpu()).all(dim=1).float().mean()
    return {
        "shape": shape, "device": device, "users": users, "items": items, "beams": beams, "prompt_tokens": tokens,
        "users_per_second": round(users / own, 1), "transformers_users_per_second": round(users / theirs, 1),
        "exact_users_per_second": round(users / exact, 1), "times_as_fast": round(theirs / own, 1),
        "same_best": round(float(same), 3),
        "largest_difference": round(float((scores[:, 0] - their_scores[:, 0]).abs().max()), 4),
        "beam_holds_the_best_of_all": round(float((every.argmax(dim=1) == best[:, 0]).float().mean()), 3),
    }  # fmt: skip


def main(arguments: list[str]) -> int:
    """Measure and print one line."""
    gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=sorted(SHAPES), default="smollm2-135m" if gpu else "tiny")
    parser.add_argument("--users", type=int, default=256 if gpu else 32)
    parser.add_argument("--items", type=int, default=4344 if gpu else 500)
    parser.add_argument("--beams", type=int, default=20)
    parser.add_argument("--tokens", type=int, default=100 if gpu else 50)
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args(arguments)
    print_line(**measure(given.shape, given.users, given.items, given.beams, given.tokens, given.repeats))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
