"""The copies of a run's checkpoints that `checkpoint.upload` asks for."""

import logging
from pathlib import Path

from tolktrain.checkpoint.bucket import Uploads, forget, restore
from tolktrain.checkpoint.store import step_of
from tolktrain.config import Config
from tolktrain.errors import UserError
from tolktrain.runs.listing import find_sound
from tolktrain.storage.base import Storage
from tolktrain.storage.open import open_storage
from tolktrain.storage.retries import RetryPolicy

_RETRIES = RetryPolicy(retries=5, timeout_seconds=60.0)

logger = logging.getLogger(__name__)


def storage_of(config: Config) -> Storage | None:
    """Where the run's copies lie: a folder of its name below `checkpoint.upload`; None if nothing is copied.

    Raises UserError when that is no address.
    """
    address = config.checkpoint.upload
    if address is None:
        return None
    try:
        return open_storage(f"{address.rstrip('/')}/{config.run.name}", _RETRIES)
    except UserError as error:
        raise UserError(f"checkpoint.upload: {error}") from None


def uploads_of(config: Config) -> Uploads | None:
    """What copies the run's checkpoints in the background, if the configuration asks for it; for rank 0."""
    storage = storage_of(config)
    if storage is None:
        return None
    return Uploads(storage, keep_last=config.checkpoint.upload_keep_last)


def restore_newest(config: Config, run_dir: Path, token: int) -> None:
    """Fetch the newest sound copy if the run's folder has no sound checkpoint of that step or later.

    Raises UserError when the copies cannot be reached and the folder has no sound checkpoint, or see `restore`.
    """
    storage = storage_of(config)
    if storage is None:
        return
    try:
        here = step_of(find_sound(run_dir))
    except UserError:
        here = 0
    try:
        restore(storage, run_dir, here, token)
    except UserError as error:
        if not here:
            raise UserError(f"checkpoint.upload: {error}", by_machine=error.by_machine) from error
        logger.warning("checkpoint.upload: %s; going on from step %d, which is here", error, here)


def forget_copies(config: Config) -> None:
    """Let no later start go on from the copies of a run that starts anew."""
    storage = storage_of(config)
    if storage is not None:
        forget(storage)
