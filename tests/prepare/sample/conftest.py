"""The committed corpus, read through its shards; and a skip where espeak-ng is missing."""

import ctypes
import json
from pathlib import Path

import pytest
import zstd
from streaming.base.format import reader_from_json
from streaming.base.format.mds.encodings import is_mds_encoding_safe

from sample_corpus import espeak
from tolktrain.data.records import Record

SAMPLE = Path(__file__).parents[3] / "data" / "sample"


def read_folder(folder: Path, raw: Path) -> list[Record]:
    """Records of a data set folder, by streaming's reader of single shards; shards are unpacked into `raw`."""
    index = json.loads((folder / "index.json").read_text())
    records = []
    for shard in index["shards"]:
        assert all(is_mds_encoding_safe(encoding) for encoding in shard["column_encodings"])
        content = zstd.decompress((folder / shard["zip_data"]["basename"]).read_bytes())
        raw.mkdir(parents=True, exist_ok=True)
        (raw / shard["raw_data"]["basename"]).write_bytes(content)
        reader = reader_from_json(str(raw.parent), raw.name, shard)
        records += [Record.from_sample(reader[index]) for index in range(reader.samples)]
    return records


@pytest.fixture(scope="session")
def dialogue_records(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Record]]:
    """The committed dialogues by split, and the candidates."""
    raw = tmp_path_factory.mktemp("raw")
    folders = [path.parent for path in sorted((SAMPLE / "dialogues").glob("*/index.json"))]
    return {folder.name: read_folder(folder, raw / folder.name) for folder in folders}


@pytest.fixture(scope="session")
def sample_records(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Record]]:
    """All records of the committed corpus, by split."""
    raw = tmp_path_factory.mktemp("raw")
    return {split: read_folder(SAMPLE / split, raw / split) for split in ("train", "heldout_stories", "heldout_voices")}


@pytest.fixture(scope="session")
def speaking() -> None:
    """Skip, naming the package, where espeak-ng is not installed."""
    try:
        ctypes.CDLL(espeak.LIBRARY)
    except OSError:
        pytest.skip(f"needs the Debian package {espeak.PACKAGE}")
