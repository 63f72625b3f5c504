"""A unit HiFi-GAN written from its definition with PyTorch's own weight normalization, and its files as published."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, weight_norm

CONFIG: dict[str, Any] = {
    "resblock": "1",
    "upsample_rates": [8, 5, 4, 4],
    "upsample_kernel_sizes": [16, 11, 8, 8],
    "upsample_initial_channel": 32,
    "resblock_kernel_sizes": [3, 7, 11],
    "resblock_dilation_sizes": [[1, 3, 5], [1, 3, 5], [1, 3, 5]],
    "num_embeddings": 500,
    "embedding_dim": 12,
    "model_in_dim": 12,
    "code_hop_size": 640,
    "sampling_rate": 16000,
    "dur_predictor_params": {
        "encoder_embed_dim": 12,
        "var_pred_hidden_dim": 10,
        "var_pred_kernel_size": 3,
        "var_pred_dropout": 0.5,
    },
    "learning_rate": 0.0002,
    "f0": None,
    "multispkr": None,
}
SEVERAL = {"multispkr": "from_manifest", "num_speakers": 3, "multistyle": True, "num_styles": 2, "model_in_dim": 36}


class Twin(nn.Module):
    """Generator, in the order of the definition and with its names."""

    def __init__(self, config: dict[str, Any], norm: Any = weight_norm) -> None:
        super().__init__()
        self.config = config
        width = config["upsample_initial_channel"]
        self.dict = nn.Embedding(config["num_embeddings"], config["embedding_dim"])
        if config.get("multispkr"):
            self.spkr = nn.Embedding(config.get("num_speakers", 200), config["embedding_dim"])
        if config.get("multistyle"):
            self.style = nn.Embedding(config.get("num_styles", 100), config["embedding_dim"])
        if config.get("dur_predictor_params"):
            self.dur_predictor = TwinDurations(**config["dur_predictor_params"])
        self.conv_pre = norm(nn.Conv1d(config["model_in_dim"], width, 7, 1, 3))
        self.ups, self.resblocks = nn.ModuleList(), nn.ModuleList()
        for rate, kernel in zip(config["upsample_rates"], config["upsample_kernel_sizes"], strict=True):
            self.ups.append(norm(nn.ConvTranspose1d(width, width // 2, kernel, rate, (kernel - rate) // 2)))
            width //= 2
            for size, dilations in zip(config["resblock_kernel_sizes"], config["resblock_dilation_sizes"], strict=True):
                block = nn.Module()
                block.convs1 = nn.ModuleList(
                    norm(nn.Conv1d(width, width, size, padding="same", dilation=dilation)) for dilation in dilations
                )
                block.convs2 = nn.ModuleList(norm(nn.Conv1d(width, width, size, padding="same")) for _ in dilations)
                self.resblocks.append(block)
        self.conv_post = norm(nn.Conv1d(width, 1, 7, 1, 3))

    def forward(self, code: list[int], speaker: int, style: int, predict: bool) -> Tensor:
        """Waveform of one sequence of units."""
        x = self.dict(torch.tensor([code])).transpose(1, 2)
        if predict:
            x = torch.repeat_interleave(x, self.durations(code), dim=2)
        for name, number in (("spkr", speaker), ("style", style)):
            if hasattr(self, name):
                extra = getattr(self, name)(torch.tensor([[number]])).transpose(1, 2)
                x = torch.cat([x, extra.repeat(1, 1, x.shape[2])], dim=1)
        x = self.conv_pre(x)
        kernels = len(self.config["resblock_kernel_sizes"])
        for i, up in enumerate(self.ups):
            x = up(torch.where(x > 0, x, 0.1 * x))
            total = torch.zeros_like(x)
            for block in self.resblocks[i * kernels : (i + 1) * kernels]:
                y = x
                for first, second in zip(block.convs1, block.convs2, strict=True):
                    y = y + second(F.leaky_relu(first(F.leaky_relu(y, 0.1)), 0.1))
                total = total + y
            x = total / kernels
        return torch.tanh(self.conv_post(torch.where(x > 0, x, 0.01 * x))).flatten()

    def durations(self, code: list[int]) -> Tensor:
        """Frames of each unit."""
        logs = self.dur_predictor(self.dict(torch.tensor([code])))[0]
        return torch.clamp(torch.round(torch.exp(logs) - 1).long(), min=1)


class TwinDurations(nn.Module):
    """Predicts the log of the frames and one more."""

    def __init__(
        self, encoder_embed_dim: int, var_pred_hidden_dim: int, var_pred_kernel_size: int, var_pred_dropout: float
    ) -> None:
        super().__init__()
        hidden, padding = var_pred_hidden_dim, (var_pred_kernel_size - 1) // 2
        self.conv1 = nn.Sequential(
            nn.Conv1d(encoder_embed_dim, hidden, var_pred_kernel_size, padding=padding), nn.ReLU()
        )
        self.ln1 = nn.LayerNorm(hidden)
        self.conv2 = nn.Sequential(nn.Conv1d(hidden, hidden, var_pred_kernel_size, padding=1), nn.ReLU())
        self.ln2 = nn.LayerNorm(hidden)
        self.proj = nn.Linear(hidden, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.ln1(self.conv1(x.mT).mT)
        return self.proj(self.ln2(self.conv2(x.mT).mT))[..., 0]


def make_twin(seed: int = 0, new_norm: bool = False, **changes: Any) -> Twin:
    """A twin with random weights, loud enough to differ from silence; some durations exceed a frame."""
    torch.manual_seed(seed)
    twin = Twin(CONFIG | changes, parametrizations.weight_norm if new_norm else weight_norm)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in sorted(twin.named_parameters()):
            if name.endswith(("weight_g", "original0")):
                loud = 0.2 if name.startswith("conv_post") else 2.0 if name.startswith(("ups", "conv_pre")) else 0.6
                tensor.copy_(loud * (torch.rand(tensor.shape, generator=generator) + 0.5))
            elif not name.startswith("dur_predictor"):
                tensor.normal_(std=0.02 if name.endswith("bias") else 1.0, generator=generator)
            elif name.endswith("proj.weight"):
                tensor.normal_(std=0.3, generator=generator)
            elif name.endswith("proj.bias"):
                tensor.fill_(0.9)
    return twin.eval()


def save_published(folder: Path, twin: Twin, **others: Any) -> tuple[Path, Path]:
    """The files of a twin as they are published: checkpoint and configuration."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.save({"generator": twin.state_dict(), **others}, folder / "generator.pt")
    (folder / "config.json").write_text(json.dumps(twin.config))
    return folder / "generator.pt", folder / "config.json"
