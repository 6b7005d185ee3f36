r"""JSON documents as typed columns.

Each field of the documents becomes a column whose type holds all of its values, over the whole bucket.
Objects become structs and arrays become lists, and the same rules hold inside of them. No digit is lost, and
no value becomes NaN. Types and the order of columns follow from the documents alone: not from the number of
nodes, the size of batches, or what arrived first. A column cannot tell a field that is null from one that is
missing.

Types
-----
Below each kind of values are examples, one document a line, and the cells that they become::

    values of a field                                 column
    ================================================  ============================================
    null only                                         null
        null                                              null
    null or missing                                   bool
        null                                              null
        (missing)                                         null
        true                                              true
    integers                                          int64
        1                                                 1
        -0                                                0
    integers, some past 2^63, none negative           uint64
        18446744073709551615                              18446744073709551615
    integers past 2^64, or too far apart              decimal128(38, 0)
        18446744073709551616                              18446744073709551616
        -1                                                -1
    numbers, one of more than 38 digits: as written   string
        123456789012345678901234567890123456789           123456789012345678901234567890123456789
        0.5                                               0.5
    numbers with a point or an exponent               double
        0.1                                               0.1
        1e2                                               100.0
        -0.0                                              -0.0
    ... and integers that a double holds              double
        0.5                                               0.5
        9007199254740992                                  9007199254740992.0
    ... and one that it does not hold: as written     string
        0.5                                               0.5
        9007199254740993                                  9007199254740993
    ... or one beyond a double: as written            string
        1e400                                             1e400
        1.50                                              1.50
    strings, any Unicode                              string
        "2026-01-02"                                      2026-01-02
        "\u00e4😀"                                         ä😀
    dates, with parse_dates=True                      timestamp[us, tz=UTC]
        "2026-01-02T03:04:05+02:00"                       2026-01-02 01:04:05+00:00
    different scalars                                 string
        1                                                 1
        "1"                                               1
        true                                              true
    objects                                           struct<b: int64, c: string>
        {"b": 1}                                          {"b": 1, "c": null}
        {"c": "x"}                                        {"b": null, "c": "x"}
    objects that are all empty: JSON text             string
        {}                                                {}
        null                                              null
    arrays                                            list<item: int64>
        [1, null]                                         [1, null]
        []                                                []
    arrays that are all empty                         list<item: string>
        []                                                []
    arrays of different things                        list<item: string>
        [1, "x"]                                          ["1", "x"]
    scalars, and arrays or objects: JSON text         string
        1                                                 1
        {"b":  1}                                         {"b":  1}

Of a name that occurs twice in an object, the last value counts. ``on_conflict=`` of a read makes JSON text of
values without a common type, keeps one kind of them, or raises; ``schema=`` declares types. The report of a
read (``conflicts``) names each field that is text because its values have no common type, with the number of
values of each kind and the keys of some.

Limits
------
No JSON object, broken JSON, NaN, bytes that are not UTF-8, half of a surrogate pair
    The bytes of the document are in ``_cb_value``, the reason is in ``_cb_reason`` (``binary``, ``empty``,
    ``not_an_object``, ``invalid_json``, ``not_utf8``), and ``rejected`` counts it. ``errors="drop"`` leaves
    it out, ``errors="raise"`` raises.
Deeper than 200 levels
    The same, with the reason ``too_deep``.
Arrays and objects below level 60, where the document is the first
    JSON text.
Objects whose names are data: many, and most of them rare
    A map from name to value, or JSON text where the values have no common type: ``max_struct_fields`` of
    :func:`cbframe.scan_bucket` has the rule. ``conflicts`` says how many names there were; ``schema=``
    overrules.
An object with NUL in a name
    JSON text; at the top of a document, such a field is in ``_cb_rest``.
More than a thousand fields at the top
    The thousand most frequent become columns. The others of each document are JSON text in ``_cb_rest``.
A field whose name begins with ``_cb_``, or in snapshots and changes is ``_change_type``
    A column of that name with ``_`` appended: these names are reserved.

Keys that are not UTF-8, documents that have expired, and records of transactions: see ``keys``, ``expired``
and ``transaction_records`` of :func:`cbframe.scan_bucket`.

How it works
------------
A read does not know its columns before its last document. So typing has three steps, which
:class:`~cbframe.json.typer.Typer` owns::

    batch ──convert──▶ Piece: facts, and columns by what is known so far
    all pieces ──settle──▶ Settled: one layout, from the facts of all
    Piece, Settled ──table──▶ columns by that layout

*Facts* are what the values of a field have in common: how many there are of each kind, the smallest and the
largest integer, whether one has no exact double, the facts of members and items, and the places of a few
documents of each kind. They merge in any order with the same result, which is why types do not depend on how
documents arrive.

*The layout* follows from facts and from the caller's policy by the table in :mod:`cbframe.json.layout`: a
column, how each field becomes it, and what has no common type. It is decided again while batches are
converted, whenever a batch has facts of a shape that was not seen, or twice as many rows were seen as when it
was last decided; else the columns of later batches would be built by an old guess.

*Columns* are built from the documents at once, when a batch is converted: documents are gone from memory, or
on disk, when the layout is known. Where the final layout differs, :func:`~cbframe.json.typer.lossless` tells
whether a cast gives what the documents would give (int64 to double, more members of a struct); if not, as
for numbers that become text as they are written, the documents are loaded and those columns built again.

*The order* of columns is that of first appearance by vbucket and seqno, not by arrival. The facts name the
document in which each field appears first; of those documents, few, the order of members is read.

Who does the work
-----------------
Reading documents, facts and columns are the converter's: the compiled one
(:class:`~cbframe.json.typer.CompiledConverter`) where it is installed, else the one in
:mod:`cbframe.json.reference`. Both have one interface and give the same results; the reference is also the
oracle in tests. A converter holds one batch at a time and belongs to one thread. Everything else is Python
that runs once a batch or once a read, never once a document.

What can go wrong
-----------------
No document makes a read fail. What is no JSON object (:class:`~cbframe.json.typer.Reason`) has no columns
and is kept as it is in ``_cb_value``. Values without a common type become text, JSON text or null, as the
policy says, and are reported (:class:`~cbframe.json.typer.Disagreement`).

Modules
-------
``layout``     the columns that follow from facts: types, policy, limits; instructions of converters
``typer``      batches to pieces, pieces to tables; reports
``reference``  the converter and facts in Python
``arrays``     nested arrays: taken apart, put together, cast
"""
