"""Builds the stub libraries with gcc, against the headers and libraries of the installed CUDA wheels."""

import hashlib
import importlib.metadata
import importlib.util
import os
import re
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

SOURCES = Path(__file__).parent / "csrc"
_FLAGS = ("-O1", "-fPIC", "-fno-builtin", "-w")  # warnings depend on the version of gcc


@dataclass(frozen=True)
class _Wheels:
    """Where the CUDA wheels of the environment have their files."""

    cuda: Path  # with include/ and lib/
    nccl: Path
    cudnn: Path
    triton: Path  # headers that the CUDA wheels lack

    @property
    def libraries(self) -> dict[str, Path]:
        """The real libraries that are replaced, by the name of our source."""
        found = {name: _only(self.cuda / "lib", f"lib{stem}.so.*") for name, stem in _OF_CUDA.items()}
        return {**found, "nccl": self.nccl / "lib/libnccl.so.2", "cudnn": _only(self.cudnn / "lib", "libcudnn.so.*")}

    @property
    def includes(self) -> list[str]:
        """Options of the compiler."""
        folders = (self.cuda / "include", self.nccl / "include", self.cudnn / "include", self.triton)
        return [f"-I{folder}" for folder in folders]


_OF_CUDA = {"runtime": "cudart", "cublas": "cublas", "cublaslt": "cublasLt"}
_NVML = "libnvidia-ml.so.1"  # a library of the driver, as libcuda is


class Unavailable(Exception):
    """Why the null GPU cannot be built here."""


def environment(folder: Path, exchange: Path, gpus: int = 1, memory_gib: float = 79.2) -> dict[str, str]:
    """The variables with which a process runs on null GPUs.

    Args:
        folder: from `build`.
        exchange: an empty folder that all ranks of a job share.
        gpus: that are visible.
        memory_gib: of each.
    """
    names = ["libnullgpu.so", "libcuda.so.1", *(path.name for path in _wheels().libraries.values())]
    return {
        # torch finds its libraries through paths in its own files: only what is loaded already comes before them.
        "LD_PRELOAD": ":".join(str(folder / name) for name in names),
        "LD_LIBRARY_PATH": str(folder),
        "TRITON_LIBCUDA_PATH": str(folder),
        "NULLGPU_LIBRARY": str(folder / "libnullgpu.so"),
        "NULLGPU_EXCHANGE": str(exchange),
        "NULLGPU_FAULTS": str(exchange / "faults"),
        "NULLGPU_COUNT": str(gpus),
        "NULLGPU_MEMORY_GIB": str(memory_gib),
        "CUDA_VISIBLE_DEVICES": ",".join(map(str, range(gpus))),
    }


def build() -> Path:
    """The folder of the stub libraries; built if it is not there yet.

    Raises:
        Unavailable: gcc, nm, or the CUDA wheels are missing; or another user can write to the folder.
    """
    if missing := [tool for tool in ("gcc", "nm") if shutil.which(tool) is None]:
        raise Unavailable(f"{' and '.join(missing)} is not installed")
    wheels = _wheels()
    folder = Path(tempfile.gettempdir()) / f"tolktrain-nullgpu-{os.getuid()}-{_fingerprint(wheels)}"
    if not folder.is_dir():
        made = Path(tempfile.mkdtemp(dir=folder.parent))
        try:
            _build(wheels, made)
            made.rename(folder)  # one of two that build at once fails here
        except OSError:
            if not folder.is_dir():
                raise
        finally:
            shutil.rmtree(made, ignore_errors=True)
    status = folder.lstat()
    # Its name can be guessed, and processes load what it contains.
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o022:
        raise Unavailable(f"{folder} can be written by others; set TMPDIR to a folder of your own")
    return folder


def _wheels() -> _Wheels:
    spec = {name: importlib.util.find_spec(name) for name in ("torch", "triton")}
    torch, triton = spec["torch"], spec["triton"]
    if torch is None or torch.origin is None or not list((Path(torch.origin).parent / "lib").glob("libtorch_cuda.so")):
        raise Unavailable("torch is no CUDA build")
    if triton is None or triton.origin is None:
        raise Unavailable("Triton is not installed")
    nvidia = Path(torch.origin).parents[1] / "nvidia"
    cuda = next(iter(sorted(nvidia.glob("cu[0-9]*"))), None)
    if cuda is None or not (cuda / "include/cuda.h").is_file():
        raise Unavailable(f"{nvidia} has no CUDA headers; the wheels of CUDA 13 have them")
    headers = Path(triton.origin).parent / "backends/nvidia/include"
    return _Wheels(cuda, nvidia / "nccl", nvidia / "cudnn", headers)


def _only(folder: Path, pattern: str) -> Path:
    found = sorted(folder.glob(pattern))
    if len(found) != 1:
        raise Unavailable(f"{folder} has {len(found)} files {pattern}, not one")
    return found[0]


def _fingerprint(wheels: _Wheels) -> str:
    """Of everything that the libraries depend on."""
    digest = hashlib.sha256(importlib.metadata.version("torch").encode())
    for path in sorted(SOURCES.iterdir()):
        digest.update(path.read_bytes())
    digest.update(Path(__file__).read_bytes())
    for path in wheels.libraries.values():
        digest.update(f"{path} {path.stat().st_size} {path.stat().st_mtime_ns}".encode())
    return digest.hexdigest()[:16]


def _build(wheels: _Wheels, folder: Path) -> None:
    _run(["gcc", *_FLAGS, *wheels.includes, "-shared", SOURCES / "device.c", "-o", folder / "libnullgpu.so", "-ldl"])
    header = (wheels.cuda / "include/cuda.h").read_text(errors="replace")
    driver = set(re.findall(r"CUDAAPI\s+(cu[A-Z]\w+)", header)) | set(
        re.findall(r"#define\s+cu\w+\s+(cu[A-Z]\w+)", header)
    )
    jobs = [("driver", "libcuda.so.1", driver, ""), ("nvml", _NVML, set(), "")]
    for source, real in wheels.libraries.items():
        # torch asks for the versions of these symbols.
        version = real.name if source not in ("nccl",) else ""
        jobs.append((source, real.name, _symbols(real), version))
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda job: _stub(wheels, folder, *job), jobs))
    (folder / "libcuda.so").symlink_to("libcuda.so.1")  # the name that Triton links


def _stub(wheels: _Wheels, folder: Path, source: str, soname: str, symbols: Iterable[str], version: str) -> None:
    """A library with our functions, and one without an effect for every other symbol of the real library."""
    compiled = folder / f"{source}.o"
    flags = [*_FLAGS, *wheels.includes]
    _run(["gcc", *flags, "-c", SOURCES / f"{source}.c", "-o", compiled])
    rest = sorted(set(symbols) - _symbols(compiled))
    generated = folder / f"{source}.rest.c"
    lines = [f'int {name}(void) {{ return null_without_effect("{name}"); }}' for name in rest]
    generated.write_text("\n".join(["int null_without_effect(const char*);", *lines, ""]))
    options = ["-shared", f"-Wl,-soname,{soname}", f"-L{folder}", "-lnullgpu", "-ldl"]
    if version:
        script = folder / f"{source}.map"
        script.write_text(f"{version} {{ global: *; }};\n")
        options.append(f"-Wl,--version-script={script}")
    _run(["gcc", "-O0", "-fPIC", "-fno-builtin", "-w", generated, compiled, "-o", folder / soname, *options])


def _symbols(library: Path) -> set[str]:
    """Functions that a library or object file defines."""
    dynamic = ["-D"] if library.suffix != ".o" else []
    listed = _run(["nm", *dynamic, "--defined-only", library])
    entries = (line.split() for line in listed.splitlines())
    names = (entry[-1].split("@")[0] for entry in entries if len(entry) >= 2 and entry[-2] in "TtWi")
    return {name for name in names if re.fullmatch(r"\w+", name)}


def _run(command: Iterable[str | Path]) -> str:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(map(str, command))}\n{done.stderr}")
    return done.stdout
