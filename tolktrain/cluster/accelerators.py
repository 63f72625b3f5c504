"""Kinds of GPUs: peak, memory, and the links of the machines that they are usually built into."""

import re
from dataclasses import dataclass

_GB, _TB = 1e9, 1e12


@dataclass(frozen=True)
class Accelerator:
    """A kind of GPU. Rates are those of its data sheet, in one direction; what a job reaches of them is assumed."""

    name: str  # for --device
    pattern: str  # found in `torch.cuda.get_device_name`
    peak_flops: float  # FLOP/s of dense bf16 products (half of what data sheets give for sparse ones)
    memory_gib: float  # that torch sees as the device's total
    memory_bandwidth: float  # bytes/s
    link_bandwidth: float  # bytes/s from one GPU to the others of its node
    network_bandwidth: float  # bytes/s from one GPU to other nodes: one network card for each GPU
    sustained: float = 1.0  # of the fractions of the model `SUSTAINED`, what published trainings reach; fitted


# The first whose pattern occurs in a device's name counts. GH200, GB200, H20, H800 and the like are other names, and
# not known. Sources: NVIDIA's data sheets; DGX A100 has 200 Gb/s for each GPU, DGX H100, H200 and B200 400 Gb/s.
ACCELERATORS = (
    Accelerator("a100-40", r"\bA100.*\b40GB", 312e12, 39.4, 1.555 * _TB, 300 * _GB, 25 * _GB, 1.02),
    Accelerator("a100", r"\bA100\b", 312e12, 79.2, 2.039 * _TB, 300 * _GB, 25 * _GB, 1.05),
    Accelerator("h100-pcie", r"\bH100 PCIe\b", 756e12, 79.2, 2.0 * _TB, 64 * _GB, 25 * _GB, 0.75),
    Accelerator("h100-nvl", r"\bH100 NVL\b", 835e12, 93.1, 3.9 * _TB, 300 * _GB, 25 * _GB, 0.75),
    Accelerator("h200-nvl", r"\bH200 NVL\b", 835e12, 139.8, 4.8 * _TB, 450 * _GB, 50 * _GB, 0.75),
    Accelerator("h100", r"\bH100\b", 989.4e12, 79.2, 3.35 * _TB, 450 * _GB, 50 * _GB, 0.75),
    Accelerator("h200", r"\bH200\b", 989.4e12, 139.8, 4.8 * _TB, 450 * _GB, 50 * _GB, 0.75),
    Accelerator("b200", r"\bB200\b", 2250e12, 178.4, 7.7 * _TB, 900 * _GB, 50 * _GB, 0.67),
)

# A rank on processor cores, such as a run of configs/bench/cpu.yaml; its rates only matter in relation to each other,
# because a calibration of the machine scales them. Not known to `accelerator_of`, since no two processors are alike.
CPU = Accelerator("cpu", r"\(CPU\)$", 5e10, 64.0, 5e9, 2e9, 1e9)


def accelerator_of(device_name: str) -> Accelerator | None:
    """The kind of a device; None if it is not known.

    Args:
        device_name: from `torch.cuda.get_device_name`, such as "NVIDIA H100 80GB HBM3".
    """
    if re.search(r"\bMIG\b", device_name):  # a part of a GPU has a part of its rate
        return None
    return next((kind for kind in ACCELERATORS if re.search(kind.pattern, device_name)), None)
