"""How Sphinx makes the documentation; the pages about the API follow from the package."""

import enum
import re

from docutils import nodes
from docutils.parsers.rst.directives import register_directive
from sphinx.pycode import ModuleAnalyzer
from sphinx.util.docutils import SphinxDirective

import cbframe.contrib

project, release, default_role = "cbframe", cbframe.__version__, "code"
extensions = ["sphinx.ext.autodoc", "sphinx.ext.autosummary", "numpydoc", "myst_parser"]
autodoc_inherit_docstrings = autosummary_generate = numpydoc_show_class_members = html_copy_source = False
autodoc_mock_imports, maximum_signature_line_length = ["pyspark"], 110
html_theme, html_title, pygments_dark_style = "furo", f"cbframe {release}", "github-dark"
html_static_path, html_css_files, html_show_copyright = ["_static"], ["cbframe.css"], False
# A reference to a public name must lead to it. Others may name what has no page here; attributes are a list.
nitpick_ignore_regex = [("py:attr", ".*"), ("py:.*", rf"(?!(cbframe\.)?({'|'.join(cbframe.__all__)})\b).*")]


class Api(SphinxDirective):
    """Public names by their modules (after a minus: not these), in a table and in full; or all of contrib."""

    has_content = True

    def run(self) -> list[nodes.Node]:
        if not self.content:
            terms = re.findall(r"^``.*``$", cbframe.contrib.__doc__, re.MULTILINE)  # what is for users
            names = re.findall(r"\w+", " ".join(terms))
            form = "{0}\n====================\n\n.. automodule:: cbframe.contrib.{1}\n   :members:\n"
            text = [form.format(name.title(), name) for name in names]
            return self.parse_text_to_nodes("\n".join(text), allow_section_headings=True)
        wanted, without = tuple(self.content), tuple(each[1:] for each in self.content if each[0] == "-")
        homes = [home for home in cbframe._HOMES if home.startswith(wanted) and not home.startswith(without)]
        names = [name for home in homes for name in cbframe._HOMES[home]]
        values = {name: value for name in names if not isinstance(value := getattr(cbframe, name), str)}
        found = sorted(values, key=lambda name: (isinstance(values[name], type), name))
        head = [".. currentmodule:: cbframe", "", ".. autosummary::", "   :nosignatures:", ""]
        entries = [entry(name, values[name]) for name in found]
        return self.parse_text_to_nodes("\n".join([*head, *(f"   {name}" for name in found), "", *entries]))


def entry(name: str, value: object) -> str:
    if isinstance(value, type):
        more = "   :undoc-members:\n" if issubclass(value, enum.Enum) else ""
        return f".. autoclass:: {name}\n   :members:\n{more}"
    # The signature is that of the function itself.
    (analyzer := ModuleAnalyzer.for_module(value.__module__)).analyze()
    analyzer.overloads.clear()
    return f".. autofunction:: {name}\n"


register_directive("api", Api)
