"""Held-out losses of imported weights under each combination of settings that their file does not contain."""

from collections.abc import Callable
from dataclasses import replace

from tolktrain.config.data import DatasetConfig, InterleavingConfig
from tolktrain.data.folder import open_records
from tolktrain.data.loader import validation_batches
from tolktrain.data.strategies import DISPLAY_ORDER, require_record
from tolktrain.errors import UserError
from tolktrain.evaluate.losses import heldout_losses
from tolktrain.evaluate.scorer import Scorer
from tolktrain.interop.imports.published_model import variants
from tolktrain.interop.weights import OpenWeights, build_model
from tolktrain.model.architecture import Architecture
from tolktrain.vocabulary import Vocabulary

_DEFAULT_LENGTH = 2048
_MICRO_BATCH = 4
_CLEAR = 0.005  # nats per token; less is a matter of chance and rounding

Losses = dict[str, float]
"""Loss in nats per scored token, by strategy."""


def print_alternatives(
    weights: OpenWeights, data: str, sequences: int, show: Callable[[str], None] = print
) -> list[tuple[Architecture, Losses]]:
    """Print the held-out losses of a model under each of `variants`, the chosen one first, and which is the lowest.

    Args:
        weights: that are imported.
        data: folder of a held-out set.
        sequences: of each strategy that the set can serve.
        show: gets the lines.

    Raises:
        UserError: there is no such set, or its ids are not those of the model.
    """
    found: list[tuple[Architecture, Losses]] = []
    made = variants(weights.architecture)
    show(f"held-out losses on {data}, in nats per scored token, by rotary base and attention of the input adapter:")
    for architecture in made:
        losses = _losses(replace(weights, architecture=architecture), data, sequences)
        found.append((architecture, losses))
        values = ", ".join(f"{strategy} {loss:.4f}" for strategy, loss in losses.items())
        show(f"  {_name(architecture)}: {values}{' (chosen)' if architecture == weights.architecture else ''}")
    means = [sum(losses.values()) / len(losses) for _, losses in found]
    best = min(range(len(means)), key=means.__getitem__)
    if means[0] - means[best] > _CLEAR:
        lowest = found[best][0]
        show(
            f"  {_name(lowest)} has the lowest loss, by {means[0] - means[best]:.4f}: the weights were probably trained"
            f" with it; import them with --rope-theta {lowest.rope_theta:g} --adapter-attention"
            f" {lowest.adapter_attention}"
        )
    return found


def _name(architecture: Architecture) -> str:
    return f"{architecture.rope_theta:g}, {architecture.adapter_attention}"


def _losses(weights: OpenWeights, data: str, sequences: int) -> Losses:
    sizes = weights.architecture
    dataset = DatasetConfig(path=data)
    records = open_records(dataset)
    text, speech = records.info.text, records.info.speech
    if text is not None and text.vocab_size > sizes.text_vocab_size:
        raise UserError(
            f"--data {data} has text ids of a vocabulary of {text.vocab_size}, beyond the model's"
            f" {sizes.text_vocab_size}; give a set that was prepared with the tokenizer of the backbone"
        )
    if speech is not None and (speech.num_units, speech.num_codebooks) != (sizes.num_units, sizes.num_codebooks):
        raise UserError(
            f"--data {data} has {speech.num_units} units and {speech.num_codebooks} codebooks, the model"
            f" {sizes.num_units} and {sizes.num_codebooks}; give a set that was prepared with the same speech tokenizer"
        )
    vocabulary = Vocabulary(
        sizes.text_vocab_size,
        0 if text is None else text.eos_id,
        sizes.num_units,
        sizes.num_codebooks,
        sizes.special_tokens,
    )
    scorer, losses = Scorer(build_model(weights)), Losses()
    if records.info.conversations is not None:
        raise UserError(f"--data {data} holds conversations; give a set of passages")
    for strategy in DISPLAY_ORDER:
        record = records[0]
        try:
            require_record(strategy, record, data)
        except UserError:
            continue
        batches = validation_batches(
            dataset,
            strategy,
            sequences,
            vocabulary=vocabulary,
            sequence_length=weights.sequence_length or _DEFAULT_LENGTH,
            interleaving=InterleavingConfig(),
            micro_batch_size=_MICRO_BATCH,
        )
        loss = heldout_losses(batches, scorer.token_nll, None)["loss"]
        if loss is not None:
            losses[strategy] = loss
    if not losses:
        raise UserError(f"--data {data}: nothing of it can be scored; give a held-out set with text or speech")
    return losses
