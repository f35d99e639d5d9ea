"""LLMPrompt, TALLRec and LLaRA against transformers' own forward and generate, on texts, and against each other."""

import gzip
import json

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from small_data import small_settings, write_dataset
from testing.model_tests import HISTORIES, TITLES
from tiny_models import rough
from transformers import AutoModelForCausalLM, AutoTokenizer

from recbole_llm.backbone.attention import packed_hidden_states
from recbole_llm.config.config import Config
from recbole_llm.data.answered_prompts import answered, in_passes, padded_groups
from recbole_llm.data.list_prompts import ListPrompts, ListTemplate, tidy_titles
from recbole_llm.data.list_samples import drawn_list, few
from recbole_llm.errors import BackboneError, DataError, SettingError
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


# -- prompts -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["llama", "opt"])
def test_tokens_of_a_prompt_are_those_of_its_text(tiny, workdir, kind):
    """Pieces laid end to end say the text that a hosted model would get, and begin as the tokenizer begins a text."""
    tokenizer = AutoTokenizer.from_pretrained(tiny[kind])
    titles = pd.Series(["", "Toy Story", "Comedy's", "3D Printer"], index=["[PAD]", "a", "b", "c"])
    template = ListTemplate("list_prompt", "Met {history}.\nNext of {count} {noun}: {candidates}? Answer: ",
                            ("history", "candidates"), "things")  # fmt: skip
    prompts = ListPrompts(template, titles, tokenizer, item_tokens=20, max_tokens=200, count=2)
    rows = prompts.rows({"history": [1, 2, 3], "candidates": [3, 1]})
    batch = answered(prompts, [rows], [prompts.answer_rows(3)])
    tokens = batch.packed.token_ids.tolist()
    lists = {"history": ["Toy Story", "Comedy's", "3D Printer"], "candidates": ["3D Printer", "Toy Story"]}
    written = template.written(lists, 2)
    assert written == "Met Toy Story, Comedy's, 3D Printer.\nNext of 2 things: 3D Printer, Toy Story? Answer: "
    assert tokens == tokenizer(f"{written}3D Printer\n")["input_ids"]
    learned = tokenizer.decode(batch.packed.labels)
    assert learned == " 3D Printer\n"
    assert torch.equal(batch.packed.token_ids[batch.packed.query_index + 1], batch.packed.labels)
    assert prompts.answer_titles.tolist() == titles.tolist()


def test_chat_template_stands_around_the_prompt(tiny, workdir):
    tokenizer = AutoTokenizer.from_pretrained(tiny["llama"])
    tokenizer.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    titles = pd.Series(["", "Toy Story", "Comedy"])
    template = ListTemplate("list_prompt", PROMPT, ("history", "candidates"), "x")
    prompts = ListPrompts(template, titles, tokenizer, item_tokens=20, max_tokens=200, count=1, chat=True)
    rows = prompts.rows({"history": [1, 2], "candidates": [2]})
    tokens = answered(prompts, [rows], [prompts.answer_rows(1)]).packed.token_ids.tolist()
    message = [{"role": "user", "content": "Toy Story, Comedy; next of 1 x: Comedy:"}]
    whole = tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True)
    assert tokenizer.decode(tokens) == f"{whole}Toy Story\n"
    assert tokens[0] == tokenizer.convert_tokens_to_ids("<|im_start|>")


def test_old_items_leave_first_and_a_prompt_that_never_fits_is_refused(tiny, workdir):
    tokenizer = AutoTokenizer.from_pretrained(tiny["llama"])
    template = ListTemplate("list_prompt", PROMPT, ("history", "candidates"), "x")
    titles = pd.Series(["", "Toy Story", "Comedy", "Light"])
    whole = ListPrompts(template, titles, tokenizer, item_tokens=20, max_tokens=500, count=1)
    lists = {"history": [1, 2, 3], "candidates": [1]}
    room = int(whole.table.lengths[whole.rows({"history": [2, 3], "candidates": [1]})].sum())
    tight = ListPrompts(template, titles, tokenizer, item_tokens=20, max_tokens=room, count=1)
    assert tight.rows(lists) == tight.rows({"history": [2, 3], "candidates": [1]})
    tight.max_tokens = 10
    with pytest.raises(DataError, match="without any history, more than the 10 of max_sequence_tokens"):
        tight.rows(lists)


def test_titles_with_the_same_tokens_are_refused(tiny, workdir):
    tokenizer = AutoTokenizer.from_pretrained(tiny["llama"])
    template = ListTemplate("list_prompt", PROMPT, ("history", "candidates"), "x")
    titles = pd.Series(["", "The Legend of Zelda: Ocarina", "The Legend of Zelda: Link", "The Legend of Zelda: Link"])
    with pytest.raises(BackboneError, match="'The Legend of Zelda: Ocarina' and 'The Legend of Zelda: Link' the same"):
        ListPrompts(template, titles, tokenizer, item_tokens=3, max_tokens=200)
    ListPrompts(template, titles, tokenizer, item_tokens=30, max_tokens=200)  # two items of one title are the data's
    with pytest.raises(DataError, match="1 items have no title"):
        ListPrompts(template, pd.Series(["", "a", ""]), tokenizer, item_tokens=30, max_tokens=200)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{history} {candidates} {titles}", "list_prompt has an unknown place {titles}"),
        ("{history}", r"must have \{candidates\} once, but has it 0 times"),
        ("{history} {history} {candidates}", r"must have \{history\} once, but has it 2 times"),
        ("{history", "is not understood"),
    ],
)
def test_templates_that_are_refused(text, message):
    with pytest.raises(SettingError, match=message):
        ListTemplate("list_prompt", text, ("history", "candidates"), "x")


def test_tidy_titles():
    written = pd.Series(["Godfather, The (1972)", "Toy Story", "Il Postino", "Summer, A", "1984", ""])
    assert tidy_titles(written).tolist() == ["The Godfather", "Toy Story", "Il Postino", "A Summer", "1984", ""]


def test_groups_and_passes_hold_all_prompts_within_the_budget(tiny, workdir):
    tokenizer = AutoTokenizer.from_pretrained(tiny["llama"])
    template = ListTemplate("list_prompt", PROMPT, ("history", "candidates"), "x")
    titles = pd.Series(["", *TITLES])
    prompts = ListPrompts(template, titles, tokenizer, item_tokens=20, max_tokens=500)
    rows = [prompts.rows({"history": list(range(1, n)), "candidates": [1, 2]}) for n in (8, 2, 9, 4, 4, 12)]
    tokens = [int(prompts.table.lengths[row].sum()) for row in rows]
    groups = padded_groups(prompts, rows, 130, 8)
    assert sorted(np.concatenate(groups)) == list(range(6))
    assert len(groups) > 1 and all(len(g) == 1 or len(g) * (max(tokens[i] for i in g) + 8) <= 130 for g in groups)
    parts = in_passes(prompts, rows, [prompts.answer_rows(1)] * 6, 130)
    assert sum(len(part.lengths) for part in parts) == 6
    assert all(len(part.packed.token_ids) <= 130 for part in parts)


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
