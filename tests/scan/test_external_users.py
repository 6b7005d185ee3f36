"""Users of a directory (LDAP): the cluster has no hash of their passwords, so that SCRAM is refused."""

from __future__ import annotations

import re
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme

from cbframe import AuthFailError, BucketDataSourceOptions, LocalCluster, doctor, read_bucket
from cbframe.cli import main
from cbframe.local import ServerTLS
from cbframe.local.auth import SaslServer

ANN = ("ann", "secret-of-the-directory")
IN_CLEAR = BucketDataSourceOptions(allow_plain=True)


@pytest.fixture(scope="module")
def ca(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of the authority; the server's certificate is beside it."""
    authority = trustme.CA()
    path = tmp_path_factory.mktemp("tls") / "ca.pem"
    authority.cert_pem.write_to_path(path)
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(path.with_name("server"))
    return path


@pytest.fixture(scope="module", params=["7.2", "8.0"])
def cluster(request: pytest.FixtureRequest, ca: Path) -> Iterator[LocalCluster]:
    tls = ServerTLS(ca.with_name("server"))
    with LocalCluster(2, 4, seed=1, version=request.param, tls=tls) as running:
        for n in range(20):
            running.upsert(f"k{n}", {"n": n})
        running.add_user(*ANN, external=True)
        yield running


@pytest.fixture
def attempts(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The mechanisms of all logins that are tried."""
    tried: list[str] = []
    auth = SaslServer.auth

    def counted(server: SaslServer, mechanism: str, payload: bytes) -> object:
        tried.append(mechanism)
        return auth(server, mechanism, payload)

    monkeypatch.setattr(SaslServer, "auth", counted)
    return tried


def said(error: AuthFailError) -> str:
    assert ANN[1] not in str(error)
    return re.sub(r"127\.0\.0\.1:\d+", "node", str(error))


def test_the_way_of_an_external_user(cluster: LocalCluster, ca: Path) -> None:
    """A call without TLS, its error, and both calls that the error names."""
    with pytest.raises(AuthFailError) as caught:
        read_bucket(cluster.connection_string, auth=ANN, progress=None)
    assert said(caught.value) == (
        "the server refused user 'ann' or the password (SCRAM-SHA512) [node node]\n"
        "  hint: check user name and password; the user must exist on this cluster. Users of a directory "
        "(LDAP) cannot log in by SCRAM: connect with TLS (couchbases://), or send the password in clear text "
        "with options=BucketDataSourceOptions(allow_plain=True)"
    )
    assert len(read_bucket(cluster.tls_connection_string, auth=ANN, tls=ca, progress=None)) == 20
    assert len(read_bucket(cluster.connection_string, auth=ANN, options=IN_CLEAR, progress=None)) == 20


def test_scram_is_tried_once(cluster: LocalCluster, ca: Path, attempts: list[str]) -> None:
    """The cluster writes down each refusal. A read connects to a seed, and to each of two nodes."""
    assert len(read_bucket(cluster.tls_connection_string, auth=ANN, tls=ca, progress=None)) == 20
    assert attempts == ["SCRAM-SHA512", "PLAIN", "PLAIN", "PLAIN"]


def test_a_wrong_password_is_tried_once_by_each_mechanism(
    cluster: LocalCluster, ca: Path, attempts: list[str]
) -> None:
    for user in ("ann", cluster.username, "nobody"):
        attempts.clear()
        with pytest.raises(AuthFailError) as caught:
            read_bucket(cluster.tls_connection_string, auth=(user, "wrong"), tls=ca, progress=None)
        assert said(caught.value) == (
            f"the server refused user {user!r} or the password (SCRAM-SHA512, then PLAIN) [node node]\n"
            "  hint: check user name and password; the user must exist on this cluster, or in the directory "
            "(LDAP) that the cluster asks"
        )
        assert attempts == ["SCRAM-SHA512", "PLAIN"]
    attempts.clear()
    with pytest.raises(AuthFailError):
        read_bucket(cluster.connection_string, auth=(cluster.username, "wrong"), progress=None)
    assert attempts == ["SCRAM-SHA512"]


def test_passwords_that_the_cluster_knows_are_not_shown(
    cluster: LocalCluster, ca: Path, attempts: list[str]
) -> None:
    auth = (cluster.username, cluster.password)
    assert len(read_bucket(cluster.tls_connection_string, auth=auth, tls=ca, progress=None)) == 20
    assert len(read_bucket(cluster.connection_string, auth=auth, options=IN_CLEAR, progress=None)) == 20
    assert set(attempts) == {"SCRAM-SHA512"}


def test_a_server_that_is_not_verified_does_not_get_the_password(
    cluster: LocalCluster, attempts: list[str]
) -> None:
    anyone = ssl.create_default_context()
    anyone.check_hostname = False
    anyone.verify_mode = ssl.CERT_NONE
    with pytest.raises(AuthFailError):
        read_bucket(cluster.tls_connection_string, auth=ANN, tls=anyone, progress=None)
    assert attempts == ["SCRAM-SHA512"]
    found = read_bucket(cluster.tls_connection_string, auth=ANN, tls=anyone, options=IN_CLEAR, progress=None)
    assert len(found) == 20


def test_over_the_cluster_manager(cluster: LocalCluster, ca: Path) -> None:
    assert len(read_bucket(cluster.tls_rest_urls, "default", auth=ANN, tls=ca, progress=None)) == 20
    with pytest.raises(AuthFailError, match="SCRAM-SHA512"):
        read_bucket(cluster.rest_urls, "default", auth=ANN, progress=None)
    assert len(read_bucket(cluster.rest_urls, "default", auth=ANN, options=IN_CLEAR, progress=None)) == 20


def test_doctor_and_the_command_line(
    cluster: LocalCluster, ca: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    failed = doctor(cluster.connection_string, auth=ANN).failed
    assert (failed.name, "connect with TLS" in str(failed.remedy)) == ("login", True)
    for found in (
        doctor(cluster.tls_connection_string, auth=ANN, tls=ca),
        doctor(cluster.connection_string, auth=ANN, allow_plain=True),
    ):
        assert found.ok, found
        assert "user 'ann' is known, by PLAIN; SCRAM is refused" in str(found)
    assert f"{cluster.username!r} is known, by SCRAM-SHA512" in str(doctor(cluster))

    monkeypatch.setenv("SECRET", ANN[1])
    who = [cluster.connection_string, "--user", "ann", "--password-env", "SECRET"]
    assert main(["doctor", *who]) == main(["read", *who, "--no-progress"]) == 1
    assert main(["doctor", *who, "--allow-plain"]) == 0
    capsys.readouterr()
    assert main(["read", *who, "--no-progress", "--allow-plain", "--limit", "100"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 1 + 20
