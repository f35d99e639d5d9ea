"""Which arithmetic a language model runs in."""

import torch
from torch import Tensor


def resolve_precision(setting: str, device: torch.device) -> torch.dtype:
    """Return bfloat16 or float32 for the setting `precision`.

    ``auto`` takes bfloat16 where the hardware multiplies it faster than float32: CUDA devices with bf16 units, and CPUs
    with AMX tiles (without them bf16 products are no faster on a CPU, and lose digits for nothing).
    """
    if setting == "bf16":
        return torch.bfloat16
    if setting == "auto" and has_fast_bf16(device):
        return torch.bfloat16
    return torch.float32


def has_fast_bf16(device: torch.device) -> bool:
    """Tell whether `device` has units for bfloat16 matrix products."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    amx = getattr(torch.cpu, "_is_amx_tile_supported", None)
    return bool(amx is not None and amx())


def autocast_dtype(device: torch.device) -> torch.dtype | None:
    """Return the type that autocast has products on `device` computed in, just now; None where it is off."""
    if _knows_autocast(device) and torch.is_autocast_enabled(device.type):
        return torch.get_autocast_dtype(device.type)
    return None


@torch.compiler.assume_constant_result  # torch 2.11 cannot trace the question: each layer would be in pieces
def _knows_autocast(device: torch.device) -> bool:
    return torch.amp.is_autocast_available(device.type)


def in_autocast_type(*factors: Tensor) -> tuple[Tensor, ...]:
    """Return factors of a product of one device as autocast would hand them over: as they are where it is off.

    Autocast itself does this for torch's own products alone, not for a kernel that is chosen by the types it takes. It
    leaves float64 as it is.
    """
    dtype = autocast_dtype(factors[0].device)
    if dtype is None:
        return factors
    return tuple(factor if factor.dtype == torch.float64 else factor.to(dtype) for factor in factors)
