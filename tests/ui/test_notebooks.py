"""The notebooks as they are read on the web, with their outputs; and that they still give such outputs.

This runs them anew, and saves what they give, the picture of the widget included. It needs a Chromium::

    CBFRAME_SAVE_NOTEBOOKS=1 python -m pytest -m browser -n 0 tests/ui/test_notebooks.py
"""

from __future__ import annotations

import base64
import io
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from .lab import open_notebook

FOLDER = Path(__file__).parent.parent.parent / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
DASHBOARD = FOLDER / "02_live_dashboard.ipynb"
SAVE = "CBFRAME_SAVE_NOTEBOOKS" in os.environ
WIDGET = "application/vnd.jupyter.widget-view+json"
MACHINE = re.compile(r"""(?m)\x1b|\b127\.0\.0\.1|\blocalhost\b|(?:^|[\s'"(=])(?:/\w+/\w|[A-Z]:\\)""")
"""Control sequences, addresses, absolute paths."""
LIGHT_AND_DARK = """
  :not(.cbf-view *) { background: none !important; }
  .cbf-view .cbf {
    --cbf-text: #767676; --cbf-muted: #808080; --cbf-background: transparent; --cbf-raised: #8080801a;
    --cbf-border: #80808066; --cbf-rule: #80808040; --cbf-axis: #80808080; --cbf-good: #1b9e77;
    --cbf-line: #2f86c5; --cbf-area: #2f86c530; --cbf-lag0: #2f86c5; --cbf-waiting: #808080;
  }
  .cbf-view > .cbf-buttons button { background: none; border-color: #808080; color: #767676; }
"""
"""A picture for a light page and for a dark one, as those of the notebooks' style for matplotlib."""
RUN = """() => window.jupyterapp.shell.currentWidget.content.widgets.map(({ model }) => ({
  count: model.executionCount,
  errors: model.outputs.toJSON()
    .filter((output) => output.output_type === 'error')
    .map((output) => output.traceback.join('\\n')).join(),
}))"""

each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def load(path: Path) -> dict[str, Any]:
    notebook: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return notebook


def save(path: Path, notebook: dict[str, Any]) -> None:
    path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def code_cells(notebook: dict[str, Any]) -> list[dict[str, Any]]:
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def bring_style(folder: Path) -> None:
    """What a notebook finds beside it."""
    folder.mkdir(exist_ok=True)
    for style in FOLDER.glob("*.mplstyle"):
        shutil.copy(style, folder)


def run(path: Path, folder: Path) -> list[dict[str, Any]]:
    """The code cells of a notebook, after all of them ran in a kernel of their own."""
    bring_style(folder)
    shutil.copy(path, folder)
    command = [sys.executable, "-m", "nbconvert", "--to", "notebook", "--execute", "--inplace", path.name]
    command += ["--ExecutePreprocessor.record_timing=False", "--ExecutePreprocessor.store_widget_state=False"]
    environment = os.environ | {"IPYTHONDIR": str(folder / "ipython"), "JUPYTER_PLATFORM_DIRS": "1"}
    done = subprocess.run(
        command, cwd=folder, env=environment, check=False, capture_output=True, text=True, timeout=290
    )
    assert done.returncode == 0, done.stderr
    return code_cells(load(folder / path.name))


def saved(cell: dict[str, Any], picture: str) -> list[dict[str, Any]]:
    """The outputs of a cell that ran, in the form in which they are kept.

    Without a kernel there is no widget: its picture is kept. The progress of a read is shown only if it takes
    half a second, and is left out. A kernel may send what is printed in one go in several parts.
    """
    kept: list[dict[str, Any]] = []
    for output in cell["outputs"]:
        if WIDGET not in output.get("data", {}):
            if kept and "name" in output and kept[-1].get("name") == output["name"]:
                kept[-1] = kept[-1] | {"text": [*kept[-1]["text"], *output["text"]]}
            else:
                kept.append(output)
        elif cell["id"] == "widget":
            data = {"image/png": picture, "text/plain": [cell["metadata"]["alt"]]}
            metadata = {"image/png": {"width": 1080}}
            kept.append({"data": data, "metadata": metadata, "output_type": "display_data"})
    return kept


def kind(output: dict[str, Any]) -> list[str]:
    """What an output is: its forms, and all of its words, without fractions and spaces."""
    data = output.get("data", {"text/plain": output.get("text", "")})
    text = "".join(data.get("text/html", data["text/plain"]))
    text = re.sub(r"(?s)<style.*?</style>|<[^>]+>", " ", text)
    return [output["output_type"], *sorted(data), *re.sub(r"\d+\.\d+", "0.0", text).split()]


def test_what_is_printed_may_come_in_parts() -> None:
    def printed(name: str, *text: str) -> dict[str, Any]:
        return {"output_type": "stream", "name": name, "text": [*text]}

    parts = [
        printed("stdout", "a\n"),
        printed("stdout", "b\n", "c\n"),
        printed("stderr", "d\n"),
        printed("stdout", "e\n"),
    ]
    whole = [printed("stdout", "a\n", "b\n", "c\n"), *parts[2:]]
    assert saved({"id": "one", "outputs": parts}, "") == saved({"id": "one", "outputs": whole}, "") == whole


@each_notebook
def test_what_is_saved(path: Path) -> None:
    """All cells have run, in order; nothing tells of the machine, and nothing is large."""
    assert path.stat().st_size < 300_000
    notebook = load(path)
    assert set(notebook) == {"cells", "metadata", "nbformat", "nbformat_minor"}
    assert set(notebook["metadata"]) == {"kernelspec", "language_info"}
    assert (notebook["nbformat"], notebook["nbformat_minor"]) >= (4, 5)
    identifiers = [cell["id"] for cell in notebook["cells"]]
    assert len(set(identifiers)) == len(identifiers)
    code = code_cells(notebook)
    assert [cell["execution_count"] for cell in code] == [*range(1, len(code) + 1)]
    outputs = [output for cell in code for output in cell["outputs"]]
    pictures = [cell for cell in code if any("image/png" in each.get("data", ()) for each in cell["outputs"])]
    assert pictures
    for cell in notebook["cells"]:
        assert set(cell["metadata"]) == ({"alt"} if cell in pictures else set())
    for cell in code:
        assert cell["id"] == "widget" or saved(cell, "") == cell["outputs"]
    for output in outputs:
        assert output["output_type"] != "error"
        assert output.get("name") != "stderr"
        forms = {"text/plain": output.get("text", ""), **output.get("data", {})}
        assert set(forms) <= {"text/plain", "text/html", "image/png"}
        assert "needs_background" not in str(output.get("metadata"))
        assert not MACHINE.search("".join(forms["text/plain"]) + "".join(forms.get("text/html", "")))


@pytest.mark.browser
@pytest.mark.timeout(300)
@each_notebook
def test_it_gives_the_same_kinds_of_outputs(path: Path, tmp_path: Path) -> None:
    notebook = load(path)
    fresh = run(path, tmp_path)
    for cell, ran in zip(code_cells(notebook), fresh, strict=True):
        assert cell["id"] == ran["id"]
        picture = "".join(each.get("data", {}).get("image/png", "") for each in cell["outputs"][:1])
        outputs = saved(ran, picture)
        if SAVE:
            cell |= {"execution_count": ran["execution_count"], "outputs": outputs}
        assert [*map(kind, outputs)] == [*map(kind, cell["outputs"])], "".join(cell["source"])
    if SAVE:
        save(path, notebook)


@pytest.mark.browser
@pytest.mark.timeout(300)
def test_the_dashboard(tmp_path: Path) -> None:
    """As a reader has it in JupyterLab: all cells run, and the widget tells of the stream until it stops."""
    notebook = load(DASHBOARD)
    *sources, end = ["".join(cell["source"]) for cell in code_cells(notebook)]
    bring_style(tmp_path / "notebooks")
    with open_notebook(tmp_path, sources, scale=2) as page:
        # JupyterLab takes away what is out of sight.
        page.page.set_viewport_size({"width": 1280, "height": 2500})
        page.command("notebook:run-all-cells")
        for at in range(len(sources)):
            page.until(f"(at) => ({RUN})()[at].count !== null", at)
        assert [cell["errors"] for cell in page.page.evaluate(RUN)] == [""] * len(sources)
        assert page.page.inner_text(".cbf-bucket") == "orders"
        assert page.page.inner_text(".cbf-state") == "streaming"
        page.page.add_style_tag(content=LIGHT_AND_DARK)
        page.page.evaluate("() => document.body.classList.add('light-and-dark')")  # the canvas is drawn anew
        picture = page.page.locator(".cbf-view").screenshot(omit_background=True)
        assert page.ask(end) == ""
        page.until("() => document.querySelector('.cbf-state')?.textContent === 'stopped'")
        assert page.errors == []
        assert page.strangers == []
    if SAVE:
        [cell] = [cell for cell in notebook["cells"] if cell["id"] == "widget"]
        cell["outputs"][0]["data"]["image/png"] = base64.b64encode(with_few_colours(picture)).decode()
        save(DASHBOARD, notebook)


def with_few_colours(picture: bytes) -> bytes:
    """A third of its size."""
    image = pytest.importorskip("PIL.Image")
    out = io.BytesIO()
    image.open(io.BytesIO(picture)).quantize(256).save(out, "png", optimize=True)
    return out.getvalue()
