"""The configurations of the repository say what they claim."""

import re
from pathlib import Path

import pytest

from tolktrain.config.deepspeed import read_deepspeed_file, resolve_deepspeed
from tolktrain.config.load import load_config, load_prepare_config
from tolktrain.errors import UserError
from tolktrain.model.architecture import Architecture
from tolktrain.model.local_backbone import local_architecture
from tolktrain.plan.assumptions import Assumptions
from tolktrain.plan.candidates import Cluster, configured_candidate
from tolktrain.plan.job import Recipe

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


def test_the_recipe_of_preferences_is_a_run() -> None:
    config = load_config(CONFIGS / "recipes" / "preference.yaml")
    (stage,) = config.train.stages
    assert stage.has_preferences and stage.preference.reference == "lora_base" and config.model.lora.rank
    prepared = load_prepare_config(CONFIGS / "prepare" / "preference.yaml")
    assert config.data.sets["preferences"].path == str(Path(prepared.output).absolute() / "train")


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


@pytest.mark.parametrize(
    ("name", "num_gpus"), [("smoltolk-150m", 1), ("smoltolk-400m", 1), ("smoltolk-2b", 1), ("smoltolk-8b", 8)]
)
def test_the_models_fit_on_80_gb_gpus_with_a_margin(name: str, num_gpus: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """With what is outside of the allocator, as the comments of the files state; nor is the memory wasted."""
    # The same, but for the backbone's shape in place of its name.
    config = load_config(CONFIGS / "bench" / f"{name}.yaml")
    assert config.train == load_config(CONFIGS / f"{name}.yaml").train
    architecture = Architecture.from_config(config.model)
    candidate = configured_candidate(config, architecture, Cluster(num_gpus, num_gpus))
    memory = Recipe.of(config, architecture).memory(candidate, Assumptions())
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_: None)
    with pytest.raises(UserError, match=f"plan configs/bench/{name}.yaml, which has its shape"):
        local_architecture(load_config(CONFIGS / f"{name}.yaml").model, "plan")
    inside = memory.allocated_gib + memory.parts()["reserve"]
    assert 38 < inside < 79.2 - 5
    (stated,) = re.findall(r": (\d+) GiB at most", (CONFIGS / f"{name}.yaml").read_text())
    assert int(stated) == round(memory.total_gib)


def test_ablations_differ_from_the_quickstart_in_the_model_alone() -> None:
    quickstart = load_config(CONFIGS / "quickstart.yaml")
    for file in sorted((CONFIGS / "ablations").glob("*.yaml")):
        ablation = load_config(file)
        assert ablation.model.speech != quickstart.model.speech
        same = {"run": quickstart.run, "model": quickstart.model}
        assert ablation.model_copy(update=same) == quickstart
