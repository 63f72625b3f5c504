"""The retry policy for storages."""

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from tolktrain.config.data import DataConfig
from tolktrain.storage.errors import ClientErrors, StorageError, classify, failure

Result = TypeVar("Result")

_LONGEST_JITTER = 0.5  # seconds, so that ranks that failed together do not retry together


@dataclass(frozen=True)
class RetryPolicy:
    """How often, and with which timeout, requests to a storage are retried.

    The client libraries also retry inside each attempt: botocore (`AWS_MAX_ATTEMPTS`, `AWS_RETRY_MODE`: errors of the
    server, lost connections), s3transfer (interrupted bodies), google-cloud-storage and azure-storage-blob.
    """

    retries: int = 3  # further attempts, after 1, 2, 4, ... seconds
    timeout_seconds: float = 60.0  # longest time without data from a storage

    @classmethod
    def of(cls, config: DataConfig) -> "RetryPolicy":
        """The policy in the configuration of data."""
        return cls(config.download_retries, config.download_timeout_seconds)

    @property
    def total_seconds(self) -> float:
        """The time after which no further attempt begins."""
        return self.timeout_seconds * (self.retries + 1)


@dataclass(frozen=True)
class Task:
    """The operation and the address, for messages."""

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
    """The result of `act`, retried with exponential backoff while the storage may recover.

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
