"""What a doctor has found: a table of steps."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass, field
from typing import Any, Literal

from cbframe import core
from cbframe.dcp.probe import BUCKET, DCP, LOGIN, ROLE, SERVICE
from cbframe.scan.grid import as_html

Status = Literal["ok", "failed", "skipped"]
ARGUMENTS, DNS, TCP, TLS, NODES, STREAM = "arguments", "DNS", "TCP", "TLS", "nodes", "stream"
STEPS = (ARGUMENTS, DNS, TCP, TLS, SERVICE, LOGIN, BUCKET, NODES, ROLE, DCP, STREAM)
"""Their names, in order."""


@dataclass(frozen=True, slots=True)
class Step:
    """One step of a diagnosis."""

    name: str  # one of STEPS
    status: Status  # `"ok"`, `"failed"` or `"skipped"`
    detail: str  # what was found, or why it failed
    remedy: str | None = None  # what to do about it


@dataclass(frozen=True)
class Diagnosis:
    """What :func:`cbframe.doctor` has found. Renders as a table, in a terminal and in a notebook.

    Attributes
    ----------
    target
        What was looked at.
    steps
        In their order.
    seconds
        How long it took.
    core
        ``"rust"`` or ``"python"``: which one reads would run on.
    """

    target: str
    steps: tuple[Step, ...]
    seconds: float = field(compare=False)
    core: str = core.NAME

    @property
    def ok(self) -> bool:
        """Whether no step has failed."""
        return self.failed is None

    @property
    def failed(self) -> Step | None:
        """The first step that has failed; the others may follow from it."""
        return next((step for step in self.steps if step.status == "failed"), None)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "target": self.target,
            "ok": self.ok,
            "core": self.core,
            "seconds": round(self.seconds, 3),
            "steps": [
                {"step": each.name, "status": each.status, "detail": each.detail, "remedy": each.remedy}
                for each in self.steps
            ],
        }

    def _title(self) -> str:
        failed = self.failed
        verdict = "everything is well" if failed is None else f"the step {failed.name!r} has failed"
        return f"{self.target}: {verdict}"

    def _core(self) -> tuple[str, str]:
        """What there is to say of it, and how to get another one."""
        if self.core == "rust":
            return "the compiled core reads", ""
        return "the Python reference reads: the results are the same, and it is slower", core.HINT

    def __str__(self) -> str:
        lines = [self._title()]
        for step in self.steps:
            lines += _wrapped(f"  {step.status:<8} {step.name:<10}", step.detail)
            if step.remedy is not None:
                lines += _wrapped(" " * 18 + "-> ", step.remedy)
        what, remedy = self._core()
        lines += _wrapped(f"  {'':<8} {'core':<10}", what)
        if remedy:
            lines += _wrapped(" " * 18 + "-> ", remedy)
        return "\n".join(lines)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        rows = [
            *((each.name, each.status, each.detail, each.remedy or "") for each in self.steps),
            ("core", "", *self._core()),
        ]
        return as_html(self._title(), ("step", "status", "what", "remedy"), rows)


def _wrapped(lead: str, text: str) -> list[str]:
    return textwrap.wrap(
        text, 100, initial_indent=lead, subsequent_indent=" " * len(lead), break_on_hyphens=False
    ) or [lead.rstrip()]
