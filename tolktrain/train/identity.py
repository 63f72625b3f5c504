"""What a run continues with is identified by content: the model by its architecture, data sets by their hashes.

So a run continues after its data, its backbone or the checkout were moved, and is not continued with other content
under an old path.
"""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tolktrain.config import Config
from tolktrain.data.identity import DataIdentity
from tolktrain.data.index import read_index
from tolktrain.errors import UserError
from tolktrain.model.architecture import Architecture
from tolktrain.parallel.collectives import on_rank_zero
from tolktrain.parallel.layout import Layout
from tolktrain.train.resume import Position

logger = logging.getLogger(__name__)


def architecture_of(
    config: Config, position: Position, previous: Mapping[str, Any] | None, layout: Layout
) -> Architecture:
    """The architecture of the run's model; collective.

    That of the checkpoint if there is one: the backbone is then read only if the configuration names another one than
    `previous`, that of the last start, and need not exist.

    Raises:
        UserError: the configuration describes another model than the checkpoint; without a checkpoint, the backbone
            cannot be read.
    """
    return on_rank_zero(layout.rank, lambda: _architecture_of(config, position, previous))


def _architecture_of(config: Config, position: Position, previous: Mapping[str, Any] | None) -> Architecture:
    if position.folder is None:
        return Architecture.from_config(config.model)
    saved = Architecture.from_dict(position.state["architecture"])
    backbone = config.model.backbone
    configured = saved.with_speech(config.model.speech)
    if not isinstance(backbone, str) or previous is None or backbone != previous["model"]["backbone"]:
        try:
            configured = Architecture.from_config(config.model)
        except UserError as error:
            if not isinstance(backbone, str):
                raise
            logger.warning(
                "%s; the run continues without it, with the backbone in %s",
                str(error).partition(";")[0],
                position.folder,
            )
    differing = saved.difference(configured)
    if differing:
        raise UserError(
            f"{position.folder} holds a model of another architecture (checkpoint, configuration):"
            f" {'; '.join(differing)}; use the configuration it was trained with, or another run.name"
        )
    return saved


def check_data_identity(
    config: Config, found: DataIdentity, position: Position, previous: Mapping[str, Any] | None, layout: Layout
) -> None:
    """Compare the data of the stages that have begun with the data that they were trained on; collective.

    Raises:
        UserError: a set has other content.
    """
    on_rank_zero(layout.rank, lambda: _check_data_identity(config, found, position, previous))


def text_eos_of(position: Position) -> int:
    """The id that has filled short sequences so far; sets without text, such as all of a speech-only run, have none."""
    saved = _saved(position)
    return 0 if saved is None else saved.text_eos


def _saved(position: Position) -> DataIdentity | None:
    """The data that the checkpoint was trained on; None if there is no checkpoint, or an earlier release wrote it."""
    saved = position.state.get("data", {}).get("identity")
    return None if saved is None else DataIdentity(**saved)


def _check_data_identity(
    config: Config, found: DataIdentity, position: Position, previous: Mapping[str, Any] | None
) -> None:
    if position.folder is None:
        return
    begun = config.train.stages[: position.state["stage"] + 1]
    names = sorted({name for stage in begun for entry in stage.mixture.values() for name in entry.sets})
    known = _saved(position) or DataIdentity(_from_paths(names, config, previous or {}), found.text_eos)
    for name in names:
        if name in known.sets and known.sets[name] != found.sets[name]:
            raise UserError(
                f"data.sets.{name} ({config.data.sets[name].path}) has other records than the set of this name that"
                f" the run has been trained on (sha256 of the shards' hashes: {known.sets[name][:12]} there,"
                f" {found.sets[name][:12]} here); give the path of a copy of that set, or give this one another name"
                " and use it in a stage that has not begun"
            )
    if known.text_eos != found.text_eos:
        raise UserError(
            f"data.sets: utterances of text end with the id {known.text_eos} in the steps done, with {found.text_eos}"
            " here; use sets that were made with the tokenizer of the run"
        )


def _from_paths(names: list[str], config: Config, previous: Mapping[str, Any]) -> dict[str, str]:
    """The hashes of an older release's sets, as far as they are still where they were; it did not store the hashes."""
    digests = {}
    for name in names:
        try:
            path = previous["data"]["sets"][name]["path"]
            if Path(path) != Path(config.data.sets[name].path):
                digests[name] = read_index(path).content_sha256()
        except (UserError, KeyError, TypeError):
            logger.warning(
                "data.sets.%s has another path than before: it cannot be checked that the records are the same, because"
                " the run was begun by an older release, which did not store their hashes",
                name,
            )
    return digests
