"""Runs exported models with transformers alone; started by a test in a process in which tolktrain cannot be imported.

`python exported_models.py FOLDER` reads FOLDER/NAME/model and FOLDER/NAME/inputs.pt, and saves FOLDER/NAME/MAJOR.pt;
with FOLDER/NAME/audio.pt likewise the results of the processor.
"""

import builtins
import sys
from collections.abc import Callable
from importlib.abc import MetaPathFinder
from pathlib import Path
from typing import Any

import torch

HIDDEN = ("tolktrain", "tolktrain_kernels", "megatron", "deepspeed", "streaming")


class Hide(MetaPathFinder):
    """Refuses what the machine of a user does not have."""

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> None:
        """Raise ImportError for the hidden packages."""
        if fullname.split(".")[0] in HIDDEN:
            raise ImportError(f"{fullname} is hidden")


def results(folder: Path) -> dict[str, Any]:
    """Logits, log-likelihoods and greedy generations of the model in a folder."""
    from transformers import AutoModelForCausalLM

    inputs = torch.load(folder / "inputs.pt", weights_only=True)
    model = AutoModelForCausalLM.from_pretrained(folder / "model", trust_remote_code=True).eval()
    with torch.no_grad():
        out = model(inputs["tokens"], inputs["speech_mask"])
    text, units = inputs["text"], inputs["units"]
    found: dict[str, Any] = {
        "logits": out.logits,
        "speech_logits": out.speech_logits,
        "log_likelihood": model.log_likelihood(inputs["tokens"], inputs["speech_mask"]),
        "text > text": model.generate(text, max_new_tokens=20, eos_token_id=0),
        "text > speech": model.generate(text, to="speech", max_new_tokens=20),
        "speech > text": model.generate(units=units, to="text", max_new_tokens=20, eos_token_id=0),
        "speech > speech": model.generate(units=units, max_new_tokens=20),
    }
    for name, prompt in {"text": {"input_ids": text + 1_000_000}, "units": {"units": units - 9}}.items():
        try:
            model.generate(**prompt)
        except ValueError as error:
            found[f"beyond the {name}"] = str(error)
    whole = model.generate(text, max_new_tokens=20, eos_token_id=0, attention_mask=torch.ones_like(text))
    assert torch.equal(whole, found["text > text"])
    found["refused"] = [
        refusal(lambda: model.generate(torch.stack((text, text)))),
        refusal(lambda: model.generate(units=units.flatten())),
        refusal(lambda: model.generate(text, attention_mask=torch.arange(len(text)) > 2)),
        refusal(lambda: model.generate(text, max_new_tokens=0)),
        refusal(lambda: model.generate(text, do_sample=True, temperature=0.0)),
    ]
    found |= scored(model, inputs)
    model.save_pretrained(folder / "again")
    reloaded = AutoModelForCausalLM.from_pretrained(folder / "again", trust_remote_code=True)
    found["saved again"] = all(map(torch.equal, model.state_dict().values(), reloaded.state_dict().values()))
    return found


def scored(model: Any, inputs: dict[str, Any]) -> dict[str, Any]:
    """The loss with everything as labels, and log-likelihoods of sequences that are padded at their ends."""
    tokens, speech = inputs["tokens"], inputs["speech_mask"]
    attended = torch.arange(tokens.shape[-1]) < torch.tensor([[tokens.shape[-1]], [25]])
    with torch.no_grad():
        loss = model(tokens, speech, labels=tokens[:, 0]).loss
    return {
        "loss": loss,
        "padded likelihood": model.log_likelihood(tokens, speech, attended)[1],
        "shorter likelihood": model.log_likelihood(tokens[1:, :, :25], speech[1:, :25])[0],
    }


def processed(folder: Path) -> dict[str, Any]:
    """Ids and units of the processor in a folder, and those of the processor that it saves."""
    from transformers import AutoProcessor

    audio = torch.load(folder / "audio.pt", weights_only=True)
    questions: list[str] = []
    builtins.input = lambda question="": questions.append(question) or "n"  # type: ignore[func-returns-value]
    processor = AutoProcessor.from_pretrained(folder / "model", trust_remote_code=True)
    rate = processor.sampling_rate
    both = processor(text=audio["text"], audio=audio["waveform"].numpy(), sampling_rate=rate)
    found: dict[str, Any] = {
        "questions": questions,
        "ids": both.input_ids,
        "units": both.units,
        "run_lengths": both.run_lengths,
    }
    found["text"] = processor.decode(both.input_ids[0])
    found["padded"] = processor(text=[audio["text"], "a"]).attention_mask
    for name, call in {
        "rate": lambda: processor(audio=audio["waveform"].numpy(), sampling_rate=rate + 1),
        "stereo": lambda: processor(audio=torch.zeros(2, 99).numpy(), sampling_rate=rate),
        "nothing": lambda: processor(),
    }.items():
        found[name] = refusal(call)
    found["short"] = processor(audio=torch.zeros(0).numpy(), sampling_rate=rate).units
    found["spoken_rate"] = processor.spoken_rate
    run_lengths = both.run_lengths if audio["needs_durations"] else None
    if processor.spoken_rate is None:
        found["spoken"] = refusal(lambda: processor.speak(both.units, run_lengths))
    else:
        found["spoken"] = processor.speak(both.units, run_lengths, **audio["voice"])
        found["no unit"] = refusal(lambda: processor.speak(both.units + 5000, run_lengths))
    processor.save_pretrained(folder / "processor")
    if audio["saves"]:
        again = AutoProcessor.from_pretrained(folder / "processor", trust_remote_code=True)
        found["again"] = again(audio=audio["waveform"].numpy(), sampling_rate=rate).units
        found["spoken again"] = again.speak(both.units, run_lengths, **audio["voice"])
    return found


def refusal(call: Callable[[], Any]) -> str:
    """What a call says that it cannot do."""
    try:
        call()
    except ValueError as error:
        return str(error)
    raise AssertionError("it was accepted")


def main(folder: Path) -> None:
    """All models of a folder."""
    sys.meta_path.insert(0, Hide())
    import transformers

    major = transformers.__version__.split(".")[0]
    for inputs in sorted(folder.glob("*/inputs.pt")):
        torch.save(results(inputs.parent), inputs.parent / f"{major}.pt")
    for audio in sorted(folder.glob("*/audio.pt")):
        torch.save(processed(audio.parent), audio.parent / f"{major}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
