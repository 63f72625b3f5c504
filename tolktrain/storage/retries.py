"""How often and how long a storage that fails is asked again."""

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from tolktrain.config.data import DataConfig
from tolktrain.storage.errors import ClientErrors, StorageError, classify, failure

Result = TypeVar("Result")

_LONGEST_JITTER = 0.5  # seconds; ranks that failed together do not ask again together


@dataclass(frozen=True)
class RetryPolicy:
    """How long a storage that does not answer, or answers with errors, is waited for.

    The client libraries try again inside each attempt: botocore (`AWS_MAX_ATTEMPTS`, `AWS_RETRY_MODE`: errors of the
    server, lost connections), s3transfer (bodies that break off), google-cloud-storage and azure-storage-blob.
    """

    retries: int = 3  # further attempts, after 1, 2, 4, ... seconds
    timeout_seconds: float = 60.0  # longest silence of a storage

    @classmethod
    def of(cls, config: DataConfig) -> "RetryPolicy":
        """What the configuration of data says."""
        return cls(config.download_retries, config.download_timeout_seconds)

    @property
    def total_seconds(self) -> float:
        """After this time no further attempt is begun."""
        return self.timeout_seconds * (self.retries + 1)


@dataclass(frozen=True)
class Task:
    """What is done to which address, for messages."""

    address: str
    scheme: str
    done: str  # as in "cannot be fetched"


def retrying(
    act: Callable[[], Result],
    task: Task,
    policy: RetryPolicy,
    of_client: ClientErrors,
    before_retry: Callable[[], object] = lambda: None,
) -> Result:
    """Result of `act`, tried again with exponential backoff while the storage may recover.

    Raises StorageError: "ADDRESS cannot be DONE: ...".
    """
    begin = time.monotonic()
    attempts = 0
    while True:
        attempts += 1
        try:
            return act()
        except StorageError:
            raise
        except Exception as error:  # each library raises its own kinds
            kind, cause = classify(error, of_client)
            seconds = time.monotonic() - begin
            may_recover = kind in ("transient", "damaged") and seconds < policy.total_seconds
            if not may_recover or attempts > policy.retries:
                raise failure(task.address, task.scheme, task.done, kind, cause, attempts, seconds) from error
        before_retry()
        time.sleep(2.0 ** (attempts - 1) + random.random() * _LONGEST_JITTER)
