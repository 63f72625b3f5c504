"""Settings of the row kernels that a GPU has to choose between, and what can be said of them without one.

`python -m tolktrain_kernels.bench --candidates` prints them; `--tune` measures them (`tune_rows`).
"""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
import triton

from tolktrain_kernels import cross_entropy_triton, elementwise_triton
from tolktrain_kernels.bench.elementwise import FFN_WIDTHS, HIDDEN_WIDTHS
from tolktrain_kernels.compilation import Build, Usage, compile_for
from tolktrain_kernels.cross_entropy_builds import loss_build
from tolktrain_kernels.cross_entropy_triton import Setting as LossSetting
from tolktrain_kernels.elementwise_builds import gate_builds, norm_builds
from tolktrain_kernels.elementwise_triton import Setting

# A multiprocessor of Hopper (compute capability 9.0; CUDA programming guide, table of technical specifications).
ARCHITECTURE = 90
_REGISTERS, _WARPS, _PROGRAMS, _SHARED = 64 * 1024, 64, 32, 227 * 1024
NUM_SMS, L2_BYTES = 132, 50 * 2**20  # of an H100 SXM
_LANES = 32
_ELEMENT_BYTES = 2  # bf16
TEXT_VOCABULARY = 49152


@dataclass(frozen=True)
class Family:
    """A kernel with a table of settings, and the settings to try."""

    name: str
    key: int  # width or vocabulary
    table: dict[int, Any]  # where a setting of `key` takes effect
    present: Any  # without an entry
    settings: tuple[Any, ...]
    build: Callable[[], Build]  # with the setting that is in the table


@dataclass(frozen=True)
class Inspected:
    """A setting, compiled for an H100."""

    setting: Any
    usage: Usage
    resident_warps: int  # of `_WARPS` on a multiprocessor
    masked: float  # share of the lanes of a row that have no element
    loaded_bytes: int  # that the resident programs of a multiprocessor ask for before they need any
    row_bytes: int  # of all rows at work on the GPU


def families() -> list[Family]:
    """Norm forward and backward and gated activation at the models' widths, and the loss of the text head."""
    found = []
    for width in HIDDEN_WIDTHS:
        found.append(_norm(width, 0, elementwise_triton.NORM_SETTINGS, _norm_settings(width)))
        found.append(_norm(width, 1, elementwise_triton.NORM_BACKWARD_SETTINGS, _norm_backward_settings(width)))
    for width in FFN_WIDTHS:
        found += [_gate(width, direction) for direction in (0, 1)]
    found.append(
        Family(
            "loss and gradient",
            TEXT_VOCABULARY,
            cross_entropy_triton.BLOCKS,
            cross_entropy_triton.choose_setting(TEXT_VOCABULARY, may_keep=True),
            tuple(
                LossSetting(block, warps, keeps)
                for keeps, block, warps in itertools.product((False, True), (2048, 4096, 8192, 16384), (4, 8, 16, 32))
                if 8 <= block // (_LANES * warps) <= 32
            ),
            lambda: loss_build(TEXT_VOCABULARY, "bf16", derives=True),
        )
    )
    return found


def inspect(family: Family, setting: Any, architecture: int = ARCHITECTURE) -> Inspected | None:
    """What compilation says of a setting; None if a program spills registers or does not fit."""
    with mock.patch.dict(family.table, {family.key: setting}):
        build = family.build()
        usage = compile_for(build, architecture)
    registers = -(-usage.registers // 8) * 8 * _LANES * build.num_warps
    programs = min(_REGISTERS // registers, _WARPS // build.num_warps, _PROGRAMS)
    if usage.shared_bytes:
        programs = min(programs, _SHARED // (usage.shared_bytes + 1024))  # a kilobyte of each is the driver's
    if usage.stack_bytes or not programs:
        return None
    if isinstance(setting, Setting):
        wanted = setting.programs_per_sm if family.name == "norm backward" else programs
        if wanted > programs:
            return None
        width = setting.block_width
        masked = 1 - family.key / (width * -(-family.key // width))
        # Of the norm: states and update, or with the gradients three tensors in each stage; of the gate: gate and up.
        tensors = {"norm forward": 2, "norm backward": 3 * (setting.stages - 1), "gate forward": 2, "gate backward": 3}
        row = _ELEMENT_BYTES * min(width, family.key) * setting.block_rows
        return Inspected(setting, usage, wanted * build.num_warps, masked, wanted * tensors[family.name] * row, 0)
    rows = programs * NUM_SMS * family.key * _ELEMENT_BYTES
    masked = 1 - family.key / (setting.block * -(-family.key // setting.block))
    loaded = programs * (family.key if setting.keeps else setting.block) * _ELEMENT_BYTES
    return Inspected(setting, usage, programs * build.num_warps, masked, loaded, rows)


def table(keys: tuple[int, ...] = ()) -> Iterator[str]:
    """Markdown: every setting that can run, the present one first; with `keys`, of these widths only."""
    yield "| kernel | width | setting | registers | warps of 64 | masked lanes | KB asked for | MB at work |"
    yield "|---|---:|---|---:|---:|---:|---:|---:|"
    for family in families():
        if keys and family.key not in keys:
            continue
        for setting in dict.fromkeys((family.present, *family.settings)):
            found = inspect(family, setting)
            if found is None:
                continue
            rows = f"{found.row_bytes / 2**20:.0f}" if found.row_bytes else ""
            label = f"{describe(setting)}{', at present' if setting == family.present else ''}"
            yield (
                f"| {family.name} | {family.key} | {label} | {found.usage.registers} | {found.resident_warps}"
                f" | {100 * found.masked:.0f} % | {found.loaded_bytes / 1024:.0f} | {rows} |"
            )


def describe(setting: Any) -> str:
    """A setting in words."""
    if not isinstance(setting, Setting):
        return f"{'kept ' if setting.keeps else ''}blocks of {setting.block}, {setting.num_warps} warps"
    tile = f"{setting.block_rows} x {setting.block_width}, {setting.num_warps} warps"
    return f"{tile}, {setting.programs_per_sm} programs, {setting.stages} stages" if setting.programs_per_sm else tile


def _norm(width: int, direction: int, table: dict[int, Setting], settings: tuple[Setting, ...]) -> Family:
    name = ("norm forward", "norm backward")[direction]
    present = elementwise_triton.norm_setting(width, table)
    if not direction:
        present = Setting(present.block_rows, present.block_width, present.num_warps)
    return Family(
        name, width, table, present, settings, lambda: norm_builds(width, torch.bfloat16, residual=True)[direction]
    )


def _norm_settings(width: int) -> tuple[Setting, ...]:
    """More rows in a program fill the lanes that a short row leaves masked with other rows' loads."""
    block = triton.next_power_of_2(width)
    return tuple(
        Setting(rows, block, warps)
        for rows, warps in itertools.product((1, 2, 4), (1, 2, 4, 8))
        if 8 <= rows * block // (_LANES * warps) <= 32
    )


def _norm_backward_settings(width: int) -> tuple[Setting, ...]:
    block = triton.next_power_of_2(width)
    return tuple(
        Setting(rows, block, warps, programs_per_sm=resident // warps, stages=stages)
        for rows, warps, resident, stages in itertools.product((1, 2), (2, 4, 8), (16, 24), (2, 3, 4))
        if 8 <= rows * block // (_LANES * warps) <= 16 and resident >= warps
    )


def _gate(width: int, direction: int) -> Family:
    return Family(
        ("gate forward", "gate backward")[direction],
        width,
        elementwise_triton.GATE_SETTINGS,
        elementwise_triton.gate_setting(width),
        tuple(
            Setting(tile // block, block, warps)
            for tile, block, warps in itertools.product((1024, 2048, 4096), (256, 512, 1024), (2, 4, 8))
            if 8 <= tile // (_LANES * warps) <= 16 and width % block == 0
        ),
        lambda: gate_builds(width, torch.bfloat16)[direction],
    )
