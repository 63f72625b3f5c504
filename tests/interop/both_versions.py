"""Small models that one version of transformers writes, and what tolktrain makes of them; run by each version.

`python both_versions.py FOLDER` writes models into FOLDER/MAJOR, reads those of every version in FOLDER, and saves the
results as FOLDER/read-by-MAJOR.npz.
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer, models, pre_tokenizers

TESTS = Path(__file__).parents[1]
sys.path.extend([str(TESTS / "units"), str(TESTS / "prepare")])  # for `small_models` and `tones`

PROMPT = [[3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7, 9]]
TEXT = ["a few words, and a few more", " and 1 more"]
ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())
# Trained and saved with 4.57; no version may hear it otherwise.
KEPT = TESTS / "prepare" / "aligner" / "model"


def write(folder: Path) -> None:
    """A backbone and its logits, a text tokenizer, HuBERT and Mimi with their tokenizers, and a CTC model."""
    import small_models
    import tones
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    from tolktrain.units.hubert import HubertTokenizer
    from tolktrain.units.mimi import MimiTokenizer

    torch.manual_seed(0)
    scaling = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    config = LlamaConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=48,
        vocab_size=40,
        max_position_embeddings=64,
        rope_theta=500.0,
        rope_scaling={**scaling, "original_max_position_embeddings": 8},
        initializer_range=0.2,
        tie_word_embeddings=True,
    )
    backbone = LlamaForCausalLM(config).eval()
    backbone.save_pretrained(folder / "llama")
    with torch.no_grad():
        np.save(folder / "logits.npy", backbone(torch.tensor(PROMPT)).logits.numpy())

    words = Tokenizer(
        models.BPE({**{letter: number for number, letter in enumerate(ALPHABET)}, "<s>": len(ALPHABET)}, [])
    )
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<s>").save_pretrained(folder / "text")

    for name, stable in (("hubert", False), ("hubert-large", True)):
        model = small_models.save_hubert(folder / name / "model", stable)
        HubertTokenizer.fit_from(folder / name, str(model), [small_models.tones(0, 3.0)], 4, 20, seed=0, hours=1.0)
    MimiTokenizer.create(folder / "mimi", str(small_models.save_mimi(folder / "mimi" / "model")), 4)
    tones.save(tones.small_model("layer"), folder / "ctc")


def read(folder: Path) -> dict[str, Any]:
    """What the files in a folder of `write` mean."""
    from small_models import tones

    from tolktrain.data.text_tokenizer import load_text_tokenizer
    from tolktrain.model.llama import read_llama_config
    from tolktrain.prepare.recordings.align.ctc_model import CtcModel
    from tolktrain.units.base import decode
    from tolktrain.units.load import load_speech_tokenizer
    from tolktrain.units.vocoders.load import load_vocoder

    waveform = tones(0, 3.0)  # on which the clusters of HuBERT were found
    text = load_text_tokenizer(folder / "text")
    mimi = load_speech_tokenizer(folder / "mimi")
    units = mimi.encode(tones(1, 2.0, 24_000))
    found = {
        "config": str(sorted(read_llama_config(str(folder / "llama")).items())),
        "text": np.concatenate([text.tokenizer.encode(line).ids for line in TEXT]),
        "text facts": str(text.info),
        "mimi": units,
        "mimi audio": decode(load_vocoder(folder / "mimi"), units),
    }
    for name in ("hubert", "hubert-large"):
        found[name] = load_speech_tokenizer(folder / name).encode(waveform)
    for name, model in (("ctc", folder / "ctc"), ("kept ctc", KEPT)):
        found[name] = CtcModel(str(model), "cpu").emissions([waveform])[0].numpy()
    return found


def results(folder: Path) -> dict[str, Any]:
    """What is read from every version's files, as VERSION/NAME."""
    versions = sorted(path for path in folder.iterdir() if path.is_dir())
    return {f"{path.name}/{name}": value for path in versions for name, value in read(path).items()}


def main(folder: Path) -> None:
    """Write and read with the version that is installed."""
    import transformers

    major = transformers.__version__.split(".")[0]
    write(folder / major)
    np.savez(folder / f"read-by-{major}.npz", **results(folder))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
