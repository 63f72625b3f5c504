"""A run of a tiny model that was tuned on one conversation until it knows it by heart."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tiny_run import tiny_tree, write_run

from tolktrain.config.data import InterleavingConfig, Strategy
from tolktrain.config.prepare import PrepareConfig
from tolktrain.data.batch import collate
from tolktrain.data.records import Record
from tolktrain.data.sequences import Sequence as TokenSequence
from tolktrain.data.strategies import build_sequence
from tolktrain.data.text_tokenizer import load_text_tokenizer
from tolktrain.model.inputs import ModelInputs
from tolktrain.model.smoltolk import SmolTolk
from tolktrain.prepare.dialogue.kind import DialogueKind
from tolktrain.vocabulary import Vocabulary

ROLES = ["<|system|>", "<|user|>", "<|assistant|>"]
STEPS = 150


@dataclass(frozen=True)
class Tuned:
    """The run, and the conversation that its model knows, as `tolktrain prepare` reads it."""

    folder: Path  # with the lines and their audio
    repository: Path

    @property
    def run(self) -> Path:
        """The run directory."""
        return self.folder / "tiny"

    @cached_property
    def record(self) -> Record:
        """The record of the conversation."""
        sample = self.repository / "data" / "sample"
        tree = {
            "name": "d",
            "output": str(self.folder / "out"),
            "heldout": {"sources": 0.0, "speakers": 0.0},
            "text_tokenizer": str(sample / "text_tokenizer"),
            "dialogue": {
                "files": [str(self.folder / "chat.jsonl")],
                "strategies": ["answer_text"],
                "sequence_length": 192,
                "speech_tokenizer": str(sample / "speech_tokenizer"),
                "bounds": {"min_words_per_second": None, "max_words_per_second": None},
                "text_with_audio": "separate",
            },
        }
        kind = DialogueKind(PrepareConfig.model_validate(tree))
        (part,) = kind.parts()[0]
        found = [item for item in kind.records(part) if not isinstance(item, int)]
        (item,) = found
        assert isinstance(item, tuple), item
        return item[1]

    @property
    def vocabulary(self) -> Vocabulary:
        """Of the model."""
        eos = load_text_tokenizer(self.repository / "data" / "sample" / "text_tokenizer").info.eos_id
        return Vocabulary(1024, eos, 500, 1, tuple(ROLES))

    def sequence(self, strategy: Strategy) -> TokenSequence:
        """A training sequence of the conversation."""
        rng = np.random.default_rng(0)
        return build_sequence(self.record, strategy, self.vocabulary, 192, InterleavingConfig(), rng)

    @property
    def messages(self) -> list[dict[str, Any]]:
        """The first conversation."""
        found: list[dict[str, Any]] = json.loads((self.folder / "chat.jsonl").read_text().splitlines()[0])["messages"]
        return found


def write_tuned(
    folder: Path, repository: Path, strategy: Strategy = "answer_chain", talks: Sequence[Any] = ()
) -> Tuned:
    """Tune a model on conversations, by default on `_talk`; those of others may use q.wav, a.wav and b.wav.

    The configuration names the strategy only for the default, because it names no set of conversations.
    """
    import soundfile

    prompts = sorted((repository / "data" / "sample" / "prompts").glob("*.wav"))
    for name, prompt, begin in (("q.wav", prompts[0], 0), ("a.wav", prompts[1], 0), ("b.wav", prompts[1], 9_000)):
        samples, rate = soundfile.read(prompt)
        soundfile.write(folder / name, samples[begin : begin + 8_000], rate)
    lines = [json.dumps({"messages": messages}) for messages in talks or [_talk()]]
    (folder / "chat.jsonl").write_text("".join(f"{line}\n" for line in lines))
    tuned = Tuned(folder, repository)
    tree = tiny_tree(folder, repository)
    tree["model"]["special_tokens"] = ROLES
    tree["model"]["backbone"] |= {"hidden_size": 32, "num_key_value_heads": 2, "ffn_hidden_size": 48}
    if not talks:
        tree["train"]["stages"][1]["mixture"] |= {strategy: {"weight": 2, "sets": {"stories": 1}}}
    write_run(folder, tree, tune=lambda model: _tune(model, tuned.sequence(strategy)))
    return tuned


def _talk() -> list[dict[str, Any]]:
    """An instruction, a spoken question, its answer, a written question, its answer."""
    said = (("a.wav", "in the tree"), ("b.wav", "no"))
    spoken = [{"type": "audio", "path": name, "text": text} for name, text in said]
    return [
        {"role": "system", "content": "be kind"},
        {"role": "user", "content": [{"type": "audio", "path": "q.wav", "text": "where is the bird"}]},
        {"role": "assistant", "content": [spoken[0]]},
        {"role": "user", "content": "does it sing"},
        {"role": "assistant", "content": [spoken[1]]},
    ]


def _tune(model: SmolTolk, sequence: TokenSequence) -> None:
    inputs = ModelInputs.from_batch(collate([sequence]))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.0)
    model.train()
    for _ in range(STEPS):
        sums = model(inputs)
        loss = (sums.text_nll + sums.speech_nll) / int(sequence.scored.sum())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.05, loss.item()
    model.eval()
