"""From user vectors to virtual tokens: eq. 5 to 7 in numpy and float64."""

import numpy as np
import pytest
import torch
from scipy.stats import kstest, truncnorm

from recbole_llm.model.layers.virtual_token_adapter import VirtualTokenAdapter, truncated_normal_

SIZE, WIDTH, LAYERS, TOKENS, USERS = 5, 8, 3, 2, 4


def adapter_of(**settings):
    """An adapter in float64 with weights that are far from 0, so that gates are far from 1/2."""
    torch.manual_seed(0)
    adapter = VirtualTokenAdapter(SIZE, WIDTH, LAYERS, TOKENS, **settings).double()
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.mul_(50)
    return adapter


def vectors_of(interests):
    return torch.randn(USERS, interests, SIZE, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def plain_tokens(weights, vector, layer):
    """Eq. 5 to 7 for one user vector and one layer: D [L', d']."""
    projected = weights["projection_weight"][layer] @ vector + weights["projection_bias"][layer]  # eq. 5
    repeated = np.repeat(projected[None], TOKENS, axis=0)
    if "prefix" not in weights:
        return repeated
    prefix = weights["prefix"][layer]
    gate = 1 / (1 + np.exp(-np.concatenate([prefix, repeated], axis=1) @ weights["gate_weight"]))  # eq. 6
    return gate[:, None] * prefix + (1 - gate[:, None]) * repeated  # eq. 7


@pytest.mark.parametrize("interests", [1, 3])
@pytest.mark.parametrize("refinement", [True, False])
@pytest.mark.parametrize("layerwise", [True, False])
def test_tokens_equal_the_equations(layerwise, refinement, interests):
    adapter = adapter_of(layerwise=layerwise, refinement=refinement)
    vectors = vectors_of(interests)
    found = adapter(vectors).detach().numpy()
    weights = {name: parameter.detach().numpy() for name, parameter in adapter.named_parameters()}
    assert ("gate_weight" in weights) == refinement
    layers = LAYERS if layerwise else 1
    assert found.shape == (layers, USERS, interests * TOKENS, WIDTH)
    for layer in range(layers):
        for user in range(USERS):
            expected = [plain_tokens(weights, vector, layer) for vector in vectors[user].numpy()]
            np.testing.assert_allclose(found[layer, user], np.concatenate(expected), atol=1e-13)
    gates = weights.get("gate_weight", np.zeros(1))
    assert np.abs(gates).max() > 0.1 or not refinement, "the gate must be seen"


def test_gradients_by_finite_differences():
    adapter, vectors = adapter_of(), vectors_of(2)
    inputs = (vectors.requires_grad_(), *adapter.parameters())
    names = [name for name, _ in adapter.named_parameters()]

    def value(vectors, *weights):
        return torch.func.functional_call(adapter, dict(zip(names, weights, strict=True)), (vectors,))

    assert torch.autograd.gradcheck(value, inputs)


@pytest.mark.parametrize("layerwise", [True, False])
@pytest.mark.parametrize("refinement", [True, False])
def test_parameter_count(layerwise, refinement):
    """L (d' d + d' + L' d') + 2 d', with the ablations' parts left out."""
    adapter = VirtualTokenAdapter(SIZE, WIDTH, LAYERS, TOKENS, layerwise, refinement)
    layers = LAYERS if layerwise else 1
    expected = layers * (WIDTH * SIZE + WIDTH)
    if refinement:
        expected += layers * TOKENS * WIDTH + 2 * WIDTH
    assert sum(parameter.numel() for parameter in adapter.parameters()) == expected


def test_initial_weights_are_a_truncated_normal():
    """Each parameter in [-0.02, 0.02]; many draws follow scipy's distribution."""
    torch.manual_seed(0)
    adapter = VirtualTokenAdapter(64, 96, 6, 4)
    for name, parameter in adapter.named_parameters():
        assert parameter.abs().max() <= 0.02, name
        # 0.54 of the deviation is left of a normal distribution that is cut at one deviation
        assert float(parameter.detach().std()) == pytest.approx(truncnorm(-1, 1, scale=0.02).std(), rel=0.15), name
    many = torch.empty(20_000)
    truncated_normal_(many)
    assert kstest(many.double().numpy(), truncnorm(-1, 1, scale=0.02).cdf).pvalue > 1e-3
