"""The machine that figures were measured on, without a name that only one machine has."""

import os
import platform
from pathlib import Path

import torch

from ..host.about import host_version


def describe_machine() -> dict[str, object]:
    """device, cores, threads and memory in GB, and the versions that matter."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else _processor()
    return {
        "device": device,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gb": round(_memory_bytes() / 1e9),
        "system": platform.system(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "comfyui": host_version(),
    }


def _memory_bytes() -> int:
    import psutil

    return psutil.virtual_memory().total


def _processor() -> str:
    information = Path("/proc/cpuinfo")
    if information.exists():
        for line in information.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
