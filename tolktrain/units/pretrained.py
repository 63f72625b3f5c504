"""Pretrained speech models of transformers: where their files are, their digest, and loading them completely."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import Field

from tolktrain.config.base import StrictModel
from tolktrain.errors import UserError
from tolktrain.files.names import files_inside
from tolktrain.files.reading import DESCRIPTION_BYTES, TABLE_BYTES, file_sha256, read_json
from tolktrain.units.description import digest

_WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
# Keys of config.json that do not change what the model computes.
_IDLE_KEYS = frozenset(("_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version"))
# Weights that only training uses.
_TRAINING_WEIGHTS = frozenset(("masked_spec_embed",))


class PretrainedModel(StrictModel):
    """The model of a speech tokenizer, as speech_tokenizer.json names it."""

    path: str = Field(
        min_length=1, description="Folder, absolute or with a leading dot from the tokenizer's folder, or a hub id."
    )
    revision: str | None = Field(default=None, description="Branch, tag or commit on the hub.")
    sha256: str = Field(description="Digest of the model's weights and configuration.")

    @classmethod
    def of(cls, path: str, revision: str | None, tokenizer_folder: str | Path) -> "PretrainedModel":
        """The model in a folder (from the working directory) or on the hub, as it is now."""
        found = model_folder(path, revision)
        if Path(path).expanduser().is_dir():
            whole, home = found.resolve(), Path(tokenizer_folder).resolve()
            path = f"./{whole.relative_to(home)}" if whole.is_relative_to(home) else str(whole)
        return cls(path=path, revision=revision, sha256=model_digest(found))

    def folder(self, tokenizer_folder: str | Path) -> Path:
        """The model's files. Raises `UserError` if they are missing, or differ from those of the tokenizer."""
        local = self.path.startswith((".", "/", "~"))
        path = str(Path(tokenizer_folder) / Path(self.path).expanduser()) if local else self.path
        folder = model_folder(path, self.revision)
        if model_digest(folder) != self.sha256:
            raise UserError(
                f"{tokenizer_folder}: the weights or the configuration of {self.path} ({folder}) are not those that"
                " the speech tokenizer was made with (other sha256), so units would differ; restore them, name the"
                " right revision in speech_tokenizer.json, or make a new tokenizer in another folder"
            )
        return folder


def model_folder(path: str, revision: str | None = None) -> Path:
    """The local folder of a model: the path itself, or the cached download of a hub id.

    Raises `UserError` if it is neither a folder nor a hub id that can be fetched.
    """
    folder = Path(path).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists() or path.startswith((".", "/", "~")) or path.count("/") != 1:
        raise UserError(f"{path} is no folder; give a folder with config.json and model.safetensors, or a hub id")
    import huggingface_hub  # pulls in an HTTP stack that a local folder never needs

    def fetch(weights: str) -> Path:
        patterns = ["config.json", "preprocessor_config.json", weights, f"{weights}.index.json"]
        return Path(huggingface_hub.snapshot_download(path, revision=revision, allow_patterns=patterns))

    try:
        fetched = fetch("*.safetensors")
        if _weight_file(fetched) is None:
            fetched = fetch("pytorch_model*.bin")
    except Exception as error:  # the hub client raises a dozen unrelated classes, network errors among them
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        at = f" at revision {revision}" if revision else ""
        raise UserError(
            f"{path}{at} is no folder here and could not be fetched from the Hugging Face hub ({reason}); check the"
            " name and the network, or download it and give the folder"
        ) from error
    return fetched


def _weight_file(folder: Path) -> str | None:
    """The file that transformers takes the weights from, or begins with."""
    return next((name for name in _WEIGHTS if (folder / name).is_file()), None)


def _json(path: Path, limit: int = DESCRIPTION_BYTES) -> dict[str, Any]:
    try:
        content = read_json(path, limit)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is not readable JSON ({error}); restore the model from its source") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} is not a JSON object; restore the model from its source")
    return content


def _weight_files(folder: Path) -> set[Path]:
    """The files that hold a model's weights. Raises `UserError` if there are none, or one is outside of the folder."""
    first = _weight_file(folder)
    if first is None:
        raise UserError(f"{folder} holds no weights; expected one of {', '.join(_WEIGHTS)}")
    if not first.endswith(".json"):
        return {folder / first}
    weight_map = _json(folder / first, TABLE_BYTES).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise UserError(f"{folder / first} has no weight_map; restore the model from its source")
    return set(files_inside(folder, weight_map, folder / first).values())


def model_digest(folder: Path) -> str:
    """Digest of a model's weight files and of the part of its configuration that affects its output."""
    weights = {}
    for path in _weight_files(folder):
        try:
            weights[path.relative_to(folder).as_posix()] = file_sha256(path)
        except OSError as error:
            raise UserError(f"{path} cannot be read ({error.strerror}); restore it from its source") from None
    config = {key: value for key, value in _json(folder / "config.json").items() if key not in _IDLE_KEYS}
    return digest({"weights": weights, "config": config})


def preprocessor_normalizes(folder: Path) -> bool:
    """`do_normalize` of preprocessor_config.json. Raises `UserError` if the model has none."""
    path = folder / "preprocessor_config.json"
    value = _json(path).get("do_normalize") if path.is_file() else None
    if not isinstance(value, bool):
        raise UserError(
            f"{path} does not say whether audio is normalized (do_normalize); give normalize=True or normalize=False,"
            " as the model was trained"
        )
    return value


def checked_device(device: str) -> str:
    """The device to run on; "auto" is a GPU where there is one. Raises `UserError` if torch has no such device."""
    import torch

    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device.split(":")[0] not in ("cpu", "cuda"):
        raise UserError(f"device {device!r} is not known; give auto, cpu or cuda")
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise UserError(f"device {device} is asked for, but torch sees no GPU; give cpu or auto")
    return device


def load_model(class_name: str, model_type: str, folder: Path, device: str) -> Any:
    """A model of transformers in float32, for inference.

    Raises:
        UserError: transformers is missing, the folder holds another kind of model, or weights are missing or damaged.
    """
    try:
        import transformers
    except ImportError:
        raise UserError(
            f"a model of the type {model_type} needs transformers, which is missing; pip install 'tolktrain[audio]'"
        ) from None
    import torch

    config = _json(folder / "config.json")
    found = config.get("model_type")
    if found != model_type:
        raise UserError(f"{folder / 'config.json'} describes a model of the type {found!r}; expected {model_type!r}")
    _weight_files(folder)  # transformers would follow any name to any place
    try:
        with _without_progress_bars(transformers.utils.logging):
            model, info = getattr(transformers, class_name).from_pretrained(
                str(folder),
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # refused below, by name
                attn_implementation="sdpa",
                # Version 5 would load in the file's precision; half precision gives other units on another device.
                dtype=torch.float32,
                # No program among the files or pickled in them is run, and there is no prompt about it.
                trust_remote_code=False,
                weights_only=True,
                **_rotary_base(transformers.__version__, config),
            )
    except Exception as error:  # damaged files raise whatever their format's reader raises
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"{folder} cannot be loaded as {class_name} ({reason}); restore it from its source") from error
    missing = sorted(name for name in info["missing_keys"] if name.split(".")[-1] not in _TRAINING_WEIGHTS)
    # Version 4 lists names, version 5 names with both shapes.
    misshapen = sorted(f"{key if isinstance(key, str) else key[0]} of another shape" for key in info["mismatched_keys"])
    if missing or misshapen:
        raise UserError(
            f"{folder} lacks weights of {class_name} ({', '.join([*missing, *misshapen][:3])}); they would be"
            " random: give a complete checkpoint"
        )
    return model.float().eval().to(checked_device(device))


def _rotary_base(version: str, config: dict[str, Any]) -> dict[str, Any]:
    """Arguments that transformers 4 needs in addition to config.json: it ignores `rope_parameters` of version 5."""
    table = config.get("rope_parameters")
    if int(version.split(".")[0]) >= 5 or not isinstance(table, dict):
        return {}
    if table.get("rope_type", "default") != "default":
        raise ValueError(f"rotary angles of the type {table['rope_type']!r} need transformers 5")
    return {"rope_theta": table["rope_theta"]} if table.get("rope_theta") is not None else {}


@contextmanager
def _without_progress_bars(logging: Any) -> Iterator[None]:
    """Version 5 of transformers shows a bar for every model, in every process that prepares data."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


@contextmanager
def inference() -> Iterator[None]:
    """Without gradients and, on a GPU, without TensorFloat-32 and with deterministic convolutions."""
    import torch

    with (
        torch.inference_mode(),
        torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False),
    ):
        yield
