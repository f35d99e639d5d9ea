"""Three epochs end with the same weights and results, whether or not a new process trained the third of them."""

import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from atomic_files import quick_settings, write_atomic_files
from recbole.utils import ModelType, get_model, init_seed
from test_sweep import SPECIAL

from recbole_llm.config import registry
from recbole_llm.config.config import Config
from recbole_llm.config.names import is_ours, known_models
from recbole_llm.errors import CheckpointError
from recbole_llm.quick_start.run import Parts, build, run

# What each keeps outside its weights, or draws its batches from; GRU4Rec lists its own weights a second time.
QUICK = {
    "MultiVAE": {"update"},
    "LDiffRec": {"update_count", "update_count_vae", "Lt_history", "Lt_count"},
    "LINE": {"random_list", "random_pr"},
    "SGL": {"sub_graph1", "sub_graph2"},
    "CFKG": set(),  # the order of the triples of its knowledge graph
    "RecVAE": set(),  # two optimisers in turn
    "GRU4Rec": set(),
}
ONE_EPOCH = {"ADMMSLIM", "AsymKNN", "EASE", "ItemKNN", "Pop", "Random", "SLIMElastic"}  # are over then
PACKAGES = {"KGAT": "dgl", "KGIN": "torch_scatter", "MCCLK": "torch_scatter", "NCL": "faiss"}
NOT_NETWORKS = {"xgboost", "lightgbm"}  # trees: they train at once
SLOW = [
    name
    for name in known_models()
    if not is_ours(name) and name not in QUICK.keys() | ONE_EPOCH | NOT_NETWORKS and name != "RaCT"
]
TRIPLES = {
    "load_col": {
        "inter": ["user_id", "item_id", "rating", "timestamp"],
        "kg": ["head_id", "relation_id", "tail_id"],
        "link": ["item_id", "entity_id"],
    }
}

LABELS = {  # what models of columns learn and are measured by
    "threshold": {"rating": 3}, "eval_args": {"mode": "labeled"}, "metrics": ["AUC", "LogLoss"], "valid_metric": "AUC",
}  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_atomic_files(tmp_path_factory.mktemp("data") / "tiny", users=30, items=40)


def settings_of(name: str, data: Path, **more) -> dict:
    of_kind = {ModelType.KNOWLEDGE: TRIPLES, ModelType.CONTEXT: LABELS}
    own = {**of_kind.get(get_model(name).type, {}), **SPECIAL.get(name, {}), **more}
    settings = {"epochs": 3, "resume_seconds": 0, "train_batch_size": 64, "stopping_step": 100, **own}
    return quick_settings(data, model=name, **settings)


def made(settings: dict, folder: Path) -> tuple[Parts, object]:
    config = Config(config_dict=settings)
    init_seed(config["seed"], config["reproducibility"])
    parts = build(config)
    folder.mkdir(exist_ok=True)
    return parts, parts.trainer(folder)


def whole_and_after_two(settings: dict) -> tuple[Parts, object]:
    """Train three epochs in `whole`, and leave in `resumed` what a process would that died after the second."""
    parts, trainer = made(settings, Path("whole"))

    def copy(epoch: int, score: float) -> None:
        if epoch == 1:
            shutil.copytree("whole", "resumed")

    trainer.fit(parts.train, parts.valid, callback_fn=copy)
    return parts, trainer


def check(settings: dict) -> set[str]:
    """Compare, and return the names of what was stored beside the weights."""
    parts, trainer = whole_and_after_two(settings)
    expected = {name: value.clone() for name, value in parts.model.state_dict().items()}
    results = trainer.evaluate(parts.test)  # of its best epoch, at once: KTUP draws while it scores
    again, resumed = made(settings, Path("resumed"))
    resumed.resume_checkpoint("resumed/resume.pt")
    resumed.fit(again.train, again.valid)
    assert resumed.epochs_done == trainer.epochs_done == 3
    found = again.model.state_dict()
    assert [name for name in expected if not torch.equal(expected[name], found[name])] == []
    assert resumed.history == trainer.history
    assert resumed.evaluate(again.test) == results
    return set(torch.load("resumed/resume.pt", weights_only=True)["outside"])


@pytest.mark.parametrize("name", QUICK)
def test_resumed_model_ends_as_the_uninterrupted_one(name, data, workdir):
    assert check(settings_of(name, data)) >= QUICK[name]


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOW)
def test_resumed_model_ends_as_the_uninterrupted_one_too(name, data, workdir):
    package = PACKAGES.get(name)
    if package is not None and find_spec(package) is None:
        pytest.skip(f"{name} needs {package}")
    check(settings_of(name, data))


@pytest.mark.slow
def test_the_last_stage_of_ract_is_resumed_too(data, workdir):
    settings = {**settings_of("RaCT", data), "pretrain_epochs": 1, "metrics_k": 10}
    for stage in ("actor_pretrain", "critic_pretrain"):
        before = run("RaCT", settings={**settings, "train_stage": stage})
        settings["pre_model_path"] = str(Path(before["path"]).parent)
    check({**settings, "train_stage": "finetune"})


def test_state_that_cannot_be_stored_is_refused(data, workdir, monkeypatch):
    """The second epoch changes an object of a class that no file can hold."""
    model_class = registry.model_class("BPR")
    own_loss = model_class.calculate_loss

    def loss(self, interaction):
        self.clusters = object()
        return own_loss(self, interaction)

    monkeypatch.setattr(model_class, "calculate_loss", loss)
    whole_and_after_two(settings_of("BPR", data))
    _, trainer = made(settings_of("BPR", data), Path("resumed"))
    with pytest.raises(CheckpointError, match=r"BPR cannot be resumed: training changes its 'clusters' \(object\)"):
        trainer.resume_checkpoint("resumed/resume.pt")
