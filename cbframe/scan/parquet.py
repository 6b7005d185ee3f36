"""Files that appear whole or not at all, and Parquet in them."""

from __future__ import annotations

import os
import shutil
import uuid
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import quote

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from cbframe.arrow.column_types import rendered
from cbframe.errors import ConfigurationError, ConversionError, DependencyError
from cbframe.scan.spec import path_of_files
from cbframe.system import replace, sync

_COMPRESSIONS = ("zstd", "snappy", "gzip", "lz4", "brotli", "none")
_ROW_GROUP_BYTES = 24 << 20
_ROW_GROUP_ROWS = 1 << 20
_HINT = "give another name, or overwrite=True"
_PENDING_BYTES = 128 << 20
"""Of rows that wait for their files."""
_OPEN_FILES, _MOST_FOLDERS, _LONGEST_NAME = 64, 1000, 255
_NULL = "__HIVE_DEFAULT_PARTITION__"
_INTEGERS = (pa.type_for_alias(f"{sign}int{bits}") for sign in ("", "u") for bits in (8, 16, 32, 64))
_NAMING = {pa.string(), pa.large_string(), pa.bool_(), pa.date32(), *_INTEGERS}
"""Types whose values are the same when they are read from the name of a folder."""


def check_compression(compression: str) -> None:
    """Refuse what no file can be written with, before anything is read."""
    if compression not in _COMPRESSIONS:
        raise ConfigurationError(
            f"compression={compression!r}", hint=f"choose from: {', '.join(_COMPRESSIONS)}"
        )


@contextmanager
def whole_file(path: Path, *, overwrite: bool = True) -> Iterator[BinaryIO]:
    """Write to a file beside `path`, and rename it when it is complete and on the disk."""
    if not path.parent.is_dir():
        raise ConfigurationError(f"the folder {path.parent} does not exist", hint="make it, or name another")
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


def write_table(folder: Path, compression: str, name: str, reader: pa.RecordBatchReader) -> int:
    """Write all batches into a folder of that name, a server's, in another one."""
    place = folder / quote(name, safe="%")
    place.mkdir()
    return write_parquet(reader, place / "part-00000.parquet", compression)


def write_batches(reader: pa.RecordBatchReader, file: Any, compression: str) -> int:
    """Write all batches, gathered until they are worth a row group; return the number of rows."""
    rows = 0
    schema = rendered(reader.schema.empty_table()).schema
    with pq.ParquetWriter(file, schema, compression=compression) as writer:
        for group in row_groups(reader):
            writer.write_table(rendered(group), row_group_size=len(group))
            rows += len(group)
    return rows


def row_groups(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.Table]:
    """Batches, gathered until they are worth a row group."""
    pending: list[pa.RecordBatch] = []
    rows = size = 0
    for batch in batches:
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
            for file in sorted(each for each in scratch.rglob("*") if each.is_file()):
                put.append(f"{path}/{file.relative_to(scratch).as_posix()}")
                filesystem.create_dir(put[-1].rpartition("/")[0], recursive=True)
                with file.open("rb") as source, filesystem.open_output_stream(put[-1]) as sink:
                    shutil.copyfileobj(source, sink)
        except BaseException:  # Ctrl-C, too: raised again
            for name in put:
                with suppress(OSError):
                    filesystem.delete_file(name)
            raise


# --- folders that are named by values


def write_folders(
    reader: pa.RecordBatchReader, folder: Path, compression: str, by: Sequence[str], name: str = "part-00000"
) -> int:
    """Write all batches into files of folders that values name, as Hive does; return the number of rows."""
    with closing(_Folders(folder, reader.schema, compression, by, name)) as files:
        rows = sum(map(files.add, map(rendered, row_groups(reader))))
        files.flush()
    return rows


class _Folders:
    """Files in folders: ``type=hotel/part-00000-0.parquet``."""

    def __init__(
        self, folder: Path, schema: pa.Schema, compression: str, by: Sequence[str], name: str
    ) -> None:
        schema = rendered(schema.empty_table()).schema
        others = [each for each in schema if each.name not in by]
        names = [*map(_named, by), *(each.name for each in others)]
        for column in by:
            key, reason = _named(column), None
            if column not in schema.names or by.count(column) > 1:
                reason = "it is there twice" if column in schema.names else "it is not there"
            elif (kind := schema.field(column).type) not in _NAMING:
                reason = f"type {kind}"
            elif not key or quote(key, safe="") != key or names.count(key) > 1:
                reason = "another is called so" if names.count(key) > 1 else "its name"
            if reason is not None:
                raise ConfigurationError(
                    f"partition_by= names {column!r}, of which no folders can be named: {reason}",
                    hint="name some of the columns, of text, integers, booleans or days (date32), whose "
                    "names are unique, without a _ before, and have ASCII letters, digits and any of _ . - ~",
                )
        if not others:
            raise ConfigurationError("partition_by= names all columns", hint="leave one for the files")
        self._by, self._schema = by, pa.schema(others, schema.metadata)
        self._folder, self._name, self._compression = folder, name, compression
        self._pending: dict[str, list[pa.Table]] = {}
        self._sizes: Counter[str] = Counter()
        self._begun: Counter[str] = Counter()
        self._files: dict[str, tuple[BinaryIO, pq.ParquetWriter]] = {}
        """Those that are open; the first was not written to for the longest time."""

    def add(self, table: pa.Table) -> int:
        """Take rows, and count them; write what is worth a row group, or the most if too much waits."""
        codes = np.zeros(len(table), np.int64)
        for column in self._by:
            values = table[column].combine_chunks().dictionary_encode("encode")
            each = codes * len(values.dictionary) + values.indices.to_numpy()
            codes = np.unique(each, return_inverse=True)[1]
        order = np.argsort(codes, kind="stable")
        for rows in np.split(order, np.flatnonzero(np.diff(codes[order])) + 1):
            place = "/".join(_segment(column, table[column][int(rows[0])].as_py()) for column in self._by)
            if place not in self._pending and len(self._pending) == _MOST_FOLDERS:
                raise ConversionError(
                    f"partition_by= makes more than {_MOST_FOLDERS:,} folders",
                    hint="name columns with few different values",
                )
            part = table.select(self._schema.names).take(pa.array(rows))
            self._pending.setdefault(place, []).append(part)
            self._sizes[place] += part.nbytes
            if self._sizes[place] >= _ROW_GROUP_BYTES:
                self._write(place)
        while self._sizes.total() > _PENDING_BYTES:
            self._write(max(self._sizes, key=self._sizes.__getitem__))
        return len(table)

    def _write(self, place: str) -> None:
        """Write what waits for a folder as a row group."""
        table = pa.concat_tables(self._pending[place])
        self._pending[place], self._sizes[place] = [], 0
        opened = self._files.pop(place, None)
        if opened is None:
            if len(self._files) == _OPEN_FILES:
                self._end(next(iter(self._files)))
            path = self._folder / place / f"{self._name}-{self._begun[place]}.parquet"
            self._begun[place] += 1
            path.parent.mkdir(parents=True, exist_ok=True)
            # Not "wb": where a file system takes two values for one name, nothing is written over.
            file = path.open("xb")
            opened = file, pq.ParquetWriter(file, self._schema, compression=self._compression)
        self._files[place] = opened
        opened[1].write_table(table, row_group_size=len(table))

    def _end(self, place: str) -> None:
        file, writer = self._files.pop(place)
        with file:
            writer.close()
            sync(file)

    def flush(self) -> None:
        """Write what waits."""
        for place, tables in self._pending.items():
            if tables:
                self._write(place)

    def close(self) -> None:
        """Close all files."""
        with ExitStack() as stack:
            for place in self._files:
                stack.callback(self._end, place)


def _named(column: str) -> str:
    """How folders name a column: pyarrow does not look into those that begin with ``_``."""
    return column.lstrip("_")


def _segment(column: str, value: Any) -> str:
    text = str(value).lower() if isinstance(value, bool) else str(value)
    found = f"{_named(column)}={_NULL if value is None else quote(text, safe='')}"
    if text == _NULL or len(found) > _LONGEST_NAME:
        raise ConversionError(
            f"partition_by= names {column!r}, which has a value that cannot name a folder",
            hint=f"it takes more than {_LONGEST_NAME} bytes, or is what stands for null",
        )
    return found
