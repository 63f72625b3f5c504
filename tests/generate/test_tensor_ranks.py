"""Two processes that split every layer draw what one draws."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from small_continuations import DIRECTIONS, continued, small_model
from tiny_run import tiny_tree, write_run
from warm import Warm

from tolktrain.generate.decoding import CachedDecoder

RANKS = Path(__file__).with_name("continuing_ranks.py")


def _as_two(warm: Warm, *arguments: str | Path) -> tuple[list[int], list[str], list[str]]:
    """Exit codes, outputs and errors."""
    ranks = warm.start_ranks(2, *arguments)
    try:
        codes = [rank.wait(240) for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    return codes, [rank.output for rank in ranks], [rank.errors for rank in ranks]


@pytest.mark.slow
def test_two_ranks_draw_the_tokens_of_one(warm: Warm, tmp_path: Path) -> None:
    """Four directions, 1 and 3 codebooks, batches, full windows, switches, and tables with an odd number of rows."""
    cases: list[tuple[dict[str, Any], str, int, int]] = [
        ({"num_codebooks": codebooks}, direction, 4, 200) for codebooks in (1, 3) for direction in DIRECTIONS
    ]
    cases += [({}, direction, 4, 13) for direction in DIRECTIONS]
    cases += [
        ({"layer_pooling": "static", "tie_text_embeddings": False, "text_vocab_size": 41}, "text > text", 2, 200),
        ({"input_adapter_layers": 0, "layer_pooling": "none", "num_units": 51}, "speech > speech", 1, 200),
    ]
    codes, _, errors = _as_two(warm, RANKS, tmp_path / "drawn.json", json.dumps(cases))
    assert codes == [0, 0], errors
    found = json.loads((tmp_path / "drawn.json").read_text())
    for (changes, direction, batch, window), drawn in zip(cases, found, strict=True):
        model, vocabulary = small_model(**changes)
        wanted = continued(CachedDecoder, model, vocabulary, direction, batch, window)
        assert drawn == wanted, (changes, direction, batch, window)


@pytest.fixture
def run_of_two_heads(tmp_path: Path, repository: Path) -> Path:
    """A run whose layout is of tensor ranks and pipeline stages, and whose heads two ranks can divide."""
    tree = tiny_tree(tmp_path, repository)
    tree["model"]["backbone"]["num_key_value_heads"] = 2
    tree["parallel"] = {"tensor_parallel_size": 2, "pipeline_parallel_size": 2}
    return write_run(tmp_path, tree)


@pytest.mark.slow
def test_the_command_as_two_ranks(warm: Warm, run_of_two_heads: Path, tmp_path: Path) -> None:
    """One of them writes; the layout of the run does not matter; a prompt that is refused leaves nothing."""
    prompts = tmp_path / "prompts.jsonl"
    lines = [{"text": "the little bird"}, {"text": "the", "to": "speech"}, {"units": [3, 4]}]
    prompts.write_text("\n".join(map(json.dumps, lines)))
    command = ["-m", "tolktrain", "generate", run_of_two_heads, "--length", "9", "--prompts"]
    alone = warm.run(*command, prompts, "--into", tmp_path / "alone")
    assert alone.returncode == 0, alone.stderr
    codes, outputs, errors = _as_two(warm, *command, prompts, "--into", tmp_path / "together")
    assert codes == [0, 0], errors
    assert outputs == [alone.stdout, ""]
    one, two = ((tmp_path / name / "continuations.jsonl").read_text() for name in ("alone", "together"))
    for first, second in zip(one.splitlines(), two.splitlines(), strict=True):
        assert json.loads(first) | {"timing": 0} == json.loads(second) | {"timing": 0}
    prompts.write_text('{"units": [500]}')
    codes, outputs, errors = _as_two(warm, *command, prompts, "--into", tmp_path / "refused")
    assert codes == [2, 2] and outputs == ["", ""]
    assert "".join(errors).count("the unit 500 is outside") == 1
    assert not (tmp_path / "refused").exists()


@pytest.mark.slow
def test_a_conversation_as_two_ranks(warm: Warm, tmp_path: Path, repository: Path) -> None:
    """The answers of one process, turn by turn; what one rank refuses ends both."""
    tree = tiny_tree(tmp_path, repository)
    tree["model"]["backbone"]["num_key_value_heads"] = 2
    tree["model"]["special_tokens"] = ["<|user|>", "<|assistant|>"]
    run = write_run(tmp_path, tree)
    lines = tmp_path / "chats.jsonl"
    spoken = {"type": "audio", "path": str(next((repository / "data" / "sample" / "prompts").glob("*.wav")))}
    messages = [{"role": "user", "content": "the bird"}, {"role": "assistant", "content": None}]
    messages.append({"role": "user", "content": [spoken]})
    lines.write_text("\n".join(json.dumps({"messages": messages, "answer": form}) for form in ("chain", "speech")))
    command = ["-m", "tolktrain", "generate", run, "--length", "6", "--answer", "text", "--chat"]
    alone = warm.run(*command, lines)
    assert alone.returncode == 0 and alone.stdout.count("turn 4: ") == 2, alone.stderr
    codes, outputs, errors = _as_two(warm, *command, lines)
    assert codes == [0, 0], errors
    assert outputs == [alone.stdout, ""]


@pytest.mark.slow
def test_heads_that_cannot_be_divided(warm: Warm, tiny_run: Path) -> None:
    codes, _, errors = _as_two(warm, "-m", "tolktrain", "generate", tiny_run, "--text", "a")
    assert codes == [2, 2]
    assert "does not divide 1 key and value heads" in "".join(errors) and "one process" in "".join(errors)
