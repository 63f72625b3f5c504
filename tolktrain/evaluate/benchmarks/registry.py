"""The benchmarks that `tolktrain evaluate` knows."""

import importlib
from collections.abc import Mapping
from types import MappingProxyType

from tolktrain.evaluate.benchmarks.base import Benchmark

# Each defines BENCHMARK.
MODULES = ("swuggy", "sblimp", "prosaudit", "sstorycloze", "tstorycloze", "salmon", "voxeval", "spoken_arc")
BENCHMARKS: Mapping[str, Benchmark] = MappingProxyType(
    {name: importlib.import_module(f"tolktrain.evaluate.benchmarks.{name}").BENCHMARK for name in MODULES}
)
