"""What the tests of manifests share."""

import gzip
import json
import math
from pathlib import Path
from typing import Any

from tolktrain.config.prepare import RecordingsConfig
from tolktrain.prepare.recordings.manifest import read_manifest
from tolktrain.prepare.utterances import Failure, Utterance


def config_for(path: Path, **fields: Any) -> RecordingsConfig:
    return RecordingsConfig.model_validate({"manifest": str(path), "speech_tokenizer": {"path": "units"}, **fields})


def read(path: Path, **fields: Any) -> tuple[list[Utterance], list[Failure]]:
    """The manifest, after checks that hold whatever it contains."""
    utterances, failures = read_manifest(config_for(path, **fields))
    check_all(utterances, failures)
    return utterances, failures


def check_all(utterances: list[Utterance], failures: list[Failure]) -> None:
    """What is promised of every utterance and failure; fails on the first that breaks it."""
    assert utterances or failures
    assert len({utterance.id for utterance in utterances}) == len(utterances)
    sources = [utterance.source for utterance in utterances]
    changes = [source for i, source in enumerate(sources) if i == 0 or source != sources[i - 1]]
    assert len(changes) == len(set(changes)), "utterances of a source are consecutive"
    for one in utterances:
        texts = [one.id, one.source, one.audio, *(text for text in (one.text, one.word_times) if text is not None)]
        assert all(isinstance(text, str) and text.strip() and text.encode() and "\0" not in text for text in texts)
        assert isinstance(one.speaker, str) and isinstance(one.speaker.encode(), bytes)
        assert type(one.offset) is float and math.isfinite(one.offset) and one.offset >= 0
        if one.duration is not None:
            assert type(one.duration) is float and math.isfinite(one.duration) and one.duration > 0
        assert one.channel is None or (type(one.channel) is int and one.channel >= 0)
        before = 0.0
        for word in one.words or ():
            assert word.text.strip() == word.text != "" and len(word.text.split()) == 1
            assert 0 <= word.start <= word.end and before <= word.end and math.isfinite(word.end)
            before = word.end
        assert one.words is None or one.words
    for failure in failures:
        assert failure.id and failure.id.encode() and failure.detail and failure.detail.encode()


def write_lines(path: Path, items: list[Any]) -> Path:
    """JSON lines; a text is a line as it is."""
    text = "".join((item if isinstance(item, str) else json.dumps(item)) + "\n" for item in items)
    path.write_bytes(gzip.compress(text.encode()) if path.name.endswith(".gz") else text.encode())
    return path
