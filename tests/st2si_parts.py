"""What the tests of ST2SI share: a filled store of hidden states, RecBole's rows, gradients."""

import torch
from tqdm import tqdm


def no_bar(total):
    return tqdm(total=total, disable=True)


def fill(parts):
    parts.model.fill_state_cache([parts.valid.dataset, parts.test.dataset], parts.context.folder, no_bar)
    return parts.model


def cached_loss_sum(model, samples):
    return model.pass_loss_sum(model.state_cache.queries(samples))


def gradients(model):
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def prefix_rows(loader):
    for interaction, _, _, positives in loader:
        yield interaction, positives


def assert_same_gradients(found, expected, tolerance=1e-5):
    assert found.keys() == expected.keys()
    assert found
    for name, gradient in expected.items():
        scale = gradient.abs().max().clamp(min=1.0)
        torch.testing.assert_close(found[name] / scale, gradient / scale, atol=tolerance, rtol=tolerance, msg=name)
