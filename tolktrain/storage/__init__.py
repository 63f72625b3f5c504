"""Whole files below an address: a local folder, or a bucket of an object store.

`open_storage` (in `open`) gives a `Storage`, which reads and writes; `open_source` a `Source`, which only reads and
knows the stores that mosaicml-streaming can download from besides. Names and addresses are used as they are: they are
not URLs, so `#`, `?`, `%` and spaces are characters like others.
"""
