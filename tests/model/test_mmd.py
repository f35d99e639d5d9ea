"""Maximum mean discrepancy against eq. 12 written out in numpy loops."""

import numpy as np
import pytest
import torch

from recbole_llm.model.layers import mmd
from recbole_llm.model.layers.mmd import gaussian_mmd, median_rho


def sets_of(seed, sets=3, rows=4, width=6, shift=0.0, scale=1.0):
    values = np.random.default_rng(seed).normal(size=(sets, rows, width))
    return torch.from_numpy(shift + scale * values).float()


def plain_mmd(x, y, rho):
    """Eq. 12 of one pair of sets of rows, in float64."""
    x, y = x.double().numpy(), y.double().numpy()

    def mean_kernel(left, right):
        total = 0.0
        for a in left:
            for b in right:
                total += np.exp(-((a - b) ** 2).sum() / (2 * rho))
        return total / (len(left) * len(right))

    return mean_kernel(x, x) + mean_kernel(y, y) - 2 * mean_kernel(x, y)


@pytest.mark.parametrize("rho", [0.5, 3.0, 40.0])
def test_equals_the_equation(rho):
    x, y = sets_of(0), sets_of(1, shift=0.7, scale=1.5)
    expected = [plain_mmd(a, b, rho) for a, b in zip(x, y, strict=True)]
    np.testing.assert_allclose(gaussian_mmd(x, y, rho), expected, atol=2e-6)


def test_zero_for_equal_sets_and_only_there():
    x = sets_of(0)
    assert torch.equal(gaussian_mmd(x, x, 3.0), torch.zeros(3))
    torch.testing.assert_close(gaussian_mmd(x, x.flip(1), 3.0), torch.zeros(3), atol=1e-6, rtol=0)
    for shift in (0.5, -1.0, 3.0):
        assert (gaussian_mmd(x, x + shift, 3.0) > 1e-3).all()


def test_symmetric_and_never_below_zero():
    for seed in range(10):
        x, y = sets_of(seed), sets_of(seed + 100, scale=0.5 + 0.2 * seed)
        found = gaussian_mmd(x, y, 2.0)
        torch.testing.assert_close(found, gaussian_mmd(y, x, 2.0), atol=1e-6, rtol=0)
        assert (found > -1e-6).all()
    far = gaussian_mmd(torch.zeros(1, 2, 3), torch.full((1, 2, 3), 1e4), 1.0)
    assert float(far) == pytest.approx(2.0), "the most that there is: two sets of one point each, far apart"


def test_sets_of_other_sizes():
    x, y = sets_of(0, rows=3), sets_of(1, rows=5)
    np.testing.assert_allclose(
        gaussian_mmd(x, y, 4.0), [plain_mmd(a, b, 4.0) for a, b in zip(x, y, strict=True)], atol=2e-6
    )


def test_gradient_by_finite_differences():
    """The slope of the plain equation in float64 is the gradient."""
    x, y = sets_of(0, rows=3), sets_of(1, rows=3, shift=0.5)
    x.requires_grad_()
    gaussian_mmd(x, y, 3.0).sum().backward()
    rng = np.random.default_rng(2)
    for _ in range(5):
        direction = torch.from_numpy(rng.normal(size=x.shape))
        sides = [
            sum(plain_mmd(a, b, 3.0) for a, b in zip(x.detach().double() + step * direction, y, strict=True))
            for step in (1e-5, -1e-5)
        ]
        slope = (sides[0] - sides[1]) / 2e-5
        assert float((x.grad.double() * direction).sum()) == pytest.approx(slope, abs=1e-5)


def test_gradient_is_a_number_where_rows_are_equal():
    x = torch.zeros(1, 3, 4, requires_grad=True)
    gaussian_mmd(x, torch.ones(1, 3, 4), 1.0).sum().backward()
    assert torch.isfinite(x.grad).all()
    assert x.grad.abs().sum() > 0


def plain_distances(x, y):
    """The squared distances between different rows of each set's x and y together."""
    found = []
    for a, b in zip(x.double().numpy(), y.double().numpy(), strict=True):
        rows = np.concatenate([a, b])
        for i in range(len(rows)):
            found += [((rows[i] - rows[j]) ** 2).sum() for j in range(i + 1, len(rows))]
    return np.array(found)


@pytest.mark.parametrize("shape", [(1, 3, 4), (3, 3, 4), (4, 2, 5)])
def test_median_rho_is_numpys_median(shape):
    sets, rows, width = shape
    x, y = sets_of(0, sets, rows, width), sets_of(1, sets, rows, width, shift=1.0)
    distances = plain_distances(x, y)
    # an even number of distances: torch takes the lower of the two in the middle
    expected = np.percentile(distances, 50, method="lower")
    found = median_rho(x.requires_grad_(), y)
    assert not found.requires_grad
    assert float(found) == pytest.approx(expected, rel=1e-5)
    assert len(distances) % 2 == 0 or expected == np.median(distances)


def test_median_over_some_of_many_sets(monkeypatch):
    monkeypatch.setattr(mmd, "_MEDIAN_SETS", 2)
    x, y = sets_of(0, sets=6), sets_of(1, sets=6)
    assert torch.equal(median_rho(x, y), median_rho(x[:2], y[:2]))


def test_median_of_equal_rows_divides_nothing_by_zero():
    x = torch.ones(2, 3, 4)
    rho = median_rho(x, x)
    assert rho > 0
    assert torch.equal(gaussian_mmd(x, x, rho), torch.zeros(2))
