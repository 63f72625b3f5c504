"""Checks of the data before a run begins: mistakes that would otherwise end the run hours later or silently spoil
it."""

import itertools
import json
import stat
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

from tolktrain.cluster.environment import ProcessEnvironment
from tolktrain.config import Config
from tolktrain.config.data import Strategy
from tolktrain.data.folder import RecordFolder, fetch_descriptions
from tolktrain.data.index import INDEX_FILE, RecordReader, ShardIndex, identity_of, read_index
from tolktrain.data.records import ConversationInfo, DatasetInfo, columns_of
from tolktrain.data.strategies import STRATEGIES, require_modalities
from tolktrain.errors import UserError
from tolktrain.files.reading import file_sha256
from tolktrain.libraries.streaming import get_hash
from tolktrain.parallel.collectives import all_gather_objects, on_each_node
from tolktrain.storage.retries import RetryPolicy
from tolktrain.units.load import describe_speech_tokenizer
from tolktrain.vocabulary import ROLE_TOKEN, Vocabulary

HASHED_BYTES = 1 << 30
"""Sets above this size are hashed when their shards are first read, not before the run."""

TEXT_TOKENIZER_FILE = "tokenizer.json"
_CHECKED_RECORDS = 1000


class _Use(NamedTuple):
    """A use of a data set: the key that names it, and the strategy if there is one."""

    key: str
    name: str
    strategy: Strategy | None


def check_data(config: Config, text_vocab_size: int, verify_files: bool = True, text_eos: int = 0) -> Vocabulary:
    """Check every data set that training, validation and evaluation use; returns the vocabulary of the sequences.

    For remote sets only the descriptions are fetched; their shards are validated when they are downloaded. Collective:
    the first rank of each node fetches and reads, and a mistake that it finds is raised on all ranks.

    Args:
        config: The whole configuration.
        text_vocab_size: Text ids of the model, without specials.
        verify_files: Whether to read the local shards too. Nodes that share a folder split its shards.
        text_eos: The id that fills short sequences if no set has text.

    Raises:
        UserError: with the data set, the file or key, and how to fix it.
    """
    uses = _uses(config)
    shares = _shares(config, uses) if verify_files else {}
    infos = on_each_node(lambda: _check_sets(config, uses, text_vocab_size, shares))
    _check_same_tokenizers(infos)
    _check_named_tokenizers(config, infos)
    text_eos = next((info.text.eos_id for info in infos.values() if info.text is not None), text_eos)
    speech = config.model.speech
    return Vocabulary(
        text_vocab_size,
        text_eos,
        speech.num_units,
        speech.num_codebooks,
        config.model.special_tokens,
        text_tokenizer=next((info.text.sha256 for info in infos.values() if info.text is not None), None),
        speech_tokenizer=next((info.speech.sha256 for info in infos.values() if info.speech is not None), None),
    )


def _shares(config: Config, uses: list[_Use]) -> dict[str, tuple[int, int]]:
    """For each set, the part of its shards that this node verifies, and the number of parts: one per node that shares
    the folder."""
    place = ProcessEnvironment.detect()
    node = place.rank - place.local_rank
    own = {
        name: identity_of(Path(config.data.sets[name].path) / INDEX_FILE) for name in sorted({use.name for use in uses})
    }
    gathered = dict(all_gather_objects((node, own) if place.local_rank == 0 else (-1, {})))
    shares = {}
    for name in own:
        same = sorted(other for other, seen in gathered.items() if other >= 0 and seen[name] == own[name])
        shares[name] = (same.index(node), len(same)) if node in same else (0, 1)
    return shares


def _check_sets(
    config: Config, uses: list[_Use], text_vocab_size: int, shares: Mapping[str, tuple[int, int]]
) -> dict[str, DatasetInfo]:
    infos: dict[str, DatasetInfo] = {}
    columns: dict[str, list[str]] = {}
    for key, name, strategy in uses:
        if name not in infos:
            try:
                infos[name], columns[name] = _check_set(config, name, text_vocab_size, shares.get(name))
            except UserError as error:
                if f"data.sets.{name}" in str(error):
                    raise
                described = f"data.sets.{name}, used by {key}: {error}"
                raise UserError(described, by_machine=error.by_machine) from None
        if strategy is not None:
            where = f"data.sets.{name} ({config.data.sets[name].path}), used by {key},"
            info = infos[name]
            require_modalities(
                strategy,
                info.text is not None,
                info.speech is not None,
                "word_text_ends" in columns[name],
                where,
                info.kind,
            )
            if info.conversations is None:
                _check_length(key, name, strategy, info, config.train.sequence_length)
            else:
                _check_packing(key, name, strategy, info.conversations, config.train.sequence_length)
            continue
        conversations = infos[name].conversations
        if conversations is not None and key == "evaluation.train_set":
            raise UserError(f"{key} is {name}, which holds conversations; name a set of passages, or none")
        if conversations is not None:
            _check_packing(key, name, None, conversations, config.train.sequence_length)
    return infos


def _uses(config: Config) -> list[_Use]:
    uses: list[_Use] = []
    for number, stage in enumerate(config.train.stages):
        for strategy, entry in stage.mixture.items():
            uses += [_Use(f"train.stages[{number}].mixture.{strategy}", name, strategy) for name in entry.sets]
    validation = config.train.validation
    for name in validation.sets:
        uses += [_Use("train.validation", name, strategy) for strategy in validation.strategies]
    uses += [_Use("evaluation.heldout_sets", name, None) for name in config.evaluation.heldout_sets]
    if config.evaluation.train_set is not None:
        uses.append(_Use("evaluation.train_set", config.evaluation.train_set, None))
    return uses


def _check_set(
    config: Config, name: str, text_vocab_size: int, share: tuple[int, int] | None
) -> tuple[DatasetInfo, list[str]]:
    """The description of a set and its columns. Of its files, the given share is verified."""
    dataset = config.data.sets[name]
    fetch_descriptions(dataset, RetryPolicy.of(config.data), compare=True)
    shards = read_index(dataset.path)
    info = DatasetInfo.read(dataset.path)
    _check_columns(dataset.path, shards, info)
    num_records = shards.num_records
    if num_records != info.num_records:
        raise UserError(
            f"{dataset.path}: index.json lists {num_records} records but dataset.json declares {info.num_records};"
            " the copy is incomplete or mixed from two builds; copy it again or rebuild it"
        )
    _check_vocabularies(config, name, info, text_vocab_size)
    if info.conversations is not None:
        _check_roles(config, name, info.conversations)
    if share is not None and dataset.remote is None:
        verify_shards(shards, *share)
        records = RecordFolder(dataset)
        for number in range(min(num_records, _CHECKED_RECORDS)):
            _check_record(dataset.path, records, number)
    return info, shards[0].column_names


def _check_columns(folder: str, shards: ShardIndex, info: DatasetInfo) -> None:
    text, speech = info.text is not None, info.speech is not None
    if not text and not speech:
        raise UserError(f"{folder}/dataset.json declares neither text nor speech; a set needs at least one of them")
    allowed = [columns_of(text, speech, False, info.kind)]
    allowed += [columns_of(text, speech, True, info.kind)] if text and speech else []
    first = shards[0].column_names
    for number, kind in shards.one_of_each_kind():
        columns = dict(zip(kind.column_names, kind.column_encodings, strict=True))
        if columns not in allowed:
            raise UserError(
                f"{folder}: the shard {shards[number].raw_data.basename} has the columns {columns}, but the record"
                f" schema of this version of tolktrain has {allowed[-1]}; rebuild the data set"
            )
        if columns.keys() != dict.fromkeys(first).keys():
            raise UserError(f"{folder}: some shards have word alignment and others do not; rebuild the data set")


def _check_vocabularies(config: Config, name: str, info: DatasetInfo, text_vocab_size: int) -> None:
    speech = config.model.speech
    if info.text is not None:
        if info.text.vocab_size > text_vocab_size:
            raise UserError(
                f"data.sets.{name} has a text vocabulary of {info.text.vocab_size} ids but the model has"
                f" {text_vocab_size}; set model.backbone.text_vocab_size to at least the data's, or take a"
                " backbone with the tokenizer of the data"
            )
        if info.text.eos_id >= text_vocab_size:
            raise UserError(
                f"data.sets.{name} ends utterances with the text id {info.text.eos_id}, which the model's vocabulary of"
                f" {text_vocab_size} ids lacks; give dataset.json the tokenizer's end-of-text id"
            )
    if info.speech is not None:
        if info.speech.num_units > speech.num_units:
            raise UserError(
                f"data.sets.{name} has {info.speech.num_units} speech units but model.speech.num_units is"
                f" {speech.num_units}; set it to at least the data's"
            )
        if info.speech.num_codebooks != speech.num_codebooks:
            raise UserError(
                f"data.sets.{name} has {info.speech.num_codebooks} codebooks but model.speech.num_codebooks is"
                f" {speech.num_codebooks}; set it to the data's"
            )


def _check_length(key: str, name: str, strategy: Strategy, info: DatasetInfo, sequence_length: int) -> None:
    longest = STRATEGIES[strategy].longest(info)
    if sequence_length > longest:
        raise UserError(
            f"train.sequence_length {sequence_length} is longer than any record of data.sets.{name} under {key}: the"
            f" longest has {longest} tokens; lower it, or build the data set from longer passages"
        )


def _check_packing(
    key: str, name: str, strategy: Strategy | None, info: ConversationInfo, sequence_length: int
) -> None:
    """Raise `UserError` if sequences of conversations could score nothing: preparation has checked that they do."""
    if strategy is not None and strategy not in info.strategies:
        raise UserError(
            f"data.sets.{name} was prepared for the strategies {', '.join(info.strategies)}, not for {strategy!r} under"
            f" {key}; prepare it with dialogue.strategies that contain it"
        )
    if sequence_length < info.sequence_length:
        raise UserError(
            f"data.sets.{name}, used by {key}, was prepared for sequences of {info.sequence_length} positions, and"
            f" train.sequence_length is {sequence_length}: conversations would be cut; raise it, or prepare the set"
            " with this dialogue.sequence_length"
        )


def _check_roles(config: Config, name: str, info: ConversationInfo) -> None:
    """Raise `UserError` if the model lacks the special token of a role."""
    wanted = [ROLE_TOKEN.format(role) for role in info.roles]
    missing = [token for token in wanted if token not in config.model.special_tokens]
    if missing:
        tokens = [*config.model.special_tokens, *missing]
        raise UserError(
            f"data.sets.{name} has turns of the roles {', '.join(info.roles)}, but model.special_tokens lacks"
            f" {', '.join(missing)}; set model.special_tokens to {json.dumps(tokens)}, in a new run that begins from"
            " the weights of a model without them (checkpoint.init_from)"
        )


def _check_same_tokenizers(infos: Mapping[str, DatasetInfo]) -> None:
    """Raise UserError unless all sets of a run were made by the same tokenizers."""
    for what in ("text", "speech"):
        described = {name: getattr(info, what) for name, info in infos.items() if getattr(info, what) is not None}
        for name, tokenizer in described.items():
            first_name, first = next(iter(described.items()))
            if tokenizer != first:
                raise UserError(
                    f"data.sets.{first_name} and data.sets.{name} were made by different {what} tokenizers ({first} and"
                    f" {tokenizer}); rebuild one of them with the other's tokenizer"
                )


def _check_named_tokenizers(config: Config, infos: Mapping[str, DatasetInfo]) -> None:
    """Raise UserError unless the configured tokenizers are those of the data; otherwise samples would be noise."""
    for name, info in infos.items():
        if config.data.text_tokenizer is not None and info.text is not None:
            path = Path(config.data.text_tokenizer) / TEXT_TOKENIZER_FILE
            if path.is_file() and file_sha256(path) != info.text.sha256:
                raise UserError(
                    f"data.text_tokenizer ({path}) is not the tokenizer that data.sets.{name} was made with, whose"
                    f" sha256 begins with {info.text.sha256[:12]}; name the one in the folder of the data"
                )
        if config.data.speech_tokenizer is not None and info.speech is not None:
            found = describe_speech_tokenizer(config.data.speech_tokenizer)
            if asdict(found) != info.speech.model_dump():
                raise UserError(
                    f"data.speech_tokenizer ({config.data.speech_tokenizer}) is {found}, but data.sets.{name} was made"
                    f" with {info.speech!r}; name the one in the folder of the data"
                )


def _check_record(folder: str, records: RecordFolder, number: int) -> None:
    info = records.info
    try:
        records[number].check(
            info.text.vocab_size if info.text is not None else None,
            info.speech.num_units if info.speech is not None else None,
            info.speech.num_codebooks if info.speech is not None else 1,
        )
    except UserError as error:
        raise UserError(f"{folder}: {error}") from None


def verify_shards(shards: Sequence[RecordReader], part: int = 0, num_parts: int = 1) -> None:
    """Check that the shards of a local set exist, are complete, and (for sets up to `HASHED_BYTES`) unchanged.

    Checks every `num_parts`-th shard from number `part` on. Raises `UserError` for the first mistake.
    """
    total = sum((shard.zip_data or shard.raw_data).bytes for shard in shards)
    for shard in itertools.islice(shards, part, None, num_parts):
        folder = Path(shard.dirname)
        # Once a packed shard has been used, its unpacked form is in the same folder; then both must be valid.
        unpacked = folder / shard.raw_data.basename
        files = [shard.zip_data or shard.raw_data]
        files += [shard.raw_data] if shard.zip_data is not None and unpacked.exists() else []
        for file in files:
            path = folder / file.basename
            try:
                status = path.stat()
            except FileNotFoundError:
                raise UserError(f"the shard {path} is missing, but index.json lists it; copy it again") from None
            if not stat.S_ISREG(status.st_mode):
                raise UserError(f"the shard {path} is not a file; copy it again")
            size = status.st_size
            if size != file.bytes:
                raise UserError(
                    f"the shard {path} is truncated or was changed: it has {size} bytes, index.json says {file.bytes};"
                    " copy it again"
                )
            if total <= HASHED_BYTES:
                content = path.read_bytes()
                for algorithm, digest in file.hashes.items():
                    if get_hash(algorithm, content) != digest:
                        raise UserError(
                            f"the shard {path} is corrupted: its {algorithm} differs from the one in index.json;"
                            " copy it again"
                        )
