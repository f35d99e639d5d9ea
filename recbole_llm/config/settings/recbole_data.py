"""Settings of RecBole that say how files are read and which interactions are left; their defaults are RecBole's own."""

from recbole_llm.config.kinds import (
    COLUMN,
    COLUMNS,
    ENCODING,
    INTERVAL,
    NUMBER,
    SIZE,
    Choice,
    Either,
    Flag,
    Items,
    Keys,
    Kind,
    Maybe,
    Pairs,
    Text,
)
from recbole_llm.config.schema import RECBOLE, Role, Section, Setting

_LOADED = Maybe(Pairs(Either(COLUMNS, Choice("*")), "{inter: [user_id, item_id], item: [item_id, title]}"))
_LEFT_OUT = Maybe(Pairs(COLUMNS, "{inter: [rating]}"))
_DISCRETE = Keys({"method": Choice("ED", "LD"), "bucket": SIZE}, required=("method",))
_ALIASES = Maybe(Items(COLUMN, example="[neighbour_id]"))


def _read(role: Role, *entries: tuple[str, Kind, str]) -> tuple[Setting, ...]:
    return tuple(Setting(name, kind, RECBOLE, role, sentence) for name, kind, sentence in entries)


def _fields(*entries: tuple[str, str]) -> tuple[Setting, ...]:
    return _read(Role.FORMAT, *((name, Text("the name of a column"), sentence) for name, sentence in entries))


FILES = Section(
    "Files",
    (
        *_read(
            Role.FORMAT,
            ("field_separator", Text(), "What separates the columns of a file."),
            ("seq_separator", Text(), "What separates the values of one cell."),
            ("encoding", Maybe(ENCODING), "The encoding of the files; ~: utf-8, with or without a byte order mark."),
        ),
        *_fields(
            ("USER_ID_FIELD", "The column of users."),
            ("ITEM_ID_FIELD", "The column of items."),
            ("RATING_FIELD", "The column of ratings."),
            (
                "TIME_FIELD",
                "The column of times, such as seconds since 1970; rows of equal time stay as the file has them.",
            ),
            ("LABEL_FIELD", "What the column of labels is called that `threshold` makes."),
            ("NEG_PREFIX", "What is put before the names of columns for negative samples."),
            ("LIST_SUFFIX", "What is put behind the name of a column for its values along a history."),
            ("ITEM_LIST_LENGTH_FIELD", "What the column of history lengths is called."),
            ("POSITION_FIELD", "What the column of positions in a history is called."),
            ("HEAD_ENTITY_ID_FIELD", "The column of the first entity of a triple."),
            ("TAIL_ENTITY_ID_FIELD", "The column of the second entity of a triple."),
            ("RELATION_ID_FIELD", "The column of the relation of a triple."),
            ("ENTITY_ID_FIELD", "The column of entities."),
        ),
        *_read(
            Role.FORMAT,
            ("load_col", _LOADED, "Which columns of each file are loaded, all with '*'; ~: all of all files."),
            ("unload_col", _LEFT_OUT, "Which columns of each file are not loaded; alone, all others of that file are."),
            ("unused_col", _LEFT_OUT, "Which columns are loaded to prepare the data, and dropped then."),
            (
                "additional_feat_suffix",
                Maybe(Items(COLUMN, single=True, example="[ent]")),
                "The endings of further files to load.",
            ),
            ("seq_len", Maybe(Pairs(SIZE, "{tags: 10}")), "Maximum number of values of a cell, by column."),
            (
                "threshold",
                Maybe(Pairs(NUMBER, "{rating: 4}")),
                "From which value of a column on the label is 1; read where the mode of eval_args is labeled.",
            ),
            ("numerical_features", COLUMNS, "Columns of numbers that get an embedding."),
            (
                "discretization",
                Maybe(Pairs(_DISCRETE, "{price: {method: ED, bucket: 10}}")),
                "How columns of numbers are cut into classes.",
            ),
            ("normalize_field", Maybe(COLUMNS), "Columns of numbers that are scaled to 0 to 1."),
            ("normalize_all", Maybe(Flag()), "Whether all columns of numbers are."),
            ("preload_weight", Maybe(Pairs(COLUMN, "{ent_id: ent_emb}")), "Columns of ids and those of their vectors."),
            ("alias_of_user_id", _ALIASES, "Columns whose values are users, too."),
            ("alias_of_item_id", _ALIASES, "Columns whose values are items, too."),
            ("alias_of_entity_id", _ALIASES, "Columns whose values are entities, too."),
            ("alias_of_relation_id", _ALIASES, "Columns whose values are relations, too."),
            ("kg_reverse_r", Flag(), "Whether every triple of the knowledge graph is also read backwards."),
            ("token_num_threshold", Maybe(SIZE), "Read by RecBole's decision trees."),
            ("xgb_early_stopping_rounds", Maybe(SIZE), "Read by RecBole's decision trees."),
        ),
    ),
)

ROWS = Section(
    "Which interactions are left",
    _read(
        Role.DATA,
        (
            "benchmark_filename",
            Maybe(Items(COLUMN, least=2, example="[train, valid, test]")),
            "The endings of the files that give the split; ~ splits by eval_args.",
        ),
        ("rm_dup_inter", Maybe(Choice("first", "last")), "Which of several interactions of a user with an item stays."),
        (
            "val_interval",
            Maybe(
                Pairs(
                    Either(INTERVAL, Items(Either(NUMBER, Text(empty=True)), example="[a, b]")),
                    "{rating: '[3,inf)'}",
                )
            ),
            "Which values of a column stay.",
        ),
        (
            "filter_inter_by_user_or_item",
            Flag(),
            "Whether interactions of users and items that have no row of their own are dropped.",
        ),
        ("user_inter_num_interval", Maybe(INTERVAL), "How many interactions a user must have."),
        ("item_inter_num_interval", Maybe(INTERVAL), "How many interactions an item must have."),
        ("entity_kg_num_interval", Maybe(INTERVAL), "How many triples an entity must have."),
        ("relation_kg_num_interval", Maybe(INTERVAL), "How many triples a relation must have."),
    ),
)

HISTORIES = Section(
    "Histories",
    _read(Role.INPUT, ("MAX_ITEM_LIST_LENGTH", SIZE, "Maximum number of items of a history; the most recent stay.")),
)
