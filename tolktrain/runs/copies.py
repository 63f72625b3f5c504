"""The remote copies of a run's checkpoints (`checkpoint.upload`)."""

import logging
from pathlib import Path

from tolktrain.checkpoint.store import step_of
from tolktrain.config import Config
from tolktrain.errors import UserError
from tolktrain.runs.listing import choose_checkpoint
from tolktrain.runs.remote_checkpoints import forget, restore
from tolktrain.runs.uploads import Uploads
from tolktrain.storage.base import Storage
from tolktrain.storage.open import open_storage
from tolktrain.storage.retries import RetryPolicy

_RETRIES = RetryPolicy(retries=5, timeout_seconds=60.0)

logger = logging.getLogger(__name__)


def storage_of(config: Config) -> Storage | None:
    """The storage of the run's copies: a folder of its name below `checkpoint.upload`; None if nothing is copied.

    Raises UserError if the address is invalid.
    """
    address = config.checkpoint.upload
    if address is None:
        return None
    try:
        return open_storage(f"{address.removesuffix('/')}/{config.run.name}", _RETRIES)
    except UserError as error:
        raise UserError(f"checkpoint.upload: {error}") from None


def uploads_of(config: Config) -> Uploads | None:
    """Copies the run's checkpoints in the background, if `checkpoint.upload` is set; for rank 0."""
    storage = storage_of(config)
    if storage is None:
        return None
    return Uploads(storage, keep_last=config.checkpoint.upload_keep_last)


def restore_latest(config: Config, run_dir: Path, token: int) -> None:
    """Fetch the latest valid copy if the run directory has no valid checkpoint of that step or later.

    Raises UserError if the copies cannot be reached and the run directory has no valid checkpoint; see also `restore`.
    """
    storage = storage_of(config)
    if storage is None:
        return
    try:
        here = step_of(choose_checkpoint(run_dir))
    except UserError:
        here = 0
    try:
        restore(storage, run_dir, here, token)
    except UserError as error:
        if not here:
            raise UserError(f"checkpoint.upload: {error}", by_machine=error.by_machine) from error
        logger.warning("checkpoint.upload: %s; continuing from step %d, which is here", error, here)


def forget_copies(config: Config) -> None:
    """Make the copies of a run that is restarted from step 0 unusable for later starts."""
    storage = storage_of(config)
    if storage is not None:
        forget(storage)
