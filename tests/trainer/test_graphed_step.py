"""Steps replayed as a CUDA graph train as steps taken one kernel at a time do."""

import numpy as np
import pytest
import torch
from small_data import small_settings

from recbole_llm.config import Config
from recbole_llm.quick_start import build
from recbole_llm.registry import trainer_class


def trained(workdir, tiny, graph):
    settings = small_settings(workdir, backbone=str(tiny["llama"]), tuning="ilp", train_batch_size=4, use_gpu=True)
    config = Config("ST2SI", "small", config_dict=settings)
    config["run_folder"] = str(workdir)
    parts = build(config)
    trainer = trainer_class(config)(config, parts.model)
    trainer.precompute(parts.valid, parts.test)
    assert trainer.graphed_step is not None
    if not graph:
        trainer.graphed_step = None
    losses = [trainer._train_epoch(None, epoch) for epoch in range(4)]
    return losses, parts.model.projection.weight.detach()


@pytest.mark.gpu
def test_graph_trains_as_single_kernels_do(small, tiny):
    graphed, single = trained(small, tiny, graph=True), trained(small, tiny, graph=False)
    np.testing.assert_allclose(graphed[0], single[0], rtol=1e-4)
    torch.testing.assert_close(graphed[1], single[1], atol=1e-5, rtol=1e-3)
