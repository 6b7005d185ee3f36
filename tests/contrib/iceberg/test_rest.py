"""A catalogue that speaks REST, served on 127.0.0.1 from one in SQLite."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from types import SimpleNamespace
from typing import Any

import pytest
from pyiceberg.catalog import Catalog
from pyiceberg.exceptions import CommitFailedException, NoSuchTableError
from pyiceberg.schema import Schema
from pyiceberg.table import CommitTableRequest
from scan.kit import truth

from cbframe import LocalCluster, SnapshotError

from .kit import NAME, held, make, update

SECRET = "hidden-word"


class Server(ThreadingHTTPServer):  # what a REST catalogue answers, as far as mirrors ask it
    daemon_threads = False

    def __init__(self, catalog: Catalog) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.catalog = catalog
        self.meanwhile: list[Callable[[], Any]] = []  # called before the next commit
        self.fails_after_commit = False
        uri = f"http://127.0.0.1:{self.server_port}"
        self.properties: Any = {"type": "rest", "uri": uri, "token": SECRET}

    def answer(self, path: list[str], body: Any) -> Any:
        namespace, name = [*path, *[""] * 4][1:4:2]
        if path == ["config"]:
            return {"defaults": {}, "overrides": {}}
        if body is None:
            table: Any = self.catalog.load_table((namespace, name))
        elif not name:
            schema = Schema.model_validate(body["schema"])
            place, properties = (namespace, body["name"]), body["properties"]
            table = self.catalog.create_table_transaction(place, schema, properties=properties)
            return {"metadata": json.loads(table.table_metadata.model_dump_json())}
        else:
            while self.meanwhile:
                self.meanwhile.pop()()
            wanted = CommitTableRequest.model_validate(body)
            table = SimpleNamespace(name=lambda: (namespace, name))
            table = self.catalog.commit_table(table, wanted.requirements, wanted.updates)
            if self.fails_after_commit:
                raise RuntimeError("the connection to the database is lost")
        metadata = json.loads(table.metadata.model_dump_json())
        return {"metadata-location": table.metadata_location, "metadata": metadata}


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        assert self.headers["Authorization"] == f"Bearer {SECRET}"
        body = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))) or "null")
        status = 200
        try:
            found = self.server.answer(self.path.removeprefix("/v1/").split("/"), body)
        except (NoSuchTableError, CommitFailedException, RuntimeError) as exc:
            status = {NoSuchTableError: 404, CommitFailedException: 409}.get(type(exc), 500)
            found = {"error": {"message": str(exc), "type": type(exc).__name__, "code": status}}
        self.send_response(status)
        self.end_headers()
        self.wfile.write(json.dumps(found).encode())

    do_POST = do_GET  # noqa: N815 - as above

    def log_message(self, *_: Any) -> None: ...


@pytest.fixture
def server(catalog: Catalog) -> Iterator[Server]:
    with Server(catalog) as found:
        thread = Thread(target=found.serve_forever, args=(0.01,))
        thread.start()
        yield found
        found.shutdown()
        thread.join()


@pytest.mark.parametrize("per", [None, "collection"])
def test_rows_follow_the_bucket(cluster: LocalCluster, server: Server, per: str | None) -> None:
    for number in range(3):
        cluster.upsert("a", {"n": number})
        cluster.upsert(f"key-{number}", {})
        arguments = {} if number else {"table_per": per}
        result = (update if number else make)(cluster, server.properties, **arguments)
        assert (result.upserted, result.rewritten) == (2, not number)
    cluster.delete("a")
    assert update(cluster, server.properties).deleted == 1
    assert not update(cluster, server.properties).changed
    table = server.catalog.load_table(NAME if per is None else f"{NAME}___default___default")
    assert sorted(table.scan().to_arrow()["_cb_key"].to_pylist()) == ["key-0", "key-1", "key-2"]


def test_what_goes_wrong(cluster: LocalCluster, server: Server) -> None:
    for number, write in enumerate((make, update)):
        cluster.upsert("a", {"n": number})
        server.meanwhile.append(lambda write=write: write(cluster, server.catalog, parse=False))  # type: ignore[misc]
        with pytest.raises(SnapshotError, match="another writer has changed the table"):
            write(cluster, server.properties, parse=False)
        assert held(server.catalog) == truth(cluster)
    cluster.upsert("a", {"n": 2})
    server.fails_after_commit = True
    with pytest.raises(SnapshotError, match="cannot commit the Iceberg table") as error:
        update(cluster, server.properties)
    assert "nobody knows whether it was committed" in (error.value.hint or "")
    assert not update(cluster, server.properties).changed
    assert held(server.catalog) == truth(cluster)
