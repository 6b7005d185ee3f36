"""One pass over the seeds, without a network."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from cbframe import cluster
from cbframe.cluster.seeds import first_success
from cbframe.errors import (
    AccessError,
    AllServerURLsConnectBucketError,
    BucketNotFoundError,
    ConfigurationError,
    ConnectError,
    ProtocolError,
)


def test_stops_at_the_first_success() -> None:
    tried: list[str] = []

    def attempt(seed: str) -> str:
        tried.append(seed)
        if seed == "a":
            raise ProtocolError("odd bytes")
        return seed.upper()

    assert first_success(["a", "b", "c"], attempt) == "B"
    assert tried == ["a", "b"]


def test_all_failed() -> None:
    causes = {"http://u:s3cret@a": ConnectError("no"), "b": ConnectError("via http://u:s3cret@b", hint="try")}

    def attempt(seed: str) -> None:
        raise causes[seed]

    with pytest.raises(AllServerURLsConnectBucketError) as caught:
        first_success(list(causes), attempt)
    assert "http://a: no; b: via http://b" in str(caught.value)
    assert caught.value.hint == "try"
    assert caught.value.__cause__ is causes["b"]
    assert caught.value.server_urls == ["http://a", "b"]


def test_permanent_error_ends_the_pass() -> None:
    def attempt(seed: str) -> None:
        raise AccessError("no") if seed == "b" else ConnectError("down")

    with pytest.raises(AccessError):
        first_success(["a", "b", "c"], attempt)


def test_a_bucket_that_no_node_has() -> None:
    """Each node may only not have it yet; together they are one clear error."""

    def attempt(seed: str) -> None:
        error = BucketNotFoundError(f"not on {seed}")
        error.permanent = False
        raise error if seed in where else ConnectError("down")

    where = ["a", "b"]
    with pytest.raises(BucketNotFoundError, match="not on b") as caught:
        first_success(["a", "b"], attempt)
    assert not caught.value.permanent
    with pytest.raises(AllServerURLsConnectBucketError, match="not on b; c: down"):
        first_success(["a", "b", "c"], attempt)


def test_other_errors_are_bugs_and_pass() -> None:
    with pytest.raises(ZeroDivisionError):
        first_success(["a", "b"], lambda _: 1 // 0)


def test_no_seeds() -> None:
    with pytest.raises(ConfigurationError, match="at least 1"):
        first_success([], str)


def test_only_http_loads_requests() -> None:
    paths = Path(cluster.__file__).parent.glob("[!_]*.py")
    modules = [path.stem for path in paths if path.stem not in ("rest", "manager", "https")]
    names = ", ".join(f"cbframe.cluster.{name}" for name in modules)
    code = f"import sys, {names}; print('requests' in sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "False"
