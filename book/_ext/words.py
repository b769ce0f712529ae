"""Words of the glossary bring their definitions along, and numbers stay in one piece."""

import re
from functools import cache

from docutils import nodes

GLOSSARY = "book/notation"


def said(node) -> str:
    """A definition as plain text, its formulas between the signs that MathJax looks for."""
    if isinstance(node, nodes.math):
        return f"\\({node.astext()}\\)"
    if isinstance(node, nodes.Text):
        return node.astext()
    apart = " " if isinstance(node, nodes.definition) else ""
    return " ".join(apart.join(map(said, node.children)).split("\n"))


@cache
def definitions(env) -> dict[str, str]:
    """The anchor of each word of the glossary → what it means; read once, not for each page."""
    found = {}
    for item in env.get_doctree(GLOSSARY).findall(nodes.definition_list_item):
        terms = [child for child in item.children if isinstance(child, nodes.term)]
        found |= {anchor: said(item.children[-1]) for term in terms for anchor in term["ids"]}
    return found


def explain(app, doctree, docname):
    """Give each link to a word of the glossary the definition as its title."""
    if GLOSSARY not in app.env.all_docs:
        return
    known = definitions(app.env)
    for link in doctree.findall(nodes.reference):
        anchor = link.get("refuri", "").rpartition("#")[2] or link.get("refid", "")
        if anchor in known and any("std-term" in part.get("classes", ()) for part in link.children):
            link["reftitle"] = known[anchor]


def unbroken(app, doctree, docname):
    """No line ends at a ±, before a %, in a range or in an exponent."""
    for text in list(doctree.findall(nodes.Text)):
        # Code, formulas and HTML, whose scripts may hold such numbers, stay as they are.
        verbatim = isinstance(text.parent, nodes.literal | nodes.math | nodes.FixedTextElement)
        if verbatim or text.parent is None:
            continue
        whole = text.replace(" ± ", "\u00a0±\u00a0").replace(" %", "\u00a0%")
        whole = re.sub(r"(?<=\d)–(?=\d)", "\u2060–\u2060", whole)
        whole = re.sub(r"(?<=\de)-(?=\d)", "\u2011", whole)  # a hyphen that does not break
        if whole != text:
            text.parent.replace(text, nodes.Text(whole))


def setup(app):
    app.connect("doctree-resolved", explain)
    app.connect("doctree-resolved", unbroken)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
