"""TLS from the seed to the last data node: who is trusted, who is refused, and what is said then."""

from __future__ import annotations

import os
import pickle
import socket
import ssl
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from certificates import USER, Files
from servers import TcpServer

import cbframe
from cbframe import (
    AllServerURLsConnectBucketError,
    AuthFailError,
    CbframeError,
    CertificateAuthenticator,
    ClusterMapError,
    ConfigurationError,
    ConnectError,
    LocalCluster,
    PasswordAuthenticator,
    ReadCancelledError,
    connect_bucket,
    read_bucket,
    scan_bucket,
)
from cbframe.cli import main
from cbframe.dcp.transport import SocketTransport, Waker
from cbframe.local import ServerTLS

from .kit import QUICK, create, fill, values_of

PASSWORD = "hunter2-of-the-test"
AUTH = (USER, PASSWORD)
HASTY = replace(QUICK, connect_timeout=0.5)
"""For failures that might heal, as far as the client knows."""
PATIENCE = 20.0
"""Seconds for a read that is to fail; it should take a fraction of one."""


def secured(certificate: Path, **options: Any) -> LocalCluster:
    tls = ServerTLS(certificate, **options)
    return LocalCluster(2, 16, seed=1, username=USER, password=PASSWORD, tls=tls)


@pytest.fixture
def cluster(files: Files) -> Iterator[LocalCluster]:
    with secured(files.server) as running:
        fill(running)
        yield running


@pytest.fixture
def mutual(files: Files) -> Iterator[LocalCluster]:
    """A cluster that knows its users by their certificates only."""
    with secured(files.server, client_ca=files.ca, mandatory=True) as running:
        fill(running)
        yield running


def seeds(cluster: LocalCluster, scheme: str) -> str | list[str]:
    return cluster.tls_connection_string if scheme == "couchbases" else cluster.tls_rest_urls


def read(conn: str | list[str], **arguments: Any) -> dict[bytes, bytes]:
    arguments = {"auth": AUTH, "timeout": PATIENCE, "options": QUICK, **arguments}
    return values_of(scan_bucket(conn, "default", parse=False, **arguments).to_arrow())


def failure(conn: str | list[str], **arguments: Any) -> CbframeError:
    """The one error of a read. It is told well within the timeout, and without the password."""
    began = time.monotonic()
    with pytest.raises(CbframeError) as caught:
        read(conn, **arguments)
    assert time.monotonic() - began < PATIENCE / 2
    told = "".join(traceback.format_exception(caught.value)) + repr(caught.value)
    assert PASSWORD not in told
    return caught.value


SCHEMES = pytest.mark.parametrize("scheme", ["couchbases", "https"])


# --- what works


@SCHEMES
def test_the_same_table_as_in_plain_text(cluster: LocalCluster, files: Files, scheme: str) -> None:
    plain = read(cluster.connection_string)
    assert len(plain) == 300
    assert read(seeds(cluster, scheme), tls=str(files.ca)) == plain


@SCHEMES
@pytest.mark.parametrize(
    "tls", [Path, lambda path: ssl.create_default_context(cafile=path), Path.read_text, Path.read_bytes]
)
def test_a_path_a_context_or_text(
    cluster: LocalCluster, files: Files, scheme: str, tls: Callable[[Path], Any]
) -> None:
    df = read_bucket(seeds(cluster, scheme), "default", auth=AUTH, tls=tls(files.ca), timeout=PATIENCE)
    assert len(df) == 300


def test_text_at_every_function(cluster: LocalCluster, files: Files, tmp_path: Path) -> None:
    """The certificate authority as PEM text, in place of a file."""
    conn, text = cluster.tls_connection_string, files.ca.read_text()
    arguments: dict[str, Any] = {"auth": AUTH, "tls": text}
    assert len(cbframe.read_schema(conn, **arguments, options=QUICK).to_pandas()) > 0
    assert len(scan_bucket(conn, **arguments, options=QUICK).peek(3)) == 3
    assert cbframe.doctor(conn, **arguments).ok
    cbframe.write_snapshot(conn, tmp_path / "copy", **arguments, options=QUICK)
    assert len(cbframe.read_snapshot(tmp_path / "copy")) == 300
    with cbframe.stream_bucket(conn, **arguments) as stream:
        assert len(stream.to_pandas()) == 300
    for given in ("", lambda: b"", "absent.pem"):
        with pytest.raises(ConfigurationError, match=r"PEM|absent"):  # nothing else is trusted instead
            scan_bucket(conn, auth=AUTH, options=replace(QUICK, tls_config=given)).to_arrow()
    options = replace(QUICK, tls_config=lambda: text)
    assert len(scan_bucket(conn, auth=AUTH, options=options).to_arrow()) == 300
    found = connect_bucket(cluster.tls_rest_urls[0], "default", "default", AUTH, tls=text.encode())
    assert found.map.nodes == tuple(f"127.0.0.1:{node.ports['kvSSL']}" for node in cluster._engine.nodes)
    named = f"{conn}?trust_certificate={files.ca}&kv_connect_timeout=20s"
    assert len(scan_bucket(named, auth=AUTH, options=QUICK).to_arrow()) == 300


def test_partitions_carry_text(
    cluster: LocalCluster, mutual: LocalCluster, files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever they are read, no file is needed; a key goes along only if that was asked for."""
    login = cbframe.EnvironmentAuth("CB_USER", "CB_PASSWORD")
    monkeypatch.setenv("CB_USER", USER)
    monkeypatch.setenv("CB_PASSWORD", PASSWORD)
    scan = scan_bucket(cluster.tls_connection_string, "default", auth=login, tls=files.ca.read_bytes())
    sent = pickle.dumps(scan.partitions(3))
    assert b"BEGIN CERTIFICATE" in sent
    assert PASSWORD.encode() not in sent
    assert sum(part.read().num_rows for part in pickle.loads(sent)) == 300

    pair = CertificateAuthenticator(files.client.read_bytes(), files.client_key.read_text())
    scan = scan_bucket(mutual.tls_connection_string, "default", auth=pair, tls=files.ca.read_text())
    with pytest.raises(ConfigurationError, match="with a private key in it") as caught:
        pickle.dumps(scan.partitions(1))
    assert "paths of files" in str(caught.value)
    sent = pickle.dumps(scan.partitions(3, include_credentials=True))
    assert sum(part.read().num_rows for part in pickle.loads(sent)) == 300
    context = ssl.create_default_context(cafile=files.ca)
    by_option = replace(QUICK, tls_config=context)
    for tls, options in ((context, QUICK), (None, by_option)):
        scan = scan_bucket(cluster.tls_connection_string, auth=login, tls=tls, options=options)
        with pytest.raises(ConfigurationError, match="TLS context cannot be sent"):
            pickle.dumps(scan.partitions(1))
    part = scan.partitions(1, include_credentials=True)[0]
    assert "BEGIN" not in f"{pair!r}{part!r}{scan!r}{scan._spec!r}"


def test_the_data_nodes_are_asked_at_their_tls_ports(cluster: LocalCluster, files: Files) -> None:
    wanted = {f"127.0.0.1:{node.ports['kvSSL']}" for node in cluster._engine.nodes}
    scan = scan_bucket(cluster.tls_rest_urls, "default", auth=AUTH, tls=files.ca, timeout=PATIENCE)
    scan.to_arrow()
    assert set(scan.stats.nodes) == wanted


@SCHEMES
def test_collections(cluster: LocalCluster, files: Files, scheme: str) -> None:
    create(cluster, "shop", "orders")
    cluster.upsert("o1", {"n": 1}, collection="shop.orders")
    assert set(read(seeds(cluster, scheme), tls=files.ca, scope="shop")) == {b"o1"}


def test_large_documents_and_a_slow_window(cluster: LocalCluster, files: Files) -> None:
    """Many TLS records per document, and a server that has to wait for the client again and again."""
    value = b'{"text":"' + b"x" * 3_000_000 + b'"}'
    for n in range(8):
        cluster.upsert(f"large-{n}", value)
    found = read(cluster.tls_connection_string, tls=files.ca, buffer_bytes=64 * 1024)
    assert sum(found[f"large-{n}".encode()] == value for n in range(8)) == 8


def test_a_cut_in_the_middle_of_a_record_heals(cluster: LocalCluster, files: Files) -> None:
    cluster.cut(0, after_bytes=5000)
    assert len(read(cluster.tls_connection_string, tls=files.ca)) == 300


def test_plain_sasl_is_allowed_over_tls_only(
    cluster: LocalCluster, files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cbframe.local.kv.MECHANISMS", "PLAIN")
    assert len(read(cluster.tls_connection_string, tls=files.ca)) == 300
    assert isinstance(failure(cluster.connection_string), AuthFailError)


def test_in_a_process_of_its_own(files: Files) -> None:
    tls = ServerTLS(files.server)
    with LocalCluster(1, 8, username=USER, password=PASSWORD, tls=tls, process=True) as running:
        fill(running, 10)
        assert len(read(running.tls_connection_string, tls=files.ca)) == 10


# --- who is not trusted


@SCHEMES
def test_an_unknown_authority(cluster: LocalCluster, files: Files, scheme: str) -> None:
    seed = seeds(cluster, scheme)
    first = seed if isinstance(seed, str) else seed[0]
    error = failure(first, tls=files.other_ca)
    assert type(error) is ConnectError
    assert "certificate is not accepted" in error.message
    assert error.node is not None
    assert error.node in first
    assert "tls='ca.pem'" in str(error)


def test_an_unknown_authority_at_every_seed(cluster: LocalCluster, files: Files) -> None:
    error = failure(cluster.tls_rest_urls, tls=files.other_ca)
    assert isinstance(error, AllServerURLsConnectBucketError)
    assert all(url in error.message for url in cluster.tls_rest_urls)


def test_another_seed_may_be_trusted(cluster: LocalCluster, files: Files) -> None:
    with secured(files.elsewhere) as stranger:
        urls = [stranger.tls_rest_urls[0], cluster.tls_rest_urls[0]]
        assert len(read(urls, tls=files.ca)) == 300


def test_by_default_the_authority_of_a_test_is_not_trusted(
    cluster: LocalCluster, files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    # These belong to requests: they must not add to what the context trusts.
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(files.ca))
    monkeypatch.setenv("CURL_CA_BUNDLE", str(files.ca))
    for scheme in ("couchbases", "https"):
        assert "certificate is not accepted" in str(failure(seeds(cluster, scheme)))
        assert "certificate is not accepted" in str(failure(seeds(cluster, scheme), tls=files.other_ca))


@SCHEMES
@pytest.mark.parametrize(("which", "word"), [("elsewhere", "mismatch"), ("expired", "expired")])
def test_a_certificate_that_does_not_fit(files: Files, scheme: str, which: str, word: str) -> None:
    with secured(getattr(files, which)) as running:
        error = failure(seeds(running, scheme), tls=files.ca)
    assert "certificate is not accepted" in error.message
    assert word in error.message


@SCHEMES
def test_a_wrong_password(cluster: LocalCluster, files: Files, scheme: str) -> None:
    error = failure(seeds(cluster, scheme), tls=files.ca, auth=(USER, f"not-{PASSWORD[::-1]}"))
    assert isinstance(error, AuthFailError)
    assert PASSWORD[::-1] not in "".join(traceback.format_exception(error))


# --- the wrong port, the wrong scheme


def test_ports_of_the_other_kind(cluster: LocalCluster, files: Files) -> None:
    for conn in (
        cluster.connection_string.replace("couchbase:", "couchbases:"),
        cluster.rest_urls[0].replace("http:", "https:"),
    ):
        error = failure(conn, tls=files.ca, options=HASTY)
        assert isinstance(error, ConnectError)
        assert "TLS" in str(error)
    for conn, port in (
        (cluster.tls_connection_string.replace("couchbases:", "couchbase:"), "11207"),
        (cluster.tls_rest_urls[0].replace("https:", "http:"), "18091"),
    ):
        assert port in str(failure(conn, options=HASTY))


@SCHEMES
def test_no_fall_back_to_plain_text(
    cluster: LocalCluster, files: Files, scheme: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    second, given = cluster._engine.nodes[1], seeds(cluster, scheme)
    monkeypatch.delitem(second.ports, "kvSSL")
    error = failure(given, tls=files.ca)
    assert isinstance(error, ClusterMapError)
    assert "no TLS port" in error.message
    assert error.node == f"127.0.0.1:{second.ports['kv']}"


def test_tls_without_its_scheme(cluster: LocalCluster, files: Files) -> None:
    for conn in (cluster, cluster.connection_string, cluster.rest_urls):
        with pytest.raises(ConfigurationError, match=r"not encrypted|plain text"):
            scan_bucket(conn, "default", auth=AUTH, tls=files.ca)  # type: ignore[arg-type]
    error = failure(cluster.connection_string, auth=CertificateAuthenticator(files.client, files.client_key))
    assert "plain text" in error.message


def test_a_ca_file_that_is_none(tmp_path: Path) -> None:
    empty = tmp_path / "empty.pem"
    empty.touch()
    for path in (empty, tmp_path / "absent.pem"):
        with pytest.raises(ConfigurationError, match="no file with certificate authorities"):
            scan_bucket("couchbases://127.0.0.1/default", auth=AUTH, tls=path)


def test_a_node_that_is_silent(cluster: LocalCluster, files: Files) -> None:
    with cluster.stall(0), pytest.raises(CbframeError) as caught:
        read(cluster.tls_connection_string, tls=files.ca, timeout=0.3)
    assert PASSWORD not in "".join(traceback.format_exception(caught.value))


def test_a_handshake_can_be_cancelled(files: Files) -> None:
    context = ssl.create_default_context(cafile=files.ca)
    waker = Waker()

    def talk(sock: socket.socket) -> None:
        assert sock.recv(1)  # the client has connected, and says hello
        waker.wake()
        while sock.recv(4096):
            pass

    with TcpServer(talk) as silent:
        with pytest.raises(ReadCancelledError, match="during the TLS handshake"):
            SocketTransport(context).connect(silent.address, waker, 30)
        waker.drain()
    with TcpServer() as silent, pytest.raises(ConnectError, match="no TLS handshake within"):
        SocketTransport(context).connect(silent.address, waker, 0.05)
    waker.close()


# --- client certificates


@SCHEMES
def test_a_client_certificate_takes_the_place_of_a_password(
    mutual: LocalCluster, files: Files, scheme: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cbframe.local.kv.MECHANISMS", "none: SASL must not be asked for")
    conn = seeds(mutual, scheme)
    auth = CertificateAuthenticator(files.client, files.client_key)
    assert len(read(conn, tls=files.ca, auth=auth)) == 300
    context = ssl.create_default_context(cafile=files.ca)
    context.load_cert_chain(files.client, files.client_key)
    assert len(read(conn, tls=context, auth=CertificateAuthenticator())) == 300


def test_a_password_beside_optional_certificates(files: Files) -> None:
    with secured(files.server, client_ca=files.ca) as running:
        fill(running, 20)
        assert len(read(running.tls_connection_string, tls=files.ca)) == 20
        auth = CertificateAuthenticator(files.client, files.client_key)
        assert len(read(running.tls_connection_string, tls=files.ca, auth=auth)) == 20


@SCHEMES
@pytest.mark.parametrize("stranger", [False, True])
def test_refused_without_a_certificate_or_with_that_of_another_authority(
    mutual: LocalCluster, files: Files, scheme: str, stranger: bool
) -> None:
    auth = CertificateAuthenticator(files.stranger) if stranger else AUTH
    error = failure(seeds(mutual, scheme), tls=files.ca, auth=auth, options=HASTY)
    assert isinstance(error, ConnectError)
    assert "client certificate" in str(error)


@SCHEMES
def test_a_certificate_of_a_user_who_does_not_exist(mutual: LocalCluster, files: Files, scheme: str) -> None:
    error = failure(seeds(mutual, scheme), tls=files.ca, auth=CertificateAuthenticator(files.nobody))
    assert isinstance(error, ConnectError)
    assert error.permanent


def test_client_certificates_that_cannot_be_used(mutual: LocalCluster, files: Files) -> None:
    conn = mutual.tls_connection_string
    good = CertificateAuthenticator(files.client, files.client_key)
    cases: list[tuple[Any, Any, str]] = [
        (files.ca, CertificateAuthenticator(files.client), "cannot be used"),
        (files.ca, CertificateAuthenticator(files.client, files.stranger), "cannot be used"),
        (files.ca, CertificateAuthenticator(), "names no file"),
        (ssl.create_default_context(cafile=files.ca), good, "cannot be put into the context"),
    ]
    for tls, auth, words in cases:
        error = failure(conn, tls=tls, auth=auth)
        assert isinstance(error, ConfigurationError)
        assert words in error.message
    with pytest.raises(ConfigurationError, match="without its certificate"):
        CertificateAuthenticator(keyfile=files.client_key)
    with pytest.raises(ConfigurationError, match="need client_ca"):
        ServerTLS(files.server, mandatory=True)
    with pytest.raises(ConfigurationError, match="certificates cannot be used"):
        secured(files.ca).start()


def test_an_encrypted_key(mutual: LocalCluster, files: Files, tmp_path: Path) -> None:
    serialization = pytest.importorskip("cryptography.hazmat.primitives.serialization")
    key = serialization.load_pem_private_key(files.client_key.read_bytes(), None)
    locked = tmp_path / "locked.pem"
    form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    locked.write_bytes(key.private_bytes(*form, serialization.BestAvailableEncryption(PASSWORD.encode())))
    conn = mutual.tls_connection_string
    auth = CertificateAuthenticator(files.client, locked, PASSWORD)
    assert PASSWORD not in repr(auth)
    assert len(read(conn, tls=files.ca, auth=auth)) == 300
    # Nobody is asked on the terminal.
    for password in (None, "wrong"):
        error = failure(conn, tls=files.ca, auth=CertificateAuthenticator(files.client, locked, password))
        assert isinstance(error, ConfigurationError)


def test_nothing_shows_the_password(cluster: LocalCluster, files: Files) -> None:
    auth = PasswordAuthenticator(*AUTH)
    scan = scan_bucket(cluster.tls_connection_string, auth=auth, tls=files.ca)
    for thing in (scan, scan._spec, auth, cluster, cluster._engine.nodes[0].credentials):
        assert PASSWORD not in repr(thing)


# --- the command line


def test_cbframe_read(
    cluster: LocalCluster, files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CB_PASSWORD", PASSWORD)
    login = ["--user", USER, "--password-env", "CB_PASSWORD", "--no-progress"]
    out = tmp_path / "out.parquet"
    conn = cluster.tls_connection_string
    assert main(["read", conn, *login, "--ca-file", str(files.ca), "-o", str(out)]) == 0
    assert pq.read_metadata(out).num_rows == 300


def test_cbframe_read_with_a_client_certificate(
    mutual: LocalCluster, files: Files, capsys: pytest.CaptureFixture[str]
) -> None:
    pair = ["--client-cert", str(files.client), "--client-key", str(files.client_key)]
    conn = ["read", mutual.tls_connection_string, "--ca-file", str(files.ca), "--no-progress"]
    assert main([*conn, *pair, "--limit", "1000"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 1 + 300
    assert main([*conn, *pair, "--user", USER]) == 1
    assert "exclude each other" in capsys.readouterr().err


@SCHEMES
def test_the_authority_of_ssl_cert_file(cluster: LocalCluster, files: Files, scheme: str) -> None:
    """As ``cbframe.cluster.tls`` says; OpenSSL looks at the variable, so it takes a process of its own."""
    conn = cluster.tls_connection_string if scheme == "couchbases" else f"{cluster.tls_rest_urls[0]}/default"
    command = [sys.executable, "-W", "error", "-m", "cbframe", "read", conn, "--user", USER]
    for path, status in ((files.ca, 0), (files.other_ca, 1)):
        ended = subprocess.run(
            [*command, "--password-env", "CB_PASSWORD", "--no-progress"],
            env={**os.environ, "CB_PASSWORD": PASSWORD, "SSL_CERT_FILE": str(path)},
            check=False,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert ended.returncode == status, ended.stderr
        assert PASSWORD not in ended.stdout + ended.stderr
    assert "certificate is not accepted" in ended.stderr
