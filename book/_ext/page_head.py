"""What the theme leaves out of a page's head, or puts there without need."""

import re
from html import escape


def describe(doctree) -> str:
    """The first paragraph after the title, as plain text: of a chapter, its question."""
    for paragraph in doctree.findall(lambda node: node.tagname == "paragraph"):
        text = " ".join(paragraph.astext().split())
        if text:
            return text.removeprefix("Question. ")[:300]
    return ""


def complete(app, pagename, templatename, context, doctree):
    """Add the page's description and social card."""
    title = re.sub(r"<[^>]+>", "", context.get("title") or app.config.project)
    said = describe(doctree) if doctree is not None else ""
    card = app.config.html_baseurl.rstrip("/") + "/_static/card.png"
    tags = {"og:title": title, "og:description": said, "og:type": "article", "og:image": card}
    lines = [f'<meta property="{k}" content="{escape(v)}">' for k, v in tags.items() if v]
    if said:
        lines.append(f'<meta name="description" content="{escape(said)}">')
    context["metatags"] = context.get("metatags", "") + "\n".join(lines)


def without_thebe(app, pagename, templatename, context, doctree):
    """The book has no live cells, and two extensions declare thebe's constants on each page."""

    def wanted(file) -> bool:
        body = str(getattr(file, "attributes", {}).get("body") or "")
        return "THEBE_JS_URL" not in body and "thebe" not in str(file)

    for files in ("script_files", "css_files"):
        context[files] = [file for file in context.get(files, []) if wanted(file)]


def setup(app):
    app.connect("html-page-context", complete)
    app.connect("html-page-context", without_thebe, priority=900)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
