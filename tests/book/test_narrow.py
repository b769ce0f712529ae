"""On a phone a figure's panels stand below each other, whole and legible."""

import importlib.util
import io
import re
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import matplotlib.pyplot as plt
import pytest

from lmdyn import plots

_path = Path(__file__).parent.parent.parent / "book" / "_ext" / "narrow.py"
_spec = importlib.util.spec_from_file_location("narrow", _path)
narrow = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(narrow)


def svg(figure):
    file = io.StringIO()
    with plt.rc_context({"svg.hashsalt": "test"}):
        figure.savefig(file, format="svg")
    plt.close(figure)
    return file.getvalue()


def figure(n, width=7.2, **how):
    with plt.style.context(plots.STYLE):
        drawn, axes = plt.subplots(1, n, figsize=(width, 3), squeeze=False, **how)
        for i, ax in enumerate(axes[0]):
            ax.plot([0, 1], [i, 1], label=f"a line of some length {i}")
            ax.set(title=f"panel {i}", ylabel="nats" if i == 0 else "")
    return drawn, axes[0]


def drawn(text):
    """The width of the drawing, and what stands below each other in it."""
    root = narrow.ET.fromstring(text)
    assert root.get("width").endswith("pt")
    return float(root.get("viewBox").split()[2]), list(root.find(f"{{{narrow.SVG}}}g"))


def texts(group):
    return [g for g in group.iter() if g.get("id", "").startswith("text_")]


@pytest.mark.parametrize("n", [2, 3])
def test_panels_stand_below_each_other_within_the_width(n):
    wide = svg(figure(n)[0])
    width, panels = drawn(narrow.narrow(wide))
    assert len(panels) == n and narrow.WIDTH <= width <= narrow.FITS + 4
    boxes = list(map(narrow.extent, panels))
    assert all(above[3] < below[1] for above, below in pairwise(boxes))
    assert all(box[0] > -3 and box[2] < width for box in boxes)
    before = narrow.ET.fromstring(wide)
    assert len(texts(before)) == sum(len(texts(panel)) for panel in panels)


def test_values_that_a_row_shares_are_written_at_each_panel():
    shared = svg(figure(2, sharey=True)[0])
    first, second = (len(texts(p)) for p in drawn(narrow.narrow(shared))[1])
    assert first == second
    # One title less, and the values: they were written once.
    assert len(texts(narrow.ET.fromstring(shared))) < first + second


def test_values_of_another_height_are_not_shared():
    with plt.style.context(plots.STYLE):
        one, (left, right) = plt.subplots(1, 2, figsize=(7.2, 3), layout="none")
    right.set_position([0.6, 0.4, 0.3, 0.3])
    right.set_yticks([])
    left.plot([0, 1])
    panels = drawn(narrow.narrow(svg(one)))[1]
    assert not [t for t in texts(panels[1]) if narrow.extent(t)[0] < narrow.extent(panels[1])[0]]
    assert len(texts(panels[1])) == len(right.get_xticklabels())


def test_a_legend_breaks_into_lines_above_its_panel():
    one, axes = figure(2)
    handles = axes[0].get_legend_handles_labels()
    one.legend(*handles, loc="outside lower center", frameon=False)
    axes[1].legend(loc="lower left", bbox_to_anchor=(0, 1.2), frameon=False)
    width, (common, first, its, second) = drawn(narrow.narrow(svg(one)))
    for legend in (common, its):
        assert len(texts(legend)) == 1
        assert narrow.extent(legend)[2] < width
    assert narrow.extent(first)[3] < narrow.extent(its)[1]
    assert narrow.extent(its)[3] < narrow.extent(second)[1]


def test_entries_of_a_legend_do_not_overlap():
    one, axes = figure(1)
    for i in range(6):
        axes[0].plot([0, 1], label=f"another line {i}")
    axes[0].legend(loc="center left", bbox_to_anchor=(1.05, 0.5), frameon=False)
    root = narrow.ET.fromstring(svg(one))
    (axes,) = narrow.parts(root.find(f"{{{narrow.SVG}}}g"), "axes_")
    (legend,) = narrow.loose(axes)
    lines, height = narrow.flow(legend, 250)
    boxes = [narrow.extent(entry) for entry in lines]
    assert len(boxes) == 7 and max(box[2] for box in boxes) <= 250
    rows = {round((box[1] + box[3]) / 2) for box in boxes}
    assert len(rows) == height / narrow.LINE > 1
    for a, b in pairwise(boxes):
        assert a[2] < b[0] or a[3] <= b[1] + 3


def test_a_bar_of_colours_stays_with_its_panel():
    one, axes = figure(2)
    image = axes[1].imshow([[0, 1], [2, 3]])
    one.colorbar(image, ax=axes[1])
    assert len(drawn(narrow.narrow(svg(one)))[1]) == 2


@pytest.mark.parametrize(("n", "width"), [(1, 4.8), (2, 4.8), (1, 7.2)])
def test_what_fits_and_what_has_one_panel_stays(n, width):
    assert narrow.narrow(svg(figure(n, width)[0])) is None


def test_the_page_offers_both(tmp_path):
    (tmp_path / "wide.svg").write_text(svg(figure(2)[0]))
    (tmp_path / "small.svg").write_text(svg(figure(1, 4.8)[0]))
    builder = SimpleNamespace(
        name="html", imagedir="_images", images={n: n for n in ("wide.svg", "small.svg")}
    )
    app = SimpleNamespace(builder=builder, srcdir=tmp_path, outdir=tmp_path)
    small = '<img alt="a" src="../_images/small.svg" />'
    wide = small.replace("small", "wide")
    other = '<img alt="b" src="https://example.org/x.svg">'
    context = {"body": f"<p>{small}{wide}{other}</p>"}
    narrow.offer(app, "page", "page.html", context, None)
    choice = '<source media="(max-width: 599px)" srcset="../_images/wide-narrow.svg">'
    assert context["body"] == f"<p>{small}<picture>{choice}{wide}</picture>{other}</p>"
    assert re.match(r"<svg ", (tmp_path / "_images" / "wide-narrow.svg").read_text())
