"""What identifies the weights of a backbone in memory, tuned or not."""

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor, nn


def weights_fingerprint(backbone: nn.Module) -> str:
    """Return 16 hexadecimal digits that identify the weights of a loaded backbone.

    They are those of the names, shapes and values of all weights, each value rounded to bfloat16: a frozen backbone is
    loaded in the arithmetic of the run, and must be the same backbone on a machine with another. (Tuning that changes
    no weight by as much as bfloat16 resolves would go unnoticed; any real one changes many.)

    The digits are remembered, and computed again once a weight was replaced or changed in place. The files that a
    backbone was loaded from have a fingerprint of their own, `recbole_llm.backbone.loading.fingerprint`.
    """
    state = backbone.state_dict(keep_vars=True)
    stamp = tuple((name, tensor.data_ptr(), tensor._version) for name, tensor in state.items())
    known = getattr(backbone, "_weights_fingerprint", None)
    if known is not None and known[0] == stamp:
        return known[1]
    names = sorted(state)
    with ThreadPoolExecutor(min(os.cpu_count() or 1, 16)) as pool:  # hashing runs beside other threads
        parts = list(pool.map(lambda name: _digest(name, state[name].detach()), names))
    found = hashlib.sha256(b"".join(parts)).hexdigest()[:16]
    backbone._weights_fingerprint = stamp, found  # type: ignore[assignment]
    return found


def _digest(name: str, tensor: Tensor) -> bytes:
    digest = hashlib.blake2b(f"{name} {tuple(tensor.shape)}\n".encode(), digest_size=32)
    if tensor.is_floating_point():
        tensor = tensor.to(torch.bfloat16).view(torch.int16)
    digest.update(tensor.contiguous().cpu().numpy().data)
    return digest.digest()
