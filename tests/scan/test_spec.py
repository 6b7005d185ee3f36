"""The public functions that read a bucket: one signature, one set of checks, before anything is connected."""

from __future__ import annotations

import contextlib
import importlib
import inspect
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

import cbframe
from cbframe import BucketDataSourceOptions, ConfigurationError
from cbframe.contrib import dask as on_dask
from cbframe.contrib import delta
from cbframe.scan.spec import ScanArguments, ScanSpec
from cbframe.snapshot.writer import HOW, WANTED

NOWHERE = "couchbase://127.0.0.1:1/b"
AUTH = ("u", "p")
SCANS: dict[str, Callable[..., Any]] = {
    "scan_bucket": cbframe.scan_bucket,
    "read_bucket": cbframe.read_bucket,
    "read_schema": cbframe.read_schema,
    "dask": on_dask.read_bucket,
}
COPIES: dict[str, Callable[..., Any]] = {
    "write_snapshot": cbframe.write_snapshot,
    "to_delta": delta.to_delta,
    "update_delta": delta.update_delta,
}
DOORS = {**SCANS, **COPIES, "stream_bucket": cbframe.stream_bucket}
KEPT_METADATA = ("key", "vbucket", "seqno", "scope", "collection")
"""A stream has these columns by default, since changes cannot be told apart without them."""

NONSENSE: dict[str, list[Any]] = {
    "conn": [None, 5, b"couchbase://h/b", [], [1], "", "couchbase://h"],
    "bucket": [5, b"b"],
    "auth": ["user:secret", ("user",), 5],
    "tls": [5, True],
    "network": ["", 5],
    "scope": ["", 5],
    "collections": [[], [1], [""], 5],
    "columns": [
        *("name", [], [1], [()], [("a", 1)], [None], 5, b"name", {"a": "int64"}),
        *(pd.Index([1, 2]), pd.Index([]), pa.schema([("a", pa.int64())])),
    ],
    "filters": ["n > 5", [("n", "~", 5)], 5],
    "keys_only": ["no", 1],
    "parse": ["no"],
    "metadata": [None, "keys", [1], 5, {"key": True}],
    "vbuckets": [["a"], "12", 5, [1.5], [True], [-1], [1 << 16]],
    "keys": ["bytes", b"text"],
    "key_prefix": [5],
    "key_pattern": [5, b"hotel*", "a[z-a]"],
    "event_log": [5, ""],
    "n_rows": ["5", 0, 1 << 63, -1, True, 5.0],
    "errors": ["ignore", None, ["keep"]],
    "nested": ["flat", []],
    "schema": ["a: int64", {"a": "whatever"}, {1: "int64"}, ["a"], 5, {"_cb_key": "string"}],
    "infer_schema_length": ["100", 0],
    "on_conflict": ["ignore"],
    "max_struct_fields": ["1000", 0, True],
    "parse_dates": [1, [1]],
    "expired": ["yes", True],
    "transaction_records": ["yes", False],
    "consistency": ["eventual", None],
    "batch_bytes": ["1", 0, -5, 1.5, True],
    "buffer_bytes": ["1", -1, True, 4e6],
    "spool_dir": [5, "", True],
    "spill_bytes": [-1, 1.5, "1 GB"],
    "timeout": ["10s", float("nan"), 0, -1, True],
    "dtype_backend": ["numpy", "", 1, ["pyarrow"]],
    "progress": ["loud", 5],
    "options": [{"noop_interval_secs": 5}, 0],
}


def names_of(function: Callable[..., Any]) -> set[str]:
    return set(inspect.signature(function).parameters)


def call(door: str, place: Path, **arguments: Any) -> None:
    """Call a function with a bucket that cannot be reached."""
    given = {"conn": NOWHERE, "auth": AUTH} | arguments
    conn = given.pop("conn")
    DOORS[door](*([conn] if door not in COPIES else [conn, place]), **given)


@pytest.mark.parametrize("door", DOORS)
def test_nonsense_is_refused_before_anything_is_connected_or_written(door: str, tmp_path: Path) -> None:
    names = names_of(DOORS[door])
    tried = [(name, value) for name, values in NONSENSE.items() if name in names for value in values]
    assert len(tried) > 20
    accepted = []
    for name, value in tried:
        if value is None and name != "conn" and door in COPIES:
            continue  # what is left out is as the copy has it
        try:
            call(door, tmp_path / "copy", **{name: value})
        except ConfigurationError as exc:
            named = name == "conn" or name.removesuffix("s") in exc.message or "manifest" in exc.message
            if not named or not exc.hint:
                accepted.append(f"{name}={value!r}: {exc}")
        except (cbframe.CbframeError, TypeError, ValueError) as exc:
            accepted.append(f"{name}={value!r}: {type(exc).__name__}")
        else:
            accepted.append(f"{name}={value!r}")
    assert not accepted
    assert not list(tmp_path.iterdir())


def test_every_argument_has_nonsense_that_is_tried() -> None:
    assert {"conn", "bucket", *ScanArguments.__annotations__} == NONSENSE.keys()


@pytest.mark.parametrize(
    ("door", "name", "values"),
    [
        ("stream_bucket", "max_latency", ["1s", float("nan"), -1]),
        ("stream_bucket", "on_rollback", ["ignore"]),
        ("stream_bucket", "start", [5, "tomorrow"]),
        ("stream_bucket", "buffer_bytes", [0]),
        ("write_snapshot", "file_bytes", ["1", 0]),
        ("write_snapshot", "compression", ["rar"]),
        ("write_snapshot", "mode", ["append"]),
        ("write_snapshot", "xattrs", ["yes"]),
        ("write_snapshot", "break_lock", ["yes"]),
        ("to_delta", "mode", ["append"]),
        ("to_delta", "xattrs", [1]),
        ("read_bucket", "return_type", ["numpy"]),
        ("read_bucket", "split_by", [1, (), ("a", 1)]),
        ("dask", "keys", ["yes"]),
        ("dask", "consistency", ["eventual"]),
    ],
)
def test_nonsense_in_arguments_of_one_function(
    door: str, name: str, values: list[Any], tmp_path: Path
) -> None:
    for value in values:
        with pytest.raises(ConfigurationError, match=f"{name}|columns="):  # a kind is the value of a column
            call(door, tmp_path / "copy", **{name: value})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("door", COPIES)
@pytest.mark.parametrize("path", ["", None, 5, b"x"])
def test_a_copy_needs_a_place(door: str, path: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigurationError):
        DOORS[door](NOWHERE, path, auth=AUTH)
    assert not list(tmp_path.iterdir())


def test_choices_are_listed_and_no_password_is_shown() -> None:
    choices = {"errors": "keep, drop, raise", "nested": "struct, flatten, json"}
    for name, listed in {**choices, "dtype_backend": "pyarrow, numpy_nullable, None"}.items():
        with pytest.raises(ConfigurationError, match=f"{name}='other'") as caught:
            cbframe.scan_bucket(NOWHERE, **{name: "other"})
        assert caught.value.hint == f"choose from: {listed}"
    with pytest.raises(ConfigurationError) as caught:
        cbframe.scan_bucket(NOWHERE, auth="someone:hidden-word")
    assert "hidden" not in str(caught.value)


# --- one signature


def test_scans_take_what_is_described() -> None:
    for name, function in SCANS.items():
        assert names_of(function) >= {"conn", "bucket", *ScanArguments.__annotations__}, name


@pytest.mark.parametrize("name", ["colums", "path", "start", "bucket_name"])
def test_an_argument_that_no_scan_has_is_an_error(name: str) -> None:
    with pytest.raises(TypeError, match=name):
        ScanSpec.of(NOWHERE, **{name: None})


def test_each_argument_of_a_copy_has_a_meaning() -> None:
    """It says what is kept, or how it is read; the others are about the place where the copy is."""
    places = {
        "path",
        "uri",
        "mode",
        "compression",
        "file_bytes",
        "filesystem",
        "storage_options",
        "table_per",
    }
    for name, function in COPIES.items():
        assert names_of(function) - WANTED - {*HOW} <= places | {"break_lock", "clock"}, name
        assert names_of(function) >= WANTED | {*HOW}, name


@pytest.mark.parametrize("door", DOORS)
def test_shared_arguments_have_one_default_and_one_annotation(door: str) -> None:
    ours, theirs = (inspect.signature(each).parameters for each in (DOORS[door], cbframe.scan_bucket))
    for name in ours.keys() & theirs.keys():
        mine, scan = ours[name], theirs[name]
        where = f"{name} of {door}"
        if door in COPIES and scan.default != mine.default:
            # What is left out is as the copy has it.
            assert mine.default is None, where
            if name != "nested":
                assert mine.annotation == f"{scan.annotation} | None", where
            continue
        if (door, name) == ("stream_bucket", "metadata"):
            assert mine.default == KEPT_METADATA
        else:
            assert mine.default == scan.default, where
        # What is stored has a form in JSON: a glob has.
        stored = name == "key_pattern" and (door in COPIES or door == "stream_bucket")
        assert mine.annotation == ("str | None" if stored else scan.annotation), where


def test_the_description_has_these_defaults() -> None:
    spec = ScanSpec.of(NOWHERE)
    parameters = inspect.signature(cbframe.scan_bucket).parameters
    defaults = {name: parameters[name].default for name in ScanArguments.__annotations__}
    assert spec == ScanSpec.of(NOWHERE, **defaults)
    assert spec.options.noop_interval_secs == BucketDataSourceOptions().noop_interval_secs == 20


def test_annotations_of_overloads_are_those_of_the_function() -> None:
    parameters = inspect.signature(cbframe.scan_bucket).parameters
    assert ScanArguments.__annotations__.keys() == parameters.keys() - {"conn", "bucket"}
    for name, annotation in inspect.get_annotations(ScanArguments).items():
        assert annotation.__forward_arg__ == parameters[name].annotation, name


def public_functions() -> Iterator[tuple[str, Callable[..., Any]]]:
    """Functions, classes and public methods that users call."""
    modules = ["cbframe", "cbframe.contrib.dask", "cbframe.contrib.delta"]
    with contextlib.suppress(cbframe.DependencyError):
        importlib.import_module("cbframe.contrib.spark")
        modules.append("cbframe.contrib.spark")
    for module in map(importlib.import_module, modules):
        for name in getattr(module, "__all__", None) or ("read_bucket", "as_of", "report"):
            value = getattr(module, name)
            if inspect.isfunction(value):
                yield f"{module.__name__}.{name}", value
            elif inspect.isclass(value) and not getattr(value, "_is_protocol", False):
                if value.__init__ is not object.__init__ and value.__module__.startswith("cbframe"):
                    yield f"{module.__name__}.{name}", value
                for attribute in vars(value):
                    if not attribute.startswith("_") and callable(getattr(value, attribute)):
                        yield f"{module.__name__}.{name}.{attribute}", getattr(value, attribute)


def test_every_public_function_spells_its_arguments() -> None:
    checked, vague = 0, []
    for name, value in public_functions():
        try:
            signature = inspect.signature(value)
        except ValueError:
            continue
        checked += 1
        if any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values()):
            vague.append(name)
    assert checked > 150
    assert not vague


# --- what is accepted


def test_columns_of_a_frame_are_a_list_of_names() -> None:
    wanted = (("name",), ("geo", "lat"))
    for columns in (
        pd.DataFrame(columns=["name", "geo.lat"]).columns,
        pd.Series(["name", "geo.lat"]),
        np.array(["name", "geo.lat"]),
        ("name", "geo.lat"),
        ["name", ("geo", "lat")],
        iter(["name", "geo.lat"]),
    ):
        assert ScanSpec.of(NOWHERE, columns=columns).columns == wanted


def test_numbers_of_numpy_are_numbers() -> None:
    given: dict[str, Any] = {"n_rows": np.int64(5), "timeout": np.float32(2), "batch_bytes": np.uint16(7)}
    spec = ScanSpec.of(NOWHERE, vbuckets=np.arange(2), keys_only=np.bool_(True), **given)
    assert (spec.n_rows, spec.timeout, spec.batch_bytes) == (5, 2.0, 7)
    assert (spec.vbuckets, spec.keys_only) == ((0, 1), True)
    assert [type(each) for each in (spec.n_rows, spec.timeout, spec.vbuckets)] == [int, float, tuple]


def test_a_description_is_picklable_and_shows_no_secret() -> None:
    spec = ScanSpec.of(
        NOWHERE,
        auth=("someone", "hidden-word"),
        columns=["a.b"],
        filters=[("n", ">", 5)],
        schema={"n": "int64"},
        key_prefix="hidden-key",
        timeout=3,
    )
    again = pickle.loads(pickle.dumps(spec))
    assert again == spec
    assert "hidden" not in repr(spec) + str(spec)
    with pytest.raises(AttributeError):
        spec.bucket = "other"  # type: ignore[misc]


def test_the_window_means_the_same_everywhere() -> None:
    """0 turns flow control off; by default memory that is bounded has a smaller window."""
    default, off, small = (ScanSpec.of(NOWHERE, buffer_bytes=each) for each in (None, 0, 1000))
    assert (default.window(bounded=False), default.window(bounded=True)) == (20_000_000, 4 << 20)
    assert (off.window(bounded=False), off.window(bounded=True)) == (0, 0)
    assert (small.window(bounded=False), small.window(bounded=True)) == (1000, 1000)
    by_options = ScanSpec.of(NOWHERE, options=BucketDataSourceOptions(feed_buffer_size_bytes=0))
    assert by_options.window(bounded=True) == 0


def test_a_timeout_bounds_the_connect_timeout_too() -> None:
    assert ScanSpec.of(NOWHERE, timeout=2).options.connect_timeout == 2
    assert ScanSpec.of(NOWHERE, timeout=60).options.connect_timeout == 10
