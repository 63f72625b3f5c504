"""Configuration of `tolktrain prepare`: from recordings, text, dialogues or a published set to shards."""

from typing import Annotated, Literal, get_args

from pydantic import Field, model_validator

from tolktrain.config.base import GivenPath, InputPath, StrictModel
from tolktrain.config.data import Strategy

# Each is a package of `tolktrain.prepare`, and a field of `PrepareConfig` that is given for one of them.
KINDS = ("recordings", "text", "published", "dialogue")
# Each is a file of `tolktrain.prepare.recordings.manifest`; in the order in which `auto` tries them.
ManifestFormat = Literal["tsv", "lhotse", "librispeech", "folder", "libriheavy", "jsonl"]

# Each is a file of `tolktrain.prepare.dialogue.readers`; in the order in which `auto` tries them.
DialogueFormat = Literal["preference", "tagged", "stereo", "swift", "messages"]


class FitConfig(StrictModel):
    """How a log-mel speech tokenizer is fitted if its folder does not contain one yet."""

    num_units: int = Field(default=500, gt=1, le=65_535, description="Clusters.")
    hours: float = Field(default=2.0, gt=0, description="Audio of the training split that is clustered, in hours.")
    seed: int = Field(default=0, ge=0, description="Seeds k-means and the choice of recordings.")


class SpeechTokenizerConfig(StrictModel):
    """The speech tokenizer: a folder with speech_tokenizer.json."""

    path: Annotated[str, InputPath()] = Field(description="Folder of the tokenizer; created if `fit` is given.")
    fit: FitConfig | None = Field(default=None, description="Fit a log-mel tokenizer if the folder contains none.")


class AlignmentConfig(StrictModel):
    """The source of word times."""

    method: Literal["none", "given", "ctc"] = Field(
        default="given",
        description="given: word times of the manifest; ctc: forced alignment of the text; none: no word alignment.",
    )
    model: Annotated[str | None, InputPath(may_be_hub_id=True)] = Field(
        default=None, description="Wav2Vec2-CTC model for ctc: a folder or hub id."
    )
    language: str = Field(
        default="en", description="Language in which numbers are spelled out: a name of num2words, or zh."
    )
    min_confidence: float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="Least confidence of an utterance for ctc: the geometric mean of the probabilities of its tokens.",
    )

    @model_validator(mode="after")
    def _ctc_needs_a_model(self) -> "AlignmentConfig":
        if (self.method == "ctc") != (self.model is not None):
            if self.model is None:
                raise ValueError("method ctc needs a model; set model, for example to facebook/wav2vec2-base-960h")
            raise ValueError(f"method {self.method} uses no model; remove model, or set method to ctc")
        return self


class BoundsConfig(StrictModel):
    """Limits for utterances, beyond which audio and transcript are not speech and its text. null: no limit."""

    max_words_per_second: float | None = Field(
        default=20.0, gt=0, description="Most words per second of the audio; the fastest known speakers reach 11."
    )
    min_words_per_second: float | None = Field(
        default=0.02, gt=0, description="Fewest words per second of the audio, pauses included."
    )
    max_single_unit_share: float | None = Field(
        default=0.75,
        ge=0,
        le=1,
        description="Largest share of words with a single unit, in utterances that have two units per word or more.",
    )
    min_level_db: float | None = Field(
        default=-80.0,
        description="Lowest level of the loudest 50 ms of an utterance, in dB of full scale; -90 is the smallest step"
        " of 16 bits.",
    )
    max_cancellation_db: float | None = Field(
        default=20.0,
        gt=0,
        description="Most that the mean of all channels may be weaker than if they were independent, in dB.",
    )


class RecordingsConfig(StrictModel):
    """Recordings and their transcripts."""

    manifest: Annotated[str, InputPath()] = Field(description="JSONL or TSV file, folder, or Lhotse manifest.")
    format: Literal["auto", ManifestFormat] = Field(
        default="auto", description="Kind of manifest; auto detects it from the name and the content."
    )
    audio_root: Annotated[str | None, InputPath()] = Field(
        default=None, description="Folder of relative audio paths; the manifest's folder if absent."
    )
    channel: int | None = Field(
        default=None,
        ge=0,
        description="Channel that is read, counted from 0, if the manifest names none; null: the mean of all channels.",
    )
    bounds: BoundsConfig = Field(default=BoundsConfig(), description="Limits beyond which an utterance is a failure.")
    speech_tokenizer: SpeechTokenizerConfig = Field(description="The speech tokenizer.")
    alignment: AlignmentConfig = Field(default=AlignmentConfig(), description="The source of word times.")
    device: Literal["auto", "cpu", "cuda"] = Field(
        default="auto", description="Device of neural tokenizers and aligners; auto uses a GPU if there is one."
    )
    batch_seconds: float = Field(
        default=240.0, gt=0, description="Audio that is encoded at a time, including padding, in seconds."
    )


class TextConfig(StrictModel):
    """Documents of text."""

    files: Annotated[tuple[str, ...], GivenPath(is_input=True)] = Field(
        min_length=1, strict=False, description="JSONL (also .gz, .zst) or Parquet files; * and ** may be used."
    )
    column: str = Field(default="text", description="Key or column that holds the text.")
    id_column: str | None = Field(
        default=None, description="Key or column of a document's name; its position if absent."
    )


class PublishedConfig(StrictModel):
    """A set in the layout of the SmolTolk authors."""

    folder: Annotated[str, InputPath()] = Field(
        description="Folder or common prefix of the speech's .bin, .len and .dur files; meta.pkl in the same folder."
    )
    text_folder: Annotated[str | None, InputPath()] = Field(
        default=None,
        description="Folder of the text's .bin, .len, .wrds_tms, .wrds_tms_len and meta.pkl, named like the speech.",
    )
    speech_tokenizer: Annotated[str, InputPath()] = Field(description="Folder of the tokenizer of the units.")
    durations: Literal["file", "frames", "unknown"] = Field(
        default="file",
        description="file: run lengths are in .dur; frames: repeats are not collapsed, there is no .dur; unknown:"
        " repeats are collapsed and there is no .dur: each unit counts as one frame, so hours are too low and words"
        " cannot be aligned.",
    )


class DialogueConfig(StrictModel):
    """Chats, spoken dialogues and preferences."""

    files: Annotated[tuple[str, ...], GivenPath(is_input=True)] = Field(
        min_length=1, strict=False, description="Files of JSON lines, also .gz; * and ** may be used."
    )
    format: Literal["auto", DialogueFormat] = Field(
        default="auto", description="Format of the files; auto detects it from the first line of each."
    )
    audio_root: Annotated[str | None, InputPath()] = Field(
        default=None, description="Folder of relative audio paths; the folder of each file if absent."
    )
    roles: dict[str, str] = Field(
        default={}, description="Roles by their names in the files, such as {S1: user, S2: assistant}."
    )
    text_with_audio: Literal["transcript", "separate"] | None = Field(
        default=None,
        description="What text is in a message that has audio too: transcript of the audio, or said in addition.",
    )
    strategies: tuple[Strategy, ...] = Field(
        min_length=1,
        strict=False,
        description="Strategies that each conversation must serve: answer_..., or preference.",
    )
    sequence_length: int = Field(
        gt=1, description="train.sequence_length to come: conversations are packed into records up to this length."
    )
    speech_tokenizer: Annotated[str | None, InputPath()] = Field(
        default=None, description="Folder of the speech tokenizer of the model; text alone needs none."
    )
    alignment: AlignmentConfig = Field(default=AlignmentConfig(), description="The source of word times.")
    bounds: BoundsConfig = Field(default=BoundsConfig(), description="Limits beyond which a conversation is a failure.")
    device: Literal["auto", "cpu", "cuda"] = Field(
        default="auto", description="Device of neural tokenizers and aligners; auto uses a GPU if there is one."
    )
    batch_seconds: float = Field(
        default=240.0, gt=0, description="Audio that is encoded at a time, including padding, in seconds."
    )

    @model_validator(mode="after")
    def _strategies_are_of_one_kind(self) -> "DialogueConfig":
        answers = [name for name in self.strategies if name.startswith("answer_")]
        if answers != list(self.strategies) and self.strategies != ("preference",):
            raise ValueError(
                f"strategies is [{', '.join(self.strategies)}]; give some of"
                f" {', '.join(name for name in get_args(Strategy) if name.startswith('answer_'))}, or preference alone"
            )
        return self


class PassagesConfig(StrictModel):
    """How consecutive utterances or documents are joined into records."""

    tokens: int = Field(
        default=4096,
        gt=0,
        description="A passage ends with the utterance or document that brings its text, and its speech, to this many"
        " tokens; at least the sequence length of the training to come.",
    )
    shortest_tokens: int = Field(
        default=16, gt=0, description="Passages whose speech (or text, without speech) is shorter are omitted."
    )


class HeldOutConfig(StrictModel):
    """Held-out data, chosen by a hash of the names of speakers and sources."""

    sources: float = Field(default=0.01, ge=0, lt=1, description="Share of sources in the split heldout_sources.")
    speakers: float = Field(default=0.01, ge=0, lt=1, description="Share of speakers in the split heldout_speakers.")
    seed: int = Field(default=0, ge=0, description="Seeds the choice.")


class PartsConfig(StrictModel):
    """The parts that processes prepare one at a time; an interrupted part is prepared again."""

    items: int = Field(default=2000, gt=0, description="Most utterances of a part.")
    hours: float = Field(default=4.0, gt=0, description="Most audio of a part, if the manifest has durations.")
    megabytes: int = Field(default=64, gt=0, description="Text files are split into parts of about this size.")


class ShardsConfig(StrictModel):
    """Size and compression of shards."""

    megabytes: int = Field(default=32, gt=0, lt=2048, description="Largest shard, before compression.")
    compression: str | None = Field(default="zstd:7", description="zstd or gz, and a level; null for none.")

    @model_validator(mode="after")
    def _compression_is_known(self) -> "ShardsConfig":
        name, _, level = (self.compression or "zstd:1").partition(":")
        highest = {"zstd": 22, "gz": 9}.get(name)
        if highest is None or not level.isdigit() or not 1 <= int(level) <= highest:
            raise ValueError(f"compression is {self.compression!r}; give zstd:1 to zstd:22, gz:1 to gz:9, or null")
        return self


class PrepareConfig(StrictModel):
    """Configuration of `tolktrain prepare`."""

    name: str = Field(min_length=1, description="Name of the data set.")
    license: str = Field(default="unknown", description="Licence of the data, kept in dataset.json.")
    output: Annotated[str, GivenPath(may_be_address=True)] = Field(
        min_length=1, description="Folder or address (s3://, gs://, azure://) that receives a folder for each split."
    )
    recordings: RecordingsConfig | None = Field(default=None, description="Prepare recordings.")
    text: TextConfig | None = Field(default=None, description="Prepare text.")
    published: PublishedConfig | None = Field(default=None, description="Import a published set.")
    dialogue: DialogueConfig | None = Field(default=None, description="Prepare dialogues.")
    text_tokenizer: Annotated[str | None, InputPath(may_be_hub_id=True)] = Field(
        default=None, description="Folder or hub id of a Hugging Face tokenizer; speech without text needs none."
    )
    passages: PassagesConfig = Field(default=PassagesConfig(), description="Length of records.")
    heldout: HeldOutConfig = Field(default=HeldOutConfig(), description="Held-out data.")
    parts: PartsConfig = Field(default=PartsConfig(), description="Size of the pieces of work.")
    shards: ShardsConfig = Field(default=ShardsConfig(), description="Size and compression of shards.")
    processes: int | None = Field(
        default=None,
        gt=0,
        description="Processes on this machine; if absent, as many as it has cores, or GPUs if models run on GPUs.",
    )
    largest_failed_share: float = Field(
        default=0.05, ge=0, le=1, description="If a larger share of the entries fails, the command fails."
    )

    @model_validator(mode="after")
    def _one_source(self) -> "PrepareConfig":
        given = self._given()
        if len(given) != 1:
            *others, last = KINDS
            choice = f"{', '.join(others)} and {last}"
            raise ValueError(f"give one of {choice}; found {', '.join(given) or 'none of them'}")
        if self.text is not None and self.text_tokenizer is None:
            raise ValueError("text needs text_tokenizer; name the folder or hub id of a Hugging Face tokenizer")
        return self

    @property
    def kind(self) -> str:
        """The one of `KINDS` that is prepared."""
        return self._given()[0]

    def _given(self) -> list[str]:
        return [name for name in KINDS if getattr(self, name) is not None]
