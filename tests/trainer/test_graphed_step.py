"""Steps replayed as a CUDA graph train as steps taken one kernel at a time do."""

import numpy as np
import pytest
import torch
from small_data import small_settings

from recbole_llm.config.config import Config
from recbole_llm.quick_start.run import build


def trained(workdir, tiny, graph, **settings):
    settings = {"tuning": "ilp", "train_batch_size": 4, "use_gpu": True, "epochs": 4, **settings}
    settings = small_settings(workdir, backbone=str(tiny["llama"]), **settings)
    config = Config("ST2SI", "small", config_dict=settings)
    parts = build(config, folder=workdir)
    trainer = parts.trainer()
    trainer.precompute(parts.valid, parts.test)
    assert trainer.graphed_step is not None
    if not graph:
        trainer.graphed_step = None
    losses = []
    for epoch in range(config["epochs"]):
        losses.append(trainer._train_epoch(None, epoch))
        with trainer.evaluated_weights():
            pass
    with trainer.evaluated_weights():  # training has gone on after epochs that were evaluated
        evaluated = parts.model.projection.weight.detach().clone()
    return losses, parts.model.projection.weight.detach(), evaluated


@pytest.mark.gpu
@pytest.mark.parametrize("settings", [{}, {"weight_average": 0.9}])
def test_graph_trains_as_single_kernels_do(small, tiny, settings):
    graphed, single = (trained(small, tiny, graph, **settings) for graph in (True, False))
    np.testing.assert_allclose(graphed[0], single[0], rtol=1e-4)
    for found, expected in zip(graphed[1:], single[1:], strict=True):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-3)
    assert torch.equal(graphed[1], graphed[2]) == (not settings)


@pytest.mark.gpu
def test_every_replay_draws_its_own_dropout(small, tiny):
    # With weights that stay where they are, an epoch's loss changes by what is drawn alone. (One step an epoch.)
    still = {"learning_rate": 1e-12, "train_batch_size": 100, "epochs": 8}
    assert np.ptp(trained(small, tiny, graph=True, **still)[0]) < 1e-4
    dropped = trained(small, tiny, graph=True, head_dropout=0.5, **still)[0][4:]  # replayed from the fourth step on
    assert len({round(loss, 4) for loss in dropped}) == len(dropped)
