"""Hardware by name: memory and peak throughput of devices, as published by their makers."""

from __future__ import annotations

import contextlib
import os
import re
from dataclasses import dataclass

from sftlab.nearest import did_you_mean

GIB = 2**30
USABLE = 0.92  # of a GPU's memory; the rest is for its context, communication buffers and fragmentation


@dataclass(frozen=True)
class Device:
    """One accelerator.

    Attributes:
        name: Its name for ``--hardware``.
        memory_gib: Its memory.
        bf16_tflops: Peak of dense bf16 products with fp32 sums; None if not published.
        source: Source of the numbers.
    """

    name: str
    memory_gib: float
    bf16_tflops: float | None
    source: str

    @property
    def usable_bytes(self) -> int:
        """Bytes available to tensors."""
        return int(self.memory_gib * GIB * USABLE)


_ROWS = (
    ("A100-40GB", 40, 312, "NVIDIA A100 datasheet"),
    ("A100-80GB", 80, 312, "NVIDIA A100 datasheet"),
    ("H100-80GB", 80, 989, "NVIDIA H100 datasheet, SXM; 1,979 with sparsity"),
    ("H100-PCIE", 80, 756, "NVIDIA H100 datasheet, PCIe; 1,513 with sparsity"),
    ("H200", 141, 989, "NVIDIA H200 datasheet; 1,979 with sparsity"),
    ("B200", 180, 2250, "NVIDIA HGX B200 datasheet; 4,500 with sparsity"),
    ("L40S", 48, 362, "NVIDIA L40S datasheet; 733 with sparsity"),
    ("L4", 24, 121, "NVIDIA L4 datasheet; 242 with sparsity"),
    ("A10", 24, 125, "NVIDIA A10 datasheet"),
    ("RTX4090", 24, 165, "NVIDIA Ada architecture whitepaper"),
    ("RTX3090", 24, 71, "NVIDIA GA102 architecture whitepaper"),
    ("MI300X", 192, 1307, "AMD Instinct MI300X data sheet"),
)
NAMES = tuple(row[0] for row in _ROWS)
DEVICES = {row[0].lower(): Device(*row) for row in _ROWS}


@dataclass(frozen=True)
class Hardware:
    """A number of devices of one kind."""

    count: int
    device: Device

    def __str__(self) -> str:
        """8xA100-80GB."""
        return f"{self.count}x{self.device.name}"


def read_hardware(name: str) -> Hardware:
    """Parse ``8xA100-80GB``, ``H200``, or ``this`` for this machine.

    Raises:
        ValueError: There is no such device.
    """
    if name == "this":
        return _this()
    match = re.fullmatch(r"(?:(\d{1,6})x)?(.+)", name, re.IGNORECASE)
    device = DEVICES.get(match[2].lower()) if match else None
    if match is None or device is None or match[1] == "0":
        hint = did_you_mean(name.rpartition("x")[2].upper(), NAMES, f"there are {', '.join(NAMES)}, this")
        raise ValueError(f"--hardware: no device {name!r}; {hint}")
    return Hardware(int(match[1] or 1), device)


def _this() -> Hardware:
    import torch

    if torch.cuda.is_available():
        about = torch.cuda.get_device_properties(0)
        known = [d for d in DEVICES.values() if d.name.split("-")[0].lower() in about.name.lower().replace(" ", "")]
        peak = known[0].bf16_tflops if known else None
        gib = about.total_memory / GIB
        return Hardware(torch.cuda.device_count(), Device(about.name, gib, peak, "this machine"))
    gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB
    return Hardware(1, Device("CPU", gib, None, "this machine"))


def available_bytes() -> int:
    """Return this machine's available memory in bytes; all of it if the system does not report that."""
    with contextlib.suppress(OSError), open("/proc/meminfo", encoding="ascii") as lines:
        for line in lines:
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
