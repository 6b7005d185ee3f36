"""A notebook of the project where its readers open it: in JupyterLab, in a real browser."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from .lab import open_notebook

pytestmark = [pytest.mark.browser, pytest.mark.timeout(180)]

NOTEBOOKS = Path(__file__).parent.parent.parent / "notebooks"
RUN = """() => window.jupyterapp.shell.currentWidget.content.widgets.map(({ model }) => ({
  count: model.executionCount,
  errors: model.outputs.toJSON()
    .filter((output) => output.output_type === 'error')
    .map((output) => output.traceback.join('\\n')).join(),
}))"""


def test_the_notebook_of_live_stats(tmp_path: Path) -> None:
    """As a reader would: it opens, all of its cells run, and it ends with a stream that is stopped."""
    notebook = json.loads((NOTEBOOKS / "02_live_stats.ipynb").read_text(encoding="utf-8"))
    sources = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    with open_notebook(tmp_path, sources) as page:
        page.command("notebook:run-all-cells")
        page.until(f"() => ({RUN})().every((cell) => cell.count !== null)")
        page.until("() => document.querySelector('.cbf-state')?.textContent === 'stopped'")
        ran = page.page.evaluate(RUN)
        assert [cell["errors"] for cell in ran] == [""] * len(sources)
        assert page.page.inner_text(".cbf-bucket") == "travel"
        assert page.errors == []
        assert page.strangers == []
