"""Which tensors of trained weights fit into a model, whose switches and vocabularies may be others."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from tolktrain.checkpoint.slices import Shape
from tolktrain.config.root import InitTables
from tolktrain.interop.formats.format import Weights
from tolktrain.model.architecture import Architecture
from tolktrain.model.initialization import TEXT_TABLE
from tolktrain.vocabulary import SPECIAL_TEXT_IDS

_TEXT_HEAD, _SPEECH_TABLE = "text_head.weight", "speech_embedding."
_SPEECH_SPECIALS = 2  # EOS and PAD, the last rows of each speech table
# Sizes without which tensors of equal shapes would mean something else.
_FIXED = ("hidden_size", "num_layers", "num_attention_heads", "num_key_value_heads", "head_dim", "ffn_hidden_size")
# Settings of the backbone that weights can be trained on with, though they were trained with others.
_ADJUSTABLE = ("rope_theta", "rope_scaling", "rms_norm_eps", "adapter_attention")
_MOST_SHOWN = 12
# Pieces of a name that make a part of the model in `table_of`, by the first one; elsewhere it is that one.
_PART_DEPTHS = {"input_adapter": 3, "output_adapter": 3, "speech_embedding": 2, "pooling": 2}


class Rows(NamedTuple):
    """Consecutive rows of a tensor, and where they come from."""

    begin: int
    source_begin: int
    num_rows: int


@dataclass(frozen=True)
class Taken:
    """What a tensor of the model takes from a tensor of the weights."""

    source: str  # its name there
    rows: tuple[Rows, ...] | None = None  # None for the whole tensor
    averaged: tuple[int, ...] = ()  # rows of the tensor that get the mean of the first of `rows`


@dataclass(frozen=True)
class Fit:
    """What a model takes from weights; by canonical name."""

    taken: Mapping[str, Taken]
    new: Sequence[str]  # initialized; of tensors that take some rows, the other rows too
    unused: Sequence[str] = ()  # tensors of the weights without a place in the model
    misfits: Sequence[str] = ()  # why the weights cannot be used, one line each
    notes: Sequence[str] = ()  # differences that are no obstacle

    @property
    def whole(self) -> set[str]:
        """The tensors that are taken completely."""
        return {name for name, taken in self.taken.items() if taken.rows is None}


class _Sameness(NamedTuple):
    """Whether ids have the same meaning in the weights and in the model."""

    text: bool
    speech: bool


def fit_weights(
    weights: Weights,
    shapes: Mapping[str, Shape],
    architecture: Architecture,
    tokenizers: Mapping[str, str | None],
    tables: InitTables = "auto",
) -> Fit:
    """Decide where each tensor of a model comes from.

    A table of another vocabulary takes the rows of the ids that both vocabularies have, and the rows of special ids,
    which may have other numbers. If the ids are known to belong to another tokenizer, only the special rows are taken.
    A text head that was tied is taken from the text table. Named special tokens are matched by name; new ones get the
    mean of the rows of text that are taken.

    Args:
        weights: to begin from.
        shapes: of the model's tensors, by canonical name.
        architecture: of the model.
        tokenizers: SHA-256 of the tokenizers of the model's data, under "text" and "speech", as far as known.
        tables: `checkpoint.init_tables`.
    """
    same = _sameness(weights, architecture, tokenizers, tables)
    taken: dict[str, Taken] = {}
    misfits = _other_sizes(weights.architecture, architecture) + _other_lora(weights, architecture)
    for name, shape in shapes.items():
        found = _table(name, weights, architecture, same)
        if found is None and name in weights.shapes:
            found = Taken(name)
        if found is None or found.source not in weights.shapes or found.rows == ():
            continue
        source = weights.shapes[found.source]
        if source != shape if found.rows is None else source[1:] != shape[1:]:
            misfits.append(f"{name} has shape {list(source)} there, {list(shape)} in the model")
        else:
            taken[name] = found
    sources = {found.source for found in taken.values()} | {name for name in shapes if name in weights.shapes}
    return Fit(
        taken=taken,
        new=[name for name in shapes if name not in taken or taken[name].rows is not None],
        unused=sorted(set(weights.shapes) - sources),
        misfits=misfits,
        notes=[
            *_other_settings(weights.architecture, architecture),
            *_other_tokenizers(weights, tokenizers, same),
            *_dropped_tokens(weights.architecture, architecture),
        ],
    )


def merged(fits: Sequence[Fit]) -> Fit:
    """The fits of several parts of a model as one."""
    taken = {name: found for fit in fits for name, found in fit.taken.items()}
    used = {found.source for found in taken.values()}
    unused = set.intersection(*(set(fit.unused) for fit in fits)) - used
    return replace(
        fits[0],
        taken=taken,
        new=list(dict.fromkeys(name for fit in fits for name in fit.new)),
        unused=sorted(unused),
        misfits=list(dict.fromkeys(line for fit in fits for line in fit.misfits)),
    )


def refusal(fit: Fit, weights: Weights) -> str:
    """Why weights that do not fit cannot be used; for one message."""
    lines = [*fit.misfits[:_MOST_SHOWN], *(["..."] if fit.misfits[_MOST_SHOWN:] else [])]
    return (
        f"{weights.folder} does not fit the model:\n  "
        + "\n  ".join(lines)
        + "\nthe backbone must have the sizes that it was trained with: set model.backbone to them; adapters, pooling,"
        " residual, codebooks, vocabularies and tied heads may differ"
    )


def table_of(fit: Fit, shapes: Mapping[str, Shape]) -> list[str]:
    """The fit by parts of the model, one line each: what is taken, initialized and not used."""
    partly = {name: found.rows for name, found in fit.taken.items() if found.rows is not None}
    lines = [f"taken: {_parts(fit.whole)}"]
    for name, rows in partly.items():
        count, total = sum(part.num_rows for part in rows or ()), shapes[name][0]
        source = "" if fit.taken[name].source == name else f" from {fit.taken[name].source}"
        averaged = fit.taken[name].averaged
        new = f"; {len(averaged):,} begin with their mean" if averaged else ""
        lines.append(f"taken in part: {name}, {count:,} of {total:,} rows{source}; the other rows are new{new}")
    lines.append(f"newly initialized: {_parts(name for name in fit.new if name not in partly)}")
    lines.append(f"not used: {_parts(fit.unused)}")
    return lines


def _sameness(
    weights: Weights, architecture: Architecture, tokenizers: Mapping[str, str | None], tables: InitTables
) -> _Sameness:
    if tables != "auto":
        return _Sameness(tables == "keep", tables == "keep")
    differ = {kind: _differ(weights.tokenizers.get(kind), tokenizers.get(kind)) for kind in ("text", "speech")}
    before = weights.architecture
    # The first codebooks of a residual quantizer keep their meaning if more or fewer of them are used.
    nested = before.num_units == architecture.num_units and before.num_codebooks != architecture.num_codebooks
    return _Sameness(not differ["text"], not differ["speech"] or nested)


def _differ(some: str | None, other: str | None) -> bool:
    """Whether two tokenizers are known to differ."""
    return some is not None and other is not None and some != other


def _table(name: str, weights: Weights, architecture: Architecture, same: _Sameness) -> Taken | None:
    """What a table or head of a vocabulary takes; None for any other tensor."""
    before = weights.architecture
    if name == TEXT_TABLE:
        return _text_table(before, architecture, same.text)
    if name == _TEXT_HEAD:
        sizes = (architecture.text_vocab_size, before.text_vocab_size)
        source = TEXT_TABLE if before.tie_text_embeddings else name
        rows = _table_rows(*sizes, 0, same.text)
        if rows is None and source != name:
            rows = (Rows(0, 0, sizes[0]),)
        return Taken(source, rows)
    if name.startswith(_SPEECH_TABLE):
        rows = _table_rows(architecture.num_units, before.num_units, _SPEECH_SPECIALS, same.speech)
        return Taken(name, rows)
    return None


def _text_table(before: Architecture, now: Architecture, same: bool) -> Taken:
    """What the text table takes. Named special tokens are found by their names, whatever their order."""
    rows = _table_rows(now.text_vocab_size, before.text_vocab_size, SPECIAL_TEXT_IDS, same)
    if before.special_tokens == now.special_tokens and (rows is None or not now.special_tokens):
        return Taken(TEXT_TABLE, rows)
    if rows is None:
        rows = (Rows(0, 0, now.text_vocab_size), Rows(now.text_vocab_size, before.text_vocab_size, SPECIAL_TEXT_IDS))
    common = [name for name in now.special_tokens if name in before.special_tokens]
    named = [Rows(now.special_token(name), before.special_token(name), 1) for name in common]
    new = [now.special_token(name) for name in now.special_tokens if name not in common]
    return Taken(TEXT_TABLE, (*rows, *named), tuple(new) if same else ())


def _table_rows(size: int, source_size: int, num_specials: int, same: bool) -> tuple[Rows, ...] | None:
    """The rows that are taken of a table of ids, after which special ids follow; None for all."""
    if same and size == source_size:
        return None
    kept = [Rows(0, 0, min(size, source_size))] if same else []
    return (*kept, *([Rows(size, source_size, num_specials)] if num_specials else []))


def _other_sizes(before: Architecture, now: Architecture) -> list[str]:
    return [
        f"{key} is {getattr(before, key)} there, {getattr(now, key)} in the model"
        for key in _FIXED
        if getattr(before, key) != getattr(now, key)
    ]


def _other_lora(weights: Weights, now: Architecture) -> list[str]:
    """Updates that would be lost, or would mean something else."""
    lora = weights.architecture.lora
    if lora is None or lora == now.lora:
        return []
    return [
        f"there are low-rank updates there (rank {lora.rank}, alpha {lora.alpha:g}) that the model does not have in the"
        f" same form; merge them first: tolktrain export {weights.folder}, and begin from what it writes"
    ]


def _other_settings(before: Architecture, now: Architecture) -> list[str]:
    return [
        f"{key} is {getattr(now, key)} now, and was {getattr(before, key)} when the weights were trained"
        for key in _ADJUSTABLE
        if getattr(before, key) != getattr(now, key)
    ]


def _other_tokenizers(weights: Weights, tokenizers: Mapping[str, str | None], same: _Sameness) -> list[str]:
    notes = []
    for kind in ("text", "speech"):
        before, now = weights.tokenizers.get(kind), tokenizers.get(kind)
        if before is None or now is None or before == now:
            continue
        action = (
            "rows of equal ids are taken, although they may stand for something else"
            if getattr(same, kind)
            else "its tables are newly initialized; to take the rows of equal ids, set checkpoint.init_tables to keep"
        )
        notes.append(
            f"the data has another {kind} tokenizer (sha256 {now[:12]}) than the weights were trained with"
            f" (sha256 {before[:12]}): {action}"
        )
    return notes


def _dropped_tokens(before: Architecture, now: Architecture) -> list[str]:
    dropped = [name for name in before.special_tokens if name not in now.special_tokens]
    if not dropped:
        return []
    return [
        f"the weights have the special tokens {', '.join(dropped)}, which model.special_tokens does not list: their"
        " rows are not used"
    ]


def _parts(names: Iterable[str]) -> str:
    """Names by parts of the model, with the number of tensors of each."""
    counts: dict[str, int] = {}
    for name in names:
        pieces = name.split(".")
        part = ".".join(pieces[: _PART_DEPTHS.get(pieces[0], 1)])
        counts[part] = counts.get(part, 0) + 1
    return ", ".join(f"{part} ({count})" for part, count in counts.items()) or "nothing"
