"""Which entries are held out: a choice by names, the same on every machine and in any order."""

import hashlib

from tolktrain.config.prepare import HeldOutConfig

TRAIN = "train"
HELDOUT_SOURCES = "heldout_sources"
HELDOUT_SPEAKERS = "heldout_speakers"
SPLITS = (TRAIN, HELDOUT_SOURCES, HELDOUT_SPEAKERS)


def split_of(config: HeldOutConfig, source: str, speaker: str = "") -> str:
    """The split of an entry: by its speaker if that one is held out, else by its source.

    So training shares no speaker with `heldout_speakers` and no source with `heldout_sources`. An unknown speaker (an
    empty name) is never held out.
    """
    if speaker and _share(config.seed, "speaker", speaker) < config.speakers:
        return HELDOUT_SPEAKERS
    if _share(config.seed, "source", source) < config.sources:
        return HELDOUT_SOURCES
    return TRAIN


def _share(seed: int, kind: str, name: str) -> float:
    """A number from 0 to below 1, evenly spread over names."""
    digest = hashlib.blake2b(f"{seed}/{kind}/{name}".encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little") / 2**64
