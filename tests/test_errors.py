"""The tree of errors is the one drawn in the module's docstring."""

from __future__ import annotations

import builtins
import pickle
import re

import pytest

from cbframe import errors
from cbframe.errors import AllServerURLsConnectBucketError, CbframeError, ProtocolError, ServerError

LINE = re.compile(r"^    (?P<indent>[│├└─ ]*)(?P<name>[A-Z]\w+Error)(?: \((?P<also>\w+)\))?(?:\s|$)")


def drawn_tree() -> dict[str, tuple[str, ...]]:
    """Bases by name of the error, as drawn."""
    assert errors.__doc__ is not None
    path: list[str] = []
    tree: dict[str, tuple[str, ...]] = {}
    for line in errors.__doc__.splitlines():
        match = LINE.match(line)
        if match is None:
            continue
        depth = len(match["indent"]) // 4
        del path[depth:]
        assert len(path) == depth, line
        tree[match["name"]] = (*path[-1:], *([match["also"]] if match["also"] else []))
        path.append(match["name"])
    return tree


TREE = drawn_tree()
CLASSES: dict[str, type[CbframeError]] = {name: getattr(errors, name) for name in errors.__all__}
REQUIRED = {
    "AllServerURLsConnectBucketError": {"server_urls": ["http://h:8091"]},
    "ServerError": {"message": "what happened", "status": 0x24},
    "XAttrsNotSupportedError": {"message": "what happened", "status": 0x24},
}


def make(name: str, **options: object) -> CbframeError:
    arguments = {**REQUIRED.get(name, {"message": "what happened"}), **options}
    return CLASSES[name](**arguments)  # type: ignore[arg-type]


def test_every_error_is_drawn_and_exported() -> None:
    kinds = (value for value in vars(errors).values() if isinstance(value, type))
    defined = {kind.__name__ for kind in kinds if issubclass(kind, BaseException)}
    assert set(TREE) == set(errors.__all__) == defined
    assert len(TREE) >= 17


@pytest.mark.parametrize("name", sorted(TREE))
def test_bases_are_those_of_the_drawing(name: str) -> None:
    bases = [getattr(errors, base, None) or getattr(builtins, base) for base in TREE[name]]
    assert list(CLASSES[name].__bases__) == (bases or [Exception])
    assert issubclass(CLASSES[name], CbframeError)
    assert CLASSES[name].__doc__


@pytest.mark.parametrize("name", sorted(TREE))
def test_text_holds_message_place_and_hint(name: str) -> None:
    plain = make(name)
    assert (plain.hint, plain.node, plain.vbucket) == (None, None, None)
    assert str(plain)
    assert "hint" not in str(plain)
    assert "[" not in str(plain)
    assert isinstance(plain.permanent, bool)
    assert "try this" in str(make(name, hint="try this"))
    if name == "AllServerURLsConnectBucketError":
        return
    full = make(name, hint="try this", node="h:11210", vbucket=0)
    text = str(full)
    assert text.startswith("what happened")
    assert "[node h:11210, vbucket 0]" in text
    assert text.endswith("\n  hint: try this")
    assert (full.hint, full.node, full.vbucket) == ("try this", "h:11210", 0)
    assert "[vbucket 7]" in str(make(name, vbucket=7))
    assert "[node h:1]" in str(make(name, node="h:1"))


def test_root() -> None:
    assert TREE["CbframeError"] == ()
    error = CbframeError("message")
    assert (str(error), error.message, error.permanent) == ("message", "message", False)


def test_also_what_python_expects() -> None:
    assert issubclass(errors.ConfigurationError, ValueError)
    assert issubclass(errors.DependencyError, ImportError)
    assert issubclass(errors.ReadTimeoutError, TimeoutError)
    assert issubclass(errors.ConversionError, ValueError)


def test_errors_that_a_retry_cannot_heal() -> None:
    permanent = {name for name, kind in CLASSES.items() if kind.permanent}
    assert {"ConfigurationError", "AuthFailError", "AccessError", "BucketNotFoundError"} <= permanent
    assert not permanent & {"CbframeError", "ConnectError", "ClusterMapError", "ProtocolError", "StreamError"}


def test_protocol_errors_tell_where() -> None:
    error = ProtocolError("too long", opcode=0x57, offset=24, node="h:11210", vbucket=3)
    assert (error.opcode, error.offset) == (0x57, 24)
    assert str(error) == "too long (opcode 0x57) at offset 24 [node h:11210, vbucket 3]"
    assert str(ProtocolError("too long", opcode=0, offset=0)) == "too long (opcode 0x00) at offset 0"
    assert str(ProtocolError("too long")) == "too long"


def test_server_errors_tell_the_status() -> None:
    error = ServerError("no stream", status=0x24)
    assert (error.status, str(error)) == (0x24, "no stream: status 0x0024")


def test_all_urls_are_told() -> None:
    urls = ["http://a:8091", "http://b:8091"]
    error = AllServerURLsConnectBucketError(urls)
    assert error.server_urls == urls
    assert all(url in str(error) for url in urls)
    assert str(AllServerURLsConnectBucketError(urls, "another message")) == "another message"


@pytest.mark.parametrize("name", sorted(set(TREE) - set(REQUIRED) - {"ProtocolError"}))
def test_errors_cross_processes(name: str) -> None:
    error = make(name, hint="try this", node="h:11210", vbucket=3)
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error)
    assert str(copy) == str(error)
