"""Where a run's representations lie: ID model, language model and adapter (IDLE-Adapter, Figure 4).

The paper plots "the embedding distribution" of the three "with Gaussian kernel density estimation" and says no more. A
user vector has d numbers and a language model's state d' of them, so that the three share no space into which points
could be projected together. What they share is that they are numbers: a curve is the density of all coordinates of
all sampled histories' vectors, as they are (standardised, curves would lie on one another by construction). The
distances that stand beside the picture hold what one number a coordinate cannot show.
"""

from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator
from scipy.stats import gaussian_kde, wasserstein_distance
from torch import Tensor

from recbole_llm.errors import CheckpointError, SettingError, TrainingError
from recbole_llm.model.layers.mmd import gaussian_mmd, median_rho
from recbole_llm.plots.style import grid, looks, plain_number, styled
from recbole_llm.quick_start.run import Parts, load
from recbole_llm.runs import folder as run_folder

ID_MODEL, LANGUAGE_MODEL, ADAPTER = "ID model", "language model", "adapter"
_MODEL = "IDLEAdapter"
_POINTS = 160  # of the axis, for the range of each of the three
_TAIL = 0.002  # share of coordinates that may lie outside it, at either end
_WIDTHS = 5.0  # ratio of deviations from which on a narrow curve beside a wide one is a mere needle


@dataclass(frozen=True)
class Representations:
    """Vectors of the same histories, float32 on the CPU.

    Attributes:
        users: u of the ID model [histories, interests, d] (eq. 2).
        language: H~ [L, histories, d'], every layer's pooled input without virtual tokens, as in eq. 12.
        adapted: [L, histories, d'], D of eq. 7, averaged over a layer's virtual tokens, as in eq. 12.
    """

    users: Tensor
    language: Tensor
    adapted: Tensor

    def at(self, layer: int) -> dict[str, np.ndarray]:
        """Return the coordinates of the three at a layer, counted from 1, float64 [histories x size]."""
        parts = {ID_MODEL: self.users, LANGUAGE_MODEL: self.language[layer - 1], ADAPTER: self.adapted[layer - 1]}
        return {name: part.numpy().astype(np.float64).ravel() for name, part in parts.items()}


def read_run(run: str | Path, data_path: str | None = None) -> Parts:
    """Load a finished run of IDLEAdapter.

    Raises:
        SettingError: if it is a run of another model.
        CheckpointError: if it is no run, not finished or broken.
    """
    folder, stored = run_folder.open_existing(run)
    if stored.get("model") != _MODEL:
        raise SettingError(f"{folder} is a run of {stored.get('model')}: representations are drawn of one of {_MODEL}")
    if not (folder / run_folder.RESULT).is_file():
        raise CheckpointError(f"the run {folder} is not finished: resume it with --resume={folder}")
    return load(folder, None if data_path is None else {"data_path": data_path})


@torch.no_grad()
def compute(parts: Parts, histories: int = 1000) -> Representations:
    """Return the representations of test histories, drawn with the run's seed where there are more than `histories`."""
    model, dataset = parts.model, parts.test._dataset
    rows = np.random.default_rng(parts.config["seed"]).permutation(len(dataset))[:histories]
    interaction = dataset[np.sort(rows)]
    users = model.user_vectors(interaction)
    adapted = model.virtual_tokens(users).mean(dim=2).expand(model.layers, -1, -1)
    language = torch.empty(len(rows), model.layers, model.width)
    items, lengths = (interaction[name].cpu().numpy() for name in (model.ITEM_SEQ, model.ITEM_SEQ_LEN))
    budget = model.settings.eval_batch_tokens
    for places, prompts in model.inputs.prompts_of(items, lengths, budget, plain=True):
        language[places] = model.language_states(prompts.to(model.device)).cpu()
    return Representations(users.cpu(), language.transpose(0, 1), adapted.float().cpu())


def curves_of(coordinates: dict[str, np.ndarray]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Return the places on the axis and, by name, the density there: SciPy's Gaussian KDE with Scott's bandwidth.

    The axis holds the range of each of the three in equal steps, without the outermost 0.2 % at either end.

    Raises:
        TrainingError: if the coordinates of one are not numbers, or are all the same one.
    """
    for name, values in coordinates.items():
        if not np.isfinite(values).all() or np.ptp(values) == 0:
            what = "all the same number" if np.isfinite(values).all() else "not numbers"
            raise TrainingError(f"the coordinates of the {name} are {what}: there is no density to draw")
    ranges = [np.quantile(values, [_TAIL, 1 - _TAIL]) for values in coordinates.values()]
    places = np.unique(np.concatenate([np.linspace(low, high, _POINTS) for low, high in ranges]))
    return places, {name: gaussian_kde(values)(places) for name, values in coordinates.items()}


@styled
def draw(found: Representations, layer: int, title: str) -> Figure:
    """Return the densities of the three at a layer, counted from 1.

    Where one is far narrower than another, the horizontal axis is linear over the narrow one and logarithmic beyond
    (matplotlib's asinh), and the vertical one logarithmic.

    Raises:
        TrainingError: see `curves_of`.
    """
    coordinates = found.at(layer)
    places, densities = curves_of(coordinates)
    figure, (ax,) = grid(1, 5.4, 3.3)
    look = looks(list(densities))
    for name, density in densities.items():
        style = look[name]
        ax.fill_between(places, density, color=style.colour, alpha=0.12, linewidth=0)
        peak = [int(density.argmax())]
        ax.plot(places, density, color=style.colour, marker=style.marker, markevery=peak, label=name)
    ax.set(title=title, xlabel="value of a coordinate", ylabel="density")
    deviations = [values.std() for values in coordinates.values()]
    if max(deviations) >= _WIDTHS * min(deviations):
        width = min(deviations)
        ax.set_xscale("asinh", linear_width=width)
        peaks = [density.max() for density in densities.values()]
        ax.set_yscale("log")
        ax.set_ylim(min(peaks) / 100, max(peaks) * 2)
        decades = 10.0 ** np.arange(np.ceil(np.log10(width)), np.log10(np.abs(places).max()) + 1)
        ax.xaxis.set_major_locator(FixedLocator(sorted([*-decades, 0.0, *decades])))
        ax.xaxis.set_minor_locator(NullLocator())
        ax.set_xlim(places[0], places[-1])
        ax.xaxis.set_major_formatter(FuncFormatter(plain_number))
        ax.yaxis.set_major_formatter(FuncFormatter(plain_number))
    else:
        ax.set_ylim(bottom=0)
    ax.legend(frameon=False)
    return figure


def distances(found: Representations, model: Any) -> dict[str, Any]:
    """Return how far the three lie from one another, as plain numbers.

    Args:
        found: of the model.
        model: `IDLEAdapter`, whose settings say how eq. 12 is read.

    Returns:
        "alignment": eq. 12 as the run reads it, a mean over histories. "ID model": mean and deviation of the
        coordinates. "layers", for each: the same of language model and adapter; "mmd", between the two sets of
        vectors of eq. 12 with histories as rows, and its "rho" (the layer's median squared distance);
        "wasserstein", between the coordinates of each pair, in their units.
    """
    layers = []
    for number, (language, adapted) in enumerate(zip(found.language, found.adapted, strict=True), start=1):
        adapter_states, language_states = adapted[None], language[None]
        rho = float(median_rho(adapter_states, language_states))
        coordinates = found.at(number)
        layers.append(
            {
                "layer": number,
                **{name: _spread(coordinates[name]) for name in (LANGUAGE_MODEL, ADAPTER)},
                "mmd": float(gaussian_mmd(adapter_states, language_states, rho)),
                "rho": rho,
                "wasserstein": {
                    f"{one} to {other}": float(wasserstein_distance(coordinates[one], coordinates[other]))
                    for one, other in combinations(coordinates, 2)
                },
            }
        )
    alignment = model.discrepancy_sum(found.adapted[:, :, None], found.language.transpose(0, 1))
    return {
        "alignment": float(alignment) / found.users.shape[0],
        ID_MODEL: _spread(found.at(1)[ID_MODEL]),
        "layers": layers,
    }


def representations(
    run: str | Path, layer: int | None = None, histories: int = 1000, data_path: str | None = None
) -> tuple[Figure, dict[str, Any]]:
    """Return the picture of a finished run, and what is known of the distances in it.

    Args:
        run: its folder.
        layer: of the language model, counted from 1; the last by default.
        histories: the most test histories to draw from.
        data_path: where the data is now, if not where the run found it.

    Raises:
        SettingError: if it is a run of another model, or the language model has no such layer.
        CheckpointError: if it is no run, not finished or broken.
        TrainingError: if there is no density to draw.
    """
    parts = read_run(run, data_path)
    model, config = parts.model, parts.config
    layer = model.layers if layer is None else layer
    if not 1 <= layer <= model.layers:
        raise SettingError(f"layer={layer} is none of the {model.layers} layers of {config['backbone']}")
    found = compute(parts, histories)
    title = f"{config['dataset']}, layer {layer} of {model.layers}"
    about = {
        "run": str(run),
        "dataset": config["dataset"],
        "id_model": type(model.id_model).__name__,
        "backbone": config["backbone"],
        "histories": found.users.shape[0],
        "seed": config["seed"],
        "drawn_layer": layer,
    }
    return draw(found, layer, title), {**about, **distances(found, model)}


def _spread(values: np.ndarray) -> dict[str, float]:
    return {"mean": float(values.mean()), "deviation": float(values.std())}
