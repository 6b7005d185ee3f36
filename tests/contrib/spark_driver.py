"""A driver of Spark to be killed: it keeps the documents of a bucket in SQLite, and says what it does.

Its arguments are the connection string, a folder, and whether it goes on for ever or ends when it has all.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from contrib.spark_kit import Store, session_of


def say(what: str) -> None:
    sys.stdout.write(what + "\n")
    sys.stdout.flush()


def main(connection: str, folder: str, until: str) -> None:
    store = Store(Path(folder) / "documents.db")

    def keep(batch: Any, number: int) -> None:
        say(f"begun {number}")
        store(batch, number)
        say(f"stored {number}")

    with session_of("local[2]") as spark:
        changes = (
            spark.readStream.format("couchbase")
            .option("connection", connection)
            .schema("_change_type string, _cb_key string, _cb_vbucket int, _cb_seqno bigint, n bigint")
            .load()
        )
        writer = changes.writeStream.foreachBatch(keep)
        writer = writer.option("checkpointLocation", str(Path(folder, "spark")))
        if until == "complete":
            writer = writer.trigger(availableNow=True)
        writer.start().awaitTermination()


if __name__ == "__main__":
    main(*sys.argv[1:])
