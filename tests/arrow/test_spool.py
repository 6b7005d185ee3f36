"""Documents on disk: there as long as they are needed, and no longer."""

from __future__ import annotations

import errno
import gc
import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from cbframe.arrow import spool as spool_module
from cbframe.arrow.columns import raw_schema
from cbframe.arrow.spool import Spool
from cbframe.errors import SpoolError

SCHEMA = raw_schema()


def rows(*values: bytes) -> pa.RecordBatch:
    columns = {
        "_cb_key": [b"k%d" % i for i in range(len(values))],
        "_cb_value": list(values),
    }
    zeros = [0] * len(values)
    arrays = [pa.array(columns.get(field.name, zeros), field.type) for field in SCHEMA]
    return pa.RecordBatch.from_arrays(arrays, schema=SCHEMA)


def test_what_was_written_is_read_any_number_of_times(tmp_path: Path) -> None:
    spool = Spool(SCHEMA, tmp_path)
    batches = [rows(b"a", b"", b"\xff" * 1000), rows(), rows(b"x")]
    for number, batch in enumerate(batches):
        spool.write(batch, np.full(len(batch), number))
    spool.complete()
    assert len(spool) == 3
    for _ in range(2):
        for number in (2, 0, 1):
            assert spool.values(number) == batches[number].column("_cb_value")
            heads = spool.heads(number)
            assert heads.column("_cb_key") == batches[number].column("_cb_key")
            assert heads.column("_cb_number").to_pylist() == [number] * len(batches[number])
    spool.close()
    spool.close()
    assert list(tmp_path.iterdir()) == []


def test_the_files_have_no_names_and_go_with_the_spool(tmp_path: Path) -> None:
    spool = Spool(SCHEMA, tmp_path)
    spool.write(rows(b"a"), np.zeros(1, np.int64))
    assert list(tmp_path.iterdir()) == []
    files = spool._files
    del spool
    gc.collect()
    assert all(file.closed for file in files)


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(SpoolError, match=r"cannot be kept in .*nowhere") as caught:
        Spool(SCHEMA, tmp_path / "nowhere")
    assert "spool_dir=" in str(caught.value)


def test_a_file_that_was_cut(tmp_path: Path) -> None:
    spool = Spool(SCHEMA, tmp_path)
    for _ in range(3):
        spool.write(rows(np.random.default_rng(1).bytes(10_000)), np.zeros(1, np.int64))
    spool.complete()
    spool._files[1].truncate(15_000)
    assert len(spool.values(0)) == 1
    with pytest.raises(SpoolError, match="cannot be kept in"):
        spool.values(1)
    spool.close()
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    class Full(io.BytesIO):
        def write(self, data: Any) -> int:
            if len(data) > 100_000:
                raise OSError(errno.ENOSPC, "No space left on device")
            return super().write(data)

    monkeypatch.setattr(spool_module.tempfile, "TemporaryFile", lambda **_: Full())
    spool = Spool(SCHEMA)
    with pytest.raises(SpoolError, match="No space left on device"):
        spool.write(rows(np.random.default_rng(1).bytes(1_000_000)), np.zeros(1, np.int64))
    spool.close()
