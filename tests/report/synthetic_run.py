"""What a finished run has in its folder."""

import json
from pathlib import Path

import numpy as np
import soundfile

SETS = ("heldout_stories", "heldout_voices")
STAGES = (("text", 300), ("adapter", 300), ("joint", 600))
RATE = 22_050


def write_metrics(folder: Path) -> None:
    rng = np.random.default_rng(0)
    step, tokens = 0, 0
    with (folder / "metrics.jsonl").open("w", encoding="utf-8") as file:
        for stage, steps in STAGES:
            for inside in range(steps):
                step, tokens = step + 1, tokens + 16 * 256
                text = 1.2 + 5.0 * np.exp(-step / 120) + 0.05 * rng.normal()
                speech = 1.7 + 3.5 * np.exp(-(step - 300) / 250) + 0.05 * rng.normal() if stage != "text" else None
                row = {
                    "step": step, "stage": stage, "tokens": tokens, "loss": text,
                    "text_loss": text, "speech_loss": speech, "layer_entropy": None if speech is None else 1.5,
                    "grad_norm": 1.0, "learning_rate": 2e-3 * min(1, inside / 20), "seconds_per_step": 0.4,
                    "speech_learning_rate": 3e-3 * min(1, inside / 20, (steps - inside) / 100) * (stage != "text"),
                    "tokens_per_second": 9000 + 300 * rng.normal(), "mfu": None, "memory_gib": 1.5, "skipped": 0,
                }  # fmt: skip
                if inside % 100 == 99:
                    for name in SETS:
                        row |= _validation(name, text, speech)
                file.write(json.dumps(row) + "\n")


def _validation(name: str, text: float, speech: float | None) -> dict[str, float | None]:
    heard = 6.2 if speech is None else speech + 0.05
    return {
        f"validation.text.{name}.loss": text + 0.1, f"validation.speech.{name}.loss": heard,
        f"validation.interleaved.{name}.loss": heard, f"validation.interleaved.{name}.text_loss": text + 0.3,
        f"validation.interleaved.{name}.speech_loss": heard + 0.2,
    }  # fmt: skip


def evaluation() -> dict:
    losses = []
    for name in SETS:
        speech = {"loss": 1.71, "positions": 30000, "bigram_loss": 2.30, "ratio": 1.71 / 2.30}
        text = {"loss": 1.31, "positions": 30000, "bigram_loss": 2.05, "ratio": 1.31 / 2.05}
        losses += [
            {"set": name, "strategy": "text", "sequences": 128, "text": text, "speech": None},
            {"set": name, "strategy": "speech", "sequences": 128, "text": None, "speech": speech},
            {"set": name, "strategy": "interleaved", "sequences": 128, "text": text, "speech": speech},
        ]
    directions = ("text_to_text", "text_to_speech", "speech_to_text", "speech_to_speech")
    accuracies = ((0.93, 0.885, 0.961), (0.61, 0.539, 0.678), (0.705, 0.637, 0.767), (0.52, 0.448, 0.591))
    choices = [
        {"set": name, "direction": d, "trials": 200, "correct": 200 * a, "accuracy": a, "low": low, "high": high}
        for name in SETS
        for d, (a, low, high) in zip(directions, accuracies, strict=True)
    ]
    return {
        "format": 1, "run": "synthetic", "step": 1200, "stage": "joint", "tokens": 1200 * 4096, "device": "cpu",
        "parameters": {"backbone": 2_100_000, "pooling": 3_000, "speech": 1_200_000, "total": 3_303_000},
        "losses": losses, "choices": choices,
        "layers": {"static": [0.1, 0.2, 0.3, 0.4], "text": [0.05, 0.05, 0.2, 0.7], "speech": [0.4, 0.3, 0.2, 0.1]},
        "targets": [
            {"set": name, "name": key, "statement": statement, "reached": reached}
            for name in SETS
            for key, statement, reached in (
                ("speech_loss", "speech loss 1.710, 26 % below the bigram's 2.300 (goal: 25 % below)", True),
                ("text_loss", "text loss 1.310, 36 % below the bigram's 2.050 (goal: below)", True),
                ("text_to_text", "text → text: 93.0 % of choices right, 88.5 to 96.1 % (goal: above 50 %)", True),
                ("speech_to_speech", "speech → speech: 52.0 % of choices right, 44.8 to 59.1 %", False),
            )
        ],
        "seconds": 41.5,
    }  # fmt: skip


def benchmarks() -> dict:
    row = {"benchmark": "sblimp", "set": "dev", "measure": "mean over pairs", "rule": "whole_mean_closing_eos"}
    row |= {"ties": 0.5, "pairs": 40, "ids": 20, "accuracy": 0.625, "low": 0.41, "high": 0.8375}
    published = [{"model": "Slam", "percent": 58.86, "source": "slamkit"}]
    return {
        "format": 1, "run": "synthetic", "step": 1200, "device": "cpu",
        "rows": [
            row | {"unigram": 0.5, "bigram": 0.5125, "published": published},
            row | {"rule": "whole_mean", "accuracy": 0.6, "published": []},
        ],
        "problems": {"sblimp": {"missing": 2, "doubled": 0, "extra": 0, "unreadable": 0}},
        "longer_than_training": {"sblimp": 3}, "notes": ["test: gold.csv is missing"], "seconds": 1.0,
    }  # fmt: skip


def generation() -> dict:
    settings = {"prompt_seconds": 3.0, "folder": "stories", "units": 150, "temperature": 0.8, "top_k": 25, "seed": 0}
    row = {"kind": "generated", "samples": 40, "seconds": 5.5, "units_per_second": 21.0, "empty": 1, "unscored": 2}
    row |= {"auto_bleu": 0.035, "auto_bleu_low": 0.02, "auto_bleu_high": 0.05}
    row |= {"genppl": 62.84, "genppl_low": 50.0, "genppl_high": 80.0}
    heard = {"kind": "recording", "samples": 40, "seconds": 9.0, "units_per_second": None, "words": 300}
    heard |= {"wer": 0.125, "wer_low": 0.1, "wer_high": 0.15}
    return {
        "format": 1, "run": "synthetic", "step": 1200, "device": "cpu", "settings": settings, "rows": [row, heard],
        "asr": {"folder": "whisper", "sha256": "0"}, "lm": None, "unreadable": 3, "seconds": 1.0,
    }  # fmt: skip


def text_tasks() -> dict:
    row = {"task": "piqa", "metric": "acc_norm", "items": 100, "accuracy": 0.61, "low": 0.5, "high": 0.7}
    row |= {"against_accuracy": 0.66, "against_low": 0.6, "against_high": 0.7, "difference": -0.05}
    row |= {"difference_low": -0.11, "difference_high": 0.01, "gained": 3, "lost": 8, "p": 0.227}
    return {"format": 1, "run": "synthetic", "against": "backbone", "harness": "0.4.13", "context": 256, "rows": [row]}


def comparison() -> dict:
    paired = {"difference": -0.125, "low": -0.2, "high": -0.05, "better": 3, "worse": 8, "p": 0.227}
    runs = [
        {"run": "synthetic", "accuracy": 0.625, "low": 0.4, "high": 0.8, "against_first": None},
        {"run": "fused", "accuracy": 0.5, "low": 0.4, "high": 0.6, "against_first": paired},
    ]
    benchmark = {"benchmark": "sblimp", "set": "dev", "measure": "mean over pairs", "rule": "whole_mean", "ids": 20}
    return {
        "format": 1, "runs": [{"name": "synthetic"}, {"name": "fused"}], "remarks": ["other tokenizers"],
        "benchmarks": [benchmark | {"runs": runs}],
        "choices": [{"set": SETS[0], "direction": "text_to_speech", "runs": runs}], "losses": [], "configuration": [],
    }  # fmt: skip


def sweep() -> dict:
    rows, differences = [], []
    for number, name in enumerate(SETS):
        for measure, value in (("speech loss", 2.5), ("text_to_speech", 0.55)):
            row = {"set": name, "measure": measure, "value": value, "half": 0.04, "seed_half": 0.03, "item_half": 0.02}
            rows += [row | {"variant": variant} for variant in ("full", "no-pooling")]
            gap = {"value": 0.25 if "loss" in measure else -0.02, "shown": not number, "full_is_better": not number}
            differences.append(row | gap | {"variant": "no-pooling"})
    sizes = {"full": 3_303_000, "no-pooling": 3_300_000}
    return {
        "step": 300, "tokens": 1_228_800, "seeds": {"full": [0, 1, 2], "no-pooling": [0, 1, 2]}, "parameters": sizes,
        "rows": rows, "differences": differences,
    }  # fmt: skip


def write_samples(folder: Path) -> None:
    samples = folder / "samples"
    samples.mkdir()
    prompts = []
    for index in range(3):
        files = {}
        for part, seconds in (("prompt", 2.5), ("resynthesis", 2.5), ("continuation", 6.0)):
            wave = 0.3 * np.sin(2 * np.pi * (220 + 60 * index) * np.arange(int(seconds * RATE)) / RATE)
            files[part] = f"story-{index}-{part}.wav"
            soundfile.write(samples / files[part], wave, RATE, subtype="PCM_16")
        prompts.append(
            {
                "name": f"story-{index}", "voice": "en-gb", "files": files, "prompt_units": [1, 2, 3],
                "text": "Anna had a little red boat & a <blue> kite. She wanted to sail",
                "text_continuation": "to the island with her brother. They packed some bread and went to the shore.",
                "continuation_units": [4, 5], "prompt_seconds": 2.5, "continuation_seconds": 6.0,
            }
        )  # fmt: skip
    content = {"temperature": 0.8, "top_k": 50, "seed": 0, "sample_rate": RATE, "prompts": prompts}
    (samples / "samples.json").write_text(json.dumps(content), encoding="utf-8")
