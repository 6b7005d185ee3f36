"""What a person sees of a stream while it runs: a widget, a line of a terminal, HTML, text.

How it works
------------
``StatsModel`` (:mod:`~cbframe.ui.model`) watches a target: a ``BucketDataSource``, or anything with a
``source``, as scans and change streams have. ``sample()`` takes a ``StatsSnapshot`` of it and remembers a
few numbers of each, in a ring of two minutes. Everything that is shown is computed from the newest snapshot
and that ring: rates, lag, time to go, the grid of vbuckets, the nodes, the last problems. The model draws
nothing and starts no thread; a lock lets several take snapshots.

=================  =======================================  ============================================
who                takes snapshots                          and draws
=================  =======================================  ============================================
``show_stats``     a ``Ticker`` thread, 4 a second, until   the widget if there is one; ``print`` and
                   the stream has ended, ``close()``, or    ``_repr_html_`` take one more
                   nobody refers to the view
``WidgetWatcher``  the thread that reads, 4 a second        the same view, without a thread
``TextWatcher``    nobody                                   a ``ScanProgress`` as a line, 10 a second
=================  =======================================  ============================================

:mod:`~cbframe.ui.drawing` has the three forms: ``pack()`` for the canvas, ``as_html``, ``as_text``. The
widget (:mod:`~cbframe.ui.widget`) is a canvas drawn by ``static/stats.js``, and buttons. Its traits are set
in one message, and only a change of ``tick`` makes the browser draw. ipywidgets and anywidget are imported
when the first widget is made. In a notebook without them, ``progress="widget"`` raises a ``DependencyError``;
``show_stats`` warns and shows HTML, as does without a warning what shows itself (``progress="auto"``, a
stream at the end of a cell).

When the stream ends, the output of the cell is replaced once by its last state in all three forms: that is
what a saved notebook shows where no kernel runs. ``let_go()`` keeps what is shown and releases the target,
which may hold much memory. What a display raises never ends a read: it is logged once.
"""
