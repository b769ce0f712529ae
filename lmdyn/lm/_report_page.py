"""The page of a report: one file of HTML that asks nobody for anything and runs no script."""

from dataclasses import dataclass, field
from functools import partial

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from lmdyn.lm._report_words import Verdict


@dataclass(frozen=True)
class Table:
    """Rows of texts; the first cell of each names its row."""

    caption: str
    head: tuple[str, ...]
    rows: list[tuple[str, ...]]
    prose: bool = False  # cells of text rather than of numbers


@dataclass(frozen=True)
class Drawing:
    """A figure, what is seen on it, and what it shows."""

    box: str
    body: str
    alt: str
    caption: str


@dataclass(frozen=True)
class Listing:
    """A text to be shown line by line as it is."""

    text: str


@dataclass
class Part:
    """A heading and what stands below it: texts, `Table`, `Drawing`, `Listing`, in order."""

    title: str
    content: list = field(default_factory=list)


@dataclass
class Section:
    """A heading, the verdict on a run if it is about one, and parts."""

    title: str
    parts: list[Part]
    verdict: Verdict | None = None


def render(title: str, about: str, sections: list[Section]) -> str:
    """The whole page. Every text is escaped on its way in.

    Args:
        title: of the page.
        about: a line below the title.
        sections: in order.
    """
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    number = iter(range(10**6))

    def body(drawing: Drawing) -> Markup:
        """Ids in it become its own: two figures on a page must not share one."""
        return Markup(drawing.body.replace("{id}", f"f{next(number)}-"))

    environment.filters["body"] = body
    for kind in (Table, Drawing, Listing):
        environment.tests[kind.__name__.lower()] = partial(_is, kind)
    page = environment.from_string(_PAGE)
    return page.render(title=title, about=about, sections=sections, css=Markup(_CSS))


def _is(kind: type, thing) -> bool:
    return isinstance(thing, kind)


_CSS = """
:root {
  color-scheme: light dark;
  --page: #ffffff; --card: #f5f7f9; --ink: #1c2430; --soft: #5b6472; --rule: #d5dae1;
  --chosen: #0072b2; --rejected: #b45f04; --other: #b91c3c; --random: #0b7f89; --argmax: #111111;
  --bad: #b91c3c; --good: #0b7a4b; --unknown: #5b6472;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #14181e; --card: #1e242c; --ink: #e6e9ee; --soft: #a4adba; --rule: #3a414d;
    --chosen: #5bb4ea; --rejected: #f5a142; --other: #ff8095; --random: #4fd0da; --argmax: #ffffff;
    --bad: #ff8095; --good: #57d39b; --unknown: #a4adba;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--page); color: var(--ink); font-variant-numeric: tabular-nums;
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
}
main { max-width: 62rem; margin: 0 auto; padding: 1.5rem 1rem 4rem; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 0.3rem; overflow-wrap: anywhere; }
h2 { font-size: 1.35rem; margin: 2.6rem 0 0.6rem; overflow-wrap: anywhere; }
h3 { font-size: 1.1rem; margin: 1.8rem 0 0.5rem; }
p { margin: 0.5rem 0; max-width: 48rem; }
.about { color: var(--soft); overflow-wrap: anywhere; }
.verdict {
  background: var(--card); border-left: 0.3rem solid var(--mark); border-radius: 0.3rem;
  padding: 0.8rem 1.1rem; margin: 1rem 0;
}
.verdict .headline { font-size: 1.15rem; font-weight: 650; margin-top: 0; }
.squeeze { --mark: var(--bad); } .past, .fall { --mark: var(--rejected); }
.none { --mark: var(--good); } .open { --mark: var(--unknown); }
ul { margin: 0.4rem 0; padding-left: 1.3rem; }
pre { background: var(--card); padding: 0.6rem 0.8rem; overflow-x: auto; font-size: 0.85rem; }
a { color: var(--chosen); }
:focus-visible { outline: 2px solid var(--chosen); outline-offset: 2px; }
figure { margin: 1rem 0; }
figure .wide { margin: 0; }
figcaption, caption { color: var(--soft); font-size: 0.9rem; text-align: left; }
caption { padding-bottom: 0.3rem; }
svg { display: block; width: 100%; min-width: 40rem; height: auto; }
svg * { stroke-linejoin: round; stroke-linecap: butt; }
svg text { fill: var(--ink); }
.wide { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; font-size: 0.92rem; }
th, td {
  padding: 0.25rem 0.7rem; border-bottom: 1px solid var(--rule); text-align: right;
  vertical-align: top; white-space: nowrap;
}
th { font-weight: 600; }
thead th { white-space: normal; vertical-align: bottom; }
tbody th, th:first-child { text-align: left; }
tbody th { font-weight: 500; }
.prose th, .prose td {
  text-align: left; white-space: pre-wrap; overflow-wrap: anywhere; min-width: 6rem;
}
@media print { .wide { overflow: visible; } }
"""

_PAGE = """\
{% macro table(of) %}
<div class="wide" role="region" aria-label="{{ of.caption }}" tabindex="0">
<table{% if of.prose %} class="prose"{% endif %}>
<caption>{{ of.caption }}</caption>
<thead><tr>{% for name in of.head %}<th scope="col">{{ name }}</th>{% endfor %}</tr></thead>
<tbody>
{% for row in of.rows %}
<tr><th scope="row" dir="auto">{{ row[0] }}</th>
{%- for cell in row[1:] %}<td dir="auto">{{ cell }}</td>{% endfor %}</tr>
{% endfor %}
</tbody>
</table>
</div>
{% endmacro %}
{% macro drawing(of) %}
<figure>
<div class="wide" tabindex="0">
<svg viewBox="{{ of.box }}" role="img" aria-label="{{ of.alt }}">{{ of | body }}</svg>
</div>
<figcaption>{{ of.caption }}</figcaption>
</figure>
{% endmacro %}
{% macro verdict(of) %}
<div class="verdict {{ of.kind }}">
<p class="headline">{{ of.headline }}</p>
{% if of.facts %}
<ul>
{% for fact in of.facts %}
<li>{{ fact }}</li>
{% endfor %}
</ul>
{% endif %}
{% if of.advice %}
<p><strong>What to do</strong></p>
<ul>
{% for line in of.advice %}
<li>{{ line }}</li>
{% endfor %}
</ul>
{% endif %}
</div>
{% endmacro %}
{% macro part(of, id) %}
<section aria-labelledby="{{ id }}">
<h3 id="{{ id }}">{{ of.title }}</h3>
{% for thing in of.content %}
{% if thing is table %}
{{ table(thing) }}
{%- elif thing is drawing %}
{{ drawing(thing) }}
{%- elif thing is listing %}
<pre dir="auto" role="region" aria-label="{{ of.title }}" tabindex="0">{{ thing.text }}</pre>
{% else %}
<p>{{ thing }}</p>
{% endif %}
{% endfor %}
</section>
{% endmacro %}
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title>
<style>{{ css }}</style>
</head>
<body>
<main>
<h1>{{ title }}</h1>
<p class="about">{{ about }}</p>
{% set several = sections | selectattr("verdict") | list | length > 1 %}
<nav aria-label="Contents"><ul>
{% for of in sections %}
<li><a href="#section-{{ loop.index }}">{{ of.title }}</a>
{%- if of.verdict and several %}: {{ of.verdict.headline }}{% endif %}</li>
{% endfor %}
</ul></nav>
{% for of in sections %}
{% set id = "section-" ~ loop.index %}
<section aria-labelledby="{{ id }}">
<h2 id="{{ id }}">{{ of.title }}</h2>
{% if of.verdict %}
{{ verdict(of.verdict) }}
{%- endif %}
{% for inner in of.parts %}
{{ part(inner, id ~ "-" ~ loop.index) }}
{%- endfor %}
</section>
{% endfor %}
</main>
</body>
</html>
"""
