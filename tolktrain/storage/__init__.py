"""Whole files below an address: a local folder, or a bucket of an object store.

`open_storage` (in `open`) returns a `Storage`, which reads and writes; `open_source` returns a `Source`, which only
reads and also supports the stores from which mosaicml-streaming can download. Names and addresses are not URLs: `#`,
`?`, `%` and spaces are ordinary characters.
"""
