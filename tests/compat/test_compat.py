"""The repairs of RecBole: each test fails without the repair that it names."""

import logging
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import recbole
import scipy.sparse as sp
import torch
from atomic_files import KNOWLEDGE, quick_settings, write_atomic_files
from recbole.utils import init_seed

import recbole_llm
from recbole_llm.compat import repairs as compat
from recbole_llm.config import registry
from recbole_llm.config.config import Config
from recbole_llm.config.hooks import hooks_of
from recbole_llm.errors import CheckpointError, DataError, SettingError
from recbole_llm.quick_start.run import Parts, build, load, run
from recbole_llm.runs import checkpoint


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_atomic_files(tmp_path_factory.mktemp("data") / "tiny")


def built(data: Path, model: str, **settings) -> Parts:
    config = Config(config_dict=quick_settings(data, model=model, **settings))
    init_seed(config["seed"], config["reproducibility"])
    return build(config)


def folder_of(result: dict) -> str:
    return str(Path(result["path"]).parent)


# -- imports -----------------------------------------------------------------------------------------------------------

IMPORT_ALL = """
import importlib, pkgutil, sys
import numpy
names = {name for name, value in vars(numpy).items() if isinstance(value, type)}
import recbole_llm, recbole_llm.quick_start.run, recbole_llm.cli.main
for module in pkgutil.walk_packages(recbole_llm.__path__, "recbole_llm."):
    importlib.import_module(module.name)
assert {name for name, value in vars(numpy).items() if isinstance(value, type)} == names
assert not hasattr(numpy, "float") and not hasattr(numpy, "object")
assert "ray" not in sys.modules

from recbole_llm.config.config import Config
for model in ("SASRec", "BPR", "ST2SI"):
    Config(model, "ml-100k", config_dict={"use_gpu": False})
assert not hasattr(numpy, "float") and not hasattr(numpy, "object")
assert "ray" not in sys.modules and "recbole.quick_start" not in sys.modules
"""


def test_nothing_of_numpy_changes_at_import_and_ray_is_never_imported(workdir):
    environment = {**os.environ, "PYTHONPATH": str(Path(recbole_llm.__file__).parents[1])}
    command = [sys.executable, "-W", "ignore", "-c", IMPORT_ALL]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr


def test_every_module_of_recbole_that_reads_an_old_name_of_numpy_has_it():
    root = Path(recbole.__file__).parent
    registry.model_class("FFM")
    compat.hyper_tuning()
    readers = {}
    for file in root.rglob("*.py"):
        names = set(re.findall(r"\bnp\.(bool|int|float|complex|object|str|long|unicode)\b", file.read_text()))
        if names and file.name != "configurator.py":
            readers[".".join(["recbole", *file.relative_to(root).with_suffix("").parts])] = names
    assert len(readers) == 7
    for module, names in readers.items():
        for name in names:
            assert isinstance(getattr(sys.modules[module].np, name), type), (module, name)
            assert sys.modules[module].np.zeros is np.zeros


# -- scipy -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["GCMC", "LightGCN", "NGCF", "NCL"])
def test_adjacency_is_the_normalised_graph(name, data, monkeypatch, workdir):
    monkeypatch.setitem(compat._NEEDED, "NCL", "json")  # its clustering is not needed to build it
    parts = built(data, name, num_clusters=5) if name == "NCL" else built(data, name)
    users, items = parts.dataset.user_num, parts.dataset.item_num
    dense = np.zeros((users + items, users + items))
    inter = parts.train._dataset.inter_feat
    dense[inter["user_id"], inter["item_id"] + users] = 1
    dense += dense.T
    scale = 1 / np.sqrt(dense.sum(axis=1) + 1e-7)
    expected = scale[:, None] * dense * scale[None, :]
    np.testing.assert_allclose(parts.model.get_norm_adj_mat().to_dense().numpy(), expected, rtol=1e-5, atol=1e-8)
    assert not hasattr(sp.dok_matrix, "_update")  # scipy itself is as it was


def test_spectralcf_trains_on_its_graph(data, workdir):
    model = built(data, "SpectralCF").model
    assert torch.isfinite(model.A_hat.to_dense()).all() and model.A_hat.to_dense().abs().sum() > 0


# -- models that start from an earlier run -----------------------------------------------------------------------------


def test_s3rec_is_finetuned_from_its_pretraining(data, workdir):
    first = run("S3Rec", settings=quick_settings(data, train_stage="pretrain", pretrain_epochs=2, save_step=50))
    start = load(first["path"]).model.state_dict()  # stored although save_step was never reached
    for path in (folder_of(first), first["path"], folder_of(first) + "/model.safetensors"):
        model = built(data, "S3Rec", train_stage="finetune", pre_model_path=path).model
        assert all(torch.equal(tensor, start[name]) for name, tensor in model.state_dict().items())
    second = run("S3Rec", settings=quick_settings(data, train_stage="finetune", pre_model_path=folder_of(first)))
    assert second["valid"]["ndcg@10"] > 0


def test_ract_goes_through_its_three_stages(data, workdir):
    settings = quick_settings(data, pretrain_epochs=1, metrics_k=10)
    actor = run("RaCT", settings=settings)
    critic = run("RaCT", settings={**settings, "train_stage": "critic_pretrain", "pre_model_path": folder_of(actor)})
    before, after = (load(result["path"]).model.state_dict() for result in (actor, critic))
    assert torch.equal(before["encoder.0.weight"], after["encoder.0.weight"])
    assert not torch.equal(before["critic_net.1.weight"], after["critic_net.1.weight"])
    final = run("RaCT", settings={**settings, "train_stage": "finetune", "pre_model_path": folder_of(critic)})
    assert final["valid"]["ndcg@10"] > 0


def test_ract_logs_where_it_starts(data, workdir, caplog):
    actor = folder_of(run("RaCT", settings=quick_settings(data, pretrain_epochs=1, metrics_k=10)))
    caplog.set_level(logging.INFO)
    built(data, "RaCT", metrics_k=10, train_stage="critic_pretrain", pre_model_path=actor)
    assert f"Load pretrained model from {actor}" in caplog.messages


def test_convncf_starts_from_bpr(data, workdir):
    bpr = run("BPR", settings=quick_settings(data))
    model = built(data, "ConvNCF", train_method="after_pretrain", pre_model_path=folder_of(bpr)).model
    assert torch.equal(model.user_embedding.weight, load(bpr["path"]).model.user_embedding.weight)


def test_nais_starts_from_fism(data, workdir):
    fism = run("FISM", settings=quick_settings(data))
    model = built(data, "NAIS", pretrain_path=folder_of(fism)).model
    assert torch.equal(model.item_src_embedding.weight, load(fism["path"]).model.item_src_embedding.weight)


def test_neumf_starts_from_its_halves(data, workdir):
    mf = run("NeuMF", settings=quick_settings(data, mlp_train=False))
    mlp = run("NeuMF", settings=quick_settings(data, mf_train=False))
    paths = {"mf_pretrain_path": folder_of(mf), "mlp_pretrain_path": folder_of(mlp)}
    model = built(data, "NeuMF", use_pretrain=True, **paths).model
    assert torch.equal(model.user_mf_embedding.weight, load(mf["path"]).model.user_mf_embedding.weight)
    assert torch.equal(model.user_mlp_embedding.weight, load(mlp["path"]).model.user_mlp_embedding.weight)


def test_an_earlier_run_must_be_there_and_fit(data, workdir):
    fism = folder_of(run("FISM", settings=quick_settings(data)))
    torch.save({"state_dict": {}}, "recbole.pth")
    with pytest.raises(CheckpointError, match="there is no run '' to start from: set pre_model_path"):
        built(data, "S3Rec", train_stage="finetune")
    with pytest.raises(CheckpointError, match="there is no run 'nowhere'"):
        built(data, "NAIS", pretrain_path="nowhere")
    with pytest.raises(CheckpointError, match=r"recbole.pth is no run of this package.* pickles"):
        built(data, "NAIS", pretrain_path="recbole.pth")
    with pytest.raises(CheckpointError, match="NAIS cannot start from the weights"):
        built(data, "NAIS", pretrain_path=fism, embedding_size=32)
    with pytest.raises(CheckpointError, match=r"ConvNCF cannot start from the weights .*Missing key"):
        built(data, "ConvNCF", train_method="after_pretrain", pre_model_path=fism)
    other = write_atomic_files(Path("other").resolve(), items=81)
    with pytest.raises(CheckpointError, match="belong to the item catalogue of tiny, not to that of this run"):
        built(other, "NAIS", pretrain_path=fism)


# -- what RecBole fails on without a clear word ------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["FDSA", "GRU4RecF", "SASRecF", "S3Rec"])
def test_item_columns_must_be_loaded(model, data, workdir):
    setting = "item_attribute" if model == "S3Rec" else "selected_features"
    load_col = {"inter": ["user_id", "item_id", "timestamp"]}
    with pytest.raises(SettingError, match=rf"{model} reads the item column 'class' \({setting}\).* are: none"):
        built(data, model, load_col=load_col)
    with pytest.raises(DataError, match=r"reads the attribute 'colour' of items, .* title, category, class, price"):
        built(data, model, **{setting: "colour" if model == "S3Rec" else ["colour"]})


def items_with_an_interaction(data):
    return len({line.split("\t")[1] for line in (data / f"{data.name}.inter").read_text().splitlines()[1:]})


@pytest.mark.parametrize(
    ("model", "setting"),
    [("SASRecCPR", "reranker_CAN_NUM"), ("GRU4RecCPR", "reranker_CAN_NUM"), ("RaCT", "metrics_k")],
)
def test_sizes_beyond_the_data_are_refused(model, setting, data, workdir):
    limit = items_with_an_interaction(data) + 1  # RecBole counts id 0 too
    with pytest.raises(SettingError, match=f"{setting}=100 of {model} is too large for tiny: {limit} is the most"):
        built(data, model)


def test_more_clusters_than_users_are_refused(data, monkeypatch, workdir):
    monkeypatch.setitem(compat._NEEDED, "NCL", "json")
    with pytest.raises(SettingError, match="num_clusters=1000 of NCL is too large for tiny: 61 is the most"):
        built(data, "NCL")


def test_missing_packages_are_named(data, monkeypatch, workdir):
    monkeypatch.setattr(compat, "find_spec", lambda name: None)
    with pytest.raises(SettingError, match=r"the model NCL needs the package 'faiss', .*: pip install faiss-cpu"):
        registry.model_class("NCL")
    monkeypatch.setitem(sys.modules, "community", None)
    with pytest.raises(
        SettingError, match=r"the model NNCF needs the package 'community'.*: pip install python-louvain"
    ):
        built(data, "NNCF", neigh_info_method="louvain")


def test_refusals_of_recbole_are_sentences(data, workdir):
    with pytest.raises(SettingError, match=r"RecBole's RaCT refuses its settings: 'assert self\.train_stage in"):
        built(data, "RaCT", train_stage="nothing", metrics_k=10)
    with pytest.raises(SettingError, match="RecBole's NAIS refuses its settings: NAIS just support"):
        built(data, "NAIS", algorithm="nothing")
    with pytest.raises(DataError, match=r"LDiffRec reads .*item_emb.npy, which does not exist"):
        built(data, "LDiffRec", n_cate=2)


def test_knowledge_must_be_there_and_loaded(data, workdir):
    with pytest.raises(SettingError, match=r"KSR reads .*tiny.kg: name the columns to load in load_col\['kg'\]"):
        built(data, "KSR")
    with pytest.raises(
        SettingError, match=r"RecBole's GRU4RecKG refuses its settings: Field \[ent_id\] not in preload"
    ):
        built(data, "GRU4RecKG", **{**KNOWLEDGE, "preload_weight": None})
    bare = Path("bare").resolve()
    bare.mkdir()
    (bare / "bare.inter").write_bytes((data / "tiny.inter").read_bytes())
    with pytest.raises(DataError, match=r"GRU4RecKG reads .*bare.kg, which does not exist"):
        built(bare, "GRU4RecKG", **KNOWLEDGE)


# -- checkpoints -------------------------------------------------------------------------------------------------------


def test_the_best_epoch_is_reloaded_not_the_last(data, workdir):
    for rate in (0.3, 0.2, 0.5, 0.1):  # one that is too high for the last epoch to be the best
        result = run("BPR", settings=quick_settings(data, epochs=5, learning_rate=rate))
        if result["best_epoch"] < 4:
            break
    assert result["best_epoch"] < 4
    parts = load(result["path"])
    trainer = parts.trainer()
    assert trainer.evaluate(parts.test, load_best_model=False) == result["test"]
    assert trainer.evaluate(parts.valid, load_best_model=False) == result["history"][result["best_epoch"]]["valid"]


@pytest.mark.parametrize("model", ["EASE", "ItemKNN", "AsymKNN", "SLIMElastic", "Pop", "LightGCN", "DMF"])
def test_other_parameters_survive_the_round_trip(model, data, workdir):
    parts = built(data, model, epochs=1)
    parts.trainer(workdir).fit(parts.train, parts.valid)
    kept = checkpoint.snapshot(parts.model, hooks_of(parts.model).stored_state())
    checkpoint.save_weights(workdir / "weights", kept, parts.context.description)
    others = parts.model.other_parameter()
    assert any(value is not None for value in others.values())

    again = built(data, model).model
    for name in others:
        setattr(again, name, None)
    checkpoint.load_weights(workdir / "weights", again, parts.context.description, hooks_of(again))
    for name, value in others.items():
        loaded = getattr(again, name)
        assert type(loaded) is type(value), name
        if sp.issparse(value):
            assert loaded.format == value.format and loaded.shape == value.shape and abs(loaded - value).sum() == 0
        elif value is not None:
            np.testing.assert_array_equal(np.asarray(loaded), np.asarray(value))


# -- evaluation --------------------------------------------------------------------------------------------------------


def test_metrics_that_count_items_are_computed(data, workdir):
    metrics = ["NDCG", "ItemCoverage", "AveragePopularity", "GiniIndex", "ShannonEntropy", "TailPercentage"]
    result = run("Pop", settings=quick_settings(data, metrics=metrics, repeatable=True))
    covered = 10 / items_with_an_interaction(data)  # Pop recommends the same to all
    assert result["test"]["itemcoverage@10"] == pytest.approx(covered, abs=1e-4)


def test_labelled_rows_are_measured(data, workdir):
    protocol = {"split": {"LS": "valid_and_test"}, "order": "TO", "group_by": "user", "mode": "uni20"}
    settings = quick_settings(data, eval_args=protocol, metrics=["AUC", "LogLoss"], valid_metric="AUC")
    result = run("DIN", settings=settings)  # RecBole's own protocol for it
    assert 0 < result["test"]["auc"] < 1 and "mrr" not in result["test"]
