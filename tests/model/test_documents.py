"""Documents in one sequence: the losses and gradients of each are those of a sequence of its own."""

from collections.abc import Callable
from collections.abc import Sequence as AbstractSequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from twin import Twin, gradients_of, make_model

from tolktrain.data.batch import Batch, collate
from tolktrain.data.sequences import Sequence
from tolktrain.model.architecture import Architecture
from tolktrain.model.cost.work import StepCounts
from tolktrain.model.inputs import ModelInputs
from tolktrain.model.loss import LossSums, loss_from_sums
from tolktrain.model.parameter_layout import canonical_state
from tolktrain.model.smoltolk import SmolTolk
from tolktrain.parallel.layout import initialize

MakeArchitecture = Callable[..., Architecture]
LENGTH = 29
# Of a sequence of speech, of one that is mixed, and of one of text: with one position, adjacent, at the last target.
STARTS = [(0, 7, 8, 21), (0, 11, 20, LENGTH), (0, 2), (0,)]
KINDS = "smtm"


def packed(starts: AbstractSequence[tuple[int, ...]] = STARTS, kinds: str = KINDS, codebooks: int = 1) -> Batch:
    """Random sequences of speech, text or both, with documents; the last quarter of the first is padding."""
    rng = np.random.default_rng(5)
    sequences = []
    for kind, places in zip(kinds, starts, strict=True):
        mixed = np.repeat(rng.random(LENGTH + 1) < 0.5, rng.integers(2, 7, LENGTH + 1))[: LENGTH + 1]
        speech = mixed if kind == "m" else np.full(LENGTH + 1, kind == "s")
        units, words = rng.integers(0, 51, (codebooks, LENGTH + 1)), rng.integers(0, 40, (codebooks, LENGTH + 1))
        words[1:] = 0
        scored = rng.random(LENGTH + 1) < 0.8
        if kind == "m":
            scored[12:21] &= ~speech[12:21]  # a document of STARTS that scores text only
        tokens = np.where(speech, units, words)
        sequences.append(Sequence(tokens, speech, scored, LENGTH + 1, "r", "interleaved", places))
    return collate(sequences)


def unpacked(batch: Batch, starts: AbstractSequence[tuple[int, ...]] = STARTS) -> list[SimpleNamespace]:
    """Each document as a batch of its own, in pieces of the packed tensors."""
    found = []
    for row, places in enumerate(starts):
        length = batch.tokens.shape[2]
        for begin, end in zip(places, (*places[1:], length), strict=True):
            if begin < min(end, length):
                names = ("tokens", "targets", "speech_in", "speech_pred", "text_pred")
                parts = {name: getattr(batch, name)[row : row + 1, ..., begin:end].clone() for name in names}
                found.append(SimpleNamespace(**parts))
    return found


def add(parts: AbstractSequence[LossSums]) -> LossSums:
    """The sums of all documents."""
    return LossSums(*(torch.stack([part[i].float().double() for part in parts]).sum() for i in range(3)))


CASES: dict[str, tuple[dict[str, Any], str]] = {
    "everything": ({}, KINDS),
    "two_codebooks": ({"num_codebooks": 2}, KINDS),
    "no_adapters": ({"input_adapter_layers": 0, "output_adapter_layers": 0, "layer_pooling": "dynamic"}, KINDS),
    "output_adapter": ({"layer_pooling": "static", "residual": False, "input_adapter_layers": 0}, KINDS),
    "text": ({"num_layers": 1}, "tttt"),
}


@pytest.mark.parametrize("case", CASES)
def test_documents_equal_sequences_of_their_own(case: str, architecture: MakeArchitecture) -> None:
    """Against the formulas, which get each document alone, in float64."""
    changes, kinds = CASES[case]
    sizes = architecture(**changes)
    model = make_model(sizes).double()
    state = {name: tensor.clone().requires_grad_() for name, tensor in canonical_state(model).items()}
    batch = packed(kinds=kinds, codebooks=sizes.num_codebooks)
    alone = unpacked(batch)
    assert len(alone) == 4 + 3 + 2 + 1
    found = model(ModelInputs.from_batch(batch))
    parts = [Twin(sizes, state).sums(document) for document in alone]
    expected = LossSums(*(sum(part[i] for part in parts) for i in range(3)))
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours.double(), theirs.double(), rtol=1e-6, atol=1e-9)
    predicting = [document for document in alone if document.speech_pred.any()]
    num_entropy = sum(document.tokens.shape[2] for document in predicting)
    assert batch.num_entropy_positions == num_entropy
    assert kinds == "tttt" or num_entropy < LENGTH * int(batch.speech_pred.any(1).sum())
    for sums in (found, expected):
        loss_from_sums(sums, 30, num_entropy, 0.5).backward()
    for name, gradient in gradients_of(model).items():
        other = state[name].grad if state[name].grad is not None else torch.zeros_like(gradient)
        # The angles are float32 in the model and float64 in the twin.
        assert (gradient - other).norm() <= 2e-6 * other.norm() + 1e-12, name


@pytest.mark.parametrize("changes", [{}, {"num_codebooks": 2}, {"adapter_attention": "published"}])
def test_packed_equals_unpacked(changes: dict[str, Any], architecture: MakeArchitecture) -> None:
    """The model itself, with each document in a micro batch of its own: in float32, under recomputation in float64.

    Gradients in float32 all together, because a sum of terms that cancel is rounded more.
    """
    sizes = architecture(**changes, initializer_range=0.05)
    batch = packed(codebooks=sizes.num_codebooks)
    results = []
    for unpacks, exact in ((True, False), (False, False), (True, True), (False, True)):
        model = make_model(sizes)
        if exact:
            model.double().recompute_layers()
        if unpacks:
            sums = add([model(ModelInputs.from_batch(alone_batch(document))) for document in unpacked(batch)])
        else:
            sums = model(ModelInputs.from_batch(batch))
        loss = loss_from_sums(sums, 30, batch.num_entropy_positions, 0.5)
        loss.backward()
        results.append((loss.item(), gradients_of(model)))
    (expected, theirs), (found, ours), (exact, each), (packed_exact, packed_each) = results
    assert found == pytest.approx(expected, rel=1e-6)
    assert packed_exact == pytest.approx(exact, rel=1e-6)
    difference = sum(float((ours[name] - gradient).norm()) ** 2 for name, gradient in theirs.items())
    assert difference**0.5 < 1e-6 * sum(float(gradient.norm()) ** 2 for gradient in theirs.values()) ** 0.5
    for name, gradient in each.items():
        assert (packed_each[name] - gradient).norm() <= 1e-6 * gradient.norm(), name


def alone_batch(document: SimpleNamespace) -> Batch:
    """A document as `collate` would have it."""
    tokens = torch.cat((document.tokens, document.targets[..., -1:]), dim=2).numpy()[0]
    is_speech = np.append(document.speech_in.numpy()[0], document.speech_pred.numpy()[0, -1])
    scored = np.append(False, (document.speech_pred | document.text_pred).numpy()[0])
    return collate([Sequence(tokens, is_speech, scored, len(scored), "r", "interleaved")])


def test_another_document_changes_nothing(architecture: MakeArchitecture) -> None:
    """Bitwise; and without boundaries it does."""
    model = make_model(architecture())
    for starts, same in ((STARTS, True), ([(0,)] * 4, False)):
        one, other = packed(starts), packed(starts)
        other.tokens[0, 0, :7] = (other.tokens[0, 0, :7] + 1) % 50
        first, second = (model.token_nll(ModelInputs.from_batch(batch))[0, 7:] for batch in (one, other))
        assert torch.equal(first, second) == same


def test_a_pipeline_stage_knows_the_documents(architecture: MakeArchitecture) -> None:
    sizes = architecture()
    inputs = ModelInputs.from_batch(packed())
    whole = SmolTolk(sizes, 0)
    expected = whole(inputs)
    stages = [SmolTolk(sizes, 0, initialize(), bounds) for bounds in (range(4), range(4, len(whole.layers)))]
    sent = stages[0].run_stage(None, inputs)
    assert isinstance(sent, Tensor)
    found = stages[1].run_stage(sent, inputs)
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(found, expected, strict=True))


def test_collate_finds_documents() -> None:
    """Runs of speech end where a document begins, positions count from there, and its first token is not scored."""
    batch = packed()
    assert batch.documents is not None and batch.documents.predicting is not None
    lengths = batch.documents.every.cu_seqlens.diff().tolist()
    assert lengths == [7, 1, 13, 8, 11, 9, 9, 2, 27, 29]
    assert batch.documents.predicting.cu_seqlens.diff().tolist() == [7, 1, 13, 8, 11, 9, 9, 29]
    positions = batch.documents.every.positions.view(LENGTH, 4).T.flatten().tolist()
    assert positions == [place for length in lengths for place in range(length)]
    for row, places in enumerate(STARTS):
        for place in places[1:]:
            assert not (batch.speech_pred | batch.text_pred)[row, place - 1]
    # The first sequence is one run of speech.
    assert batch.segments.cu_seqlens.diff().tolist()[:4] == [7, 1, 13, 8]
    assert batch.segments.positions.tolist()[:9] == [*range(7), 0, 0]
    counts = StepCounts.of([batch])
    assert counts.causal_pairs == sum(n * (n + 1) // 2 for n in lengths)
    assert counts.predicting_positions == 3 * LENGTH
    assert counts.predicting_pairs == counts.causal_pairs - 3 - 27 * 14
    batch.share_memory()
    assert batch.documents.every.scatter.is_shared()


def test_sequences_of_one_document_have_no_boundaries() -> None:
    """Also if the next document begins after the last position."""
    assert packed([(0,), (0, LENGTH), (0,), (0,)]).documents is None
