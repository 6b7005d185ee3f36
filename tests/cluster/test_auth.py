"""Who asks."""

from __future__ import annotations

import dataclasses

import pytest

from cbframe.cluster.auth import Authenticator, PasswordAuthenticator, as_authenticator
from cbframe.errors import ConfigurationError, ConnectError


def test_repr_hides_the_password() -> None:
    auth = PasswordAuthenticator("reader", "s3cret")
    assert repr(auth) == "PasswordAuthenticator(username='reader')"
    assert "s3cret" not in f"{auth} {auth!r}"
    assert auth.credentials() == ("reader", "s3cret")
    with pytest.raises(dataclasses.FrozenInstanceError):
        auth.password = "x"  # type: ignore[misc]


@pytest.mark.parametrize(
    "auth",
    [
        ("reader", "s3cret"),
        ["reader", "s3cret"],
        PasswordAuthenticator("reader", "s3cret"),
        lambda: ("reader", "s3cret"),
        lambda: PasswordAuthenticator("reader", "s3cret"),
    ],
)
def test_accepted(auth: object) -> None:
    assert as_authenticator(auth) == PasswordAuthenticator("reader", "s3cret")  # type: ignore[arg-type]


def test_other_authenticators_pass() -> None:
    class Certificate(Authenticator):
        def credentials(self) -> None:
            return None

    certificate = Certificate()
    assert as_authenticator(certificate) is certificate


def test_callable_is_asked_each_time() -> None:
    passwords = iter(["a", "b"])
    found = [as_authenticator(lambda: ("u", next(passwords))).credentials() for _ in range(2)]
    assert found == [("u", "a"), ("u", "b")]


@pytest.mark.parametrize(
    "auth",
    [
        None,
        lambda: None,
        lambda: lambda: ("u", "s3cret"),
        "s3cret",
        ("u", "s3cret", "x"),
        ("s3cret",),
        ("u", None),
        (None, "s3cret"),
        ("u", b"s3cret"),
        ("", "s3cret"),
        ("u:v", "s3cret"),
        ("u\0", "s3cret"),
        ("u", "s3cret\0"),
        {"u": "s3cret"},
    ],
)
def test_refused_without_showing_it(auth: object) -> None:
    with pytest.raises(ConfigurationError) as caught:
        as_authenticator(auth)  # type: ignore[arg-type]
    assert "s3cret" not in f"{caught.value} {caught.value!r}"


def test_a_callable_that_fails_may_do_better_later() -> None:
    def broken() -> tuple[str, str]:
        raise OSError("vault token s3cret expired")

    with pytest.raises(ConnectError, match="raised OSError") as caught:
        as_authenticator(broken)
    assert not caught.value.permanent
    assert "s3cret" not in str(caught.value)
