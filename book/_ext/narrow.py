"""On a phone the panels of a figure stand below each other, and its legend above them.

A figure that Matplotlib drew as SVG, and that a phone would have to scroll, gets a second file: the
same drawing, its parts moved, nothing scaled, so that its type stays legible.
"""

import math
import re
import xml.etree.ElementTree as ET
from copy import deepcopy
from pathlib import Path

SVG = "http://www.w3.org/2000/svg"
ET.register_namespace("", SVG)
ET.register_namespace("xlink", "http://www.w3.org/1999/xlink")
FITS = 356  # pt: what a phone shows without scrolling, at the scale of the style sheet
WIDTH = 268  # pt: a phone's column at full scale
LINE = 14  # pt, of a legend
GAP = 10  # pt, between what stands below each other
NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:e-?\d+)?")
PLACED = re.compile(r"translate\((\S+) (\S+)\)(?: rotate\((\S+)\))?(?: scale\((\S+) \S+\))?")
IMAGE = re.compile(r'<img [^>]*?src="([^"]*/)([^"/]+)\.svg"[^>]*>')


def around(boxes):
    """The box of boxes: left, top, right and bottom; ``None`` if there are none."""
    found = [box for box in boxes if box]
    if not found:
        return None
    left, top, right, bottom = zip(*found, strict=True)
    return min(left), min(top), max(right), max(bottom)


def extent(node):
    """The box of what is drawn; what is clipped lies within its Axes and is not counted."""
    kind = node.tag.rpartition("}")[2]
    if kind == "defs" or "clip-path" in node.attrib:
        return None
    if kind == "path":
        points = list(map(float, NUMBER.findall(node.get("d", ""))))
        return around((x, y, x, y) for x, y in zip(points[::2], points[1::2], strict=True))
    if kind == "use" and "x" in node.attrib:  # a mark
        x, y = float(node.get("x")), float(node.get("y"))
        return x - 3, y - 3, x + 3, y + 3
    if kind == "use":  # a glyph, upwards, in hundredths of its size
        start = float(re.match(r"translate\(([^ )]+)", node.get("transform", "translate(0"))[1])
        return start, -22, start + 62, 78
    inside = around(map(extent, node))
    place = PLACED.match(node.get("transform", ""))
    if not inside or not place:
        return inside
    x, y, angle, scale = (float(value or 0) for value in place.groups())
    up, scale = (-1, scale) if scale else (1, 1)
    cos, sin = scale * math.cos(math.radians(angle)), scale * math.sin(math.radians(angle))
    corners = [(a, up * b) for a in inside[::2] for b in inside[1::2]]
    turned = [(x + a * cos - b * sin, y + a * sin + b * cos) for a, b in corners]
    return around((a, b, a, b) for a, b in turned)


def parts(node, name):
    """The children of a kind: ``axes``, ``legend``, ``text``, …"""
    return [child for child in node if child.get("id", "").startswith(name)]


def moved(nodes, x, y):
    group = ET.Element(f"{{{SVG}}}g", transform=f"translate({x:.2f} {y:.2f})")
    group.extend(nodes)
    return group


def frame(axes):
    """The box of the data: the background; of Axes that are switched off, all that they draw."""
    return around(map(extent, parts(axes, "patch_")[:1])) or extent(axes)


def values(axes):
    """What is written along the axis at the side."""
    return [
        text
        for axis in parts(axes, "matplotlib.axis_")[1:]
        for text in axis.iter()
        if text.get("id", "").startswith("text_")
    ]


def columns(figure):
    """What stands below each other in the figure, from left to right: Axes, and their frame."""
    found = []
    for axes in parts(figure, "axes_"):
        left, top, right, bottom = here = frame(axes)
        bar = min(right - left, bottom - top) < 20  # of the colours of the Axes before
        for column in reversed(found):
            if bar or (column[1][0] < right and left < column[1][2]):
                column[0].append(axes)
                column[1] = around([column[1], here])
                break
        else:
            found.append([[axes], here])
    return found


def share_values(found):
    """Write the values along the side beside each column, where one was enough for a row."""
    told = None
    for drawn, (left, top, _, bottom) in found:
        if values(drawn[0]):
            told = values(drawn[0]), left, (top, bottom)
        elif told and max(abs(told[2][0] - top), abs(told[2][1] - bottom)) < 1:
            drawn.append(moved(deepcopy(told[0]), left - told[1], 0))


def flow(legend, width):
    """A legend's entries in lines of at most a width, as one group below y = 0; its height."""
    x, y, lines, entry = 0.0, 0.0, [], []
    for node in legend:
        entry.append(node)
        if not node.get("id").startswith("text_"):
            continue
        left, top, right, bottom = around(map(extent, entry))
        if x and x + right - left > width:
            x, y = 0.0, y + LINE
        lines.append(moved(entry, x - left, y + (LINE - top - bottom) / 2))
        x, entry = x + right - left + 12, []
    return moved(lines, 0, 0), y + LINE


def loose(axes):
    """Legends beside the Axes, taken out of these."""
    left, top, right, bottom = frame(axes)
    found = []
    for legend in parts(axes, "legend_"):
        box = extent(legend)
        if box[0] < left - 9 or box[1] < top - 9 or box[2] > right + 9 or box[3] > bottom + 9:
            axes.remove(legend)
            found.append(legend)
    return found


def narrow(text):
    """The SVG in one column; ``None`` if a phone shows it as it is, or moving does not help."""
    root = ET.fromstring(text)
    figure = root.find(f"{{{SVG}}}g[@id='figure_1']")
    if figure is None or float(root.get("viewBox").split()[2]) <= FITS:
        return None
    found = columns(figure)
    legends = [[legend for axes in drawn for legend in loose(axes)] for drawn, _ in found]
    legends[0] = parts(figure, "legend_") + legends[0]
    if len(found) < 2 and not legends[0]:
        return None
    share_values(found)
    boxes = [around(map(extent, drawn)) for drawn, _ in found]
    margin = max(inner[0] - box[0] for (_, inner), box in zip(found, boxes, strict=True))
    across = max(box[2] - inner[0] for (_, inner), box in zip(found, boxes, strict=True))
    width = max(WIDTH, margin + across)
    if width > FITS:
        return None
    margin += (width - margin - across) / 2
    y, drawn = 0.0, []

    def below(group, x, top, bottom):
        nonlocal y
        drawn.append(moved([group], x, y - top))
        y += bottom - top + GAP

    for (axes, inner), (_, top, _, bottom), over in zip(found, boxes, legends, strict=True):
        for legend in over:
            lines, height = flow(legend, width)
            below(lines, 0, 0, height - GAP / 2)
        below(moved(axes, 0, 0), margin - inner[0], top, bottom)
    for title in parts(figure, "text_"):
        left, top, right, bottom = extent(title)
        below(title, (width - left - right) / 2, top, bottom)
    figure[:] = drawn
    root.attrib |= {"width": f"{width + 4:.1f}pt", "height": f"{y:.1f}pt"}
    root.set("viewBox", f"-2 -2 {width + 4:.1f} {y:.1f}")
    return ET.tostring(root, encoding="unicode")


def offer(app, pagename, templatename, context, doctree):
    """Let the browser choose between the two arrangements."""
    if app.builder.name != "html" or "body" not in context:
        return
    sources = {name: Path(app.srcdir, source) for source, name in app.builder.images.items()}

    def both(image):
        source = sources.get(f"{image[2]}.svg")
        slim = source and narrow(source.read_text("utf-8"))
        if not slim:
            return image[0]
        folder = Path(app.outdir, app.builder.imagedir)
        folder.mkdir(exist_ok=True)
        (folder / f"{image[2]}-narrow.svg").write_text(slim, "utf-8")
        choice = f'<source media="(max-width: 599px)" srcset="{image[1]}{image[2]}-narrow.svg">'
        return f"<picture>{choice}{image[0]}</picture>"

    context["body"] = IMAGE.sub(both, context["body"])


def setup(app):
    app.connect("html-page-context", offer)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
