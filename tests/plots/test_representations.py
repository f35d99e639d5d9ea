"""The densities of IDLE-Adapter's representations: SciPy's, of arrays that are computed plainly from the run."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from scipy.spatial.distance import cdist
from scipy.stats import gaussian_kde
from small_data import small_settings, write_dataset
from tiny_models import tiny_bert, tiny_opt
from transformers import AutoModel, AutoTokenizer

from recbole_llm.cli.main import main
from recbole_llm.errors import TrainingError
from recbole_llm.plots import representations as module
from recbole_llm.quick_start.run import run

NAMES = ["ID model", "language model", "adapter"]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A data folder with finished runs: IDLE-Adapter on a tiny encoder and on a tiny decoder, and SASRec."""
    root = write_dataset(tmp_path_factory.mktemp("representations"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setenv("RECBOLE_LLM_CACHE", str(root / "cache"))
        patch.setenv("HF_HUB_OFFLINE", "1")
        adapter = {"model": "IDLEAdapter", "epochs": 2, "id_model_settings": {"epochs": 1}, "learning_rate": 0.01}
        bert, opt = tiny_bert(root / "bert"), tiny_opt(root / "opt")
        for name, own in {
            "encoder": {**adapter, "backbone": str(bert), "max_prompt_tokens": 110, "num_virtual_tokens": 3},
            "decoder": {
                **adapter, "backbone": str(opt), "max_prompt_tokens": 120, "max_attribute_tokens": 8,
                "layerwise": False, "prompt": "Liked: {history}", "mmd_rows": "batch",
            },
            "sasrec": {"model": "SASRec", "epochs": 1},
        }.items():  # fmt: skip
            run(settings=small_settings(root, **own), folder=root / "saved" / name)
    return root


@pytest.fixture
def here(root, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return root


def virtual_tokens_by_hand(run_folder: Path, users: np.ndarray) -> np.ndarray:
    """Eq. 5 to 7 in float64 from the stored weights, averaged over the virtual tokens: [L, users, d']."""
    weights = {
        name.removeprefix("adapter."): value.double().numpy()
        for name, value in load_file(run_folder / "model.safetensors").items()
        if name.startswith("adapter.")
    }
    layers = []
    for weight, bias, prefix in zip(
        weights["projection_weight"], weights["projection_bias"], weights["prefix"], strict=True
    ):
        projected = np.repeat((users @ weight.T + bias)[:, None], len(prefix), axis=1)
        pairs = np.concatenate([np.broadcast_to(prefix, projected.shape), projected], axis=-1)
        gate = 1 / (1 + np.exp(-pairs @ weights["gate_weight"]))[..., None]
        layers.append((gate * prefix + (1 - gate) * projected).mean(axis=1))
    return np.stack(layers)


def states_by_hand(parts) -> np.ndarray:
    """The tiny BERT's own pass over each test prompt, as text through the tokenizer: mean input of every layer."""
    dataset, model = parts.test._dataset, parts.model
    folder = parts.config["backbone"]
    tokenizer, bert = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    titles = dataset.item_texts_by_id(["title"]).iloc[:, 0].tolist()
    rows = dataset[np.arange(len(dataset))]
    states = []
    for items, length in zip(rows[model.ITEM_SEQ].tolist(), rows[model.ITEM_SEQ_LEN].tolist(), strict=True):
        for first in range(length):  # the most recent items that fit
            history = ", ".join(titles[item] for item in items[first:length])
            text = (
                f"Your task is to recommend products the user may be interested in based on their history: {history}."
            )
            tokens = tokenizer(text, return_tensors="pt")
            if tokens["input_ids"].shape[1] <= 110:
                break
        with torch.no_grad():
            hidden = bert(**tokens, output_hidden_states=True).hidden_states
        states.append([layer[0].mean(0).double().numpy() for layer in hidden[:-1]])
    return np.array(states).transpose(1, 0, 2)


def test_curves_and_distances_are_those_of_plainly_computed_vectors(here):
    folder = here / "saved" / "encoder"
    parts = module.read_run(folder)
    found = module.compute(parts)
    assert found.users.shape == (6, 1, 64), "six users have a test target"
    rows = parts.test._dataset[np.arange(6)]
    with torch.no_grad():
        users = parts.model.id_model.user_vectors(rows).double().numpy()
    np.testing.assert_allclose(found.users, users, atol=1e-6)
    language, adapted = states_by_hand(parts), virtual_tokens_by_hand(folder, users[:, 0])
    np.testing.assert_allclose(found.language, language, atol=2e-5)
    np.testing.assert_allclose(found.adapted, adapted, atol=1e-6)

    figure, distances = module.representations(folder, layer=1)
    (ax,) = figure.axes
    assert [line.get_label() for line in ax.lines] == NAMES == [text.get_text() for text in ax.get_legend().get_texts()]
    for line, vectors in zip(ax.lines, (users, language[0], adapted[0]), strict=True):
        places, density = line.get_xdata(), line.get_ydata()
        np.testing.assert_allclose(density, gaussian_kde(vectors.ravel())(places), rtol=1e-3, atol=1e-4)
        assert np.trapezoid(density, places) == pytest.approx(1, abs=0.1)
    assert ax.get_title(loc="left") == "small, layer 1 of 2"

    assert [layer["layer"] for layer in distances["layers"]] == [1, 2]
    for layer, theirs, mine in zip(distances["layers"], language, adapted, strict=True):
        together = np.concatenate([mine, theirs])
        squares = cdist(together, together, "sqeuclidean")
        rho = np.quantile(squares[np.triu_indices(len(together), 1)], 0.5, method="lower")  # torch's median
        kernel = np.exp(-squares / (2 * rho))
        mmd = kernel[:6, :6].mean() + kernel[6:, 6:].mean() - 2 * kernel[:6, 6:].mean()
        assert layer["rho"] == pytest.approx(rho, rel=1e-3)
        assert layer["mmd"] == pytest.approx(mmd, rel=1e-3)
        assert layer["adapter"] == pytest.approx({"mean": mine.mean(), "deviation": mine.std()}, rel=1e-3, abs=1e-6)
        # Of as many numbers as there, the distance is the mean difference in order.
        moved = np.abs(np.sort(theirs.ravel()) - np.sort(mine.ravel())).mean()
        assert layer["wasserstein"]["language model to adapter"] == pytest.approx(moved, rel=1e-3)


def test_a_sample_is_drawn_with_the_runs_seed(here):
    parts = module.read_run(here / "saved" / "encoder")
    every, some = module.compute(parts), module.compute(parts, histories=4)
    assert some.users.shape[0] == 4 and some.language.shape[1] == 4
    rows = np.sort(np.random.default_rng(parts.config["seed"]).permutation(6)[:4])
    for whole, part in ((every.users, some.users), (every.language[1], some.language[1])):
        np.testing.assert_allclose(part, whole[rows], atol=1e-5)


def test_a_decoder_with_one_adapter_for_all_layers(here):
    _, distances = module.representations(here / "saved" / "decoder")
    first, second = distances["layers"]
    assert distances["drawn_layer"] == 2
    assert first["adapter"] == second["adapter"] and first["language model"] != second["language model"]
    found = module.compute(module.read_run(here / "saved" / "decoder"))
    rows = [np.concatenate(pair) for pair in zip(found.adapted.numpy(), found.language.numpy(), strict=True)]
    squares = [cdist(together, together, "sqeuclidean") for together in rows]
    upper = np.triu_indices(len(rows[0]), 1)
    rho = np.quantile([layer[upper] for layer in squares], 0.5, method="lower")  # one for all layers
    kernels = [np.exp(-layer / (2 * rho)) for layer in squares]
    mmd = np.mean([k[:6, :6].mean() + k[6:, 6:].mean() - 2 * k[:6, 6:].mean() for k in kernels])
    assert distances["alignment"] == pytest.approx(mmd, rel=1e-3), "mmd_rows: batch"


def test_the_command_writes_pictures_and_distances(here, capsys):
    assert main(["plot", "--kind=representations", f"--run={here}/saved/encoder", "--out=pictures"]) == 0
    assert capsys.readouterr().out.split() == [f"pictures/representations.{end}" for end in ("png", "svg", "json")]
    assert Path("pictures/representations.png").read_bytes().startswith(b"\x89PNG\r\n")
    svg = Path("pictures/representations.svg").read_text()
    assert all(text in svg for text in [*NAMES, "small, layer 2 of 2", "value of a coordinate"])
    distances = json.loads(Path("pictures/representations.json").read_text())
    assert (distances["histories"], distances["id_model"], len(distances["layers"])) == (6, "ComiRec", 2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--run={saved}/sasrec"], "sasrec is a run of SASRec: representations are drawn of one of IDLEAdapter"),
        (["--run={saved}/none"], "none is not a run"),
        (["--run={saved}/encoder", "--layer=3"], "layer=3 is none of the 2 layers of"),
        (["--run={saved}/encoder", "--layer=last"], "layer=last must be a whole number from 1"),
        (["--runs={saved}/encoder"], "--kind=representations has no use for --runs"),
        ([], "needs the folder of a finished run: --run=saved/<run>"),
        (["--run=unfinished"], "the run unfinished is not finished: resume it with --resume=unfinished"),
    ],
)
def test_what_cannot_be_drawn_is_said_in_one_sentence(here, capsys, arguments, message):
    Path("unfinished").mkdir()
    shutil.copy(here / "saved" / "encoder" / "config.yaml", "unfinished")
    given = [argument.format(saved=here / "saved") for argument in arguments]
    assert main(["plot", "--kind=representations", *given]) in (1, 2)
    printed = capsys.readouterr()
    assert message in printed.err.strip().splitlines()[-1] and printed.out == ""
    assert not Path("plots").exists()


def test_other_plots_have_no_run(capsys):
    assert main(["plot", "--kind=bars", "--run=saved/x"]) == 2
    assert "--kind=bars has no use for --run" in capsys.readouterr().err


@pytest.mark.parametrize(("value", "what"), [(0.5, "all the same number"), (float("nan"), "not numbers")])
def test_vectors_without_a_density_are_refused(value, what):
    with pytest.raises(TrainingError, match=f"the coordinates of the adapter are {what}"):
        module.curves_of({"ID model": np.arange(5.0), "adapter": np.full(5, value)})


@pytest.mark.parametrize(("width", "scales"), [(1.0, ("linear", "linear")), (0.01, ("asinh", "log"))])
def test_a_narrow_curve_beside_a_wide_one_can_be_seen(width, scales):
    generator = torch.Generator().manual_seed(0)
    wide = torch.randn(2, 40, 8, generator=generator)
    narrow = width * torch.randn(2, 40, 8, generator=generator)
    figure = module.draw(module.Representations(narrow[0, :, None, :4], wide, narrow), 2, "title")
    figure.canvas.draw()
    (ax,) = figure.axes
    assert (ax.get_xscale(), ax.get_yscale()) == scales
    adapter = ax.lines[2]
    within = np.abs(np.asarray(adapter.get_xdata())) < 2 * width
    seen = ax.transAxes.inverted().transform(ax.transData.transform(np.stack([adapter.get_xdata()[within]] * 2, 1)))
    assert np.ptp(seen[:, 0]) > 0.15, "of the axes' width; 0.007 on plain axes"
