"""DPO on documents of text, speech or both: against the formula, which gets each document alone, in float64."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from test_documents import unpacked
from torch import Tensor
from twin import Twin, gradients_of, make_model

from tolktrain.data.batch import Batch, collate
from tolktrain.data.sequences import Sequence
from tolktrain.errors import UserError
from tolktrain.model.architecture import Architecture, Lora
from tolktrain.model.inputs import ModelInputs
from tolktrain.model.lora import LowRank, Merged
from tolktrain.model.loss import ComparedSums, LossCounts, StepResult, loss_to_train, num_sums
from tolktrain.model.parameter_layout import canonical_state, load_canonical
from tolktrain.model.preference import Preference
from tolktrain.model.smoltolk import SmolTolk
from tolktrain.parallel.layout import initialize

MakeArchitecture = Callable[..., Architecture]
LENGTH = 29
STARTS = [(0, 9), (0, 5, 14, 20), (0, 16)]
KINDS = "smt"
NUM_PAIRS = 4
BETA = 0.3


def preferences(
    starts: list[tuple[int, ...]] = STARTS, kinds: str = KINDS, codebooks: int = 1, rows: slice = slice(None)
) -> Batch:
    """Random sequences of speech, text or both with pairs of documents, each of which scores its second half."""
    rng = np.random.default_rng(8)
    sequences = []
    for kind, places in zip(kinds, starts, strict=True):
        mixed = np.repeat(rng.random(LENGTH + 1) < 0.5, rng.integers(1, 5, LENGTH + 1))[: LENGTH + 1]
        speech = mixed if kind == "m" else np.full(LENGTH + 1, kind == "s")
        units, words = rng.integers(0, 51, (codebooks, LENGTH + 1)), rng.integers(0, 40, (codebooks, LENGTH + 1))
        if codebooks > 1:
            units[1, places[0] + 6] = 51  # PAD, as the delay of a codebook leaves it
        words[1:] = 0
        scored = np.zeros(LENGTH + 1, bool)
        for begin, end in zip(places, (*places[1:], LENGTH - 1), strict=True):
            scored[(begin + end) // 2 : end] = True
        tokens = np.where(speech, units, words)
        sequences.append(Sequence(tokens, speech, scored, LENGTH + 1, kind, "preference", places))
    return collate(sequences[rows])


def inputs_of(batch: Batch, reference: Tensor, normalized: bool = False) -> ModelInputs:
    assert batch.pairs is not None
    return replace(
        ModelInputs.from_batch(batch), preference=Preference(batch.pairs, reference, BETA, length_normalized=normalized)
    )


def by_formula(twin: Twin, reference: Twin, batch: Batch, starts: Any, normalized: bool) -> tuple[Tensor, Tensor]:
    """Equation 7 of the paper, a pair at a time; and the log-probabilities of the reference."""
    losses, known = [], []
    alone = unpacked(batch, starts)
    for chosen, rejected in zip(alone[::2], alone[1::2], strict=True):
        ratios = []
        for document in (chosen, rejected):
            text, speech, _ = twin.sums(document)
            with torch.no_grad():
                frozen = reference.sums(document)
                known.append(-(frozen.text_nll + frozen.speech_nll).double())
            scored = int((document.text_pred | document.speech_pred).sum())
            ratios.append((-(text + speech) - known[-1]) / (scored if normalized else 1))
        losses.append(-torch.log(1 / (1 + torch.exp(-BETA * (ratios[0] - ratios[1])))))
    return torch.stack(losses).sum(), torch.stack(known)


CASES: dict[str, tuple[dict[str, Any], str, bool]] = {
    "everything": ({}, KINDS, False),
    "normalized": ({}, KINDS, True),
    "two_codebooks": ({"num_codebooks": 2}, KINDS, False),
    "no_adapters": ({"input_adapter_layers": 0, "output_adapter_layers": 0, "layer_pooling": "none"}, KINDS, False),
    "text": ({"num_layers": 1, "tie_text_embeddings": False}, "ttt", True),
}


@pytest.mark.parametrize("case", CASES)
def test_loss_and_gradients_are_those_of_the_formula(case: str, architecture: MakeArchitecture) -> None:
    changes, kinds, normalized = CASES[case]
    sizes = architecture(**changes)
    model, other = make_model(sizes).double(), make_model(sizes, seed=7).double()
    state = {name: tensor.clone().requires_grad_() for name, tensor in canonical_state(model).items()}
    frozen = Twin(sizes, dict(canonical_state(other)))
    batch = preferences(kinds=kinds, codebooks=sizes.num_codebooks)
    expected, reference = by_formula(Twin(sizes, state), frozen, batch, STARTS, normalized)

    found = other(inputs_of(batch, torch.zeros_like(reference)))
    assert isinstance(found, ComparedSums)
    torch.testing.assert_close(found.log_probs, reference, rtol=1e-6, atol=1e-9)
    sums = model(inputs_of(batch, reference, normalized))
    counts = LossCounts(5, 5, 5, batch.num_pairs)
    loss = loss_to_train(sums, counts, entropy_weight=0.5)
    assert loss.item() == pytest.approx(expected.item() / NUM_PAIRS, rel=1e-6)
    loss.backward()
    (expected / NUM_PAIRS).backward()
    for name, gradient in gradients_of(model).items():
        grad = state[name].grad
        theirs = grad if grad is not None else torch.zeros_like(gradient)
        # The angles are float32 in the model and float64 in the twin.
        assert (gradient - theirs).norm() <= 3e-6 * theirs.norm() + 1e-12, name
    assert any(gradient.any() for gradient in gradients_of(model).values())

    result = StepResult.of(sums.detached().tolist(), counts, 1.0, False)
    assert result.preference is not None and len(sums.detached()) == num_sums(has_pairs=True)
    assert result.loss(entropy_weight=0.5) == pytest.approx(expected.item() / NUM_PAIRS, rel=1e-6)
    rewards = BETA * (sums.log_probs - reference)
    rewards = rewards / batch.pairs.lengths if normalized else rewards  # type: ignore[union-attr]
    assert result.preference.chosen_reward == pytest.approx(rewards[::2].mean().item(), rel=1e-6)
    assert result.preference.margin == pytest.approx((rewards[::2] - rewards[1::2]).mean().item(), rel=1e-6)
    assert result.preference.accuracy == (rewards[::2] > rewards[1::2]).double().mean()


def test_packed_pairs_equal_pairs_of_their_own(architecture: MakeArchitecture) -> None:
    """Each pair in a micro batch of its own, and all in one, under recomputation."""
    sizes = architecture(initializer_range=0.05)
    reference = -torch.linspace(20, 60, 2 * NUM_PAIRS, dtype=torch.float64)
    one, other = make_model(sizes).double(), make_model(sizes).double()
    one.recompute_layers()
    whole = one(inputs_of(preferences(), reference))
    whole.preference.loss.backward()
    total, place = torch.zeros(7, dtype=torch.float64), 0
    alone = unpacked(preferences(), STARTS)
    for chosen, rejected in zip(alone[::2], alone[1::2], strict=True):
        names = ("tokens", "speech_in", "speech_pred", "text_pred")
        joined = {name: torch.cat([getattr(part, name) for part in (chosen, rejected)], dim=-1) for name in names}
        middle, end = chosen.tokens.shape[-1], joined["tokens"].shape[-1]
        tokens = torch.cat((joined["tokens"], rejected.targets[..., -1:]), dim=-1)[0].numpy()
        last = rejected.speech_pred[0, -1:]
        is_speech = torch.cat((joined["speech_in"][0], last)).numpy()
        scored = np.append(False, (joined["speech_pred"] | joined["text_pred"])[0].numpy())
        batch = collate([Sequence(tokens, is_speech, scored, end + 1, "r", "preference", (0, middle))])
        sums = other(inputs_of(batch, reference[place : place + 2]))
        sums.preference.loss.backward()
        total, place = total + sums.detached(), place + 2
    total[2] = whole.detached()[2]  # the entropy counts padding, and is not part of this loss
    torch.testing.assert_close(whole.detached(), total, rtol=1e-9, atol=1e-12)
    theirs = gradients_of(other)
    for name, gradient in gradients_of(one).items():
        assert (gradient - theirs[name]).norm() <= 1e-9 * theirs[name].norm(), name


def test_a_pipeline_stage_compares(architecture: MakeArchitecture) -> None:
    sizes = architecture()
    inputs = inputs_of(preferences(), torch.full((2 * NUM_PAIRS,), -30.0, dtype=torch.float64))
    whole = SmolTolk(sizes, 0)
    stages = [SmolTolk(sizes, 0, initialize(), bounds) for bounds in (range(4), range(4, len(whole.layers)))]
    sent = stages[0].run_stage(None, inputs)
    assert isinstance(sent, Tensor)
    found = stages[1].run_stage(sent, inputs)
    assert isinstance(found, ComparedSums)
    assert torch.equal(found.detached(), whole(inputs).detached())


def test_low_rank_updates_are_merged_and_switched_off(architecture: MakeArchitecture) -> None:
    """Merged equals unmerged; without updates, the log-probabilities are those of the base."""
    sizes = architecture(lora=Lora(rank=3, alpha=6.0, targets=("self_attn.q_proj", "mlp.up_proj"), parts=("backbone",)))
    base, tuned = make_model(architecture()).double(), make_model(sizes).double()
    updates = [module for module in tuned.modules() if isinstance(module, LowRank)]
    assert updates
    with torch.no_grad():
        for update in updates:
            update.b.normal_(std=0.3)
    state = canonical_state(tuned)
    load_canonical(base, {name: state[name] for name in canonical_state(base)})
    inputs = inputs_of(preferences(), torch.zeros(2 * NUM_PAIRS, dtype=torch.float64))
    expected, with_updates = base(inputs), tuned(inputs)
    with tuned.without_lora():
        assert torch.equal(tuned(inputs).log_probs, expected.log_probs)
    assert torch.equal(tuned(inputs).log_probs, with_updates.log_probs)
    assert sizes.lora is not None
    merged = make_model(architecture())
    load_canonical(merged, Merged({n: tuple(t.shape) for n, t in state.items()}, state.__getitem__, sizes.lora))
    reference = replace(inputs, preference=replace(inputs.preference, reference=expected.log_probs))
    torch.testing.assert_close(merged.double()(reference).detached(), tuned(reference).detached(), rtol=1e-6, atol=1e-6)
    assert not torch.allclose(with_updates.log_probs, expected.log_probs, rtol=1e-3)


@pytest.mark.parametrize(
    ("starts", "message"),
    [
        (
            [(0, 9, 20)],
            "one of the records s is not pairs of a chosen and a rejected answer .the documents have 5, 6, 4 scored",
        ),
        ([(0,)], "one of the records s is not pairs"),
        ([(0, LENGTH - 1)], r"the documents have 14, 0 scored positions.; prepare the data set again"),
    ],
)
def test_what_is_not_a_pair_is_refused(starts: list[tuple[int, ...]], message: str) -> None:
    with pytest.raises(UserError, match=message):
        preferences(starts, "s")


def test_sequences_without_scored_positions_have_no_pairs(architecture: MakeArchitecture) -> None:
    """As they fill the validation batches of some ranks."""
    whole = preferences()
    sequences = [
        Sequence(np.zeros((1, LENGTH + 1), np.int64), np.zeros(LENGTH + 1, bool), np.zeros(LENGTH + 1, bool), 1, "r",
                 "preference", places)
        for places in ((0, 3), (0,))
    ]  # fmt: skip
    empty = collate(sequences)
    assert empty.num_pairs == 0 and empty.pair_keys == () and whole.num_pairs == NUM_PAIRS
    sums = SmolTolk(architecture(), 0)(inputs_of(empty, torch.zeros(0, dtype=torch.float64)))
    assert not sums.detached()[[0, 1, 3, 4, 5, 6]].any()
    loss_to_train(sums, LossCounts(0, 0, 0, 0), 0.5).backward()


def test_keys_of_sequences_tell_contents_apart() -> None:
    """The same sequence has the same key wherever it is; another token or document does not."""
    whole = preferences()
    assert whole.pair_keys[1:2] == preferences(rows=slice(1, 2)).pair_keys and len(set(whole.pair_keys)) == 3
    assert whole.pair_counts == (2, 4, 2)
    moved = preferences([(0, 10), *STARTS[1:]])
    assert moved.pair_keys[0] != whole.pair_keys[0]
