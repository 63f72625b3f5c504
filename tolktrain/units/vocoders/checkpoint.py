"""Reads the checkpoint of a published unit HiFi-GAN once, without running code from it."""

import pickle
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from tolktrain.errors import UserError
from tolktrain.files.reading import open_regular
from tolktrain.units.vocoders.hifigan import UnitHiFiGan
from tolktrain.units.vocoders.hifigan_config import HiFiGanSizes

_KEY: Final = "generator"
_MOST_SHOWN: Final = 8
# Weight normalization w = g v / |v| over all dimensions but the first (arXiv 1602.07868): names of g and v.
_NORMALIZED: Final = (
    (".weight_g", ".weight_v"),
    (".parametrizations.weight.original0", ".parametrizations.weight.original1"),
)


def read_generator(path: str | Path, sizes: HiFiGanSizes) -> dict[str, Tensor]:
    """Tensors of `UnitHiFiGan(sizes)` in float32 from a checkpoint, weight normalization folded in.

    The checkpoint is what torch.save wrote: a dictionary of tensors by name, alone or under the key "generator".

    Raises:
        UserError: the file cannot be read, names a class or function besides tensors (which is neither imported nor
            called), or its tensors are not those of the sizes: missing, unknown, of another shape, or not finite.
    """
    content = _load(Path(path))
    tensors = content.get(_KEY, content) if isinstance(content, dict) else None
    if not isinstance(tensors, Mapping) or not tensors or not all(_is_plain(*item) for item in tensors.items()):
        raise UserError(f"{path} holds no tensors by name under {_KEY!r}; give the checkpoint of a unit HiFi-GAN")
    folded, of_normalization = _fold(tensors)
    with torch.device("meta"):
        expected = {name: tuple(tensor.shape) for name, tensor in UnitHiFiGan(sizes).state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in folded.items()}
    lists = {
        "missing": [name for name in expected if name not in found and name not in of_normalization],
        "unknown": [name for name in found if name not in expected],
        "wrong": [
            *of_normalization.values(),
            *(
                f"{name} is {list(found[name])} instead of {list(shape)}"
                for name, shape in expected.items()
                if found.get(name, shape) != shape
            ),
        ],
    }
    if any(lists.values()):
        raise UserError(
            f"{path} does not fit its configuration ({'; '.join(_shown(*item) for item in lists.items() if item[1])});"
            " give the config.json of this checkpoint"
        )
    infinite = [name for name, tensor in folded.items() if not bool(torch.isfinite(tensor).all())]
    if infinite:
        raise UserError(f"{path}: {_shown('not finite', infinite)}; get the file from its source again")
    return {name: folded[name] for name in expected}


def _load(path: Path) -> Any:
    try:
        with open_regular(path) as file, _tensors_only():
            return torch.load(file, map_location="cpu", weights_only=True)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror or error}); give the vocoder's checkpoint") from None
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL ([\w.]+)", str(error))
        if named is None:
            raise UserError(f"{path} is not a readable checkpoint; get it from its source again") from None
        raise UserError(
            f"{path} names {named[1]}, which a vocoder does not need; it was not loaded, because a pickle can run any"
            " program: if you trust the file, load it in its own program and save the tensors alone with"
            f' torch.save({{"{_KEY}": checkpoint["{_KEY}"]}}, FILE)'
        ) from None
    except Exception as error:  # damaged files raise whatever their format's reader raises
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise UserError(f"{path} is not a readable checkpoint ({reason:.100}); get it from its source again") from None


@contextmanager
def _tensors_only() -> Iterator[None]:
    """Without the classes that libraries have allowed `weights_only` to make, such as megatron's argparse.Namespace."""
    allowed = torch.serialization.get_safe_globals()
    torch.serialization.clear_safe_globals()
    try:
        yield
    finally:
        torch.serialization.add_safe_globals(allowed)


def _is_plain(name: object, value: object) -> bool:
    return (
        isinstance(name, str)
        and isinstance(value, Tensor)
        and value.is_floating_point()
        and value.layout == torch.strided
        and value.device.type == "cpu"
    )


def _fold(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors in float32 without weight normalization, and what is wrong with the normalization of which weight."""
    folded, wrong = dict(tensors), dict[str, str]()
    for scale_end, direction_end in _NORMALIZED:
        bases = {name.removesuffix(end) for name in tensors for end in (scale_end, direction_end) if name.endswith(end)}
        for base in sorted(bases):
            weight = f"{base}.weight"
            scale, direction = folded.pop(base + scale_end, None), folded.pop(base + direction_end, None)
            if scale is None or direction is None:
                wrong[weight] = f"{base}{scale_end if scale is None else direction_end} is missing"
            elif tuple(scale.shape) != (direction.shape[0] if direction.ndim else 0, *[1] * (direction.ndim - 1)):
                wrong[weight] = f"{base}{scale_end} is {list(scale.shape)} for {list(direction.shape)}"
            elif weight in folded:
                wrong[weight] = f"{weight} is there with and without weight normalization"
            else:
                direction = direction.double()
                norm = direction.flatten(1).norm(dim=1).reshape(scale.shape)
                folded[weight] = scale.double() * direction / norm
    return {name: tensor.to(torch.float32).contiguous() for name, tensor in folded.items()}, wrong


def _shown(what: str, names: list[str]) -> str:
    rest = f" and {len(names) - _MOST_SHOWN} more" if len(names) > _MOST_SHOWN else ""
    return f"{what}: {', '.join(names[:_MOST_SHOWN])}{rest}"
