"""A cluster manager on loopback that says what the test wants."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

USER, PASSWORD = "reader", "pässwort:hunter2"
UUID = "8f0f4a7d1c2b3e4f5a6b7c8d9e0f1a2b"
VERBOSE = f"/pools/default/buckets/travel?bucket_uuid={UUID}"


@dataclass
class Reply:
    """`body` may be bytes or anything that JSON can hold."""

    status: int = 200
    body: Any = None
    content_type: str = "application/json"
    headers: dict[str, str] = field(default_factory=dict)
    length: int | None = None
    before: Callable[[], object] = lambda: None


def verbose_config(**changes: Any) -> dict[str, Any]:
    config = {
        "name": "travel",
        "uuid": UUID,
        "bucketType": "membase",
        "nodeLocator": "vbucket",
        "uri": VERBOSE,
        "bucketCapabilities": ["collections", "dcp"],
        "collectionsManifestUid": "1f",
        "vBucketServerMap": {
            "serverList": ["10.0.0.1:11210", "10.0.0.2:11210"],
            "vBucketMap": [[0, 1], [1, 0], [0, 1], [1, 0]],
        },
    }
    return config | changes


def terse_config(**changes: Any) -> dict[str, Any]:
    config = verbose_config(rev=7, revEpoch=1, nodesExt=nodes_ext())
    del config["bucketType"]
    return config | changes


def nodes_ext() -> list[dict[str, Any]]:
    return [
        {
            "hostname": f"10.0.0.{n}",
            "services": {"mgmt": 8091, "kv": 11210, "kvSSL": 11207},
            "alternateAddresses": {"external": {"hostname": f"ext{n}.example", "ports": {"kv": 30000 + n}}},
        }
        for n in (1, 2)
    ]


def walk(**more: Any) -> dict[str, Any]:
    """A server that knows only the reference's endpoints."""
    return {
        "/pools": {"pools": [{"name": "default", "uri": "/pools/default?uuid=c"}]},
        "/pools/default": {"buckets": {"uri": "/pools/default/buckets?v=1"}},
        "/pools/default/buckets": [verbose_config()],
        "/pools/default/buckets/travel": verbose_config(),
        "/pools/default/nodeServices": {"nodesExt": nodes_ext()[::-1]},
    } | more


class Manager:
    """`pages` maps a path without its query to a `Reply`, or to JSON. An unknown path is 404."""

    def __init__(self, pages: dict[str, Any]) -> None:
        self.pages = pages
        self.requests: list[str] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def version_string(self) -> str:
                return "Couchbase Server"

            def do_GET(self) -> None:
                outer.answer(self)

            def log_message(self, *arguments: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port: int = self.server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.node = f"127.0.0.1:{self.port}"

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        self.requests.append(handler.path)
        page = self.pages.get(handler.path.partition("?")[0], Reply(404, b'"Requested resource not found."'))
        reply = page if isinstance(page, Reply) else Reply(body=page)
        token = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
        if handler.headers.get("Authorization") != f"Basic {token}":
            reply = Reply(401, b"", headers={"WWW-Authenticate": 'Basic realm="Couchbase"'})
        reply.before()
        body = reply.body if isinstance(reply.body, bytes) else json.dumps(reply.body).encode()
        try:
            handler.send_response(reply.status)
            handler.send_header("Content-Type", reply.content_type)
            handler.send_header("Content-Length", str(len(body) if reply.length is None else reply.length))
            for name, value in reply.headers.items():
                handler.send_header(name, value)
            handler.end_headers()
            handler.wfile.write(body)
        except OSError:
            pass  # the client gave up, as some tests want
        # A body that is shorter than announced ends here.
        handler.close_connection = reply.length is not None


@contextmanager
def manager(pages: dict[str, Any]) -> Iterator[Manager]:
    served = Manager(pages)
    thread = threading.Thread(target=served.server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield served
    finally:
        served.server.shutdown()
        served.server.server_close()
        thread.join()
