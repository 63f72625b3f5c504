"""The generator of a unit HiFi-GAN, without weight normalization: for inference only.

HiFi-GAN (arXiv 2010.05646) over embeddings of units, speaker and style, with a predictor of durations. Parameters have
the names that published checkpoints give them.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tolktrain.units.vocoders.hifigan_config import DURATION_KERNEL, EDGE_KERNEL, HiFiGanSizes

_SLOPE = 0.1  # of leaky ReLU; before the last convolution it is PyTorch's own, 0.01


class UnitHiFiGan(nn.Module):
    """Waveform of units, and durations of units."""

    def __init__(self, sizes: HiFiGanSizes) -> None:
        """A generator with random weights."""
        super().__init__()
        self._hop = sizes.hop
        self.dict = nn.Embedding(sizes.num_units, sizes.embedding_dim)
        self.spkr = _optional_embedding(sizes.num_speakers, sizes.embedding_dim)
        self.style = _optional_embedding(sizes.num_styles, sizes.embedding_dim)
        self.dur_predictor: _DurationPredictor | None = None
        if sizes.duration_channels is not None:
            self.dur_predictor = _DurationPredictor(sizes.embedding_dim, sizes.duration_channels)
        self.conv_pre = nn.Conv1d(sizes.input_channels, sizes.channels, EDGE_KERNEL, padding=EDGE_KERNEL // 2)
        self.ups, self.resblocks = nn.ModuleList(), nn.ModuleList()
        channels = sizes.channels
        for rate, kernel in zip(sizes.upsample_rates, sizes.upsample_kernel_sizes, strict=True):
            padding = (kernel - rate) // 2
            self.ups.append(nn.ConvTranspose1d(channels, channels // 2, kernel, rate, padding=padding))
            channels //= 2
            for size, dilations in zip(sizes.resblock_kernel_sizes, sizes.resblock_dilation_sizes, strict=True):
                self.resblocks.append(_ResidualBlock(channels, size, dilations))
        self.conv_post = nn.Conv1d(channels, 1, EDGE_KERNEL, padding=EDGE_KERNEL // 2)

    def forward(self, units: Tensor, speaker: int = 0, style: int = 0) -> Tensor:
        """Waveform [T * hop] within -1 and 1 of units [T], one for each frame.

        Upsampling whose kernel exceeds its rate by an odd number adds a sample at the end; these are left out.
        """
        parts = [self.dict(units)]
        for table, number in ((self.spkr, speaker), (self.style, style)):
            if table is not None:
                parts.append(table.weight[number].expand(len(units), -1))
        hidden: Tensor = self.conv_pre(torch.cat(parts, dim=1).T)
        for stage, upsample in enumerate(self.ups):
            hidden = upsample(F.leaky_relu(hidden, _SLOPE))
            count = len(self.resblocks) // len(self.ups)
            blocks = self.resblocks[stage * count : (stage + 1) * count]
            total = blocks[0](hidden)
            for block in blocks[1:]:
                total += block(hidden)
            hidden = total / count
        return torch.tanh(self.conv_post(F.leaky_relu(hidden)))[0, : len(units) * self._hop]

    def log_durations(self, units: Tensor) -> Tensor:
        """What the duration predictor gives for units [n], of which none repeats: the log of frames + 1, [n]."""
        assert self.dur_predictor is not None
        predicted: Tensor = self.dur_predictor(self.dict(units))
        return predicted


class _ResidualBlock(nn.Module):
    """Pairs of a dilated and a plain convolution, each with a skip."""

    def __init__(self, channels: int, kernel: int, dilations: tuple[int, ...]) -> None:
        super().__init__()
        self.convs1 = nn.ModuleList(
            nn.Conv1d(channels, channels, kernel, dilation=dilation, padding=(kernel - 1) // 2 * dilation)
            for dilation in dilations
        )
        self.convs2 = nn.ModuleList(nn.Conv1d(channels, channels, kernel, padding=(kernel - 1) // 2) for _ in dilations)

    def forward(self, hidden: Tensor) -> Tensor:
        """[channels, T] to [channels, T]."""
        for dilated, plain in zip(self.convs1, self.convs2, strict=True):
            hidden = hidden + plain(F.leaky_relu(dilated(F.leaky_relu(hidden, _SLOPE)), _SLOPE))
        return hidden


class _DurationPredictor(nn.Module):
    """Two convolutions over units, each followed by ReLU and layer norm (FastSpeech 2, arXiv 2006.04558)."""

    def __init__(self, embedding_dim: int, channels: int) -> None:
        super().__init__()
        padding = DURATION_KERNEL // 2
        # Sequential, because the convolutions are called conv1.0 and conv2.0 in checkpoints.
        self.conv1 = nn.Sequential(nn.Conv1d(embedding_dim, channels, DURATION_KERNEL, padding=padding), nn.ReLU())
        self.ln1 = nn.LayerNorm(channels)
        self.conv2 = nn.Sequential(nn.Conv1d(channels, channels, DURATION_KERNEL, padding=padding), nn.ReLU())
        self.ln2 = nn.LayerNorm(channels)
        self.proj = nn.Linear(channels, 1)

    def forward(self, embeddings: Tensor) -> Tensor:
        """[n, embedding_dim] to [n]."""
        hidden = self.ln1(self.conv1(embeddings.T).T)
        hidden = self.ln2(self.conv2(hidden.T).T)
        predicted: Tensor = self.proj(hidden)
        return predicted[:, 0]


def _optional_embedding(count: int | None, dim: int) -> nn.Embedding | None:
    return None if count is None else nn.Embedding(count, dim)
