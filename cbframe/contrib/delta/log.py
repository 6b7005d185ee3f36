"""The log of a Delta table that mirrors a bucket: which commits are ours, and whether they fit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from cbframe.errors import CbframeError, DependencyError, SnapshotError
from cbframe.snapshot.manifest import Manifest

APP = "cbframe"
"""The application whose transaction counts the updates, and the name of the commits' metadata."""
_LOOK_BACK = 50
"""Commits among which versions are looked for that can be gone back to."""
_HARMLESS = {"OPTIMIZE", "VACUUM START", "VACUUM END", "SET TBLPROPERTIES"}
"""What others may do: the rows stay as they are."""
_OVERWRITE = 'to_delta(..., mode="overwrite") makes it again; old versions stay until they are vacuumed'


@dataclass(frozen=True, slots=True)
class Base:
    """The state of a table that is continued."""

    table: Any  # A `deltalake.DeltaTable`, at the version that is continued
    manifest: Manifest  # of the last update. Its `files` are empty: those are in Delta's own log
    ancestors: list[Manifest]  # it and the updates before it, newest first
    versions: Mapping[int, int]  # by the version of an update, that of the table


def library() -> Any:
    """The module ``deltalake``."""
    try:
        import deltalake  # noqa: PLC0415 - optional
    except ImportError as exc:
        raise DependencyError("deltalake is not installed", hint="pip install 'cbframe[delta]'") from exc
    return deltalake


@contextmanager
def delta_errors(uri: str, doing: str) -> Iterator[None]:
    """Turns an error of deltalake's into one that says what to do."""
    from deltalake.exceptions import CommitFailedError, DeltaError  # noqa: PLC0415 - optional

    try:
        yield
    except CbframeError:
        raise
    except CommitFailedError as exc:
        raise SnapshotError(
            "another writer has changed the table meanwhile",
            path=uri,
            hint="nothing was written: let one process write at a time, and update again",
        ) from exc
    except (DeltaError, OSError) as exc:
        raise SnapshotError(f"cannot {doing} ({exc})", path=uri) from exc


def open_table(uri: str, storage_options: Mapping[str, str] | None) -> Any:
    """The table as it is now; None if there is none."""
    deltalake = library()
    options = None if storage_options is None else dict(storage_options)
    with delta_errors(uri, "open the Delta table"):
        if not deltalake.DeltaTable.is_deltatable(uri, storage_options=options):
            return None
        return deltalake.DeltaTable(uri, storage_options=options)


def base_of(table: Any, uri: str) -> Base:
    """What the log tells of the last update."""
    with delta_errors(uri, "read the log of the Delta table"):
        commits = table.history(_LOOK_BACK)
        if not any(APP in commit for commit in commits):
            commits = table.history()
        transaction = table.transaction_version(APP)
    for commit in commits:
        if APP in commit:
            break
        if commit["operation"] not in _HARMLESS:
            raise _changed(commit, uri)
    else:
        raise SnapshotError(
            "the log of the table does not tell how far it was read: it was not made by to_delta(), or that "
            "commit was cleaned up",
            path=uri,
            hint=_OVERWRITE,
        )
    ours = [(commit["version"], _manifest(commit, uri)) for commit in commits if APP in commit]
    newest = ours[0][1]
    if transaction != newest.version:
        raise SnapshotError(
            f"the table does not fit its log: the last update is number {newest.version}, and its "
            f"transaction says {transaction}",
            path=uri,
            hint=_OVERWRITE,
        )
    ancestors = [*_line([manifest for _, manifest in ours])]
    return Base(table, newest, ancestors, {manifest.version: version for version, manifest in ours})


def _manifest(commit: Mapping[str, Any], uri: str) -> Manifest:
    return Manifest.from_bytes(commit[APP].encode(), f"{uri}, version {commit['version']}")


def _line(manifests: list[Manifest]) -> Iterator[Manifest]:
    """A version, and what it was made from, as far as they are there."""
    parent = manifests[0].version
    for each in manifests:
        if each.version == parent:
            yield each
            if each.kind == "create":
                return
            parent = each.parent


def _changed(commit: Mapping[str, Any], uri: str) -> SnapshotError:
    what, version = commit["operation"], commit["version"]
    if what == "RESTORE":
        return SnapshotError(
            f"the table was restored to what it was (version {version}): its rows are older than the "
            "positions up to which the bucket was read, and what came in between would be missing",
            path=uri,
            hint=_OVERWRITE,
        )
    return SnapshotError(
        f"the table was changed by someone else ({what}, version {version}): it is no mirror any more",
        path=uri,
        hint=_OVERWRITE,
    )
