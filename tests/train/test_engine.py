"""One step of the engine against plain PyTorch, and what must not change its result."""

import gc
import math
import os
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from small_runs import MIXED, RATES, VOCABULARY, Memory, assembled, cut_batch, make_batch, small_config, tensors_of
from torch import Tensor
from torch.nn import functional

from tolktrain.config import Config
from tolktrain.config.data import Strategy
from tolktrain.config.training import StageConfig
from tolktrain.data.batch import Batch
from tolktrain.errors import UserError
from tolktrain.model.architecture import Architecture
from tolktrain.model.inputs import ModelInputs
from tolktrain.model.loss import StepResult, loss_from_sums
from tolktrain.model.parameter_layout import canonical_state, load_canonical
from tolktrain.model.smoltolk import SmolTolk
from tolktrain.parallel.layout import initialize
from tolktrain.train.deepspeed.compat import release_cache, restore_linear
from tolktrain.train.deepspeed.engine import Engine
from tolktrain.train.determinism import set_determinism
from tolktrain.train.resolved import ResolvedSettings

SCALE_OF_ENTROPY = 0.5
Make = Callable[..., tuple[Engine, Config]]


@pytest.fixture
def make(tmp_path: Path, sets: Path) -> Iterator[Make]:
    """Makes an engine for the last stage (everything trained) with a micro batch of 8 unless overridden."""

    def make(*overrides: str, stage: int = 2, model: SmolTolk | None = None) -> tuple[Engine, Config]:
        weight = f"model.speech.entropy_weight={SCALE_OF_ENTROPY}"
        config = small_config(tmp_path, sets, "train.micro_batch_size=8", weight, *overrides)
        model = SmolTolk(Architecture.from_config(config.model), seed=0) if model is None else model
        settings = ResolvedSettings.of(config, model.architecture, initialize())
        return Engine(model, config.train.stages[stage], config, initialize(), settings), config

    yield make
    restore_linear()  # tests need not close their engines


def halves(strategies: list[Strategy], count: int, seed: int = 0) -> list[Batch]:
    """The sequences of one batch of 8 as `count` micro batches."""
    return cut_batch(make_batch(strategies, seed), count)


def values(engine: Engine) -> dict[str, Tensor]:
    return assembled([engine.snapshot().parameters])


def plain_steps(model: SmolTolk, batches: list[Batch], clip: float) -> list[tuple[float, float]]:
    """The same steps without DeepSpeed and without our optimizer code: loss and gradient norm of each."""
    speech = {id(p) for n, p in model.named_parameters() if _is_speech(model, n)}
    groups = [
        {"params": [p], "lr": RATES.speech if id(p) in speech else RATES.backbone, "weight_decay": 0.1 * (p.ndim == 2)}
        for p in model.parameters()
    ]
    adam = torch.optim.AdamW(groups, betas=(0.9, 0.95), eps=1e-8)
    results = []
    for batch in batches:
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        sums = model(ModelInputs.from_batch(batch))
        scored = batch.num_text_scored + batch.num_speech_scored
        loss = loss_from_sums(sums, scored, batch.num_entropy_positions, SCALE_OF_ENTROPY)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
        adam.step()
        results.append((loss.item(), norm.item()))
    return results


def _is_speech(model: SmolTolk, name: str) -> bool:
    from tolktrain.model.parameter_layout import parameter_views

    return parameter_views(model)[name].names[0].startswith(("speech_", "input_adapter", "output_adapter"))


@pytest.mark.parametrize("zero_stage", [0, 1, 2])
def test_steps_equal_those_of_plain_pytorch(make: Make, zero_stage: int) -> None:
    engine, config = make(f"deepspeed.zero_stage={zero_stage}", "train.optimizer.clip_grad_norm=0.25")
    twin = SmolTolk(engine.model.architecture, seed=0)
    batches = [make_batch(MIXED, seed) for seed in range(3)]
    expected = plain_steps(twin, batches, clip=0.25)
    for batch, (loss, norm) in zip(batches, expected, strict=True):
        result = engine.train_step([batch], RATES)
        assert result.loss(SCALE_OF_ENTROPY) == pytest.approx(loss, abs=1e-5)
        assert result.grad_norm == pytest.approx(norm, rel=1e-5) and norm > 0.25
    expected_values = canonical_state(twin)
    assert all((v - expected_values[n]).abs().max() < 1e-6 for n, v in values(engine).items())
    assert engine.num_updates == 3


def test_accumulation_does_not_change_the_step(make: Make) -> None:
    """Micro batches of one modality next to mixed ones, with very different numbers of scored positions."""
    results: list[tuple[StepResult, dict[str, Tensor]]] = []
    for count in (1, 2, 4, 8):
        engine, _ = make(f"train.micro_batch_size={8 // count}")
        result = [engine.train_step(halves(MIXED, count, seed), RATES) for seed in range(2)][-1]
        results.append((result, values(engine)))
    first, first_values = results[0]
    for other, other_values in results[1:]:
        assert other.counts == first.counts
        assert other.loss(0.5) == pytest.approx(first.loss(0.5), abs=1e-6)
        assert other.text_loss == pytest.approx(first.text_loss, abs=1e-6)
        assert other.layer_entropy == pytest.approx(first.layer_entropy, abs=1e-6)
        assert other.grad_norm == pytest.approx(first.grad_norm, rel=1e-5)
        # Adam's first updates do not depend on the size of a gradient, so that those near zero show rounding.
        assert all((v - first_values[n]).abs().max() < 1e-4 for n, v in other_values.items())
        assert all((v - first_values[n]).abs().mean() < 1e-6 for n, v in other_values.items())


def test_losses_are_means_over_scored_positions(make: Make) -> None:
    engine, _ = make()
    model = SmolTolk(engine.model.architecture, seed=0)
    batch = make_batch(MIXED)
    nll = model.token_nll(ModelInputs.from_batch(batch))
    result = engine.train_step([batch], RATES)
    assert result.text_loss == pytest.approx(nll[batch.text_pred].mean().item(), rel=1e-5)
    assert result.speech_loss == pytest.approx(nll[batch.speech_pred].mean().item(), rel=1e-5)
    scored = batch.text_pred | batch.speech_pred
    assert result.loss(0.0) == pytest.approx(nll[scored].mean().item(), rel=1e-5)
    assert 0.5 < (result.layer_entropy or 0.0) <= math.log(2) + 1e-6  # two layers


@pytest.mark.parametrize("stage", [0, 1])
def test_frozen_groups_do_not_change_and_trained_ones_do(make: Make, stage: int) -> None:
    engine, config = make(stage=stage)
    before = values(engine)
    strategies = ["text"] * 8 if stage == 0 else ["interleaved"] * 8
    engine.train_step([make_batch(strategies)], RATES)
    after = values(engine)
    for name in before:
        is_backbone = name.startswith(("backbone", "text_"))
        trained = is_backbone == (stage == 0)
        assert torch.equal(before[name], after[name]) != trained, name


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
@pytest.mark.slow
def test_restored_engines_go_on_the_same(make: Make, zero_stage: int, precision: str) -> None:
    """Bit by bit on the same layout, from nothing but the snapshot's tensors and the number of updates."""
    options = (f"deepspeed.zero_stage={zero_stage}", f"train.precision={precision}", "train.micro_batch_size=4")
    engine, _ = make(*options)
    steps = [halves(["interleaved"] * 8, 2, seed) for seed in range(4)]
    for step in steps[:2]:
        engine.train_step(step, RATES)
    saved, updates = engine.snapshot(), engine.num_updates
    expected = [engine.train_step(step, RATES) for step in steps[2:]]
    final = engine.snapshot()

    model = SmolTolk(engine.model.architecture, seed=None)
    load_canonical(model, assembled([saved.parameters]))
    other, _ = make(*options, model=model)
    assert all(torch.equal(value, saved.parameters[name].tensor) for name, value in values(other).items())
    other.restore_moments(Memory(tensors_of(saved)), updates)
    assert [other.train_step(step, RATES) for step in steps[2:]] == expected
    again = other.snapshot()
    for kind, slices in final.kinds().items():
        assert all(torch.equal(again.kinds()[kind][name].tensor, block.tensor) for name, block in slices.items())


@pytest.mark.parametrize("zero_stage", [0, 1, 2])
@pytest.mark.slow
def test_bf16_is_near_float32_and_keeps_float32_masters(make: Make, zero_stage: int) -> None:
    steps = [make_batch(["interleaved"] * 8, seed) for seed in range(3)]
    engine, _ = make("train.precision=fp32")
    exact = [engine.train_step([step], RATES) for step in steps]
    engine, _ = make("train.precision=bf16", f"deepspeed.zero_stage={zero_stage}")
    master_weights = values(engine)
    assert any(not torch.equal(value, value.bfloat16().float()) for value in master_weights.values())
    rounded = [engine.train_step([step], RATES) for step in steps]
    assert all(parameter.dtype == torch.bfloat16 for parameter in engine.model.parameters())
    for one, other in zip(exact, rounded, strict=True):
        assert other.loss(0.0) == pytest.approx(one.loss(0.0), rel=0.01)
    # The first updates would be too small by half if Adam counted one more than were made.
    change = (values(engine)["backbone.norm.weight"] - master_weights["backbone.norm.weight"]).abs().max()
    assert change == pytest.approx(3 * RATES.backbone, rel=0.1)


@pytest.mark.slow
def test_frozen_parameters_keep_their_float32_values_in_bf16(make: Make) -> None:
    engine, config = make("train.precision=bf16", stage=1)
    original = canonical_state(SmolTolk(engine.model.architecture, seed=0))
    engine.train_step([make_batch(["interleaved"] * 8)], RATES)
    name = "backbone.layers.0.self_attn.q_proj.weight"
    assert torch.equal(values(engine)[name], original[name])
    assert not torch.equal(original[name], original[name].bfloat16().float())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("zero_stage", [0, 1, 2])
@pytest.mark.slow
def test_a_step_with_bad_gradients_changes_nothing(make: Make, zero_stage: int, precision: str) -> None:
    engine, _ = make(f"deepspeed.zero_stage={zero_stage}", f"train.precision={precision}")
    good = [make_batch(MIXED, seed) for seed in range(2)]
    engine.train_step([good[0]], RATES)
    before = engine.snapshot()
    hooks = [parameter.register_hook(lambda grad: grad * math.nan) for parameter in engine.model.parameters()]
    result = engine.train_step([good[1]], RATES)
    assert result.skipped and not math.isfinite(result.grad_norm)
    for hook in hooks:
        hook.remove()
    after = engine.snapshot()
    for kind, slices in before.kinds().items():
        assert all(torch.equal(after.kinds()[kind][name].tensor, block.tensor) for name, block in slices.items())
    assert engine.num_updates == 1
    assert not engine.train_step([good[1]], RATES).skipped and engine.num_updates == 2


@pytest.mark.parametrize(("zero_stage", "precision"), [(0, "fp32"), (0, "bf16"), (1, "bf16")])
@pytest.mark.slow
def test_gradients_of_a_single_rank_are_not_averaged(make: Make, zero_stage: int, precision: str) -> None:
    """The steps are exactly those with DeepSpeed's average over one rank, which is left out."""
    updated = []
    for averages in (False, True):
        engine, _ = make(f"deepspeed.zero_stage={zero_stage}", f"train.precision={precision}")
        inner = engine._step_runner.engine
        assert "_reduce_non_expert_gradients" in vars(inner)
        if averages:
            del inner._reduce_non_expert_gradients
        results = [engine.train_step([make_batch(MIXED, seed)], RATES) for seed in range(2)]
        updated.append((values(engine), [result.grad_norm for result in results]))
        engine.close()
    (without, its_norms), (with_it, norms) = updated
    assert its_norms == norms
    assert all(torch.equal(without[name], value) for name, value in with_it.items())


@pytest.mark.slow
def test_determinism_changes_nothing_on_a_cpu(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Additions there have a fixed order anyway, and no operator of a step is refused."""
    monkeypatch.setattr(os, "environ", dict(os.environ))
    monkeypatch.delitem(os.environ, "CUBLAS_WORKSPACE_CONFIG", raising=False)
    updated = []
    for deterministic in (True, False):
        engine, config = make("train.precision=bf16", f"train.deterministic={deterministic}")
        set_determinism(config.train)
        assert torch.are_deterministic_algorithms_enabled() == deterministic
        engine.train_step([make_batch(MIXED)], RATES)
        updated.append(values(engine))
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    assert all(torch.equal(updated[0][name], value) for name, value in updated[1].items())


def test_validation_does_not_train(make: Make) -> None:
    engine, _ = make()
    before, batches = values(engine), halves(MIXED, 4)
    result = engine.loss_sums(batches)
    nll = engine.model.token_nll(ModelInputs.from_batch(make_batch(MIXED)))
    assert result.text_nll + result.speech_nll == pytest.approx(nll.sum().item(), rel=1e-5)
    assert all(torch.equal(value, before[name]) for name, value in values(engine).items())


def test_a_foreign_moment_is_refused_by_its_shape(make: Make) -> None:
    engine, _ = make()
    saved = tensors_of(engine.snapshot())
    del saved["first_moments"]["backbone.norm.weight"]
    with pytest.raises(KeyError, match="backbone.norm.weight"):
        engine.restore_moments(Memory(saved), 1)


def test_stage_names_and_vocabulary_are_those_of_the_data(make: Make) -> None:
    engine, config = make()
    assert isinstance(config.train.stages[0], StageConfig)
    assert engine.model.architecture.text_vocab_size == VOCABULARY.text_vocab_size
    with pytest.raises(UserError, match="micro_batch_size"):
        make("train.micro_batch_size=3")


@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
def test_a_closed_engine_leaves_nothing(make: Make, zero_stage: int) -> None:
    """The next stage, or the same one after going back, needs the memory."""
    engine, _ = make(f"deepspeed.zero_stage={zero_stage}")
    engine.train_step([make_batch(MIXED)], RATES)
    first = next(iter(engine.model.parameters()))
    remembered = [weakref.ref(thing) for thing in (engine, engine.model, first, engine._step_runner.engine.optimizer)]
    engine.close()
    del engine, first
    gc.collect()
    assert [reference() for reference in remembered] == [None] * len(remembered)


def test_the_start_of_an_engine_collects_no_garbage(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """DeepSpeed would do so four times and more, to print how much memory is used."""
    monkeypatch.setattr(gc, "collect", lambda *_: pytest.fail("garbage was collected"))
    make("train.precision=bf16", "deepspeed.zero_stage=1")


def test_zero_3_remembers_what_to_release_until_the_order_of_modules_may_change(make: Make) -> None:
    """To find it out again in each step would take a time that grows with the square of the number of layers."""
    engine, _ = make("deepspeed.zero_stage=3")

    def looked_up() -> tuple[int, int]:
        cache = release_cache().cache_info()
        return cache.misses, cache.currsize

    batch = make_batch(MIXED)
    for _ in range(2):  # the first one records the order
        engine.train_step([batch], RATES)
    misses, size = looked_up()
    for _ in range(2):
        engine.train_step([batch], RATES)
        assert looked_up() == (misses, size) and misses > 0
    engine.loss_sums([batch])
    assert looked_up() == (0, 0)
    for _ in range(3):
        engine.train_step([batch], RATES)
    assert looked_up() == (misses, size)
    engine.close()
    assert looked_up() == (0, 0)


def test_a_closed_engine_of_zero_3_leaves_the_linear_function_as_it_was(make: Make) -> None:
    before = functional.linear
    engine, _ = make("deepspeed.zero_stage=3")
    assert functional.linear is not before
    engine.close()
    assert functional.linear is before


def test_a_step_that_scores_nothing_is_refused_before_the_update_if_it_must_score(make: Make) -> None:
    batch = make_batch(MIXED)
    nothing = torch.zeros_like(batch.text_pred)
    counts = {"num_text_scored": 0, "num_speech_scored": 0, "num_entropy_positions": 0}
    unscored = replace(batch, text_pred=nothing, speech_pred=nothing, **counts)
    engine, _ = make()
    before = values(engine)
    with pytest.raises(UserError, match="the stage 'joint' learns nothing from a step: none of its 8 sequences"):
        engine.train_step([unscored], RATES, must_score=True)
    assert engine.num_updates == 0 and all(torch.equal(before[name], value) for name, value in values(engine).items())
    assert engine.train_step([unscored], RATES).counts.num_scored == 0 and engine.num_updates == 1
    assert engine.train_step([batch], RATES, must_score=True).counts.num_scored > 0
