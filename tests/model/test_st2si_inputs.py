"""X_q, its labels and the alignment inputs, token for token, written out by hand from the paper (eq. 2, 3 and 6).

The ids are SmolLM2's. Four items, two users:

    p  Red Pump          12869 33235                brand Acme   " brand: Acme"  6137 42 3536 1558
    g  Garden Hose       30347 264 407 602          brand Kew    " brand: Kew"   6137 42 659 846
    c  Chess & Checkers  51 16240 1456 7023 366     no brand
    t  Tea               6732 81                    brand Yū     " brand: Yū"    6137 42 718 18278
    [Q] = "."            30
    T_I                  10180 1928 260 4218 282 260 1695 5033 42 216

    u1: p g c t p    test p, validation t; training predicts g from p and c from p g
    u2: t c g        test g, too short for validation; training predicts c from t
"""

import itertools

import numpy as np
import pytest
import torch
from small_data import build_parts, write_dataset
from transformers import AutoTokenizer

from recbole_llm.packing.sequences import pack

TITLES = {"p": "Red Pump", "g": "Garden  Hose ", "c": "Chess &amp; Checkers", "t": "Tea"}
BRANDS = {"p": "Acme", "g": "Kew", "c": "", "t": "Yū"}
HISTORIES = {"u1": "pgctp", "u2": "tcg"}

P, G, C, T = [12869, 33235], [30347, 264, 407, 602], [51, 16240, 1456, 7023, 366], [6732, 81]
ACME, KEW, YU = [6137, 42, 3536, 1558], [6137, 42, 659, 846], [6137, 42, 718, 18278]
Q = [30]
INSTRUCTION = [10180, 1928, 260, 4218, 282, 260, 1695, 5033, 42, 216]


@pytest.fixture
def build(workdir, tiny_smollm2):
    def make(titles=TITLES, columns=("title",), **settings):
        write_dataset(workdir, HISTORIES, titles, columns)
        return build_parts(workdir, backbone=str(tiny_smollm2), tuning="ilp", **settings)

    return make


def training_inputs(parts):
    """Every training sample as (tokens, {index of a query: the token of the item to predict})."""
    model = parts.model
    batch = pack(model.inputs.training_sequences(np.random.default_rng(0)), model.inputs.table)
    items = parts.dataset.field2id_token["item_id"]
    bounds = batch.bounds.offsets.tolist()
    samples = []
    for start, end in itertools.pairwise(bounds):
        inside = (batch.query_index >= start) & (batch.query_index < end)
        labels = [str(items[label]) for label in batch.labels[inside]]
        queries = (batch.query_index[inside] - start).tolist()
        assert batch.positions[start:end].tolist() == list(range(end - start))
        samples.append((batch.token_ids[start:end].tolist(), dict(zip(queries, labels, strict=True))))
    return samples


def alignment(text, item):
    tokens = [*INSTRUCTION, *text, *Q]
    return (tokens, {len(tokens) - 1: item})


USERS = [([*P, *Q, *G, *Q], {2: "g", 7: "c"}), ([*T, *Q], {2: "c"})]
ITEMS = [alignment(P, "p"), alignment(G, "g"), alignment(C, "c"), alignment(T, "t")]


def by_tokens(samples):
    return sorted(samples, key=lambda sample: sample[0])


def test_training_inputs_by_hand(build):
    samples = training_inputs(build())
    assert by_tokens(samples[:2]) == by_tokens(USERS)
    assert by_tokens(samples[2:]) == by_tokens(ITEMS)


def test_without_alignment_users_alone(build):
    assert by_tokens(training_inputs(build(alignment=False))) == by_tokens(USERS)


TOKENS_OF_ALIGNMENT = {None: Q, ".": Q, "Ċ": [198], "<|im_end|>": [2]}


@pytest.fixture(scope="module")
def without_alignment_token():
    """The training samples by the other settings: each is asked for with every token."""
    return {}


@pytest.mark.parametrize(
    "more", [{}, {"multi_query": False}, {"query_token": "Ċ"}, {"alignment": False}], ids=lambda more: str(more)
)
@pytest.mark.parametrize("token", TOKENS_OF_ALIGNMENT)
def test_alignment_inputs_end_in_their_own_token(build, without_alignment_token, token, more):
    samples = training_inputs(build(alignment_token=token, **more))
    if str(more) not in without_alignment_token:
        without_alignment_token[str(more)] = training_inputs(build(**more))
    plain = without_alignment_token[str(more)]
    query = {"Ċ": [198]}.get(more.get("query_token"), Q)
    own = query if token is None else TOKENS_OF_ALIGNMENT[token]
    items = [([*tokens[:-1], *own], labels) for tokens, labels in ITEMS] if more.get("alignment", True) else []
    assert by_tokens(samples[len(samples) - len(items) :]) == by_tokens(items)
    users = len(plain) - len(items)
    assert by_tokens(samples[: len(samples) - len(items)]) == by_tokens(plain[:users])


def test_alignment_token_that_is_added_has_an_embedding(build):
    parts = build(alignment_token="[A]")
    added = len(AutoTokenizer.from_pretrained(parts.config["backbone"]))
    assert parts.model.inputs.alignment_query == added
    assert [tokens[-1] for tokens, _ in training_inputs(parts)[2:]] == [added] * 4
    embedding = parts.model.backbone.get_input_embeddings().weight
    torch.testing.assert_close(embedding[added], embedding[:added].float().mean(dim=0))


def test_brand_as_second_attribute_by_hand(build):
    titles = {item: (TITLES[item], BRANDS[item]) for item in TITLES}
    parts = build(titles, ("title", "brand"), item_text_fields=["title", "brand"])
    users = [([*P, *ACME, *Q, *G, *KEW, *Q], {6: "g", 15: "c"}), ([*T, *YU, *Q], {6: "c"})]
    items = [alignment([*P, *ACME], "p"), alignment([*G, *KEW], "g"), alignment(C, "c"), alignment([*T, *YU], "t")]
    assert by_tokens(training_inputs(parts)) == by_tokens(users + items)


def test_text_field_given_as_on_the_command_line(build):
    titles = {item: (BRANDS[item] or "none", TITLES[item]) for item in TITLES}
    parts = build(titles, ("title", "name"), item_text_fields="name")
    assert by_tokens(training_inputs(parts)) == by_tokens(USERS + ITEMS)


def test_attributes_are_cut_before_the_query_token(build):
    samples = training_inputs(build(max_attribute_tokens=3))
    user = ([*P, *Q, *G[:3], *Q], {2: "g", 6: "c"})
    assert by_tokens(samples) == by_tokens(
        [user, USERS[1], alignment(P, "p"), alignment(G[:3], "g"), alignment(C[:3], "c"), alignment(T, "t")]
    )


def test_own_instruction(build):
    samples = training_inputs(build(alignment_instruction="Tea"))
    assert ([*T, *P, *Q], {4: "p"}) in samples


@pytest.mark.parametrize(
    ("limit", "windows"),
    [
        ({"MAX_ITEM_LIST_LENGTH": 2}, [([*P, *Q], {2: "g"}), ([*G, *Q], {4: "c"})]),  # [p] and [g c] of the next one
        ({"max_sequence_tokens": 11}, [([*P, *Q], {2: "g"}), ([*G, *Q], {4: "c"})]),
        ({"max_sequence_tokens": 14}, USERS[:1]),  # p g c take 3 + 5 + 6 tokens
    ],
)
def test_longer_histories_are_cut_into_windows(build, limit, windows):
    samples = training_inputs(build(**limit, alignment=False))
    assert by_tokens(samples) == by_tokens([*windows, USERS[1]])


@pytest.mark.parametrize(
    ("limit", "u1", "u2"),
    [
        ({}, [*P, *Q, *G, *Q, *C, *Q, *T, *Q], [*T, *Q, *C, *Q]),
        ({"MAX_ITEM_LIST_LENGTH": 3}, [*G, *Q, *C, *Q, *T, *Q], [*T, *Q, *C, *Q]),
        ({"max_sequence_tokens": 9}, [*C, *Q, *T, *Q], [*T, *Q, *C, *Q]),
        ({"max_sequence_tokens": 8}, [*T, *Q], [*C, *Q]),
    ],
)
def test_test_inputs_hold_all_but_the_last_item(build, limit, u1, u2):
    parts = build(**limit)
    read = {}
    for interaction, _, _, _ in parts.test:
        batch = pack(parts.model._prefixes(interaction), parts.model.inputs.table)
        for row, tokens in enumerate(batch.token_ids.split(batch.bounds.lengths)):
            read[parts.dataset.id2token("user_id", int(interaction["user_id"][row]))] = tokens.tolist()
        assert batch.query_index.tolist() == (batch.bounds.offsets[1:] - 1).tolist()
    assert read == {"u1": u1, "u2": u2}


# -- query tokens ------------------------------------------------------------------------------------------------------


def test_existing_token_in_the_vocabularys_spelling(build, tiny_smollm2):
    comma = AutoTokenizer.from_pretrained(tiny_smollm2).get_vocab()[","]
    assert ([*P, comma, *G, comma], {2: "g", 7: "c"}) in training_inputs(build(query_token=","))


def test_added_token_is_one_id_that_is_never_written_as_text(build, tiny_smollm2):
    parts = build(query_token="[Q]")
    new = len(AutoTokenizer.from_pretrained(tiny_smollm2))  # the first id after SmolLM2's 49,152
    samples = training_inputs(parts)
    assert ([*P, new, *G, new], {2: "g", 7: "c"}) in samples
    assert ([*INSTRUCTION, *T, new], {12: "t"}) in samples
    weight = parts.model.backbone.get_input_embeddings().weight
    assert len(weight) == new + 1
    torch.testing.assert_close(weight[new], weight[:new].mean(dim=0), atol=1e-6, rtol=0)


def test_title_that_spells_the_added_token_stays_text(workdir, tiny_smollm2):
    titles = {**TITLES, "t": "Tea[Q]"}
    parts = build_parts(
        write_dataset(workdir, HISTORIES, titles), backbone=str(tiny_smollm2), tuning="ilp", query_token="[Q]"
    )
    assert ([*T, 75, 65, 77, 49152], {5: "c"}) in training_inputs(parts)
