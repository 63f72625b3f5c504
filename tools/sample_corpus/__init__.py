"""The embedded corpus: spoken stories of a small grammar, built by `python tools/build_sample_corpus.py`."""
