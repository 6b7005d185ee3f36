"""Files that appear whole or not at all, and Parquet in them."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import quote

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from cbframe.arrow.column_types import rendered
from cbframe.errors import ConfigurationError, DependencyError
from cbframe.scan.spec import path_of_files
from cbframe.system import replace, sync

_COMPRESSIONS = ("zstd", "snappy", "gzip", "lz4", "brotli", "none")
_ROW_GROUP_BYTES = 24 << 20
_ROW_GROUP_ROWS = 1 << 20
_HINT = "give another name, or overwrite=True"


def check_compression(compression: str) -> None:
    """Refuse what no file can be written with, before anything is read."""
    if compression not in _COMPRESSIONS:
        raise ConfigurationError(
            f"compression={compression!r}", hint=f"choose from: {', '.join(_COMPRESSIONS)}"
        )


@contextmanager
def whole_file(path: Path, *, overwrite: bool = True) -> Iterator[BinaryIO]:
    """Write to a file beside `path`, and rename it when it is complete and on the disk."""
    scratch = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with scratch.open("wb") as file:
            yield file
            sync(file)
        if not overwrite and os.path.lexists(path):
            raise ConfigurationError(
                f"there is something at {path}, which came during the read", hint="give another name"
            )
        replace(scratch, path)
    finally:
        scratch.unlink(missing_ok=True)


def write_parquet(reader: pa.RecordBatchReader, path: Path, compression: str = "zstd") -> int:
    """Write all batches into a file, as :func:`write_batches` does."""
    with whole_file(path) as file:
        return write_batches(reader, file, compression)


def write_batches(reader: pa.RecordBatchReader, file: Any, compression: str) -> int:
    """Write all batches, gathered until they are worth a row group; return the number of rows."""
    rows = 0
    schema = rendered(reader.schema.empty_table()).schema
    with pq.ParquetWriter(file, schema, compression=compression) as writer:
        for group in _groups(reader):
            writer.write_table(rendered(group), row_group_size=len(group))
            rows += len(group)
    return rows


def _groups(reader: pa.RecordBatchReader) -> Iterator[pa.Table]:
    pending: list[pa.RecordBatch] = []
    rows = size = 0
    for batch in reader:
        pending.append(batch)
        rows, size = rows + len(batch), size + batch.nbytes
        if rows >= _ROW_GROUP_ROWS or size >= _ROW_GROUP_BYTES:
            yield pa.Table.from_batches(pending)
            pending.clear()
            rows = size = 0
    if pending:
        yield pa.Table.from_batches(pending)


def located(
    path: str | os.PathLike[str],
    *,
    filesystem: pafs.FileSystem | None = None,
    storage_options: Mapping[str, Any] | None = None,
) -> Path | tuple[pafs.FileSystem, str]:
    """What a path or URI names: a path of this machine, or a file system and a path in it."""
    text = path_of_files("path", path)
    if filesystem is not None and storage_options is not None:
        raise ConfigurationError("filesystem= and storage_options= exclude each other")
    if isinstance(filesystem, pafs.LocalFileSystem):
        return Path(text).expanduser().absolute()
    if filesystem is not None:
        if not isinstance(filesystem, pafs.FileSystem):
            raise ConfigurationError(
                f"filesystem= is a {type(filesystem).__name__}", hint="give a pyarrow.fs.FileSystem"
            )
        return filesystem, text
    scheme, mark, _ = text.partition("://")
    if storage_options is not None and scheme != "file":
        return _of_fsspec(text, storage_options)
    if not mark:
        return Path(text).expanduser().absolute()
    try:
        # As people write it: pyarrow refuses blanks and umlauts, and leaves out what is after # and ?.
        found, root = pafs.FileSystem.from_uri(quote(text, safe="/:%") if scheme == "file" else text)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as exc:
        if scheme.isalnum() and scheme != "file":
            return _of_fsspec(text, {})
        raise ConfigurationError(f"{text!r} is no place for files: {exc}") from exc
    return Path(root) if isinstance(found, pafs.LocalFileSystem) else (found, root)


def _of_fsspec(uri: str, options: Mapping[str, Any]) -> Path | tuple[pafs.FileSystem, str]:
    try:
        import fsspec  # noqa: PLC0415 - optional
    except ImportError as exc:
        raise DependencyError("fsspec is not installed", hint="pip install 'cbframe[remote]'") from exc
    try:
        found, root = fsspec.core.url_to_fs(uri, **options)
    except (ValueError, ImportError) as exc:
        raise ConfigurationError(
            f"{uri!r} is no place for files: {exc}", hint="install the library that fsspec needs for it"
        ) from exc
    if isinstance(found, fsspec.get_filesystem_class("file")):
        return Path(root)
    return pafs.PyFileSystem(pafs.FSSpecHandler(found)), root


class Destination:
    """A file or folder that is to be written, and appears whole or not at all."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        overwrite: bool,  # whether it may take the place of what is there
        filesystem: pafs.FileSystem | None = None,
        storage_options: Mapping[str, Any] | None = None,
    ) -> None:
        self._overwrite = overwrite
        found = located(path, filesystem=filesystem, storage_options=storage_options)
        self._local = found if isinstance(found, Path) else None
        self._remote = None if isinstance(found, Path) else found
        self.name: Path | str = os.fspath(path)
        """What callers get back."""
        if "://" not in self.name and isinstance(found, Path):
            self.name = Path(path).expanduser()

    def refuse_existing(self, *, folder: bool) -> None:
        """Refuse a place that is taken."""
        kind, empty = self._what_is_there()
        if kind == "folder" and empty and folder:
            return
        if kind == "folder" and not folder:
            raise ConfigurationError(f"{self.name} is a folder", hint="give the name of a file in it")
        if kind is not None and not self._overwrite:
            raise ConfigurationError(f"there is something at {self.name}", hint=_HINT)

    def _what_is_there(self) -> tuple[str | None, bool]:
        """``file``, ``folder`` or None, and whether a folder is empty."""
        if self._local is not None:
            if self._local.is_dir():
                return "folder", not any(self._local.iterdir())
            return ("file" if os.path.lexists(self._local) else None), False
        assert self._remote is not None
        filesystem, path = self._remote
        info = filesystem.get_file_info(path)
        if info.type == pafs.FileType.Directory:
            selector = pafs.FileSelector(path, allow_not_found=True)
            return "folder", not filesystem.get_file_info(selector)
        return (None if info.type == pafs.FileType.NotFound else "file"), False

    @contextmanager
    def file(self) -> Iterator[Any]:
        """What takes the bytes of the file; it gets its name at the end."""
        if self._local is not None:
            with whole_file(self._local, overwrite=self._overwrite) as file:
                yield file
            return
        assert self._remote is not None
        filesystem, path = self._remote
        folder, _, name = path.rpartition("/")
        scratch = f"{folder}/.{name}.{uuid.uuid4().hex}" if folder else f".{name}.{uuid.uuid4().hex}"
        if folder:
            filesystem.create_dir(folder, recursive=True)
        try:
            with filesystem.open_output_stream(scratch) as stream:
                yield stream
            self.refuse_existing(folder=False)
            filesystem.move(scratch, path)
        finally:
            with suppress(OSError):
                filesystem.delete_file(scratch)

    @contextmanager
    def folder(self, scratch_dir: str | None) -> Iterator[Path]:
        """An empty folder of this machine whose files are put into place at the end."""
        if self._local is not None:
            scratch = self._local.with_name(f".{self._local.name}.{uuid.uuid4().hex}")
            scratch.mkdir(parents=True)
        else:
            import tempfile  # noqa: PLC0415 - rarely wanted

            scratch = Path(tempfile.mkdtemp(prefix="cbframe-", dir=scratch_dir))
        try:
            yield scratch
            self.refuse_existing(folder=True)
            if self._local is None:
                self._upload(scratch)
            else:
                self._rename(scratch, self._local)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)

    def _rename(self, scratch: Path, path: Path) -> None:
        old = None
        if self._overwrite and os.path.lexists(path):
            old = path.with_name(f".{path.name}.{uuid.uuid4().hex}.old")
            path.rename(old)
        try:
            if path.is_dir():
                path.rmdir()  # it is empty; on Windows nothing takes its place
            os.rename(scratch, path)  # noqa: PTH104 - unlike replace(), refuses a folder that has something
        except OSError:
            if old is not None:
                old.rename(path)
            raise
        if old is not None and old.is_dir():
            shutil.rmtree(old)
        elif old is not None:
            old.unlink()

    def _upload(self, scratch: Path) -> None:
        """Files of an object store appear one after the other; after a failure none is left."""
        assert self._remote is not None
        filesystem, path = self._remote
        if self._overwrite and filesystem.get_file_info(path).type == pafs.FileType.Directory:
            filesystem.delete_dir_contents(path)
        filesystem.create_dir(path, recursive=True)
        put: list[str] = []
        try:
            for file in sorted(scratch.iterdir()):
                put.append(f"{path}/{file.name}")
                with file.open("rb") as source, filesystem.open_output_stream(put[-1]) as sink:
                    shutil.copyfileobj(source, sink)
        except BaseException:  # Ctrl-C, too: raised again
            for name in put:
                with suppress(OSError):
                    filesystem.delete_file(name)
            raise
