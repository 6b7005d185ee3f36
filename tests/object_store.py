"""An object store that speaks S3: moto's server, in a process of its own, on this machine."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

KEY, SECRET, REGION, BUCKET = "reader", "a-word-that-is-secret", "us-east-1", "lake"
# Not in this process: whoever waits for it with the interpreter's lock held would wait for ever.
_SERVER = """
import sys, threading
from moto.server import ThreadedMotoServer

server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
print(*server.get_host_and_port(), sep=":", flush=True)
sys.stdin.read()
"""


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    """Where the object store is, ``host:port``."""
    pytest.importorskip("moto.server")
    with (
        pytest.MonkeyPatch.context() as patch,
        subprocess.Popen(
            [sys.executable, "-c", _SERVER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        ) as server,
    ):
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        assert server.stdin is not None
        assert server.stdout is not None
        found = server.stdout.readline().strip()
        assert found, "the server did not start"
        yield found
        server.stdin.close()


@pytest.fixture
def outside(endpoint: str) -> Iterator[Any]:
    """A client of its own, as another machine has it; the bucket is new."""
    client = pytest.importorskip("boto3").client(
        "s3",
        endpoint_url=f"http://{endpoint}",
        aws_access_key_id=KEY,
        aws_secret_access_key=SECRET,
        region_name=REGION,
    )
    client.create_bucket(Bucket=BUCKET)
    yield client
    for each in client.list_objects_v2(Bucket=BUCKET).get("Contents", ()):
        client.delete_object(Bucket=BUCKET, Key=each["Key"])
    client.delete_bucket(Bucket=BUCKET)
    client.close()
