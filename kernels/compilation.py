"""Compiles kernels for GPUs that are not present, and reads the resources that they need."""

import functools
import re
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ARCHITECTURES = (80, 90, 100)  # compute capability: A100; H100 and H200; B200


@dataclass(frozen=True)
class Usage:
    """The resources of one program."""

    registers: int  # of each thread
    stack_bytes: int  # of each thread; more than none means spilled registers
    shared_bytes: int


@dataclass(frozen=True)
class Build:
    """A kernel with everything that determines its machine code.

    Arguments: Triton's type of each argument that has a value ("*bf16" are addresses of bf16, aligned to 16 bytes);
    arguments that are in neither `types` nor `constants` are None.
    """

    name: str
    kernel: Any  # triton.runtime.JITFunction
    types: Mapping[str, str]
    constants: Mapping[str, int | str]
    num_warps: int


def missing_tool() -> str | None:
    """Name of the first tool without which nothing can be compiled and read, if one is missing."""
    try:
        tools = _tools()
    except ModuleNotFoundError:
        return "triton"
    return next((name for name in ("ptxas", "cuobjdump") if not (tools / name).exists()), None)


def compile_for(build: Build, architecture: int) -> Usage:
    """Compile a kernel for a compute capability (90: sm_90), and read its resources from the machine code."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = build.kernel.arg_names
    constants = {name: None for name in names if name not in build.types} | dict(build.constants)
    source = ASTSource(
        build.kernel,
        {name: build.types.get(name, "constexpr") for name in names},
        constants,
        {(names.index(name),): [["tt.divisibility", 16]] for name, type_ in build.types.items() if type_[0] == "*"},
    )
    compiled = triton.compile(
        source,
        target=GPUTarget("cuda", architecture, 32),
        options={"num_warps": build.num_warps, "enable_fp_fusion": True},
    )
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        command = [str(_tools() / "cuobjdump"), "--dump-resource-usage", file.name]
        report = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+)", report)
    assert found, report
    return Usage(int(found[1]), int(found[2]), compiled.metadata.shared)


@functools.cache
def _tools() -> Path:
    import triton

    return Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
