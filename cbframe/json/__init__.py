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
"""
