"""`tolktrain import`: write the weights of another program's file or folder as a folder that tolktrain reads."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from tolktrain.errors import UserError
from tolktrain.interop.finite import non_finite
from tolktrain.interop.folder_settings import copy_settings
from tolktrain.interop.imports.folder import open_folder
from tolktrain.interop.imports.published_file import PublishedFile
from tolktrain.interop.imports.published_model import Choices, published_model
from tolktrain.interop.tensor_writer import DType, require_new
from tolktrain.interop.tokenizer_files import add_speech_tokenizer, add_text_tokenizer, tokenizers_in
from tolktrain.interop.weights import OpenWeights, write_weights


@contextmanager
def open_import(source: Path, backbone: str | None, choices: Choices) -> Iterator[OpenWeights]:
    """Open what is imported, and check it without reading its values.

    Args:
        source: a checkpoint file of the SmolTolk authors; a folder that tolktrain export has written, or that
            transformers has saved again.
        backbone: folder or hub id of the text model that a file was trained from.
        choices: of settings that a file does not contain.

    Raises:
        UserError: there is nothing that can be imported; see `PublishedFile.read`, `published_model`, `open_folder`.
    """
    if source.is_dir():
        if backbone is not None or choices != Choices():
            raise UserError(
                f"{source} is a folder, which contains its sizes and settings; --backbone, --rope-theta and"
                " --adapter-attention belong to a file of the SmolTolk authors"
            )
        with open_folder(source) as weights:
            yield weights
        return
    if not source.exists():
        raise UserError(f"{source} does not exist; name a checkpoint file, or a folder that export has written")
    file = PublishedFile.read(source)
    if backbone is None:
        named = file.arguments.get("backbone")
        hint = f"it was trained from {named!r:.100}" if isinstance(named, str) else "model_args does not name it"
        raise UserError(
            f"{source} does not contain the sizes of its text model; give --backbone, a folder or hub id with its"
            f" config.json ({hint})"
        )
    model = published_model(file, backbone, choices)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.tensors.items()}
    origin = {"format": "published", "file": source.name, "sha256": file.sha256, "backbone": backbone}

    def read(name: str) -> Tensor:
        problem = non_finite(model.tensors[name])
        if problem is not None:
            raise UserError(f"{source}: {name} {problem}; take another checkpoint of the same model")
        return model.tensors[name].clone()  # out of the mapped file

    yield OpenWeights(
        source, model.architecture, shapes, read, {"step": file.step}, model.sequence_length or None, origin
    )


def import_weights(
    weights: OpenWeights,
    into: Path,
    dtype: DType,
    text_tokenizer: str | None,
    speech_tokenizer: str | None,
    report: Callable[[str], None],
) -> None:
    """Write opened weights with their tokenizers into the new or empty folder `into`, which appears complete or not at
    all.

    Args:
        weights: of `open_import`.
        into: the new folder.
        dtype: of the tensors.
        text_tokenizer: folder or hub id; None for the one that the source contains, if it does.
        speech_tokenizer: folder, likewise.
        report: gets lines about written files.

    Raises:
        UserError: `into` is not empty, a tokenizer does not belong to the model, or a tensor has NaN or infinity.
    """
    require_new(into)
    text, speech = tokenizers_in(weights.folder) if weights.folder.is_dir() else (None, None)
    text, speech = text_tokenizer or text, speech_tokenizer or speech
    known = dict(weights.state.get("tokenizers") or {})

    def prepare(folder: Path, weights: OpenWeights) -> OpenWeights:
        """Tokenizers first: their digests are recorded with the weights, and they are refused before long writes."""
        digests = dict(known)
        if text is not None:
            _, digests["text"] = add_text_tokenizer(folder, text, known.get("text"), weights.architecture)
        if speech is not None:
            digests["speech"] = add_speech_tokenizer(folder, speech, known.get("speech"), weights.architecture)
        if weights.folder.is_dir():
            copy_settings(weights.folder, folder, has_same_vocoder=speech_tokenizer is None)
        return replace(weights, state={**weights.state, "tokenizers": digests})

    write_weights(weights, into, dtype, report, prepare=prepare)
