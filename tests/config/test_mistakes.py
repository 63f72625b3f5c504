"""The messages of refused values."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tolktrain.config.load import load_config
from tolktrain.config.mistakes import known_keys
from tolktrain.config.root import Config

Mistakes = Callable[..., str]
HERE = "on the command line: "


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.max_stepz=3", "train.max_stepz is not a known key; did you mean max_steps?"),
        ("run.max_steps=3", "run.max_steps is not a known key; did you mean train.max_steps?"),
        ("trian.max_steps=3", "trian is not a known key; did you mean train?"),
        ("train.stages[0].tokens=3", "train.stages[0] is not a known key; write train.stages.0"),
        ("model.backbone.hiden_size=3", "model.backbone.hiden_size is not a known key; did you mean hidden_size?"),
        *(
            (
                given,
                "model.backbone.path is not a known key; if model.backbone is to be 'a/b', write model.backbone=a/b",
            )
            for given in ("model.backbone={path: a/b}", "model.backbone.path=a/b", "model.backbone={path: a/b, x: 1}")
        ),
        (
            "model.backbone={hub: a/b, revision: main}",
            "model.backbone.hub is not a known key; if model.backbone is to be 'a/b', write model.backbone=a/b",
        ),
        ("run.name={name: x}", "run.name: expected text, got a mapping; write x"),
        (
            "checkpoint.init_from={run: runs/a}",
            "checkpoint.init_from: expected text or null, got a mapping; write runs/a",
        ),
        (
            "data.sets.stories=data/x",
            "data.sets.stories: expected a mapping with path, got 'data/x'; write \"{path: data/x}\", in quotes for the"
            " shell",
        ),
        (
            "data.sets.stories=s3://b/c",
            "data.sets.stories: expected a mapping with path, got 's3://b/c'; write"
            " \"{remote: 's3://b/c', path: FOLDER}\", in quotes for the shell",
        ),
        ("train.stages=3", "train.stages: expected a list of mappings with at least one entry, got 3"),
        (
            "checkpoint.qqqq=3",
            "checkpoint.qqqq is not a known key; known here: every_steps, background, keep_last, keep_every_steps,"
            " keep_best, best_metric, upload, upload_keep_last, init_from, init_tables",
        ),
        (
            "train.stages.0.mixture.spech={sets: {stories: 1}}",
            "train.stages.0.mixture.spech is not a known key; did you mean speech?",
        ),
        (
            "train.stages.0.mixture.q={sets: {stories: 1}}",
            "train.stages.0.mixture.q is not a known key;"
            " expected one of speech, text, interleaved, recognition, synthesis, answer_text, answer_speech,"
            " answer_interleaved, answer_chain, preference",
        ),
    ],
)
def test_unknown_keys(small: Path, mistakes_of: Mistakes, override: str, message: str) -> None:
    assert mistakes_of(small, override) == HERE + message


def test_unknown_key_names_the_line(small: Path, mistakes_of: Mistakes) -> None:
    small.write_text(small.read_text().replace("micro_batch_size: 4", "micro_batchsize: 4"))
    message = mistakes_of(small)
    assert "small.yaml:17: train.micro_batchsize is not a known key; did you mean micro_batch_size?" in message
    assert (
        "small.yaml:15: train.micro_batch_size is missing (Sequences per forward pass of one data rank);"
        " add 'micro_batch_size: ...' under train with a whole number greater than 0" in message
    )
    assert message.startswith("small.yaml: 2 mistakes\n")


def test_a_path_as_a_key_of_a_file_names_the_line(small: Path, mistakes_of: Mistakes) -> None:
    content = small.read_text()
    begin = content.index("  backbone:")
    end = content.index("\ndata:", begin)
    small.write_text(content[:begin] + "  backbone: {name_or_path: a/b}" + content[end:])
    line = content[:begin].count("\n") + 1
    assert mistakes_of(small) == (
        f"{small}:{line}: model.backbone.name_or_path is not a known key; if model.backbone is to be 'a/b', write"
        " backbone: a/b"
    )


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.max_steps=ten", "train.max_steps: expected a whole number greater than 0 or null, got 'ten'"),
        (
            "train.max_steps='10'",
            "train.max_steps: expected a whole number greater than 0 or null, got '10'; write 10 without quotes",
        ),
        ("train.max_steps=0", "train.max_steps: expected a whole number greater than 0 or null, got 0"),
        ("train.max_steps=2.0", "train.max_steps: expected a whole number greater than 0 or null, got 2.0; write 2"),
        ("train.max_steps=true", "train.max_steps: expected a whole number greater than 0 or null, got true"),
        ("run.name=7", "run.name: expected text, got 7; put it in quotes"),
        (
            "run.name=no",
            "run.name: expected text, got false (written no); put it in quotes that the shell keeps: \"'no'\"",
        ),
        ("run.name=2024-01-01", "run.name: expected text, got 2024-01-01 (date); put it in quotes"),
        ("run.name=null", "run.name: expected text, got null"),
        ("run=null", "run: expected a mapping with name, got null"),
        ("logging.tensorboard=1", "logging.tensorboard: expected true or false, got 1"),
        ("train.precision=fp16", "train.precision: expected one of bf16, fp32, got 'fp16'"),
        ("deepspeed.zero_stage=4", "deepspeed.zero_stage: expected one of 0, 1, 2, 3 or null, got 4"),
        ("train.optimizer.weight_decay=-1", "train.optimizer.weight_decay: expected a number at least 0, got -1"),
        ("train.optimizer.eps=.inf", "train.optimizer.eps: expected a number greater than 0, got inf"),
        (
            "train.optimizer.betas=[1]",
            "train.optimizer.betas: expected a list of 2 items, each a number, got a list of 1 items",
        ),
        ("train.stages=[]", "train.stages: expected a list of mappings with at least one entry, got a list of 0 items"),
        (
            "train.stages.0.schedule.final_fraction=2",
            "train.stages.0.schedule.final_fraction: expected a number at least 0 and at most 1, got 2",
        ),
        (
            "train.stages.0.mixture={}",
            "train.stages.0.mixture: expected a mapping with at least one entry, got a mapping",
        ),
        (
            "train.stages.0.trainable=[head]",
            "train.stages.0.trainable.0: expected one of backbone, pooling, speech, lora, got 'head'",
        ),
        ("evaluation.heldout_sets=heldout", "expected a list with items of text, got 'heldout'"),
        (
            "model.backbone=3",
            "model.backbone: expected text or a mapping with hidden_size, num_layers, num_attention_heads,"
            " num_key_value_heads, ffn_hidden_size, text_vocab_size, got 3; put it in quotes",
        ),
    ],
)
def test_wrong_values(small: Path, mistakes_of: Mistakes, override: str, message: str) -> None:
    got = mistakes_of(small, override)
    assert got.startswith(HERE)
    assert message in got
    assert "\n" not in got


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "model.backbone.num_attention_heads=3",
            "model.backbone.num_attention_heads 3 does not divide hidden_size 32; use one of [1, 2, 4, 8, 16]",
        ),
        (
            "model.backbone.num_attention_heads=32",
            "model.backbone.num_attention_heads 32 gives heads of width 1, which cannot be rotated",
        ),
        (
            "model.backbone.num_key_value_heads=3",
            "model.backbone.num_key_value_heads 3 does not divide num_attention_heads 4; use one of [1, 2, 4]",
        ),
        (
            "model.speech.layer_pooling=none; train.stages.1.trainable=[pooling]",
            "train.stages.1.trainable is [pooling], but a model with model.speech.layer_pooling none has no pooling",
        ),
        (
            "train.stages.1.trainable=[lora]",
            "train.stages.1.trainable contains lora, but model.lora.rank is 0, which gives no low-rank updates; set",
        ),
        ("model.lora.rank=4", "model.lora.rank is 4, but no stage trains the low-rank updates; add lora to"),
        (
            "parallel.sequence_parallel=true",
            "parallel.sequence_parallel needs tensor_parallel_size above 1; set it to false",
        ),
        (
            "train.compile=layers; parallel.tensor_parallel_size=2",
            "train.compile layers cannot be combined with parallel.tensor_parallel_size 2: torch.compile stops",
        ),
        (
            "train.micro_batch_size=3",
            "train.micro_batch_size 3 does not divide global_batch_size 8; use one of [1, 2, 4]",
        ),
        (
            "train.last_stage=speech",
            "train.last_stage 'speech' is not the name of a stage; use one of ['text', 'joint']",
        ),
        ("train.stages.1.name=text", "train.stages.1.name 'text' is the name of stage 0 too; names must differ"),
        (
            "train.stages.0.trainable=[speech]",
            "train.stages.0.trainable is ['speech'], which text alone does not train",
        ),
        ("train.optimizer.betas=[0.9, 1.0]", "train.optimizer.betas.1 is 1; expected a number from 0 to below 1"),
        (
            "data.interleaving.text_words=[30, 10]",
            "data.interleaving.text_words is [30, 10]; give the shortest span first",
        ),
        ("run.name=a/b", "run.name is 'a/b'; use letters, digits, '.', '-' and '_', because it names a folder"),
        ("run.name='..'", "run.name is '..'; use letters"),
        (
            "train.validation.sets=[heldout, none]",
            "train.validation.sets.1 names the data set 'none', which data.sets does not define;"
            " it defines heldout, stories",
        ),
        ("evaluation.train_set=x", "evaluation.train_set names the data set 'x'"),
        (
            "data.sets.storiez.path=/nope",
            "'data.sets.storiez.path=/nope' adds the data set 'storiez', which no mixture, validation or evaluation"
            " names; did you mean stories?",
        ),
        (
            "data.sets={stories: {path: stories}, xy: {path: xy}}",
            "'data.sets={stories: {path: stories}, xy: {path: xy}}' adds the data set 'xy', which no mixture,"
            " validation or evaluation names; defined sets: stories",
        ),
        (
            "train.stages.0.mixture.text.sets.x=1",
            "train.stages.0.mixture.text.sets.x names the data set 'x', which data.sets does not define",
        ),
    ],
)
def test_values_that_do_not_fit_together(small: Path, mistakes_of: Mistakes, override: str, message: str) -> None:
    assert mistakes_of(small, *override.split("; ")).startswith(HERE + message)


def test_what_evaluation_after_training_needs(small: Path, mistakes_of: Mistakes) -> None:
    small.write_text(small.read_text() + "evaluation: {after_training: true}\n")
    start = "  small.yaml:31: evaluation.after_training is true, but"
    end = "or set evaluation.after_training to false"
    assert mistakes_of(small).splitlines() == [
        "small.yaml: 3 mistakes",
        f"{start} evaluation.heldout_sets is empty; name the data sets to evaluate on, {end}",
        f"{start} evaluation.prompts is not set; name the folder of the spoken prompts, {end}",
        f"{start} data.speech_tokenizer is not set; name the folder of the speech tokenizer, {end}",
    ]
    given = ["evaluation.heldout_sets=[heldout]", "evaluation.prompts=prompts", "data.speech_tokenizer=tokenizer"]
    for left_out in given:
        rest = [override for override in given if override != left_out]
        assert left_out.split("=")[0] in mistakes_of(small, *rest)
    assert load_config(small, given).evaluation.after_training
    assert not load_config(small, ["evaluation.after_training=false"]).evaluation.after_training


def test_all_mistakes_are_told_at_once(small: Path, mistakes_of: Mistakes) -> None:
    small.write_text(
        small.read_text().replace("hidden_size: 32", "hidden_size: wide").replace("tokens: 8192", "token: 1")
    )
    message = mistakes_of(small, "run.seed=-1", "train.stages.0.mixture.text.sets.stories=0")
    assert message.splitlines() == [
        "small.yaml: 5 mistakes",
        "  on the command line: run.seed: expected a whole number at least 0, got -1",
        "  small.yaml:5: model.backbone.hidden_size: expected a whole number greater than 0, got 'wide'",
        "  on the command line: train.stages.0.mixture.text.sets.stories: expected a number greater than 0, got 0",
        "  small.yaml:25: train.stages.1.tokens is missing (Positions of the stage, over all ranks; rounded up to whole"
        " steps); add 'tokens: ...' under train.stages.1 with a whole number greater than 0",
        "  small.yaml:26: train.stages.1.token is not a known key; did you mean tokens?",
    ]


def test_known_keys_reach_every_level() -> None:
    keys = known_keys(Config)
    assert {"run", "model.backbone.hidden_size", "train.stages.N.mixture.NAME.weight", "data.sets.NAME.path"} <= set(
        keys
    )
