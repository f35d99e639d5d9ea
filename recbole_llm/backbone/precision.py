"""Which arithmetic a language model runs in."""

import torch


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
