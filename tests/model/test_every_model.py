"""The contract of `testing.model_tests`, for our models and for RecBole's own."""

from typing import Any, ClassVar

from testing.model_tests import ModelTests

TEXT = {"learning_rate": 0.01, "warmup_steps": 0}
TRANSFORMER = {"n_layers": 1, "n_heads": 2, "hidden_size": 8, "inner_size": 8, "learning_rate": 0.01}
ATTRIBUTE = {"load_col": {"inter": ["user_id", "item_id", "timestamp"], "item": ["item_id", "class"]}}


class TestST2SI(ModelTests):
    """All of the language model is tuned."""

    model = "ST2SI"
    settings: ClassVar[dict[str, Any]] = {
        "backbone": "tiny/opt",
        "tuning": "full",
        "learning_rate": 0.002,
        "warmup_steps": 0,
    }
    reads_texts = True


class TestST2SIWithStoredStates(ModelTests):
    """The language model is frozen, and its states are computed once."""

    model = "ST2SI"
    settings: ClassVar[dict[str, Any]] = {
        "backbone": "tiny/llama",
        "tuning": "ilp",
        "learning_rate": 0.01,
        "warmup_steps": 0,
    }
    reads_texts = True


class TestST2SIWithTwoLevels(ModelTests):
    """Clusters of items, and the rows of those that a step reads."""

    model = "ST2SI"
    settings: ClassVar[dict[str, Any]] = {
        **TEXT, "backbone": "tiny/llama", "tuning": "ilp", "loss_type": "TwoLevel", "item_optimizer": "adamw",
    }  # fmt: skip
    reads_texts = True


class TestST2SIWithCodes(ModelTests):
    """A projection that is put together from codes of items."""

    model = "ST2SI"
    settings: ClassVar[dict[str, Any]] = {**TEXT, "backbone": "tiny/opt", "tuning": "ilp", "item_codes": "4x6"}
    reads_texts = True


class TestST2SIWithIdModel(ModelTests):
    """An ID model's scores are mixed in, by a weight that validation chooses."""

    model = "ST2SI"
    settings: ClassVar[dict[str, Any]] = {
        **TEXT, "backbone": "tiny/llama", "tuning": "ilp", "id_model": "SASRec",
        "id_model_settings": {**TRANSFORMER, "epochs": 2},
    }  # fmt: skip
    reads_texts = True


class TestIDLEAdapter(ModelTests):
    """A frozen ID model inside a frozen language model."""

    model = "IDLEAdapter"
    settings: ClassVar[dict[str, Any]] = {
        "backbone": "tiny/bert", "id_model": "ComiRec", "id_model_settings": {"embedding_size": 8, "epochs": 2},
        "max_prompt_tokens": 128, **TEXT,
    }  # fmt: skip
    reads_texts = True


class TestLLMRec(ModelTests):
    """With encoded negatives, as in the authors' code."""

    model = "LLMRec"
    settings: ClassVar[dict[str, Any]] = {**TEXT, "backbone": "tiny/opt", "learning_rate": 0.002}
    reads_texts = True


class TestLLMRecInTwoStages(ModelTests):
    """Around a table, as ST2SI's paper ran it; the second stage begins while training is interrupted."""

    model = "LLMRec"
    settings: ClassVar[dict[str, Any]] = {
        **TEXT, "backbone": "tiny/llama", "learning_rate": 0.002, "item_loss": "table", "two_stage": True,
        "train_prefixes": "one", "similarity": "cosine", "temperature": 0.05,
    }  # fmt: skip
    reads_texts = True


class TestMoRec(ModelTests):
    """Trained end to end, by the items of the batch."""

    model = "MoRec"
    settings: ClassVar[dict[str, Any]] = {
        **TEXT, **TRANSFORMER, "backbone": "tiny/bert", "backbone_learning_rate": 0.003, "item_loss": "in-batch",
        "epochs": 12,
    }  # fmt: skip
    reads_texts = True


class TestFrozenMoRec(ModelTests):
    """On stored vectors of a frozen language model, by one negative per position."""

    model = "MoRec"
    settings: ClassVar[dict[str, Any]] = {**TEXT, **TRANSFORMER, "backbone": "tiny/llama", "tuning": "frozen"}
    reads_texts = True


LISTS = {
    "candidates": 4, "candidate_seeds": 2, "MAX_ITEM_LIST_LENGTH": 5, "max_sequence_tokens": 128,
    "max_answer_tokens": 10, "max_attribute_tokens": 10, "list_prompt": "{history}; next of {candidates}: ",
    "valid_metric": "Hit@1",
}  # fmt: skip


class TestLLMPrompt(ModelTests):
    """As it is, writing."""

    model = "LLMPrompt"
    settings: ClassVar[dict[str, Any]] = {"backbone": "tiny/llama", **LISTS, "epochs": 1}
    learns = False
    reads_texts = True
    chooses = True


class TestTALLRec(ModelTests):
    """Pointwise, with all items judged."""

    model = "TALLRec"
    settings: ClassVar[dict[str, Any]] = {
        **TEXT, "backbone": "tiny/llama", **LISTS, "candidates": None, "valid_metric": "NDCG@10",
        "judge_prompt": "Likes {liked}\nnot {disliked}\nLikes {item}?\nAnswer: ",
    }  # fmt: skip
    reads_texts = True


class TestListwiseTALLRec(ModelTests):
    """The most likely of the candidates."""

    model = "TALLRec"
    settings: ClassVar[dict[str, Any]] = {
        **TEXT, "backbone": "tiny/opt", **LISTS, "task": "listwise", "answer": "likelihood",
    }  # fmt: skip
    reads_texts = True
    chooses = True


class TestLLaRA(ModelTests):
    """All of the language model is tuned, and writes."""

    model = "LLaRA"
    settings: ClassVar[dict[str, Any]] = {
        **TEXT, "backbone": "tiny/llama", **LISTS, "tuning": "full", "id_model": "SASRec",
        "id_model_settings": {**TRANSFORMER, "epochs": 2},
    }  # fmt: skip
    reads_texts = True
    chooses = True


class TestTwinBERT(ModelTests):
    """Towers of their own, and the residual crossing."""

    model = "TwinBERT"
    settings: ClassVar[dict[str, Any]] = {
        **TEXT, "backbone": "tiny/bert", "learning_rate": 0.002, "crossing": "residual", "shared_towers": False,
        "item_loss": "bce", "train_negatives": 2,
    }  # fmt: skip
    reads_texts = True


class TestRecformer(ModelTests):
    """With two attributes of the items, in both of its stages."""

    model = "Recformer"
    settings: ClassVar[dict[str, Any]] = {
        **TEXT, "backbone": "tiny/bert", "item_text_fields": ["title", "class"], "epochs": 24, "first_stage_epochs": 2,
        "similarity": "dot", "temperature": 1.0,  # a cosine of texts this alike learns slowly
        "train_prefixes": "all",  # the loss of one random target per user rises and falls
    }  # fmt: skip
    reads_texts = True


class TestRecformerByCosine(ModelTests):
    """As it ships: by the cosine over a temperature, which learns slowly from texts this alike."""

    model = "Recformer"
    settings: ClassVar[dict[str, Any]] = {
        **TEXT, "backbone": "tiny/bert", "item_text_fields": ["title", "class"], "epochs": 2,
    }  # fmt: skip
    reads_texts = True
    learns = False


class TestZESRec(ModelTests):
    """A GRU over mapped text vectors, with offsets in training."""

    model = "ZESRec"
    settings: ClassVar[dict[str, Any]] = {"backbone": "tiny/bert", **TRANSFORMER, "epochs": 8}
    reads_texts = True


class TestUniSRec(ModelTests):
    """Text vectors alone."""

    model = "UniSRec"
    settings: ClassVar[dict[str, Any]] = {"backbone": "tiny/bert", "num_experts": 2, **TRANSFORMER}
    reads_texts = True


class TestUniSRecWithIds(ModelTests):
    """Text vectors of a decoder, and learned ones."""

    model = "UniSRec"
    settings: ClassVar[dict[str, Any]] = {"backbone": "tiny/llama", "num_experts": 2, "item_ids": True, **TRANSFORMER}
    reads_texts = True


class TestZESRecAtAllPositions(ModelTests):
    """One pass over every history, by a GRU."""

    model = "ZESRec"
    settings: ClassVar[dict[str, Any]] = {"backbone": "tiny/bert", **TRANSFORMER, "epochs": 8, "train_positions": "all"}
    reads_texts = True


class TestAlphaFuse(ModelTests):
    """Learned vectors in the null space of the texts."""

    model = "AlphaFuse"
    settings: ClassVar[dict[str, Any]] = {"backbone": "tiny/bert", **TRANSFORMER, "null_size": 4}
    reads_texts = True


class TestTextInitSASRec(ModelTests):
    """Text vectors where training begins."""

    model = "TextInitSASRec"
    settings: ClassVar[dict[str, Any]] = {"backbone": "tiny/bert", **TRANSFORMER}
    reads_texts = True


class TestTextSLIT(ModelTests):
    """Transitions in closed form, with texts and another model's scores."""

    model = "TextSLIT"
    settings: ClassVar[dict[str, Any]] = {
        "backbone": "tiny/bert", "ridge": 1.0, "id_model": "SASRec", "id_model_settings": {**TRANSFORMER, "epochs": 2},
    }  # fmt: skip
    learns = False
    reads_texts = True


class TestComiRec(ModelTests):
    """Several interests."""

    model = "ComiRec"
    settings: ClassVar[dict[str, Any]] = {"embedding_size": 8, "num_interests": 2, "learning_rate": 0.01}


class TestMLP4Rec(ModelTests):
    """With an attribute of the items."""

    model = "MLP4Rec"
    settings: ClassVar[dict[str, Any]] = {
        **ATTRIBUTE, "hidden_size": 8, "selected_features": ["class"], "learning_rate": 0.01,
    }  # fmt: skip


class TestS3Rec(ModelTests):
    """Both of its stages."""

    model = "S3Rec"
    settings: ClassVar[dict[str, Any]] = {**ATTRIBUTE, **TRANSFORMER, "item_attribute": "class", "pretrain_epochs": 2}


class TestSASRec(ModelTests):
    """RecBole's."""

    model = "SASRec"
    settings: ClassVar[dict[str, Any]] = TRANSFORMER


class TestGRU4Rec(ModelTests):
    """RecBole's."""

    model = "GRU4Rec"
    settings: ClassVar[dict[str, Any]] = {"embedding_size": 8, "hidden_size": 8, "learning_rate": 0.01}


class TestBERT4Rec(ModelTests):
    """RecBole's."""

    model = "BERT4Rec"
    settings: ClassVar[dict[str, Any]] = {**TRANSFORMER, "learning_rate": 0.03, "epochs": 12}


class TestFPMC(ModelTests):
    """RecBole's, which knows users by id and draws negative samples."""

    model = "FPMC"
    settings: ClassVar[dict[str, Any]] = {"embedding_size": 8, "learning_rate": 0.01}


class TestCaser(ModelTests):
    """RecBole's, which knows users by id."""

    model = "Caser"
    settings: ClassVar[dict[str, Any]] = {"embedding_size": 8, "nv": 2, "nh": 2, "learning_rate": 0.01}


class TestBPR(ModelTests):
    """RecBole's, which reads no history."""

    model = "BPR"
    settings: ClassVar[dict[str, Any]] = {"embedding_size": 8, "learning_rate": 0.05}


class TestPop(ModelTests):
    """RecBole's, which counts."""

    model = "Pop"
    learns = False


class TestSASRecAtAllPositions(ModelTests):
    """One pass over every history."""

    model = "SASRec"
    settings: ClassVar[dict[str, Any]] = {**TRANSFORMER, "train_positions": "all"}


class TestSASRecWithTwoLevels(ModelTests):
    """Clusters of items, and then the items of one."""

    model = "SASRec"
    settings: ClassVar[dict[str, Any]] = {**TRANSFORMER, "train_positions": "all", "loss_type": "TwoLevel"}


class TestGRU4RecAtAllPositions(ModelTests):
    """With items drawn on the device, whose rows alone are updated."""

    model = "GRU4Rec"
    settings: ClassVar[dict[str, Any]] = {
        "embedding_size": 8, "hidden_size": 8, "learning_rate": 0.01, "train_positions": "all", "loss_type": "gBCE",
        "num_negatives": 3, "item_optimizer": "adamw",
    }  # fmt: skip


GENERATIVE = {"backbone": "tiny/llama", "warmup_steps": 0, "learning_rate": 0.003}


class TestP5(ModelTests):
    """Collaborative IDs in new tokens, ranked exactly."""

    model = "P5"
    settings: ClassVar[dict[str, Any]] = {**GENERATIVE, "id_clusters": 3, "cluster_items": 3}
    reads_texts = True


class TestP5InABeam(ModelTests):
    """Numbers in the backbone's own tokens, within a beam; adapters alone are tuned."""

    model = "P5"
    settings: ClassVar[dict[str, Any]] = {
        **GENERATIVE, "indexing": "sequential", "decoding": "beam", "num_beams": 12, "tuning": "lora",
        "learning_rate": 0.01, "id_probability": "children",
    }  # fmt: skip
    reads_texts = True


class TestP5OnT5(ModelTests):
    """As in the paper: an encoder reads the prompt, a decoder writes the ID."""

    model = "P5"
    settings: ClassVar[dict[str, Any]] = {
        **GENERATIVE, "backbone": "tiny/t5", "id_clusters": 3, "cluster_items": 3, "id_probability": "children",
    }  # fmt: skip
    reads_texts = True


class TestGPT4Rec(ModelTests):
    """Titles as queries; what no query finds is not ranked."""

    model = "GPT4Rec"
    settings: ClassVar[dict[str, Any]] = {
        **GENERATIVE, "num_queries": 3, "max_attribute_tokens": 8, "max_prompt_tokens": 90,
        "query_prompt": "{history} then",
    }  # fmt: skip
    reads_texts = True
    ranks_all = False
