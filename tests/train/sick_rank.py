"""`tolktrain train` of which rank 1 multiplies wrongly, on a node of its own.

Usage: sick_rank.py CONFIG [key=value ...].
"""

import sys

import torch
from torch import Tensor

from tolktrain import cli
from tolktrain.cluster.environment import ProcessEnvironment
from tolktrain.cluster.health import check
from tolktrain.cluster.health.probes import Probes


def wrong(a: Tensor, b: Tensor) -> Tensor:
    """A product with a wrong element."""
    product = torch.mm(a, b)
    product[0, 0] += 1
    return product


def main() -> int:
    """Train."""
    rank = ProcessEnvironment.detect().rank
    multiply = wrong if rank == 1 else torch.mm
    check.Probes = lambda: Probes(node=lambda: f"node{rank}", multiply=multiply)
    return cli.main(["train", *sys.argv[1:]])


if __name__ == "__main__":
    sys.exit(main())
