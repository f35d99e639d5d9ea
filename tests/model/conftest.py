"""Fixtures for the tests of the models: ID models, language models and the parts of a run."""

import pytest
import torch
from adapter_parts import CLEAN, ID_SETTINGS
from small_data import build_parts, small_settings, write_dataset
from tiny_models import rough
from transformers import AutoModel, AutoTokenizer

from recbole_llm.quick_start.run import run


@pytest.fixture(scope="session")
def id_runs(tmp_path_factory):
    """The folder of a trained ID model by name and interests; long enough that its vectors are far from 0."""
    root = write_dataset(tmp_path_factory.mktemp("id_runs"))
    known = {}

    def get(model="ComiRec", interests=1):
        if (model, interests) not in known:
            own = {"num_interests": interests} if model == "ComiRec" else {}
            settings = small_settings(
                root, model=model, epochs=20, learning_rate=0.05, train_neg_sample_args=None, MAX_ITEM_LIST_LENGTH=6,
                **ID_SETTINGS[model], **own,
            )  # fmt: skip
            settings = {name: value for name, value in settings.items() if name not in ("max_sequence_tokens",)}
            known[model, interests] = run(settings=settings)["path"]
        return known[model, interests]

    return get


@pytest.fixture(scope="session")
def rough_models(tiny, tmp_path_factory):
    """The tiny models with weights that are far from 0, so that virtual tokens move the scores."""
    root = tmp_path_factory.mktemp("rough")
    for name, folder in tiny.items():
        rough(AutoModel.from_pretrained(folder)).save_pretrained(root / name)
        AutoTokenizer.from_pretrained(folder).save_pretrained(root / name)
    return {name: root / name for name in tiny}


@pytest.fixture
def build(small, rough_models, id_runs):
    """The parts of a run of IDLE-Adapter on a tiny language model, ready to train."""

    write_dataset(small, titles=CLEAN)

    def make(backbone="bert", id_run="ComiRec", interests=1, larger=True, **settings):
        given = {
            "model": "IDLEAdapter", "backbone": str(rough_models[backbone]),
            "id_model_path": id_runs(id_run, interests), "max_prompt_tokens": 128,
            "prompt": "Recommend {noun}: {history}.", "MAX_ITEM_LIST_LENGTH": 6,
            **settings,
        }  # fmt: skip
        parts = build_parts(small, **given)
        if larger:  # weights of 0.02 would let every gate be 1/2 and every softmax flat
            with torch.no_grad():
                for parameter in (*parts.model.adapter.parameters(), parts.model.projection.weight):
                    parameter.mul_(20)
        return parts

    return make


@pytest.fixture
def build_st2si(small, tiny):
    """The parts of an ST2SI run; `titles` replaces those of the small dataset."""

    def make(backbone="llama", titles=None, **settings):
        if titles is not None:
            write_dataset(small, titles=titles)
        return build_parts(small, backbone=str(tiny[backbone]), **{"tuning": "ilp", **settings})

    return make
