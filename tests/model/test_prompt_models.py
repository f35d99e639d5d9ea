"""LLMPrompt, TALLRec and LLaRA against transformers' own forward and generate, on texts, and against each other."""

import gzip
import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from small_data import small_settings, write_dataset
from testing.model_tests import HISTORIES, TITLES
from tiny_models import rough
from transformers import AutoModelForCausalLM, AutoTokenizer

from recbole_llm.backbone.attention import packed_hidden_states
from recbole_llm.config.config import Config
from recbole_llm.data.list_samples import drawn_list, few
from recbole_llm.errors import DataError, SettingError
from recbole_llm.evaluation.candidate_choices import candidate_choices
from recbole_llm.model.id_model.item_vectors import item_vectors
from recbole_llm.quick_start.run import build, load, run

PROMPT = "{history}; next of {count} {noun}: {candidates}: "
JUDGE = "Likes {liked}\nnot {disliked}\nLikes {item}?\nAnswer: "
LISTS = {
    "candidates": 4, "candidate_seeds": 2, "MAX_ITEM_LIST_LENGTH": 4, "max_sequence_tokens": 128, "prompt_noun": "as",
    "max_answer_tokens": 8, "max_attribute_tokens": 12, "list_prompt": PROMPT, "valid_metric": "Hit@1",
}  # fmt: skip
TRAINED = {"epochs": 2, "learning_rate": 0.01, "warmup_steps": 0, "train_batch_size": 16}
ID_MODEL = {
    "id_model": "SASRec",
    "id_model_settings": {
        "n_layers": 1, "n_heads": 2, "hidden_size": 8, "inner_size": 8, "epochs": 1, "valid_metric": "NDCG@3",
    },
}  # fmt: skip


@pytest.fixture
def place(workdir, tiny):
    write_dataset(workdir, HISTORIES, TITLES, columns=("title", "class"))

    def settings(model, **changes):
        given = {"backbone": str(tiny["llama"]), **LISTS, **changes}
        return small_settings(workdir, model=model, **given)

    return settings


def built(settings):
    return build(Config(config_dict=settings))


def choices_of(parts):
    """All lists of the test part, answered."""
    choices = candidate_choices(parts.config, parts.test, [parts.train, parts.valid])
    begin = 0
    parts.model.eval()
    for rows, *_ in parts.test:
        parts.model.choose(rows, choices, slice(begin, begin + len(rows)))
        begin += len(rows)
    return choices


def prompts_of(parts, choices):
    """The prompt of every list in words, row by row and draw by draw."""
    for row, (user, draw) in enumerate(np.ndindex(choices.lists.places.shape)):
        history = list(HISTORIES.values())[user][:-1][-4:]
        tokens = parts.dataset.field2id_token["item_id"][choices.lists.shown[user, draw]]
        names = [", ".join(TITLES[item][0] for item in items) for items in (history, tokens)]
        yield row, f"{names[0]}; next of 4 as: {names[1]}:", [TITLES[item][0] for item in tokens]


# -- training lists ----------------------------------------------------------------------------------------------------


def test_lists_of_training_are_random_and_hold_the_target(place):
    parts = built(place("TALLRec", task="listwise"))
    histories = parts.model.histories
    end, length = int(histories.ends[5]), int(histories.lengths[5])
    known = set(histories.flat[end - length : end].tolist())
    places, drawn = np.zeros(4), np.zeros(parts.model.n_items)
    for seed in range(2000):
        shown = drawn_list(histories, end, length, 4, seed)
        assert len(set(shown)) == 4 and not known & set(shown.tolist()) and 0 not in shown
        places[list(shown).index(histories.flat[end])] += 1
        drawn[shown] += 1
    assert abs(places - 500).max() < 5 * np.sqrt(500)
    others = np.delete(drawn, [0, histories.flat[end], *known])
    assert abs(others - others.mean()).max() < 5 * np.sqrt(others.mean())
    with pytest.raises(DataError, match=r"a row has .* items outside its history where 11 are to be drawn"):
        drawn_list(histories, end, length, 12, 0)
    some = few(histories.every_target(), 7, 3)
    assert len(some) == 7 and np.array_equal(some.ends, few(histories.every_target(), 7, 3).ends)


def test_loss_is_that_of_transformers_on_the_texts(place, tiny):
    """Mean cross-entropy of the answers' tokens, by transformers' own forward on each text."""
    parts = built(place("TALLRec", task="listwise", lora_dropout=0.0))
    model = parts.model.eval()
    samples = model.training_samples(np.random.default_rng(0)).select(np.arange(6))
    tokens, passes = model.prepared_step(samples)
    found = sum(float(model.pass_loss_sum(part)) for part in passes) / tokens
    causal = AutoModelForCausalLM.from_pretrained(tiny["llama"]).eval()
    total, count = 0.0, 0
    titles = model.prompts.titles
    for end, length, seed in zip(samples.targets.ends, samples.targets.lengths, samples.seeds, strict=True):
        flat = model.histories.flat
        shown = drawn_list(model.histories, int(end), int(length), 4, int(seed))
        lists = {"history": titles[flat[end - min(length, 4) : end]], "candidates": titles[shown]}
        prompt = model.prompts.template.written(lists, 4).rstrip()
        ids = [model._tokenizer(text)["input_ids"] for text in (prompt, f"{prompt} {titles[flat[end]]}\n")]
        assert ids[1][: len(ids[0])] == ids[0]
        with torch.no_grad():
            logs = causal(torch.tensor([ids[1]])).logits.log_softmax(-1)[0]
        for place_, token in enumerate(ids[1][len(ids[0]) :], len(ids[0])):
            total, count = total - float(logs[place_ - 1, token]), count + 1
    assert count == tokens
    assert found == pytest.approx(total / count, abs=1e-4)


# -- LLMPrompt ---------------------------------------------------------------------------------------------------------


def test_written_answers_are_transformers_generate(place, tiny):
    parts = built(place("LLMPrompt"))
    choices = choices_of(parts)
    causal = AutoModelForCausalLM.from_pretrained(tiny["llama"]).eval()
    tokenizer = AutoTokenizer.from_pretrained(tiny["llama"])
    for row, prompt, _ in list(prompts_of(parts, choices))[:8]:
        ids = tokenizer(prompt, return_tensors="pt")
        whole = causal.generate(ids["input_ids"], attention_mask=ids["attention_mask"], max_new_tokens=8,
                                do_sample=False, pad_token_id=1)  # fmt: skip
        expected = tokenizer.decode(whole[0, ids["input_ids"].shape[1] :], skip_special_tokens=True)
        assert choices.answers.ravel()[row] == expected


@pytest.mark.parametrize("how", ["sum", "mean"])
def test_most_likely_title_is_that_of_transformers(place, tiny, how):
    parts = built(place("LLMPrompt", answer="likelihood", answer_likelihood=how))
    choices = choices_of(parts)
    causal = AutoModelForCausalLM.from_pretrained(tiny["llama"]).eval()
    tokenizer = AutoTokenizer.from_pretrained(tiny["llama"])
    for row, prompt, titles in list(prompts_of(parts, choices))[:10]:
        logs = []
        for title in titles:
            before, whole = (tokenizer(text)["input_ids"] for text in (prompt, f"{prompt} {title}\n"))
            with torch.no_grad():
                table = causal(torch.tensor([whole])).logits.log_softmax(-1)[0]
            own = [float(table[n - 1, whole[n]]) for n in range(len(before), len(whole))]
            logs.append(sum(own) / (len(own) if how == "mean" else 1))
        assert choices.chosen("strict").ravel()[row] == int(np.argmax(logs))
    assert choices.metrics("strict")["valid_ratio"] == 1.0


def test_a_run_keeps_lists_and_answers(place):
    found = run(settings=place("LLMPrompt", answer_rule="substring"))
    assert found["test"] is None and found["epochs"] == 1
    assert found["parameters"]["trained"] == 0
    entry = found["candidates"]
    assert entry["rule"] == "substring" and entry["hit@1"] == entry["substring_rule"]["hit@1"]
    folder = found["path"].removesuffix("result.json")
    with gzip.open(f"{folder}answers-test.jsonl.gz", "rt") as file:
        lines = [json.loads(line) for line in file]
    assert len(lines) == len(HISTORIES) * 2
    assert all(line["target"] in line["candidates"] and isinstance(line["answer"], str) for line in lines)
    hits = [line["chosen"] == line["target"] for line in lines]
    assert entry["hit@1"]["mean"] == round(float(np.mean(hits)), 4)


@pytest.mark.parametrize(
    ("model", "changes", "message"),
    [
        ("LLMPrompt", {"candidates": None}, "LLMPrompt chooses from a list of candidates .*: set candidates=20"),
        ("LLMPrompt", {"valid_metric": "NDCG@3"}, "valid_metric=NDCG@3 is that of a ranking, and LLMPrompt chooses"),
        ("LLMPrompt", {"max_sequence_tokens": 129}, "max_sequence_tokens=129 is more than the 128 positions"),
        ("TALLRec", {"candidates": None, "valid_metric": "NDCG@3", "max_full_sort_prompts": 100},
         r"takes 144 prompts \(12 users x 12 items\), more than max_full_sort_prompts=100: set candidates=20"),
    ],
)  # fmt: skip
def test_settings_that_are_refused(place, model, changes, message):
    with pytest.raises(SettingError, match=message) as error:
        built(place(model, judge_prompt=JUDGE, **changes) if model == "TALLRec" else place(model, **changes))
    assert "\n" not in str(error.value)


def test_choosers_rank_nothing(place):
    parts = built(place("LLMPrompt"))
    rows = next(iter(parts.test))[0]
    for score in (parts.model.full_sort_predict, parts.model.predict):
        with pytest.raises(SettingError, match="LLMPrompt chooses from a list of candidates and ranks no catalogue"):
            score(rows)


# -- TALLRec -----------------------------------------------------------------------------------------------------------


def rated(workdir):
    """Ratings: red things are liked."""
    folder = workdir / "small"
    lines = ["user_id:token\titem_id:token\trating:float\ttimestamp:float"]
    for user, items in HISTORIES.items():
        lines += [f"{user}\t{i}\t{5 if 'red' in TITLES[i][0] else 1}\t{n}" for n, i in enumerate(items)]
    (folder / "small.inter").write_text("\n".join(lines) + "\n")
    return {
        "load_col": {"inter": ["user_id", "item_id", "rating", "timestamp"], "item": ["item_id"]},
        "threshold": {"rating": 3}, "eval_args": {"mode": "labeled"}, "metrics": ["AUC"], "valid_metric": "AUC",
        "candidates": None, "judge_prompt": JUDGE,
    }  # fmt: skip


def test_yes_has_the_probability_of_transformers_padded_forward(place, workdir, tiny):
    parts = built(place("TALLRec", **rated(workdir), lora_dropout=0.0))
    causal = AutoModelForCausalLM.from_pretrained(tiny["llama"]).eval()
    tokenizer = AutoTokenizer.from_pretrained(tiny["llama"], padding_side="left")
    texts, found = [], []
    parts.model.eval()
    for rows, *_ in parts.test:
        found += parts.model.predict(rows).tolist()
    for items in HISTORIES.values():
        *history, target = items[-5:]
        liked, not_liked = ([f'"{TITLES[i][0]}"' for i in history if ("red" in TITLES[i][0]) == red] for red in (1, 0))
        text = f'Likes {", ".join(liked)}\nnot {", ".join(not_liked)}\nLikes "{TITLES[target][0]}"?\nAnswer:'
        texts.append(text.replace("Likes \n", "Likes\n").replace("not \n", "not\n") + " ")
    no, yes = (tokenizer(f" {word}.")["input_ids"] for word in ("No", "Yes"))
    assert no[:1] == yes[:1] == tokenizer(" ")["input_ids"]  # the tiny tokenizer has no such words
    with torch.no_grad():
        batch = tokenizer(texts, return_tensors="pt", padding=True)
        positions = (batch["attention_mask"].cumsum(1) - 1).clamp_min(0)
        inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
        logits = causal(**inputs, position_ids=positions).logits[:, -1]
    expected = logits[:, [no[1], yes[1]]].softmax(1)[:, 1].tolist()
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_ratings_are_learned_and_measured_by_auc(place, workdir):
    """Colours of titles decide; shown by AUC on held-out ratings, by a model that is tuned in full."""
    found = run(settings=place("TALLRec", **rated(workdir), tuning="full", **{**TRAINED, "epochs": 8}))
    losses = [entry["train_loss"] for entry in found["history"]]
    assert losses[-1] < losses[0] / 2
    assert found["valid"].keys() >= {"auc"} and 0 <= found["test"]["auc"] <= 1
    assert "candidates" not in found


def test_pointwise_choice_is_the_greatest_score(place):
    parts = built(place("TALLRec", judge_prompt=JUDGE))
    choices = choices_of(parts)
    rows = next(iter(parts.test))[0]
    every = parts.model.full_sort_predict(rows)
    shown = torch.from_numpy(choices.lists.shown[: len(rows)])
    expected = every[torch.arange(len(rows))[:, None, None], shown].argmax(2)
    assert np.array_equal(choices.chosen("strict")[: len(rows)], expected.numpy())


# -- LLaRA -------------------------------------------------------------------------------------------------------------


def test_without_hybrid_prompts_llara_is_listwise_tallrec_to_the_bit(place):
    tuned = {"lora_targets": ["q_proj", "v_proj"], "lora_alpha": 16, "lora_dropout": 0.1, "learning_rate": 0.01}
    common = {**TRAINED, **tuned}
    tallrec = run(settings=place("TALLRec", task="listwise", **common))
    llara = run(settings=place("LLaRA", hybrid_share=0, **ID_MODEL, **common))
    assert [e["train_loss"] for e in llara["history"]] == [e["train_loss"] for e in tallrec["history"]]
    assert llara["candidates"] == tallrec["candidates"]
    weights, other = (load_file(r["path"].replace("result.json", "model.safetensors")) for r in (llara, tallrec))
    assert weights.keys() == other.keys()
    for name, value in other.items():
        assert torch.equal(weights[name], value), name


def test_first_layer_reads_the_projector_at_markers_and_nothing_else_changes(place):
    parts = built(place("LLaRA", **ID_MODEL, hybrid_share=1))
    model = parts.model.eval()
    samples = model.training_samples(np.random.default_rng(0)).select(np.arange(3))
    _, (part,) = model.prepared_step(samples)
    seen = []
    layer = model.backbone.layers[0]
    handle = layer.register_forward_pre_hook(lambda _, args, kw: seen.append(args[0] if args else kw["hidden_states"]),
                                             with_kwargs=True)  # fmt: skip
    with torch.no_grad():
        model.pass_loss_sum(part)
        words = model.backbone.get_input_embeddings()(part.packed.token_ids)
        packed_hidden_states(model.backbone, part.packed)  # the same tokens as plain text
        # By hand: two linear layers with GELU between, on the ID model's own table.
        table = model.id_run.module.item_embedding.weight[part.marked_items]
        first, second = model.projector[0], model.projector[2]
        inner = torch.nn.functional.gelu(table @ first.weight.T + first.bias)
        expected = inner @ second.weight.T + second.bias
    handle.remove()
    hybrid, plain = seen[0][0], seen[1][0]
    torch.testing.assert_close(hybrid[part.markers], expected)
    others = torch.ones(len(words), dtype=torch.bool).index_fill(0, part.markers, False)
    assert torch.equal(hybrid[others], plain[others]) and torch.equal(plain, words)
    # A marker follows each title, that of its item.
    counts = [min(int(length), 4) + 4 for length in samples.targets.lengths]
    assert len(part.markers) == sum(counts)
    begin = np.cumsum(part.lengths) - part.lengths
    titles = model.prompts.titles
    for marker, item in zip(part.markers.tolist(), part.marked_items.tolist(), strict=True):
        start = int(begin[np.searchsorted(begin, marker, side="right") - 1])
        assert model._tokenizer.decode(part.packed.token_ids[start:marker]).endswith(titles[item])


def test_answers_depend_on_the_id_model(place):
    """The projected vectors reach what is evaluated: other vectors, other likelihoods."""
    parts = built(place("LLaRA", **ID_MODEL, answer="likelihood"))
    rough(parts.model.backbone)
    before = choices_of(parts).chosen("strict").copy()
    with torch.no_grad():
        parts.model.behaviour.normal_(std=30, generator=torch.Generator().manual_seed(0))
    assert not np.array_equal(choices_of(parts).chosen("strict"), before)


def test_curriculum_goes_from_text_to_hybrid(place):
    model = built(place("LLaRA", **ID_MODEL, **{**TRAINED, "epochs": 40})).model
    samples = model.training_samples(np.random.default_rng(0))
    shares = []
    for epoch in range(40):
        model.before_epoch(epoch)
        steps = [model.prepared_step(samples.select(np.arange(2))) for _ in range(model._steps_of_epoch)]
        shares.append(np.mean([len(parts[0].markers) > 0 for _, parts in steps]))
    assert np.mean(shares[:10]) < np.mean(shares[10:30]) < np.mean(shares[30:])
    assert abs(np.mean(shares) - 0.5) < 4 * np.sqrt(1 / 12 / (40 * model._steps_of_epoch)) + 0.05
    model.before_epoch(0)
    assert not len(model.prepared_step(samples.select(np.arange(2)))[1][0].markers)  # step 0 has the probability 0


def test_llara_is_loaded_with_its_projector(place):
    found = run(settings=place("LLaRA", **ID_MODEL, **TRAINED))
    folder = found["path"].removesuffix("/result.json")
    parts = load(folder)
    weights = load_file(f"{folder}/model.safetensors")
    assert torch.equal(parts.model.projector[0].weight, weights["projector.0.weight"])
    again = choices_of(parts)
    entry = found["candidates"]
    assert again.entry("strict")["hit@1"] == entry["hit@1"]
    assert found["id_model"]["model"] == "SASRec" and found["id_model"]["test"]


@pytest.mark.parametrize("model", ["SASRec", "GRU4Rec", "Caser", "BERT4Rec", "ComiRec"])
def test_item_vectors(small, model):
    parts = built(small_settings(small, model=model))
    vectors = item_vectors(parts.model, parts.dataset.item_num)
    table = parts.model.item_embedding.weight[: parts.dataset.item_num]
    assert torch.equal(vectors[1:], table[1:]) and not vectors[0].any() and not vectors.requires_grad


def test_a_model_without_item_vectors_is_refused():
    with pytest.raises(SettingError, match="the model Linear has no item vectors: take one such as SASRec"):
        item_vectors(torch.nn.Linear(2, 2), 3)
