"""An S3 server of moto in a process of its own, reached over HTTP."""

import contextlib
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ports import free_port

_START_SECONDS = 300.0


@dataclass(frozen=True)
class S3Server:
    """A running server. Its buckets live as long as it does."""

    url: str

    @property
    def environ(self) -> Mapping[str, str]:
        """Environment variables with which our code, boto3 and mosaicml-streaming reach the server."""
        return environ_of(self.url)

    def client(self) -> Any:
        """A client of boto3 that goes straight to the server."""
        import boto3

        return boto3.client(
            "s3", endpoint_url=self.url, region_name="us-east-1", aws_access_key_id="a", aws_secret_access_key="b"
        )

    def make_bucket(self) -> str:
        """Address (s3://NAME) of a new, empty bucket."""
        name = f"bucket-{uuid.uuid4().hex[:12]}"
        self.client().create_bucket(Bucket=name)
        return f"s3://{name}"

    def put_folder(self, folder: Path, address: str) -> None:
        """Upload the files of a folder as they are."""
        bucket, _, prefix = address.removeprefix("s3://").partition("/")
        client = self.client()
        for path in sorted(folder.iterdir()):
            client.put_object(Bucket=bucket, Key=f"{prefix}/{path.name}".lstrip("/"), Body=path.read_bytes())

    @contextlib.contextmanager
    def checked_credentials(self) -> Iterator[dict[str, str]]:
        """Let only a user of the server in meanwhile; yields the user's environment variables."""
        import boto3

        iam = boto3.client(
            "iam", endpoint_url=self.url, region_name="us-east-1", aws_access_key_id="a", aws_secret_access_key="b"
        )
        name = f"user-{uuid.uuid4().hex[:12]}"
        iam.create_user(UserName=name)
        iam.put_user_policy(
            UserName=name,
            PolicyName="all",
            PolicyDocument='{"Version": "2012-10-17", "Statement":'
            ' [{"Effect": "Allow", "Action": "s3:*", "Resource": "*"}]}',
        )
        key = iam.create_access_key(UserName=name)["AccessKey"]
        self._free_requests(0)
        try:
            yield {"AWS_ACCESS_KEY_ID": key["AccessKeyId"], "AWS_SECRET_ACCESS_KEY": key["SecretAccessKey"]}
        finally:
            self._free_requests(10**9)

    def _free_requests(self, count: int) -> None:
        """Requests that are served before credentials are looked at."""
        request = urllib.request.Request(
            f"{self.url}/moto-api/reset-auth", str(count).encode(), {"Content-Type": "text/plain"}
        )
        urllib.request.urlopen(request, timeout=10).close()


def environ_of(url: str) -> Mapping[str, str]:
    """Environment variables with which an S3 server at an address is reached."""
    return {
        "S3_ENDPOINT_URL": url,
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        # Nobody's own settings.
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    }


@contextlib.contextmanager
def running_s3_server(log: Path) -> Iterator[S3Server]:
    """Start a server, wait until it answers, and stop it at the end."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)], stdout=output, stderr=output
        )
    try:
        deadline = time.monotonic() + _START_SECONDS
        while True:
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"{url}/moto-api/data.json", timeout=5).close()
                break
            assert process.poll() is None, f"the S3 server ended: {log.read_text()[-2000:]}"
            assert time.monotonic() < deadline, f"the S3 server does not answer: {log.read_text()[-2000:]}"
            time.sleep(0.05)
        yield S3Server(url)
    finally:
        process.kill()
        process.wait()
