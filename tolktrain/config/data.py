"""Configuration of data: the data sets and their mixture."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from tolktrain.config.base import FixedData, Free, GivenPath, InputPath, SteeringUntilBegin, StrictModel

# Each is a file of `tolktrain.data.strategies`. Append new ones: the order determines which strategy a record gets.
Strategy = Literal[
    "speech",
    "text",
    "interleaved",
    "recognition",
    "synthesis",
    "answer_text",
    "answer_speech",
    "answer_interleaved",
    "answer_chain",
    "preference",
]


class DatasetConfig(StrictModel):
    """One set of records in MDS shards."""

    path: Free[Annotated[str, InputPath()]] = Field(
        description="Folder with index.json and dataset.json; for a remote set its local cache."
    )
    remote: Free[Annotated[str | None, GivenPath(is_input=True, may_be_address=True)]] = Field(
        default=None, description="Address the shards are streamed from (s3://..., gs://...), if not local."
    )


class InterleavingConfig(StrictModel):
    """Span lengths of interleaved sequences, in words (arXiv 2503.06211, section 4)."""

    text_words: FixedData[tuple[int, int]] = Field(
        default=(10, 30), strict=False, description="Shortest and longest span of text, in words."
    )
    speech_words: FixedData[tuple[int, int]] = Field(
        default=(5, 15), strict=False, description="Shortest and longest span of speech, in words."
    )

    @model_validator(mode="after")
    def _spans_are_ranges(self) -> "InterleavingConfig":
        for key in ("text_words", "speech_words"):
            shortest, longest = getattr(self, key)
            if not 1 <= shortest <= longest:
                raise ValueError(
                    f"{key} is [{shortest}, {longest}]; give the shortest span first, at least 1 word, then the longest"
                )
        return self


class VocoderConfig(StrictModel):
    """The vocoder that generated speech is heard with."""

    path: Free[Annotated[str | None, InputPath()]] = Field(
        default=None,
        description="Folder with vocoder.json; if absent, the vocoder in the folder of data.speech_tokenizer.",
    )
    speaker: Free[str | None] = Field(
        default=None, description="Name or number of the speaker, for a vocoder of several; the first if absent."
    )
    style: Free[str | None] = Field(
        default=None, description="Name or number of the style, for a vocoder of several; the first if absent."
    )


class DataConfig(StrictModel):
    """Data sets by name, and how sequences are made of their records."""

    sets: Free[dict[str, DatasetConfig]] = Field(description="Data sets by the name that mixtures use.")
    interleaving: InterleavingConfig = Field(
        default=InterleavingConfig(), description="Spans of interleaved sequences."
    )
    num_workers: Free[int] = Field(
        default=0, ge=0, description="Loader processes per rank; 0 loads in the training process."
    )
    shuffle_block_size: FixedData[int] = Field(
        default=4096, gt=0, description="Records that are shuffled together; larger needs more cache."
    )
    num_canonical_nodes: FixedData[int] = Field(
        default=8,
        gt=0,
        description="Virtual nodes for which the order of samples is computed; fixed, so that the order does not depend"
        " on the number of nodes.",
    )
    cache_limit: Free[str | None] = Field(
        default=None,
        description="Disk space per node for shards of remote sets, such as 200gb, plus shards being fetched.",
    )
    download_retries: Free[int] = Field(
        default=3, ge=0, description="Further attempts to fetch a shard, after 1, 2, 4, ... seconds."
    )
    download_timeout_seconds: Free[float] = Field(
        default=60.0,
        gt=0,
        description="Timeout of a storage, in seconds; after download_retries + 1 times this, no attempt begins.",
    )
    text_tokenizer: Free[Annotated[str | None, InputPath()]] = Field(
        default=None, description="Folder of the text tokenizer, for generation and reports."
    )
    speech_tokenizer: Free[Annotated[str | None, InputPath()]] = Field(
        default=None, description="Folder of the speech tokenizer, for generation and reports."
    )
    vocoder: VocoderConfig = Field(default=VocoderConfig(), description="Vocoder of generated speech.")


Share = Annotated[float, Field(gt=0)]


class MixtureEntry(StrictModel):
    """One strategy's share of the sequences."""

    weight: SteeringUntilBegin[float] = Field(
        default=1.0, gt=0, description="Share of this strategy, relative to the other strategies."
    )
    sets: SteeringUntilBegin[dict[str, Share]] = Field(
        min_length=1, description="Share of each data set inside the strategy, relative."
    )


Mixture = dict[Strategy, MixtureEntry]
