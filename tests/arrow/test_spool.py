"""Documents on disk: there as long as they are needed, and no longer."""

from __future__ import annotations

import gc
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

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
    assert spool.rows == [3, 0, 1]
    for _ in range(2):
        for number in (2, 0, 1):
            assert spool.values(number) == batches[number].column("_cb_value")
            heads = spool.heads(number)
            assert heads.column("_cb_key") == batches[number].column("_cb_key")
            assert heads.column("_cb_number").to_pylist() == [number] * len(batches[number])
    spool.close()
    spool.close()
    assert list(tmp_path.iterdir()) == []


def test_the_files_go_with_the_spool(tmp_path: Path) -> None:
    spool = Spool(SCHEMA, tmp_path)
    spool.write(rows(b"a"), np.zeros(1, np.int64))
    assert len(list(tmp_path.glob("cbframe-*/*.arrow"))) == 2
    del spool
    gc.collect()
    assert list(tmp_path.iterdir()) == []


def test_others_cannot_read_the_files(tmp_path: Path) -> None:
    spool = Spool(SCHEMA, tmp_path)
    [folder] = tmp_path.iterdir()
    assert folder.stat().st_mode & 0o077 == 0
    spool.close()


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(SpoolError, match=r"cannot be kept in .*nowhere") as caught:
        Spool(SCHEMA, tmp_path / "nowhere")
    assert "spool_dir=" in str(caught.value)


def test_a_file_that_was_cut(tmp_path: Path) -> None:
    spool = Spool(SCHEMA, tmp_path)
    for _ in range(3):
        spool.write(rows(np.random.default_rng(1).bytes(10_000)), np.zeros(1, np.int64))
    spool.complete()
    [path] = tmp_path.glob("*/values.arrow")
    with path.open("r+b") as file:
        file.truncate(15_000)
    assert len(spool.values(0)) == 1
    with pytest.raises(SpoolError, match="cannot be kept in"):
        spool.values(1)
    spool.close()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has a device that is always full")
def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = pa.OSFile

    def full(path: str, mode: str = "r") -> pa.OSFile:
        return real("/dev/full" if mode == "wb" and path.endswith("values.arrow") else path, mode)

    monkeypatch.setattr(pa, "OSFile", full)
    spool = Spool(SCHEMA, tmp_path)
    with pytest.raises(SpoolError, match="No space left on device"):
        spool.write(rows(np.random.default_rng(1).bytes(1_000_000)), np.zeros(1, np.int64))
    spool.close()
    assert list(tmp_path.iterdir()) == []
