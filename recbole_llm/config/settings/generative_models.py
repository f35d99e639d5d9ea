"""The settings of models that write the next item, written to properties/model/: P5, GPT4Rec."""

from typing import Any

from recbole_llm.config.kinds import FROM_ZERO, SIZE, Choice, Flag, Items, Maybe, Number, Text
from recbole_llm.config.schema import Role, Section, Setting
from recbole_llm.config.settings import text_models

_TEMPLATE = Text("a text with {history}, and perhaps {user} before it")


def language_model(learning: str) -> Section:
    """Return the section of the language model; `learning` is what is said of `tuning`."""
    return Section(
        "The language model",
        (
            text_models.backbone("smollm2-135m", "A preset of properties/backbone/, a local folder, or a hub ID."),
            Setting("tuning", Choice("full", "lora"), "full", Role.TRAINING, learning),
            *text_models.lora(0.05),
            text_models.WEIGHTS,
            text_models.CHECKPOINTING,
            text_models.COMPILE,
        ),
    )


def optimisation(values: dict[str, Any], more: tuple[Setting, ...] = ()) -> Section:
    """Return the section of the optimiser: defaults by name, and further settings."""
    every = {
        "epochs": 10,
        "learning_rate": 1e-4,
        "weight_decay": 0.01,
        "warmup_steps": 100,
        "lr_scheduler": "linear",
        "clip_grad_norm": {"max_norm": 1.0},
        "weight_average": None,
        "train_batch_size": 128,
        "stopping_step": 2,
        "train_neg_sample_args": None,
        **values,
    }
    said = {
        "train_batch_size": "Prefixes of one optimiser step.",
        "train_neg_sample_args": "The loss is that of the answer's tokens: no negative samples.",
        "stopping_step": "RecBole stops one step later.",
    }
    budgets = text_models.budgets(32768, Role.MACHINE, ", with equal results")
    return Section("Optimisation", (*text_models.optimisation(every, said), *more, *budgets))


P5_TITLE = (
    "P5 (Geng et al., RecSys 2022): the ID of the next item is generated. Sequential tasks alone, on a decoder\n"
    "or a T5. Lengths are OpenP5's; rates are ours, for a decoder that is pre-trained."
)
P5 = (
    language_model("full: all weights. lora: low-rank adapters (peft), and what IDs add."),
    Section(
        "IDs of items",
        tuple(
            Setting(name, kind, default, Role.TRAINING, sentence)
            for name, kind, default, sentence in (
                (
                    "indexing",
                    Choice("collaborative", "random", "sequential", "independent"),
                    "collaborative",
                    "From training interactions alone. collaborative: ways down a tree of clusters, in new tokens. "
                    "random, sequential: numbers, at random or as users meet the items, in the backbone's own tokens. "
                    "independent: a new token per item.",
                ),
                ("id_clusters", SIZE, 20, "Into how many a cluster is divided (collaborative)."),
                ("cluster_items", SIZE, 100, "The most items of a cluster that is not divided (collaborative)."),
                (
                    "whole_word_embeddings",
                    Flag(),
                    True,
                    "Add an embedding of the place of a word in the prompt, the same for all tokens of an ID.",
                ),
            )
        ),
    ),
    Section(
        "Prompts",
        (
            Setting(
                "id_prompts",
                Items(_TEMPLATE, least=1),
                ["User_{user} chose {history}. What is next?", "What comes after {history}?"],
                Role.INPUT,
                "Templates; each row of an epoch draws one.",
            ),
            Setting(
                "eval_id_prompt",
                Maybe(_TEMPLATE),
                None,
                Role.INPUT,
                "The template of validation, test and recommendations, which training does not see; ~: the first.",
            ),
            Setting("id_separator", Text(empty=True), ",", Role.INPUT, "The text between two items."),
            Setting("MAX_ITEM_LIST_LENGTH", SIZE, 20, Role.INPUT, text_models.HISTORY_LENGTH),
        ),
    ),
    Section(
        "Ranking",
        (
            Setting(
                "decoding",
                Choice("exact", "beam"),
                "exact",
                Role.INPUT,
                "exact: log P of every item's ID. beam: of those that a beam search within all IDs finds; others are "
                "not ranked.",
            ),
            Setting(
                "num_beams",
                SIZE,
                40,
                Role.INPUT,
                "Items of a beam: the cut-offs, and what is left out of the ranking, must fit in it.",
            ),
            Setting(
                "id_probability",
                Choice("vocabulary", "children"),
                "vocabulary",
                Role.INPUT,
                "Among which tokens an ID's next token has its probability: all, as in the authors' code, or those "
                "that may follow, so that the probabilities of all items have the sum 1.",
            ),
        ),
    ),
    optimisation(
        {"learning_rate": 2e-4},
        (
            Setting(
                "id_learning_rate",
                Maybe(FROM_ZERO),
                1e-3,
                Role.TRAINING,
                "Of the tokens of IDs and whole-word embeddings; ~ takes learning_rate.",
            ),
        ),
    ),
)

GPT4REC_TITLE = (
    "GPT4Rec (Li et al. 2023): the next item's title is written, and BM25 finds items by it.\n"
    "The paper's settings as far as they are known, on another backbone."
)
GPT4REC = (
    language_model("full: all weights. lora: low-rank adapters (peft) alone."),
    Section(
        "Prompt",
        tuple(
            Setting(name, kind, default, Role.INPUT, sentence)
            for name, kind, default, sentence in (
                (
                    "query_prompt",
                    Text(),
                    "Previously, the customer has bought: {history}. In the future, the customer wants to buy",
                    "The text around the titles of a history; the next title follows it.",
                ),
                ("MAX_ITEM_LIST_LENGTH", SIZE, 15, text_models.HISTORY_LENGTH),
                ("max_prompt_tokens", SIZE, 384, "Maximum number of tokens of a prompt; the most recent items stay."),
                ("max_attribute_tokens", SIZE, 32, "Maximum number of tokens of a title, and of a query."),
            )
        ),
    ),
    Section(
        "Ranking",
        tuple(
            Setting(name, kind, default, Role.INPUT, sentence)
            for name, kind, default, sentence in (
                ("num_queries", SIZE, 10, "m, the queries of a beam search."),
                (
                    "retrieval",
                    Choice("paper", "sum"),
                    "paper",
                    "paper: each query in turn gives items_per_query new items, the most probable query first, in "
                    "rounds. sum: by the sum over queries of P(query) times BM25.",
                ),
                ("items_per_query", SIZE, 1, "K / m, what a query gives in one round."),
                ("retrieved_items", SIZE, 100, "How many items are ranked; all others are not."),
                ("bm25_k1", FROM_ZERO, 1.2, "BM25: how soon a repeated word counts no more; chosen on validation."),
                ("bm25_b", Number(low=0, high=1), 0.75, "BM25: how much a long title counts less."),
            )
        ),
    ),
    optimisation({"epochs": 20, "warmup_steps": 500}),
)
