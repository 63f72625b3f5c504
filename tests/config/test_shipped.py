"""The configurations of the repository say what they claim."""

from pathlib import Path

import pytest

from tolktrain.config.deepspeed import read_deepspeed_file, resolve_deepspeed
from tolktrain.config.load import load_config, load_prepare_config
from tolktrain.model.architecture import Architecture
from tolktrain.model.cost.layers import layer_flops
from tolktrain.model.cost.memory import activation_bytes
from tolktrain_kernels.cross_entropy import CHUNK_LOGITS

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
RUNNABLE = [*sorted(CONFIGS.glob("*.yaml")), *sorted((CONFIGS / "ablations").glob("*.yaml"))]


@pytest.mark.parametrize("file", RUNNABLE, ids=lambda file: file.stem)
def test_every_configuration_loads_and_is_short(file: Path) -> None:
    config = load_config(file)
    assert config.run.name == file.stem
    settings = resolve_deepspeed(config, read_deepspeed_file(config), data_parallel_size=1)
    assert settings.entries["train_batch_size"] == config.train.global_batch_size
    assert len(file.read_text().splitlines()) < 100


@pytest.mark.parametrize("file", sorted((CONFIGS / "prepare").glob("*.yaml")), ids=lambda file: file.stem)
def test_every_preparation_loads_and_is_short(file: Path) -> None:
    config = load_prepare_config(file)
    assert config.heldout.sources and len(file.read_text().splitlines()) < 40


@pytest.mark.parametrize(
    ("name", "backbone", "rates"),
    [
        ("smoltolk-150m", "HuggingFaceTB/SmolLM-135M", (3e-4, 3e-3, 3e-4)),
        ("smoltolk-400m", "HuggingFaceTB/SmolLM-360M", (3e-4, 3e-3, 3e-4)),
        ("smoltolk-2b", "HuggingFaceTB/SmolLM-1.7B", (5e-5, 5e-4, 5e-5)),
    ],
)
def test_the_published_recipe(name: str, backbone: str, rates: tuple[float, float, float]) -> None:
    config = load_config(CONFIGS / f"{name}.yaml")
    adapter, joint = config.train.stages
    assert config.model.backbone == backbone
    assert (adapter.learning_rate, adapter.speech_learning_rate, joint.learning_rate) == rates
    assert joint.speech_learning_rate is None
    assert config.train.global_batch_size * config.train.sequence_length == 2**20
    assert "backbone" not in adapter.trainable
    assert set(adapter.mixture) == {"interleaved"}
    assert adapter.mixture["interleaved"].sets == {"libriheavy": 0.37, "stinystories": 0.53, "spoken_wikipedia": 0.10}
    assert {strategy: entry.weight for strategy, entry in joint.mixture.items()} == dict.fromkeys(
        ("interleaved", "text", "speech"), 1.0
    )
    assert (adapter.schedule.decay_steps, adapter.schedule.final_fraction, joint.schedule.decay_steps) == (200, 0.1, 0)
    # One node of eight GPUs must be able to hold the global batch.
    assert resolve_deepspeed(config, read_deepspeed_file(config), data_parallel_size=8).accumulation_steps > 1


@pytest.mark.parametrize("name", ["smoltolk-150m", "smoltolk-400m", "smoltolk-2b"])
def test_the_published_models_fit_on_one_gpu_of_80_gb(name: str) -> None:
    """By the formulas of `model.cost`: states of one rank, and what the backward pass needs of a micro batch."""
    # The same, but for the backbone's shape in place of its name.
    config = load_config(CONFIGS / "bench" / f"{name}.yaml")
    published = load_config(CONFIGS / f"{name}.yaml").train
    assert config.train == published and published.activation_checkpointing == "none"
    sizes, positions = Architecture.from_config(config.model), published.micro_batch_size * published.sequence_length
    parameters = sum(layer.parameters for layer in layer_flops(sizes, published.sequence_length))
    # bf16 parameters, float32 gradients, master weights and two moments.
    states = (2 + 4 + 12) * parameters
    layers = sizes.num_layers + sizes.input_adapter_layers + sizes.output_adapter_layers
    # Of the pooling each layer's output and its gradient, though the output is also a layer's input.
    activations = positions * layers * (activation_bytes(sizes) + 4 * sizes.hidden_size)
    # A chunk of logits, in whose place its gradient is; the gradient of the text table in float32, and scaled in bf16.
    loss = 2 * CHUNK_LOGITS["cuda"] + 6 * sizes.text_table_size * sizes.hidden_size
    total = states + activations + loss
    assert 30e9 < total < 0.75 * 85e9, total  # neither wasted nor tight


def test_ablations_differ_from_the_quickstart_in_the_model_alone() -> None:
    quickstart = load_config(CONFIGS / "quickstart.yaml")
    for file in sorted((CONFIGS / "ablations").glob("*.yaml")):
        ablation = load_config(file)
        assert ablation.model.speech != quickstart.model.speech
        same = {"run": quickstart.run, "model": quickstart.model}
        assert ablation.model_copy(update=same) == quickstart
