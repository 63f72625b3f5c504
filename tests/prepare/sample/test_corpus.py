"""The committed corpus: what it holds, and that its parts agree with each other and with the program that built it."""

import hashlib
import json
import wave
from pathlib import Path

import numpy as np
import pytest

from sample_corpus import corpus
from sample_corpus.build import PROMPTS_FOLDER, SPEECH_FOLDER, TEXT_FOLDER, corpus_files
from sample_corpus.corpus import Passage
from sample_corpus.spoken import make_record, speak
from tolktrain.data.records import DatasetInfo, Record
from tolktrain.data.text_tokenizer import load_tokenizer
from tolktrain.units.base import decode, expand
from tolktrain.units.load import load_speech_tokenizer
from tolktrain.units.logmel import LogMelTokenizer
from tolktrain.units.mel import LogMelAnalysis
from tolktrain.units.vocoders.load import load_vocoder

SAMPLE = Path(__file__).parents[3] / "data" / "sample"
Records = dict[str, list[Record]]
Passages = dict[str, Passage]


@pytest.fixture(scope="module")
def by_id() -> Passages:
    """All passages, by id, as the program builds them."""
    return {passage.id: passage for passage in corpus.passages()}


def _pcm(path: Path) -> np.ndarray:
    with wave.open(str(path)) as file:
        assert (file.getnchannels(), file.getsampwidth(), file.getframerate()) == (1, 2, 16_000)
        return np.frombuffer(file.readframes(file.getnframes()), "<i2")


def test_size() -> None:
    size = sum(path.stat().st_size for path in corpus_files(SAMPLE))
    assert size <= 8_000_000


def test_counts(sample_records: Records) -> None:
    train = sample_records["train"]
    assert sum(len(record.word_text_ends) for record in train) >= 25_000
    assert len({record.source for record in train}) >= 4
    assert {record.source for record in sample_records["heldout_stories"]} == {record.source for record in train}
    assert not {record.source for record in sample_records["heldout_voices"]} & {record.source for record in train}


def test_splits_are_described(sample_records: Records) -> None:
    tokenizer = SAMPLE / TEXT_FOLDER / "tokenizer.json"
    for split, records in sample_records.items():
        info = DatasetInfo.read(SAMPLE / split)
        assert info.text is not None and info.speech is not None
        assert info.text.sha256 == hashlib.sha256(tokenizer.read_bytes()).hexdigest()
        assert info.speech.sha256 == load_speech_tokenizer(SAMPLE / SPEECH_FOLDER).sha256
        assert info.num_records == len(records)
        assert info.num_words == sum(len(record.word_text_ends) for record in records)
        assert info.num_text_tokens == sum(len(record.text_ids) for record in records)
        assert info.num_units == sum(len(record.units) for record in records)
        assert info.longest_text == max(len(r.text_ids) + len(r.utterance_text_ends) for r in records)
        assert info.longest_speech == max(len(r.units) + len(r.utterance_unit_ends) for r in records)
        frames = sum(int(record.run_lengths.sum(dtype=np.int64)) for record in records)
        assert info.hours == pytest.approx(frames / 25 / 3600, abs=1e-4)


def test_shards_are_compressed_hashed_and_without_pickles(sample_records: Records) -> None:
    for split in sample_records:
        for shard in json.loads((SAMPLE / split / "index.json").read_text())["shards"]:
            assert shard["compression"].startswith("zstd")
            assert not {"pkl", "json"} & set(shard["column_encodings"])
            content = (SAMPLE / split / shard["zip_data"]["basename"]).read_bytes()
            assert shard["zip_data"]["hashes"]["sha1"] == hashlib.sha1(content).hexdigest()
            assert "xxh64" in shard["zip_data"]["hashes"]


def test_every_record_is_valid_and_tells_its_story(sample_records: Records, by_id: Passages) -> None:
    tokenizer = load_tokenizer(SAMPLE / TEXT_FOLDER)
    seen = []
    for split, records in sample_records.items():
        info = DatasetInfo.read(SAMPLE / split)
        assert info.text is not None and info.speech is not None
        for record in records:
            record.check(info.text.vocab_size, info.speech.num_units)
            passage = by_id[record.id]
            seen.append(record.id)
            assert (passage.split, passage.voice.name) == (split, record.source)
            assert tokenizer.decode(record.text_ids.tolist()) == " " + passage.story.text
            assert len(record.word_text_ends) == sum(map(len, passage.story.words))
            assert len(record.utterance_text_ends) == len(passage.story.sentences)
    assert sorted(seen) == sorted(by_id)


def test_each_words_ids_are_its_own(sample_records: Records, by_id: Passages) -> None:
    tokenizer = load_tokenizer(SAMPLE / TEXT_FOLDER)
    for record in sample_records["heldout_stories"]:
        words = [word for sentence in by_id[record.id].story.words for word in sentence]
        parts = np.split(record.text_ids, record.word_text_ends[:-1].astype(np.int64))
        assert [tokenizer.decode(part.tolist()) for part in parts] == [" " + word for word in words]


def test_words_are_nearly_single_ids_and_records_long_enough(sample_records: Records) -> None:
    records = [record for records in sample_records.values() for record in records]
    ids = sum(len(record.text_ids) for record in records)
    assert ids / sum(len(record.word_text_ends) for record in records) < 1.25  # one per full stop among them
    assert min(len(record.text_ids) for record in records) > 260


def test_heldout_texts_are_new(sample_records: Records) -> None:
    train = {record.text_ids.tobytes() for record in sample_records["train"]}
    heldout = [r.text_ids.tobytes() for split in ("heldout_stories", "heldout_voices") for r in sample_records[split]]
    assert not train & set(heldout) and len(set(heldout)) == len(heldout)


def test_heldout_casts_are_new(by_id: Passages) -> None:
    train = {passage.story.cast for passage in by_id.values() if passage.split == "train"}
    heldout = [passage.story.cast for passage in by_id.values() if passage.split != "train"]
    assert not train & set(heldout)


def test_durations_are_plausible(sample_records: Records) -> None:
    for record in sample_records["train"]:
        words_per_minute = len(record.word_text_ends) / (int(record.run_lengths.sum(dtype=np.int64)) / 25 / 60)
        assert 150 <= words_per_minute <= 320
    words = np.concatenate([np.diff(record.word_unit_ends, prepend=0) for record in sample_records["train"]])
    assert 3 <= words.mean() <= 8 and words.max() <= 40


def test_prompts_are_sentences_of_heldout_records(sample_records: Records, by_id: Passages) -> None:
    folder = SAMPLE / PROMPTS_FOLDER
    prompts = json.loads((folder / "prompts.json").read_text())
    records = {record.id: record for record in sample_records["heldout_stories"]}
    speech = load_speech_tokenizer(SAMPLE / SPEECH_FOLDER)
    assert len(prompts) == 4 == len({prompt["voice"] for prompt in prompts})
    assert sum((folder / prompt["file"]).stat().st_size for prompt in prompts) < 600_000
    for prompt in prompts:
        record = records[prompt["record"]]
        first, last = prompt["words"]
        words = [word for sentence in by_id[record.id].story.words for word in sentence]
        assert " ".join(words[first:last]) == prompt["text"]
        assert record.word_unit_ends[last - 1] == record.utterance_unit_ends[prompt["utterance"]]
        start = int(record.word_unit_ends[first - 1])
        end = int(record.word_unit_ends[last - 1])
        waveform = _pcm(folder / prompt["file"])
        assert len(waveform) / 16_000 == pytest.approx(prompt["seconds"], abs=1e-3)
        frames = speech.encode(waveform.astype(np.float32) / 32768)
        assert np.array_equal(frames, expand(record.units[start:end], record.run_lengths[start:end]))


def test_units_become_audio_that_has_the_same_units() -> None:
    """Measured on the four prompts: 98.7 to 100 % of the frames are encoded as the unit they were made from."""
    speech, vocoder = load_speech_tokenizer(SAMPLE / SPEECH_FOLDER), load_vocoder(SAMPLE / SPEECH_FOLDER)
    for path in sorted((SAMPLE / PROMPTS_FOLDER).glob("*.wav")):
        units = speech.encode(_pcm(path).astype(np.float32) / 32768)
        waveform = decode(vocoder, units)
        assert len(waveform) == len(units) * 640 and np.abs(waveform).max() <= 1
        assert (speech.encode(waveform) == units).mean() >= 0.9


@pytest.mark.usefixtures("speaking")
@pytest.mark.parametrize("split", ["train", "heldout_stories", "heldout_voices"])
def test_records_are_rebuilt_exactly(split: str, sample_records: Records, by_id: Passages) -> None:
    text = load_tokenizer(SAMPLE / TEXT_FOLDER)
    speech = LogMelTokenizer.load(SAMPLE / SPEECH_FOLDER)
    committed = {record.id: record for record in sample_records[split]}
    chosen: list[Passage] = [passage for passage in by_id.values() if passage.split == split][3:5]
    for spoken in speak(chosen, LogMelAnalysis(), processes=1):
        record = make_record(spoken, text, speech)
        for name, value in committed[record.id].to_sample().items():
            assert np.array_equal(value, record.to_sample()[name]), f"{record.id}: {name}"


def test_readme_states_the_measured_numbers() -> None:
    readme = (SAMPLE / "README.md").read_text()
    for split in ("train", "heldout_stories", "heldout_voices"):
        info = DatasetInfo.read(SAMPLE / split)
        row = next(line for line in readme.splitlines() if line.startswith(f"| `{split}`"))
        size = sum(path.stat().st_size for path in corpus_files(SAMPLE / split))
        for number in (info.num_records, info.num_words, info.num_text_tokens, info.num_units, size):
            assert f"{number:,}" in row
