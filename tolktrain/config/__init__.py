"""Configuration: YAML files into strict models. `load_config` in `tolktrain.config.load` is the way in."""

from tolktrain.config.root import Config

__all__ = ["Config"]
