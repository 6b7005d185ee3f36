"""The widget where it lives: in JupyterLab, in a real browser."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from .lab import Page, open_notebook

pytestmark = [pytest.mark.browser, pytest.mark.timeout(180)]

BEGIN = """
import threading
import cbframe
from cbframe.testing import RecordingReceiver

cluster = cbframe.LocalCluster(nodes=2, replicas=1, vbuckets=1024, bucket="travel", seed=1).start()
cluster.bulk_load((b"secret-%d" % n, b"{}") for n in range(3000))
who = (cluster.username, cluster.password)
source = cbframe.BucketDataSource(
    cluster.connection_string, "default", "travel", "", None, who, RecordingReceiver()
)
source.start()
"""
STREAM = """
other = cbframe.LocalCluster(vbuckets=16, seed=2).start()
other.upsert("secret", {})
stream = cbframe.stream_bucket(other)
given = []
reading = threading.Thread(target=lambda: [given.append(len(batch)) for batch in stream])
reading.start()
cbframe.show_stats(stream)
"""
CELLS = (BEGIN, "cbframe.show_stats(source)", STREAM, "df = cbframe.read_bucket(cluster, progress='widget')")
MORE = "print(cluster.bulk_load((b'secret-more-%d' % n, b'{}') for n in range(1500)))"
BUSY = """(code) => {
  const kernel = window.jupyterapp.shell.currentWidget.sessionContext.session.kernel;
  kernel.requestExecute({ code, store_history: false });
}"""
LEFT = """
tickers = [thread for thread in threading.enumerate() if thread.name == "cbframe-ticker"]
for thread in tickers:
    thread.join(30)
print(source.state, any(thread.is_alive() for thread in tickers))
"""
DOCUMENTS = ".cbf-figures > div:first-child strong"
CONTRASTS = """() => {
  const root = document.querySelector('.cbf');
  const probe = root.appendChild(document.createElement('span'));
  const rgb = (name) => {
    probe.style.color = `var(--cbf-${name})`;
    return getComputedStyle(probe).color.match(/[\\d.]+/g).slice(0, 3).map((x) => x / 255);
  };
  const light = ([r, g, b]) => [0.2126 * r ** 2.2 + 0.7152 * g ** 2.2 + 0.0722 * b ** 2.2][0];
  const base = light(rgb('background'));
  const found = {};
  for (const name of ['text', 'muted', 'good', 'bad', 'line', 'lag0', 'lag4', 'done', 'moved', 'ownerless']) {
    const [a, b] = [light(rgb(name)), base].sort((x, y) => y - x);
    found[name] = (a + 0.05) / (b + 0.05);
  }
  probe.remove();
  return { found, background: base };
}"""
COLOUR = """(vbucket) => {
  const canvas = document.querySelector('.cbf-grid canvas');
  const { columns, pitch } = canvas.dataset;
  const ratio = window.devicePixelRatio;
  const at = (place) => (place * pitch + 1) * ratio;
  const [x, y] = [at(vbucket % columns), at(Math.floor(vbucket / columns))];
  return Array.from(canvas.getContext('2d').getImageData(x, y, 1, 1).data).join();
}"""


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Page, Path]]:
    """The notebook with all its cells run."""
    folder = tmp_path_factory.mktemp("lab")
    with open_notebook(folder, CELLS) as page:
        page.command("notebook:run-all-cells")
        page.page.wait_for_selector(".cbf")
        yield page, folder


def test_pause_and_resume(lab: tuple[Page, Path]) -> None:
    page, _ = lab
    web = page.page
    state = "(text) => document.querySelectorAll('.cbf-state')[1].textContent === text"
    page.until(state, "streaming")
    button = {name: web.get_by_role("button", name=name).nth(1) for name in ("Pause", "Resume", "Stop")}
    assert button["Resume"].is_disabled()
    button["Pause"].click()
    page.until(state, "paused")
    assert button["Pause"].is_disabled()
    count = page.ask("print(len(given), other.upsert('secret', {'n': 1}))").split()[0]
    assert page.ask("print(len(given), stream.state)") == f"{count} paused"
    button["Resume"].click()
    page.until(state, "streaming")
    assert page.ask(f"while len(given) == {count}:\n    pass\nprint(len(given))") == str(int(count) + 1)
    button["Stop"].click()
    page.until(state, "stopped")
    assert page.ask("reading.join()\nprint(stream.state)") == "closed"


def test_a_stream(lab: tuple[Page, Path]) -> None:
    page, folder = lab
    web = page.page
    figure = "([selector, text]) => document.querySelector(selector).textContent === text"

    # Figures change while documents are written.
    page.until(figure, [DOCUMENTS, "3,000"])
    assert page.ask(MORE) == "1500"
    page.until(figure, [DOCUMENTS, "4,500"])
    page.until(figure, [".cbf-bucket", "travel"])
    assert web.inner_text(".cbf-nodes tbody tr:first-child td:nth-child(2)") == "512 of 512"

    # A cell changes its colour on a failover, and says why.
    untouched, before = web.evaluate(COLOUR, 700), web.evaluate(COLOUR, 70)
    assert before == untouched
    page.ask("cluster.fail_over(70)")
    page.until(f"([vbucket, before]) => ({COLOUR})(vbucket) !== before", [70, before])
    assert web.evaluate(COLOUR, 700) == untouched
    pitch = int(web.get_attribute(".cbf-grid canvas", "data-pitch"))
    web.locator(".cbf-grid canvas").first.hover(position={"x": 6.5 * pitch, "y": 1.5 * pitch})
    page.until("() => document.querySelector('.cbf-tip').textContent.includes('moved just now')")
    assert web.inner_text(".cbf-tip").splitlines()[0] == "vbucket 70"

    # The keyboard gets there, too.
    web.focus(".cbf-grid canvas")
    web.keyboard.press("ArrowRight")
    page.until("() => document.querySelector('.cbf-tip').textContent.startsWith('vbucket 71')")
    web.keyboard.press("Escape")
    assert not web.is_visible(".cbf-tip")

    # Both themes can be read.
    for theme, dark in (("JupyterLab Light", False), ("JupyterLab Dark", True)):
        page.command("apputils:change-theme", theme=theme)
        page.until("(dark) => document.body.dataset.jpThemeLight === String(!dark)", dark)
        contrasts = web.evaluate(CONTRASTS)
        assert (contrasts["background"] < 0.2) is dark
        too_weak = {
            name: ratio
            for name, ratio in contrasts["found"].items()
            if ratio < (4.5 if name in ("text", "muted", "good", "bad") else 3)
        }
        assert not too_weak, theme
        picture = (
            Path(os.environ.get("CBFRAME_SCREENSHOTS", folder)) / f"widget-{'dark' if dark else 'light'}.png"
        )
        web.locator(".cbf-view").first.screenshot(path=picture)
        assert picture.stat().st_size > 10_000

    # All counters are behind a fold.
    assert not web.is_visible(".cbf-counters")
    web.locator(".cbf-fold summary").first.click()
    page.until("() => document.querySelectorAll('.cbf-counters > div').length > 100")

    # Stop ends the stream while a cell waits for it, and with it the thread that looked at it.
    web.evaluate(BUSY, "import time\nwhile source.state == 'running':\n    time.sleep(0.05)")
    page.until("() => window.jupyterapp.shell.currentWidget.sessionContext.session.kernel.status === 'busy'")
    web.get_by_role("button", name="Stop").first.click()
    page.until("() => document.querySelector('.cbf-state').textContent === 'stopped'")
    assert page.ask(LEFT) == "closed False"
    assert web.get_by_role("button", name="Stop").first.is_disabled()

    # What was shown last is in the notebook's file.
    page.command("docmanager:save")
    cells = json.loads((folder / "notebooks/test.ipynb").read_text())["cells"]
    html = "".join(cells[1]["outputs"][0]["data"]["text/html"])
    assert "stopped after" in html
    assert "4,500" in html
    shown = html + web.locator(".cbf-view").first.inner_html()
    assert "secret" not in shown
    assert "password" not in shown


def test_a_read(lab: tuple[Page, Path]) -> None:
    page, _ = lab
    page.until("() => document.querySelectorAll('.cbf').length === 3")
    state = page.page.locator(".cbf-state").last
    assert state.inner_text() == "complete"
    assert page.page.locator(".cbf-figures").last.inner_text().splitlines()[1] == "3,000"


def test_nothing_else_was_asked_for(lab: tuple[Page, Path]) -> None:
    page, _ = lab
    assert page.strangers == []
    assert page.errors == []
