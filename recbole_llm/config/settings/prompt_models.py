"""The settings of models that are prompted with lists of items, written to properties/model/: LLMPrompt, ..."""

from typing import Any

from recbole_llm.config.kinds import SIZE, Choice, Flag, Maybe, Number, Text, Whole
from recbole_llm.config.schema import Role, Section, Setting
from recbole_llm.config.settings import text_models
from recbole_llm.config.settings.recbole_run import VALID_METRIC

_LIST_PROMPT = "The user chose {history}. Which of these {count} {noun} is next: {candidates}? Answer by its title: "
_JUDGE_PROMPT = "Liked {noun}: {liked}\nDisliked: {disliked}\nWill the user like {item}? Yes or No.\nAnswer: "
_TUNINGS = {
    "frozen": "frozen: not at all.",
    "lora": "lora: low-rank adapters (peft) alone.",
    "full": "full: all weights.",
}


def _backbone(tunings: tuple[str, ...], dropout: float, lora: dict[str, Any]) -> Section:
    """Return the section of the language model.

    Args:
        tunings: values of `tuning`, the default first.
        dropout: of adapters.
        lora: other defaults of adapters.
    """
    trained = tunings[0] != "frozen"
    adapters = tuple(
        Setting(each.name, each.kind, lora.get(each.name, each.default), each.role, each.sentence)
        for each in text_models.lora(dropout)
    )
    return Section(
        "The language model",
        (
            text_models.backbone(
                "smollm2-135m", "A decoder: a preset of properties/backbone/, a local folder, or a hub ID."
            ),
            Setting(
                "tuning",
                Choice(*tunings),
                tunings[0],
                Role.TRAINING,
                "How much of it is trained. " + " ".join(_TUNINGS[name] for name in tunings),
            ),
            *(adapters if trained else ()),
            text_models.WEIGHTS,
            *((text_models.CHECKPOINTING, text_models.COMPILE) if trained else ()),
        ),
    )


def _prompts(chat: str, more: tuple[Setting, ...] = ()) -> Section:
    """Return the section of what is read, with `chat_template` by default as given."""
    return Section(
        "Prompts",
        (
            Setting(
                "list_prompt",
                Text(),
                _LIST_PROMPT,
                Role.INPUT,
                "The prompt, with {history} and {candidates}, and if wanted {noun} and {count}, how many candidates.",
            ),
            *more,
            Setting(
                "chat_template",
                Choice("auto", "none"),
                chat,
                Role.INPUT,
                "auto: the prompt is the user's turn in the tokenizer's chat template, if it has one; none: plain "
                "text.",
            ),
            Setting(
                "tidy_titles",
                Flag(),
                True,
                Role.INPUT,
                "Write titles as LLaRA does MovieLens': without the year at the end, 'Godfather, The' as 'The "
                "Godfather'.",
            ),
            Setting("max_attribute_tokens", SIZE, 32, Role.INPUT, "Maximum number of tokens of a title."),
            Setting(
                "MAX_ITEM_LIST_LENGTH",
                SIZE,
                10,
                Role.INPUT,
                "Maximum number of items of a history, the most recent.",
            ),
            Setting(
                "max_sequence_tokens",
                SIZE,
                1024,
                Role.INPUT,
                "Maximum number of tokens of a prompt with its answer; the oldest items of the history leave first.",
            ),
        ),
    )


def _choices(more: tuple[Setting, ...] = ()) -> Section:
    """Return the section of lists of candidates and of answers."""
    return Section(
        "Candidates and answers",
        (
            Setting(
                "candidates",
                Maybe(Whole(2)),
                20,
                Role.PROTOCOL,
                "How many a list holds, the target among them at a place that the seed of the draw decides.",
                shared=False,
            ),
            Setting(
                "answer",
                Choice("generate", "likelihood"),
                "generate",
                Role.INPUT,
                "generate: the model writes a title, which answer_rule reads. likelihood: the candidate whose title is "
                "the most probable answer, always valid; another protocol than that of the papers.",
            ),
            Setting(
                "answer_likelihood",
                Choice("sum", "mean"),
                "sum",
                Role.INPUT,
                "Of the log probabilities of a title's tokens; with their sum long titles are rarely chosen.",
            ),
            Setting(
                "answer_rule",
                Choice("strict", "substring"),
                "strict",
                Role.METRIC,
                "strict: the first line of an answer is the title of exactly one candidate. substring: exactly one "
                "candidate's title stands in it (LLaRA's rule). Other answers are invalid, and misses. result.json has "
                "both.",
            ),
            Setting("max_answer_tokens", SIZE, 64, Role.INPUT, "Maximum number of tokens of a written answer."),
            Setting(
                "valid_metric",
                VALID_METRIC,
                "Hit@1",
                Role.METRIC,
                "The metric that chooses the best epoch: right choices among the candidates of draw 0.",
            ),
            *more,
        ),
    )


def _optimisation(values: dict[str, Any]) -> Section:
    every = {
        "epochs": 5,
        "learning_rate": 1e-4,
        "weight_decay": 0.0,
        "warmup_steps": 100,
        "lr_scheduler": "cosine",
        "clip_grad_norm": None,
        "weight_average": None,
        "train_batch_size": 128,
        "stopping_step": 2,
        "train_neg_sample_args": None,
        **values,
    }
    said = {
        "train_batch_size": "Rows of one optimiser step.",
        "train_neg_sample_args": "RecBole draws none; candidates are drawn by the model itself.",
    }
    return Section(
        "Optimisation",
        (
            *text_models.optimisation(every, said),
            *text_models.budgets(16384, Role.MACHINE, ", with equal results"),
        ),
    )


_FEW = Setting(
    "train_samples",
    Maybe(SIZE),
    None,
    Role.TRAINING,
    "How many rows are trained on, drawn once by the seed (few shots); ~: all.",
)

LLMPROMPT_TITLE = (
    "A language model as it is, prompted with a history and a list of candidates (rows Llama2 and GPT-4 of ST2SI's\n"
    "Table 9). Nothing is trained. Models behind an address: recbole-llm prompts."
)
LLMPROMPT = (
    _backbone(("frozen",), 0.0, {}),
    _prompts("auto"),
    _choices(),
    Section(
        "Nothing is trained",
        (
            Setting("epochs", Whole(0, 1), 1, Role.TRAINING, "1: validation is measured, too; 0: the test alone."),
            *text_models.budgets(16384, Role.MACHINE, ""),
        ),
    ),
)

TALLREC_TITLE = (
    "TALLRec (Bao et al., RecSys 2023): a language model tuned to say whether a user will like an item.\n"
    "task: listwise is what LLaRA's paper (and ST2SI's Table 9) has under this name."
)
TALLREC = (
    _backbone(
        ("lora", "full"),
        0.05,
        {"lora_rank": 8, "lora_alpha": 16, "lora_targets": ["q_proj", "v_proj"]},
    ),
    Section(
        "The task",
        (
            Setting(
                "task",
                Choice("pointwise", "listwise"),
                "pointwise",
                Role.TRAINING,
                "pointwise: Yes or No to one item, from labels (threshold) or with one random item for every target. "
                "listwise: the target's title from a list of candidates.",
            ),
            _FEW,
        ),
    ),
    _prompts(
        "none",
        (
            Setting(
                "judge_prompt",
                Text(),
                _JUDGE_PROMPT,
                Role.INPUT,
                "The prompt of task pointwise, with {liked}, {disliked} and {item}.",
            ),
        ),
    ),
    _choices(
        (
            Setting(
                "max_full_sort_prompts",
                SIZE,
                100_000,
                Role.MACHINE,
                "A ranking of all items, one prompt per user and item, is refused beyond this number.",
            ),
        )
    ),
    _optimisation({}),
)

LLARA_TITLE = (
    "LLaRA (Liao et al., SIGIR 2024): a language model that reads titles and, behind each, an ID model's vector.\n"
    "The authors' settings, but for the backbone (theirs is Llama2-7B) and the schedule, which ends at 0."
)
LLARA = (
    _backbone(("lora", "full"), 0.1, {"lora_rank": 8, "lora_alpha": 32}),
    text_models.id_model(
        "SASRec",
        "The ID model",
        "The model whose item vectors are projected: any sequential model with item vectors.",
        None,
        "",
    ),
    Section(
        "The curriculum",
        (
            Setting(
                "hybrid_share",
                Maybe(Number(low=0, high=1)),
                None,
                Role.TRAINING,
                "How often a step of training is hybrid. ~: the curriculum, from never to always. 0: prompts are text "
                "alone, in evaluation, too.",
            ),
            _FEW,
        ),
    ),
    _prompts("none"),
    _choices(),
    _optimisation({"learning_rate": 8e-4}),
)
