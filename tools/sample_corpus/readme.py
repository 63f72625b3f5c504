"""README of the embedded corpus, with its measured size."""

from collections.abc import Mapping
from pathlib import Path

from sample_corpus import corpus, espeak
from tolktrain.data.records import DatasetInfo


def _table(infos: Mapping[str, DatasetInfo], folder: Path) -> str:
    lines = [
        "| Folder | Records | Voices | Hours | Words | Text ids | Units | Bytes |",
        "| --- | ---: | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for split in corpus.SPLITS:
        info = infos[split.name]
        voices = ", ".join(f"`{voice.name}`" for voice in split.voices)
        size = sum(path.stat().st_size for path in (folder / split.name).iterdir())
        lines.append(
            f"| `{split.name}` | {info.num_records} | {voices} | {info.hours:.2f} | {info.num_words:,} "
            f"| {info.num_text_tokens:,} | {info.num_units:,} | {size:,} |"
        )
    return "\n".join(lines)


def describe(infos: Mapping[str, DatasetInfo], folder: Path, espeak_version: str) -> str:
    """Text of README.md for a folder that holds everything else."""
    info = infos["train"]
    assert info.text is not None and info.speech is not None
    return f"""# Spoken stories

Short stories, spoken by a synthesizer: enough to watch a small text-speech model learn, without a download.

{_table(infos, folder)}

- **Text.** Written by the story grammar in `tools/sample_corpus/beats.py` and `stories.py`. A story's hero,
  companion, helper, object, colour, places and weather stay the same from its first to its last sentence. No story
  occurs in two splits.
- **Sound.** eSpeak NG {espeak_version}, each story in one voice, resampled to 16 kHz. `heldout_voices` has new
  stories in voices that tell no training story. The sound itself is not stored, except for four sentences of
  `heldout_stories` in `prompts/` (`prompts.json` says which words of which record they are).
- **Units.** `speech_tokenizer/`: k-means with {info.speech.num_units} clusters over log-mel frames
  ({info.speech.frames_per_second:g} per second, 80 bands) of the training sound. Repeats are collapsed within a
  sentence; `run_lengths` keeps their durations. A word's end comes from eSpeak NG's word events and lies at the
  nearest change of unit.
- **Text ids.** `text_tokenizer/`: byte-level BPE with {info.text.vocab_size} ids, trained on the training text. A
  word's ids include the space before it and the punctuation after it.
- **Format.** MDS shards (zstd, hashes sha1 and xxh64); the columns are defined in `tolktrain/data/records.py`. One
  record is one story, one utterance one sentence.

## Licence

The text and everything computed from it in this folder: {info.license}. eSpeak NG, a program under GPL-3.0-or-later,
spoke the text; neither the program nor its voice data is part of this folder.

## Building it again

    apt-get install {espeak.PACKAGE}
    python tools/build_sample_corpus.py --output data/sample --overwrite

The same versions of eSpeak NG and of the Python packages give the same bytes; `--verify data/sample` rebuilds and
compares.
"""
