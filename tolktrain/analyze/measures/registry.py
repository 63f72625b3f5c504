"""The measures that `tolktrain analyze` knows."""

import importlib
from collections.abc import Mapping
from types import MappingProxyType

from tolktrain.analyze.measures.base import Measure

MODULES = ("subspaces", "cka", "retrieval", "lens", "probes", "additive", "pooling")  # each defines MEASURE
MEASURES: Mapping[str, type[Measure]] = MappingProxyType(
    {name: importlib.import_module(f"tolktrain.analyze.measures.{name}").MEASURE for name in MODULES}
)
