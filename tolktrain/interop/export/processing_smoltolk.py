"""The processor of SmolTolk for Hugging Face transformers 4.57 and 5: text to ids, and audio to units.

This file needs torch, numpy, safetensors and transformers only.
`AutoProcessor.from_pretrained(folder, trust_remote_code=True)` loads it. `speech_tokenizer/` in the folder describes
the units: centroids of log-mel frames, centroids of a layer of HuBERT, or codebooks of Mimi; the pretrained model that
it names is loaded at the first audio. With `vocoder.json` there, or with Mimi, units can be spoken.
"""

import inspect
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from transformers import BatchFeature, PreTrainedTokenizerFast, ProcessorMixin
from transformers.utils import cached_file

FOLDER = "speech_tokenizer"
_DESCRIPTION, _CENTROIDS, _CONFIG = "speech_tokenizer.json", "centroids.safetensors", "processor_config.json"
_VOCODER, _VOCODER_WEIGHTS = "vocoder.json", "vocoder.safetensors"
_OF_THE_HUB = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "token")
_BLOCK = 256  # frames computed at a time

Samples = Any  # float32 [n]


class SmolTolkProcessor(ProcessorMixin):
    """A text tokenizer, and a speech tokenizer if the model has one."""

    attributes = ["tokenizer"]  # noqa: RUF012  # as transformers 4 declares it
    tokenizer_class = "AutoTokenizer"

    def __init__(self, tokenizer: Any = None, speech: "SpeechUnits | None" = None, **settings: Any) -> None:
        """`from_pretrained` loads one."""
        self.tokenizer = tokenizer
        self.speech = speech
        self.voice: Mapping[str, Any] = settings.get("voice") or {}
        self.chat_template = None

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *_: Any, **kwargs: Any) -> "SmolTolkProcessor":
        """Load from a folder or a hub id."""
        name, hub = str(pretrained_model_name_or_path), {key: kwargs[key] for key in _OF_THE_HUB if key in kwargs}
        # Not AutoTokenizer, which in version 5 asks whether to trust the folder's code once more.
        tokenizer = PreTrainedTokenizerFast.from_pretrained(name, **hub)
        config = json.loads(Path(cached_file(name, _CONFIG, **hub)).read_text(encoding="utf-8"))
        speech = SpeechUnits.load(name, hub, config.get("has_vocoder", False)) if config.get("has_speech") else None
        return cls(tokenizer, speech, voice=config.get("voice"))

    def save_pretrained(self, save_directory: Any, *_: Any, **kwargs: Any) -> Any:
        """Write the tokenizers, and this file."""
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        saved = self.tokenizer.save_pretrained(folder)
        program = Path(inspect.getfile(type(self)))
        shutil.copyfile(program, folder / program.name)
        config = {
            "processor_class": "SmolTolkProcessor",
            "auto_map": {"AutoProcessor": f"{program.stem}.SmolTolkProcessor"},
            "has_speech": self.speech is not None,
            "has_vocoder": self.speech is not None and self.speech.vocoder is not None,
            **({"voice": dict(self.voice)} if self.voice else {}),
        }
        (folder / _CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        if self.speech is not None:
            self.speech.save(folder / FOLDER)
        return saved

    @property
    def sampling_rate(self) -> int | None:
        """Samples per second of the audio that is read; None without a speech tokenizer."""
        return None if self.speech is None else self.speech.sample_rate

    def __call__(
        self, text: Any = None, audio: Any = None, sampling_rate: int | None = None, **kwargs: Any
    ) -> BatchFeature:
        """Ids of text, and units of audio.

        Args:
            text: a text or a list of texts; `input_ids` int64 [B, n] and `attention_mask`, padded at the end. As in
                training, no id is added, and names of special tokens in a text are plain text.
            audio: mono waveform within -1 and 1, [n]; `units` int64 [frames, K], repeats collapsed, and `run_lengths`
                int64 [frames], how many frames each lasted.
            sampling_rate: samples per second of the audio; must be `sampling_rate` of the processor.
            kwargs: of the text tokenizer.

        Raises:
            ValueError: neither text nor audio, no speech tokenizer, or audio of another rate or form.
        """
        if text is None and audio is None:
            raise ValueError("the processor takes text, audio, or both")
        found: dict[str, Any] = {}
        if text is not None:
            many = isinstance(text, (list, tuple)) and len(text) > 1
            if many and self.tokenizer.pad_token is None:
                self.tokenizer.pad_token = self.tokenizer.eos_token
            plain = {"add_special_tokens": False, "split_special_tokens": True}
            settings = {"return_tensors": "pt", "padding": many, "padding_side": "right", **plain, **kwargs}
            encoded = self.tokenizer(text, **settings)
            found |= {key: encoded[key] for key in ("input_ids", "attention_mask") if key in encoded}
        if audio is not None:
            if self.speech is None:
                raise ValueError("the model was exported without a speech tokenizer, so audio cannot be read")
            if sampling_rate != self.speech.sample_rate:
                raise ValueError(
                    f"sampling_rate is {sampling_rate}; resample the audio to {self.speech.sample_rate} and say so"
                )
            found["units"], found["run_lengths"] = collapse(self.speech.encode(audio))
        return BatchFeature(found)

    def decode(self, *args: Any, **kwargs: Any) -> str:
        """Text of ids; special tokens are left out."""
        text: str = self.tokenizer.decode(*args, **{"skip_special_tokens": True, **kwargs})
        return text

    def batch_decode(self, *args: Any, **kwargs: Any) -> list[str]:
        """Texts of rows of ids."""
        texts: list[str] = self.tokenizer.batch_decode(*args, **{"skip_special_tokens": True, **kwargs})
        return texts

    @property
    def spoken_rate(self) -> int | None:
        """Samples per second of `speak`; None if it cannot speak."""
        return None if self.speech is None else self.speech.spoken_rate

    def speak(self, units: Any, run_lengths: Any = None, speaker: Any = None, style: Any = None) -> Tensor:
        """Waveform [samples] float32, within -1 and 1, of units [n, K] as `generate` returns them.

        Args:
            units: repeats collapsed.
            run_lengths: frames that each of them lasts, [n]; as the vocoder predicts them if None.
            speaker: name or number, if the vocoder has several; that of the exported run, or the first, if None.
            style: likewise.

        Raises:
            ValueError: there is no vocoder, it predicts no durations and none are given, or it lacks a unit or voice.
        """
        if self.speech is None:
            raise ValueError("the model was exported without a speech tokenizer, so units cannot be spoken")
        chosen = {"speaker": speaker, "style": style}
        voice = {key: self.voice.get(key) if value is None else value for key, value in chosen.items()}
        return self.speech.speak(units, run_lengths, voice)

    def __repr__(self) -> str:
        kind = None if self.speech is None else self.speech.description["name"]
        return f"SmolTolkProcessor(tokenizer={type(self.tokenizer).__name__}, speech={kind!r})"


def collapse(frames: Tensor) -> tuple[Tensor, Tensor]:
    """Frames [n, K] without repeats, and how often each was repeated."""
    if not len(frames):
        return frames, torch.zeros(0, dtype=torch.int64)
    units, counts = torch.unique_consecutive(frames, dim=0, return_counts=True)
    return units, counts


class SpeechUnits:
    """Units of mono audio, as the speech tokenizer of the training data computes them."""

    def __init__(self, description: Mapping[str, Any], centroids: Tensor | None, source: str, hub: Any) -> None:
        """`source` is the folder or hub id of the exported model."""
        self.description = description
        self.centroids = centroids
        self._source, self._hub = source, hub
        self._model: Any = None
        self.vocoder: Vocoder | None = None

    @classmethod
    def load(cls, name: str, hub: Mapping[str, Any], has_vocoder: bool) -> "SpeechUnits":
        """Read the description, and the centroids and the vocoder where there are some."""
        from safetensors.torch import load_file

        path = Path(cached_file(name, _DESCRIPTION, subfolder=FOLDER, **hub))
        description = json.loads(path.read_text(encoding="utf-8"))
        if description["name"] not in _ENCODERS:
            raise ValueError(f"{path} names the tokenizer {description['name']!r}; known are {sorted(_ENCODERS)}")
        centroids = None
        if description["name"] != "mimi":
            centroids = load_file(cached_file(name, _CENTROIDS, subfolder=FOLDER, **hub))["centroids"]
        units = cls(description, centroids, name, hub)
        if has_vocoder:
            described, stored = (
                Path(cached_file(name, file, subfolder=FOLDER, **hub)) for file in (_VOCODER, _VOCODER_WEIGHTS)
            )
            units.vocoder = Vocoder(json.loads(described.read_text(encoding="utf-8")), load_file(stored))
        return units

    def save(self, folder: Path) -> None:
        """Write the same files; a model in the folder is not copied."""
        from safetensors.torch import save_file

        folder.mkdir(exist_ok=True)
        (folder / _DESCRIPTION).write_text(json.dumps(self.description, indent=2) + "\n", encoding="utf-8")
        if self.centroids is not None:
            save_file({"centroids": self.centroids}, folder / _CENTROIDS)
        if self.vocoder is not None:
            (folder / _VOCODER).write_text(json.dumps(self.vocoder.description, indent=2) + "\n", encoding="utf-8")
            save_file(self.vocoder.weights, folder / _VOCODER_WEIGHTS)

    @property
    def spoken_rate(self) -> int | None:
        """Samples per second of `speak`; None without a vocoder."""
        if self.vocoder is not None:
            return int(self.vocoder.sizes["sample_rate"])
        return self.sample_rate if self.description["name"] == "mimi" else None

    @torch.inference_mode()
    def speak(self, units: Any, run_lengths: Any, voice: Mapping[str, Any]) -> Tensor:
        """See `SmolTolkProcessor.speak`."""
        frames = torch.as_tensor(units, dtype=torch.int64)
        num_units, num_codebooks = (int(self.description[key]) for key in ("num_units", "num_codebooks"))
        if frames.dim() != 2 or frames.shape[1] != num_codebooks:
            raise ValueError(f"units have the shape {tuple(frames.shape)}; expected [n, {num_codebooks}]")
        if self.spoken_rate is None:
            raise ValueError(
                f"the export has no vocoder for units of {self.description['name']}; `tolktrain generate` speaks them"
            )
        if not len(frames):
            return torch.zeros(0)
        if int(frames.min()) < 0 or int(frames.max()) >= num_units:
            raise ValueError(f"units from {int(frames.min())} to {int(frames.max())}; expected 0 to {num_units - 1}")
        if run_lengths is None:
            if self.vocoder is None or self.vocoder.sizes["duration_channels"] is None:
                raise ValueError("this vocoder predicts no durations; give run_lengths, the frames of each unit")
            run_lengths = self.vocoder.durations(frames[:, 0])
        whole = frames.repeat_interleave(torch.as_tensor(run_lengths, dtype=torch.int64), dim=0)
        if self.vocoder is not None:
            return self.vocoder.waveform(whole[:, 0], voice)
        return self.model("MimiModel").decode(whole.T[None], return_dict=True).audio_values[0, 0].clamp(-1, 1)

    @property
    def sample_rate(self) -> int:
        """Samples per second."""
        description = self.description
        return int(description.get("sample_rate") or description.get("analysis", {}).get("sample_rate") or 16_000)

    @torch.inference_mode()
    def encode(self, audio: Any) -> Tensor:
        """Units int64 [frames, K] of a waveform [n]. Raises ValueError if it is not one channel of samples."""
        samples = np.asarray(audio, dtype=np.float32)
        if samples.ndim != 1:
            raise ValueError(f"audio has the shape {samples.shape}; expected mono samples [n]")
        return _ENCODERS[self.description["name"]](self, samples)

    def nearest(self, frames: Tensor) -> Tensor:
        """Nearest centroid of each frame [n, dim], in double precision: [n, 1]."""
        assert self.centroids is not None
        columns = self.centroids.double().T
        return ((columns**2).sum(dim=0) - 2 * frames.double() @ columns).argmin(dim=1, keepdim=True)

    def model(self, kind: str) -> Any:
        """The pretrained model that the description names, in float32."""
        if self._model is None:
            import transformers

            named = self.description["model"]
            inside = named["path"].startswith("./")  # in the folder of the speech tokenizer
            place = {"subfolder": f"{FOLDER}/{named['path'][2:]}"} if inside else {"revision": named.get("revision")}
            name = self._source if inside else named["path"]
            hub = {key: value for key, value in self._hub.items() if inside or key != "revision"}
            settings = {"dtype": torch.float32, "attn_implementation": "sdpa", **hub, **place}
            self._model = getattr(transformers, kind).from_pretrained(name, **settings).float().eval()
        return self._model


class Vocoder:
    """A unit HiFi-GAN (arXiv 2010.05646, 2104.00355), with durations (arXiv 2107.05604), in one pass."""

    def __init__(self, description: Mapping[str, Any], weights: dict[str, Tensor]) -> None:
        """Of the files in `speech_tokenizer/`."""
        self.description = description
        self.weights = weights
        self.sizes: Mapping[str, Any] = description["sizes"]

    def durations(self, units: Tensor) -> Tensor:
        """Frames of units [n], of which none repeats: [n], at least one."""
        hidden = self.weights["dict.weight"][units].T
        for number in "12":
            hidden = self._convolved(hidden, f"dur_predictor.conv{number}.0").relu()
            weight, bias = (self.weights[f"dur_predictor.ln{number}.{part}"] for part in ("weight", "bias"))
            hidden = functional.layer_norm(hidden.T, (hidden.shape[0],), weight, bias).T
        logs = functional.linear(hidden.T, *(self.weights[f"dur_predictor.proj.{part}"] for part in ("weight", "bias")))
        return (logs[:, 0].exp() - 1).round().clamp(min=1).long()

    def waveform(self, units: Tensor, voice: Mapping[str, Any]) -> Tensor:
        """Samples [T * hop] of units [T], one for each frame."""
        sizes, weights = self.sizes, self.weights
        parts = [weights["dict.weight"][units]]
        for kind, table, names in (("speaker", "spkr", "speakers"), ("style", "style", "styles")):
            number = _choose(kind, voice.get(kind), sizes[f"num_{names}"], self.description[names])
            if number is not None:
                parts.append(weights[f"{table}.weight"][number].expand(len(units), -1))
        hidden = self._convolved(torch.cat(parts, dim=1).T, "conv_pre")
        kinds = list(zip(sizes["resblock_kernel_sizes"], sizes["resblock_dilation_sizes"], strict=True))
        pairs = zip(sizes["upsample_rates"], sizes["upsample_kernel_sizes"], strict=True)
        for stage, (rate, kernel) in enumerate(pairs):
            kept = weights[f"ups.{stage}.weight"], weights[f"ups.{stage}.bias"]
            hidden = functional.conv_transpose1d(_leaky(hidden), *kept, stride=rate, padding=(kernel - rate) // 2)
            mixed = []
            for place, (_, dilations) in enumerate(kinds):
                block = hidden
                for pair, dilation in enumerate(dilations):
                    name = f"resblocks.{stage * len(kinds) + place}"
                    inner = self._convolved(_leaky(block), f"{name}.convs1.{pair}", dilation)
                    block = block + self._convolved(_leaky(inner), f"{name}.convs2.{pair}")
                mixed.append(block)
            hidden = torch.stack(mixed).mean(dim=0)
        samples = torch.tanh(self._convolved(functional.leaky_relu(hidden), "conv_post"))
        return samples[0, : len(units) * int(np.prod(sizes["upsample_rates"]))]

    def _convolved(self, hidden: Tensor, name: str, dilation: int = 1) -> Tensor:
        weight = self.weights[f"{name}.weight"]
        padding = (weight.shape[-1] - 1) // 2 * dilation
        return functional.conv1d(hidden, weight, self.weights[f"{name}.bias"], padding=padding, dilation=dilation)


def _leaky(hidden: Tensor) -> Tensor:
    return functional.leaky_relu(hidden, 0.1)


def _choose(kind: str, chosen: Any, count: int | None, names: Sequence[str]) -> int | None:
    """The number of a speaker or style; None if the vocoder has no choice."""
    if count is None:
        if chosen is not None:
            raise ValueError(f"the vocoder has no {kind} to choose")
        return None
    if chosen is None:
        return 0
    if str(chosen) in names:
        return list(names).index(str(chosen))
    if str(chosen).isdecimal() and int(chosen) < count:
        return int(chosen)
    known = f"; known are {', '.join(names)}" if names else ""
    raise ValueError(f"the vocoder has {count} {kind}s, and {chosen!r} is none of them{known}")


def _log_mel(units: SpeechUnits, samples: Samples) -> Tensor:
    """Log power in mel bands of windows in the middle of each hop, rounded to 0.01."""
    from transformers.audio_utils import mel_filter_bank

    analysis = units.description["analysis"]
    rate, hop, window = (int(analysis[key]) for key in ("sample_rate", "hop", "window"))
    bands = mel_filter_bank(
        window // 2 + 1, int(analysis["num_mels"]), 0.0, rate / 2, rate, norm="slaney", mel_scale="slaney"
    )
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(window) / window)
    count = -(-len(samples) // hop)
    before = max(0, (window - hop) // 2)
    padded = np.zeros(before + count * hop + window)
    padded[before : before + len(samples)] = samples
    begin = before + (hop - window) // 2
    found = [torch.zeros(0, 1, dtype=torch.int64)]
    for first in range(0, count, _BLOCK):
        last = min(count, first + _BLOCK)
        part = padded[begin + first * hop : begin + (last - 1) * hop + window]
        frames = np.lib.stride_tricks.sliding_window_view(part, window)[::hop]
        power = np.abs(np.fft.rfft(frames * hann, axis=1)) ** 2
        features = np.log(np.maximum(power @ bands, analysis["floor"])).round(2).astype(np.float32)
        found.append(units.nearest(torch.from_numpy(features)))
    return torch.cat(found)


def _hubert(units: SpeechUnits, samples: Samples) -> Tensor:
    """Nearest centroids of the output of a layer."""
    model, settings = units.model("HubertModel"), units.description["frames"]
    config, layer = model.config, int(settings["layer"])
    if layer < len(model.encoder.layers):
        del model.encoder.layers[layer:]
        if config.do_stable_layer_norm:  # of the output of the last layer
            model.encoder.layer_norm = torch.nn.Identity()
    mean, deviation = 0.0, 1.0
    if settings["normalize"] and len(samples):
        exact = samples.astype(np.float64)
        mean, deviation = float(samples.mean(dtype=np.float64)), float(np.sqrt(exact.var() + 1e-7))
    hop, field = 1, 1
    for kernel, stride in zip(config.conv_kernel, config.conv_stride, strict=True):
        field, hop = field + (kernel - 1) * hop, hop * stride

    def run(piece: Samples) -> Tensor:
        scaled = torch.from_numpy(((piece - mean) / deviation).astype(np.float32))
        convolved = model.feature_extractor(scaled[None]).transpose(1, 2)
        return units.nearest(model.encoder(model.feature_projection(convolved)).last_hidden_state[0])

    count = max(0, (len(samples) - field) // hop + 1)
    return _windowed(units, samples, count, hop, field, settings, run)


def _mimi(units: SpeechUnits, samples: Samples) -> Tensor:
    """The first codebooks of Mimi, whose attention is kept to its window."""
    if units._model is None:
        names = ("encoder_transformer", "decoder_transformer")
        for name, part in units.model("MimiModel").named_modules():
            if name.split(".")[-1] in names:
                part.register_forward_pre_hook(_keep_to_window, with_kwargs=True)
    model, num_codebooks = units.model("MimiModel"), int(units.description["num_codebooks"])
    hop = round(units.sample_rate / units.description["frames_per_second"])
    whole = np.pad(samples, (0, -len(samples) % hop))

    def run(piece: Samples) -> Tensor:
        codes = model.encode(torch.from_numpy(piece)[None, None], num_quantizers=num_codebooks, return_dict=True)
        frames: Tensor = codes.audio_codes[0].T
        return frames

    return _windowed(units, whole, len(whole) // hop, hop, hop, units.description["windows"], run)


def _keep_to_window(transformer: Any, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
    hidden = arguments[0] if arguments else keywords["hidden_states"]
    steps = torch.arange(hidden.shape[1], device=hidden.device)
    back = steps[:, None] - steps
    mask = torch.zeros(back.shape, device=hidden.device, dtype=hidden.dtype)
    mask.masked_fill_((back < 0) | (back >= transformer.config.sliding_window), torch.finfo(hidden.dtype).min)
    return arguments, {**keywords, "attention_mask": mask[None, None]}


def _windowed(
    units: SpeechUnits,
    samples: Samples,
    count: int,
    hop: int,
    field: int,
    settings: Mapping[str, Any],
    run: Callable[[Samples], Tensor],
) -> Tensor:
    """Units of `count` frames in windows that overlap; each gives the half of the overlap that is far from its edge."""
    nothing = torch.zeros(0, int(units.description["num_codebooks"]), dtype=torch.int64)
    rate = float(units.description["frames_per_second"])
    length, shared = round(settings["window_seconds"] * rate), round(settings["overlap_seconds"] * rate)
    if count <= length:
        return run(samples)[:count] if count else nothing
    starts = [*range(0, count - length, length - shared), count - length]
    edges = [0, *((b + a + length) // 2 for a, b in zip(starts, starts[1:], strict=False)), count]
    parts = []
    for i, start in enumerate(starts):
        piece = samples[start * hop : (start + length - 1) * hop + field]
        parts.append(run(piece)[edges[i] - start : edges[i + 1] - start])
    return torch.cat(parts)


_ENCODERS: Mapping[str, Callable[[SpeechUnits, Samples], Tensor]] = {
    "logmel-kmeans": _log_mel,
    "hubert-kmeans": _hubert,
    "mimi": _mimi,
}
