"""Quicker layers: the values of RecBole's, the distribution of dropout, and the same names of weights."""

import numpy as np
import pytest
import torch
from recbole.model.layers import TransformerEncoder
from scipy.stats import norm
from torch import nn

from recbole_llm.trainer.quick_layers import QuickDropout, quicken


def encoder(**settings):
    torch.manual_seed(0)
    return TransformerEncoder(n_layers=2, n_heads=2, hidden_size=8, inner_size=16, **settings)


def test_gelu_is_the_formula():
    model = encoder()
    exact = model.layer[0].feed_forward.gelu
    quicken(model)
    layer = model.layer[0].feed_forward
    x = torch.linspace(-6, 6, 101, dtype=torch.double)
    assert layer.intermediate_act_fn.training
    np.testing.assert_allclose(layer.intermediate_act_fn(x), x.numpy() * norm.cdf(x), atol=1e-12)
    model.eval()
    assert torch.equal(layer.intermediate_act_fn(x.float()), exact(x.float()))


def test_other_activations_stay():
    model = encoder(hidden_act="swish")
    before = model.layer[0].feed_forward.intermediate_act_fn
    quicken(model)
    assert model.layer[0].feed_forward.intermediate_act_fn == before


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_dropout_leaves_out_the_rate_and_scales_the_rest(rate):
    torch.manual_seed(1)
    x = torch.full((400, 500), 3.0, requires_grad=True)
    dropped = QuickDropout(rate)(x)
    dropped.sum().backward()
    stays = dropped.detach() != 0
    # Ten standard deviations of the mean of 200,000 draws.
    assert abs(stays.double().mean() - (1 - rate)) < 10 * (rate * (1 - rate) / x.numel()) ** 0.5
    torch.testing.assert_close(dropped[stays], torch.full_like(dropped[stays], 3 / (1 - rate)))
    torch.testing.assert_close(x.grad, stays / (1 - rate))


@pytest.mark.parametrize("rate", [0.0, 1.0])
def test_dropout_of_nothing_and_of_all(rate):
    x = torch.ones(5)
    assert torch.equal(QuickDropout(rate)(x), nn.Dropout(rate)(x))
    assert torch.equal(QuickDropout(0.5).eval()(x), x)


def test_a_quick_model_has_the_weights_and_the_scores_of_the_other():
    plain, quick = encoder(), encoder()
    quicken(quick)
    assert sum(isinstance(module, QuickDropout) for module in quick.modules()) == 6
    assert not any(type(module) is nn.Dropout for module in quick.modules())
    assert quick.state_dict().keys() == plain.state_dict().keys()
    states, mask = torch.randn(3, 4, 8), torch.zeros(3, 1, 4, 4)
    assert torch.equal(quick.eval()(states, mask)[-1], plain.eval()(states, mask)[-1])


def test_the_mode_of_a_model_is_kept():
    model = encoder().eval()
    quicken(model)
    assert not any(module.training for module in model.modules())
