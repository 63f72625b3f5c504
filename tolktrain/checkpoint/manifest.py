"""The manifest of a checkpoint: size and SHA-256 of every file, so that damage is found and the damaged file named."""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any

from tolktrain.errors import UserError
from tolktrain.files.names import NameRefusedError, all_inside
from tolktrain.files.reading import TABLE_BYTES, is_count, open_regular, read_json
from tolktrain.files.writing import write_synced

MANIFEST = "manifest.json"
FORMAT_VERSION = 2
_BLOCK_BYTES = 4 * 1024 * 1024
_HASHING_THREADS = 4

FileDigest = dict[str, Any]  # {"size": bytes, "sha256": hexadecimal}


class DamagedCheckpointError(UserError):
    """A checkpoint whose files are not what was written. The message names the file."""


def digest_files(folder: Path, names: Iterable[str]) -> dict[str, FileDigest]:
    """Size and SHA-256 of the files `names`, relative to `folder`."""
    names = list(names)
    with ThreadPoolExecutor(_HASHING_THREADS) as pool:  # hashing releases the interpreter lock
        return dict(zip(names, pool.map(lambda name: _digest(folder / name), names), strict=True))


def write_manifest(folder: Path, files: Mapping[str, FileDigest]) -> None:
    """Write manifest.json for `files`, with its own checksum, so that a damaged manifest is not taken for another
    damaged file."""
    ordered = {name: files[name] for name in sorted(files)}
    content = {"format_version": FORMAT_VERSION, "files": ordered}
    manifest = {**content, "sha256": _checksum(content)}
    write_synced(folder / MANIFEST, json.dumps(manifest, indent=1).encode())


def digest_of(files: Mapping[str, FileDigest]) -> str:
    """SHA-256 that identifies the content of these files."""
    return _checksum(files)


def verify(folder: Path) -> None:
    """Compare every file of the checkpoint `folder` with its manifest.

    Raises DamagedCheckpointError naming the first file that differs, UserError when it is of another format.
    """
    verify_files(folder, read_manifest(folder))


def verify_files(folder: Path, expected: Mapping[str, FileDigest], part: int = 0, num_parts: int = 1) -> None:
    """Compare the files of a checkpoint with the manifest `expected`, or a part of them, so that several ranks can
    share the work.

    Args:
        folder: of the checkpoint.
        expected: of all files.
        part: every `num_parts`-th file from this number on; part 0 also searches for files of other checkpoints.
        num_parts: number of ranks that share the work.

    Raises:
        DamagedCheckpointError: naming the first file that differs.
    """
    # The largest files first, so that each part gets some of every size.
    names = sorted(expected, key=lambda name: (-expected[name]["size"], name))[part::num_parts]
    _check_sizes(folder, {name: expected[name] for name in names})
    try:
        if part == 0:
            _refuse_foreign_tensors(folder, expected)
        found = digest_files(folder, names)
    except OSError as error:  # the disk cannot return what was written
        raise DamagedCheckpointError(f"{folder}: a file cannot be read: {error}") from None
    for name, digest in found.items():
        if digest != expected[name]:
            raise DamagedCheckpointError(
                f"{folder / name}: its content has changed since it was written (SHA-256 differs)"
            )


def _refuse_foreign_tensors(folder: Path, expected: Mapping[str, FileDigest]) -> None:
    """Refuse safetensors files that the manifest does not name: libraries that ignore the manifest would read them."""
    for place, _, names in os.walk(folder):
        for name in names:
            path = Path(place, name)
            if path.suffix == ".safetensors" and path.relative_to(folder).as_posix() not in expected:
                raise DamagedCheckpointError(f"{path}: does not belong to this checkpoint; {MANIFEST} does not name it")


def looks_complete(folder: Path) -> bool:
    """Whether all files of the checkpoint exist in their full size. Faster than `verify`, but misses flipped bits."""
    try:
        _check_sizes(folder, read_manifest(folder))
    except DamagedCheckpointError:
        return False
    return True


def _check_sizes(folder: Path, expected: Mapping[str, FileDigest]) -> None:
    for name, digest in expected.items():
        try:
            size = (folder / name).stat().st_size
        except OSError:
            raise DamagedCheckpointError(f"{folder / name}: the file is missing") from None
        if size != digest["size"]:
            raise DamagedCheckpointError(f"{folder / name}: has {size} bytes, but {digest['size']} were written")


def read_manifest(folder: Path) -> dict[str, FileDigest]:
    """Size and SHA-256 of every file of a checkpoint, by path inside it.

    Raises DamagedCheckpointError when it cannot be read or names a file outside of the folder, UserError when it is of
    another format.
    """
    path = folder / MANIFEST
    try:
        manifest = read_json(path, TABLE_BYTES)
        checksum, version, files = manifest.pop("sha256"), manifest["format_version"], manifest["files"]
        intact = _checksum(manifest) == checksum
    except FileNotFoundError:
        raise DamagedCheckpointError(f"{path}: the file is missing") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedCheckpointError(f"{path}: not a manifest any more ({error})") from None
    if not intact:
        raise DamagedCheckpointError(f"{path}: its content has changed since it was written (SHA-256 differs)")
    if version != FORMAT_VERSION:
        raise UserError(
            f"{path}: checkpoint format {version!r:.80}, but this version of tolktrain reads format {FORMAT_VERSION}"
        )
    return _checked_files(folder, files)


def _checked_files(folder: Path, files: Any) -> dict[str, FileDigest]:
    path = folder / MANIFEST
    if not isinstance(files, dict) or not all(map(_is_digest, files.values())):
        raise DamagedCheckpointError(f"{path}: does not give size and SHA-256 of each file")
    try:
        all_inside(folder, files, path)
    except NameRefusedError as error:
        raise DamagedCheckpointError(str(error)) from None
    folders = {str(parent) for name in files for parent in PurePosixPath(name).parents}
    clash = next((name for name in files if name in folders), None)
    if clash is not None:
        raise DamagedCheckpointError(f"{path}: names {clash} as a file and as a folder")
    return files


def _is_digest(value: object) -> bool:
    return (
        isinstance(value, dict)
        and value.keys() == {"size", "sha256"}
        and is_count(value["size"])
        and isinstance(value["sha256"], str)
    )


def _checksum(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _digest(path: Path) -> FileDigest:
    hasher, size = hashlib.sha256(), 0
    with open_regular(path) as file:
        while block := file.read(_BLOCK_BYTES):
            hasher.update(block)
            size += len(block)
    return {"size": size, "sha256": hasher.hexdigest()}
