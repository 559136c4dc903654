"""Which precision `auto` stands for: what the device is fast in, and what was begun goes on in."""

import re
from pathlib import Path
from typing import cast, get_args

import torch
from lightning_fabric import Fabric

from pipeline.config import FixedPrecision, Precision

CPU_INFO = Path("/proc/cpuinfo")
FAST_BF16 = r"\b(avx512_bf16|amx_bf16)\b"
"""Instructions that multiply in bfloat16, as Linux names them. Others only pretend: a processor
with AVX-512 alone takes longer in bf16-mixed than in float32."""

HALF = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
"""What each precision but 32-true rounds weights of products to."""


def settle(asked: Precision, recorded: object, device: str) -> tuple[FixedPrecision, str]:
    """Returns the precision to compute in, and what is to be said of how `auto` was understood.

    `recorded` is that of the run or store that goes on, if there is one; `device` is cpu, cuda or
    mps. It is told by its kind, not by the clock: two runs shall choose alike.
    """
    if asked != "auto":
        return asked, ""
    if recorded in get_args(FixedPrecision):
        return cast(FixedPrecision, recorded), f"{recorded}, as it was begun"
    if has_fast_bf16(device):
        return "bf16-mixed", f"bf16-mixed, which this {device} multiplies in"
    return "32-true", f"32-true, as this {device} is not known to be fast in less"


def precision_of(fabric: Fabric) -> FixedPrecision:
    """Returns the precision that Fabric was started with."""
    return cast(FixedPrecision, fabric.strategy.precision.precision)


def has_fast_bf16(device: str) -> bool:
    """Says whether a device has instructions for products of bfloat16."""
    if device == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device != "cpu" or not CPU_INFO.exists():
        return False
    return bool(re.search(FAST_BF16, CPU_INFO.read_text(encoding="utf-8")))
