"""The number format in which a ViT is trained."""

import warnings
from typing import Literal

import torch

Precision = Literal["float32", "bfloat16"]
CPU_INSTRUCTIONS = ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16")  # as `torch.cpu.get_capabilities` calls them


def autocast(precision: Precision, device: torch.device) -> torch.autocast:
    """The context of a forward pass in this format; warns of bfloat16 on a CPU that has no instructions for it."""
    if precision == "bfloat16" and device.type == "cpu" and not cpu_has_bfloat16():
        warnings.warn(
            "precision: this CPU has no instructions for bfloat16, in which training will take longer than in float32, "
            "perhaps ten times as long",
            stacklevel=2,
        )
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16")


def cpu_has_bfloat16() -> bool:
    """Whether this CPU computes in bfloat16; True, too, with a torch that cannot tell."""
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()
    return not capabilities or any(capabilities.get(name) for name in CPU_INSTRUCTIONS)
