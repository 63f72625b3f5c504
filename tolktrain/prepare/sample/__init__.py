"""The embedded corpus: spoken stories of a small grammar, built by `python -m tolktrain.prepare.sample`."""
