"""Predictors of real configurations, for two kinds of machines."""

from functools import cache
from pathlib import Path

from tolktrain.config.load import load_config
from tolktrain.model.architecture import Architecture
from tolktrain.plan.candidates import Cluster
from tolktrain.plan.job import Recipe
from tolktrain.tune.predict import Device, Predictor

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
H100 = Device("NVIDIA H100 80GB HBM3", "cuda", 8, 79.2)
CPU = Device("AMD EPYC (CPU)", "cpu", 2, 16.0)


@cache
def predictor_of(name: str, cluster: Cluster, device: Device, *overrides: str) -> Predictor:
    """For the last stage of a configuration in configs/bench."""
    config = load_config(CONFIGS / "bench" / f"{name}.yaml", overrides)
    shapes = Recipe.of(config, Architecture.from_config(config.model)).shapes
    return Predictor(config, shapes[-1], cluster, device)
