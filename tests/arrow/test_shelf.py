"""Values put aside come back as they were."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from cbframe.arrow import shelf as shelf_module
from cbframe.arrow.shelf import Shelf
from cbframe.errors import SpoolError

ARRAYS = [
    pa.array([b"a", b"", b"\x00\xff" * 50], pa.binary()),
    pa.array([], pa.binary()),
    pa.array([b"", b""], pa.binary()),
    pa.array([b"x%d" % i for i in range(100)], pa.large_binary()),
    pa.array([b"x%d" % i for i in range(100)], pa.binary())[17:60],
]


@pytest.mark.parametrize("room", [0, 60, 1 << 20])
def test_any_number_of_times_in_any_order(room: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shelf_module, "_IN_MEMORY", room)
    shelf = Shelf(tmp_path)
    takes = [shelf.put(array) for array in ARRAYS]
    for at in (4, 0, 3, 1, 2, 0, 4):
        found = takes[at]()
        found.validate(full=True)
        assert found == ARRAYS[at]
    again = shelf.put(ARRAYS[3])
    assert again() == ARRAYS[3]
    assert takes[0]() == ARRAYS[0]
    shelf.close()
    shelf.close()
    assert list(tmp_path.iterdir()) == []


def test_little_needs_no_disk(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    shelf = Shelf(folder)
    folder.rmdir()
    take = shelf.put(ARRAYS[0])
    assert take() == ARRAYS[0]


def test_no_place_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shelf_module, "_IN_MEMORY", 0)
    with pytest.raises(SpoolError, match=r"cannot be kept in .*nowhere"):
        Shelf(tmp_path / "nowhere").put(ARRAYS[0])

    class Full:
        def seek(self, _: int) -> None:
            pass

        def write(self, _: Any) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(shelf_module.tempfile, "TemporaryFile", lambda **_: Full())
    with pytest.raises(SpoolError, match="No space left") as caught:
        Shelf(tmp_path).put(ARRAYS[0])
    assert "spool_dir=" in str(caught.value)


def test_a_file_that_was_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shelf_module, "_IN_MEMORY", 0)
    shelf = Shelf()
    take = shelf.put(ARRAYS[0])
    assert shelf._file is not None
    shelf._file.truncate(10)
    with pytest.raises(SpoolError, match="was cut"):
        take()
    shelf.close()
