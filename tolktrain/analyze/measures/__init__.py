"""The measures of `tolktrain analyze`; one file each. `tolktrain.analyze.measures.registry` lists them."""
