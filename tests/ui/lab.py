"""JupyterLab and a Chromium, for tests: both on the loopback, and with all of their state in one folder."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

TOKEN = "loopback"
LONG = 60_000
"""Milliseconds that a page may take for anything, on a slow and busy machine."""
_CHROMIUM = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-dev-shm-usage",
    "--disable-sync",
)
_READY = "window.jupyterapp && document.querySelector('.jp-Notebook .jp-Cell')"
_ASK = """async (code) => {
  const kernel = window.jupyterapp.shell.currentWidget.sessionContext.session.kernel;
  const request = kernel.requestExecute({ code, store_history: false });
  let printed = '';
  request.onIOPub = ({ header, content }) => {
    if (header.msg_type === 'stream') printed += content.text;
    if (header.msg_type === 'error') printed += content.traceback.join('\\n');
  };
  await request.done;
  return printed.trim();
}"""


def find_chromium() -> str:
    """A browser, or the end of the test."""
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if (found := shutil.which(name)) is not None:
            return found
    pytest.skip("no browser is installed: apt-get install chromium")


class Page:
    """A notebook that is open in JupyterLab.

    Attributes
    ----------
    page
        Playwright's.
    errors
        What the browser's console told of errors.
    strangers
        Addresses other than ours that were asked for.
    """

    def __init__(self, page: Any) -> None:
        self.page = page
        self.errors: list[str] = []
        self.strangers: list[str] = []
        page.set_default_timeout(LONG)
        page.on("console", self._on_console)
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.route(re.compile(r"^(?!http://127\.0\.0\.1|ws://127\.0\.0\.1|data:|blob:)"), self._on_stranger)

    def _on_console(self, message: Any) -> None:
        if message.type == "error":
            self.errors.append(message.text)

    def _on_stranger(self, route: Any) -> None:
        self.strangers.append(route.request.url)
        route.abort()

    def command(self, name: str, **arguments: object) -> None:
        """Run one of JupyterLab's commands to its end."""
        self.page.evaluate(
            "([name, args]) => window.jupyterapp.commands.execute(name, args)", [name, arguments]
        )

    def ask(self, code: str) -> str:
        """Run code in the notebook's kernel; what it printed."""
        printed: str = self.page.evaluate(_ASK, code)
        return printed

    def until(self, condition: str, argument: object = None) -> None:
        """Wait until a JavaScript function gives something true."""
        self.page.wait_for_function(condition, arg=argument, polling=50)


@contextmanager
def running_lab(folder: Path) -> Iterator[str]:
    """A server whose notebooks are in ``folder / "notebooks"``; its address."""
    pytest.importorskip("jupyterlab", reason="JupyterLab is not installed: pip install 'cbframe[notebooks]'")
    places = {
        "HOME": "home",
        "JUPYTER_CONFIG_DIR": "config",
        "JUPYTER_DATA_DIR": "data",
        "JUPYTER_RUNTIME_DIR": "runtime",
        "IPYTHONDIR": "ipython",
    }
    for name in (*places.values(), "notebooks", "config/labconfig"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    # Or else a question about news lies over every picture.
    (folder / "config/labconfig/page_config.json").write_text(
        json.dumps({"disabledExtensions": {"@jupyterlab/apputils-extension:announcements": True}})
    )
    command = [
        sys.executable,
        "-m",
        "jupyterlab",
        "--no-browser",
        "--allow-root",
        "--ip=127.0.0.1",
        "--port=0",
    ]
    command += [f"--IdentityProvider.token={TOKEN}", f"--ServerApp.root_dir={folder / 'notebooks'}"]
    command += ["--LabApp.expose_app_in_browser=True"]
    environment = {**os.environ, "JUPYTER_PLATFORM_DIRS": "1"}
    environment |= {variable: str(folder / name) for variable, name in places.items()}
    with subprocess.Popen(
        command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as server:
        assert server.stdout is not None
        try:
            told = []
            for line in server.stdout:
                told.append(line.decode(errors="replace"))
                if found := re.search(r"(http://127\.0\.0\.1:\d+)/lab", told[-1]):
                    break
            else:
                pytest.fail("JupyterLab did not start:\n" + "".join(told))
            # A pipe that nobody empties would hold the server up.
            drain = threading.Thread(target=server.stdout.read, daemon=True)
            drain.start()
            yield found[1]
        finally:
            server.terminate()
            server.wait(30)
            drain.join(30)


def write_notebook(path: Path, cells: Sequence[str]) -> None:
    """A notebook of code cells."""
    path.write_text(
        json.dumps(
            {
                "cells": [
                    {
                        "cell_type": "code",
                        "id": f"cell{number}",
                        "metadata": {},
                        "source": source,
                        "outputs": [],
                        "execution_count": None,
                    }
                    for number, source in enumerate(cells)
                ],
                "metadata": {"kernelspec": {"name": "python3", "display_name": "Python 3"}},
                "nbformat": 4,
                "nbformat_minor": 5,
            }
        )
    )


@contextmanager
def open_notebook(folder: Path, cells: Sequence[str], *, scale: float = 1) -> Iterator[Page]:
    """A notebook of these cells in a browser, with `scale` dots a pixel; none of them has run."""
    browser_path = find_chromium()
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="playwright is not installed: pip install 'cbframe[notebooks]'"
    )
    with running_lab(folder) as address, playwright.sync_playwright() as driver:
        write_notebook(folder / "notebooks/test.ipynb", cells)
        browser = driver.chromium.launch(executable_path=browser_path, headless=True, args=list(_CHROMIUM))
        try:
            size = {"width": 1280, "height": 1000}
            page = Page(browser.new_page(viewport=size, device_scale_factor=scale))
            page.page.goto(f"{address}/lab/tree/test.ipynb?token={TOKEN}&reset")
            page.until(f"() => {_READY}")
            page.command("application:toggle-left-area")
            page.until(
                "() => 'idle' === "
                "window.jupyterapp.shell.currentWidget.sessionContext.session?.kernel?.status"
            )
            yield page
        finally:
            browser.close()
