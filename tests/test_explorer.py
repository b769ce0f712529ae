import itertools
import json
import math
import os
import random
import re
import shutil
from html.parser import HTMLParser

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lmdyn import explorer, plots, softmax_step, squeeze_line
from lmdyn.explorer import PRESETS, SLIDERS, distribution, explore

# Differences of probabilities carry the rounding of the probabilities, about 1e-16 each.
REL, ABS_OF_DIFFERENCE = 1e-9, 1e-14
# Below, doubles lose digits on their way to zero.
ABS_OF_PROBABILITY = 1e-300


def slider_values(name):
    slider = SLIDERS[name]
    n = round((slider.high - slider.low) / slider.step)
    return [round(slider.low + i * slider.step, 2) for i in range(n + 1)]


any_setting = st.fixed_dictionaries(
    {
        "peakiness": st.sampled_from(slider_values("peakiness")),
        "y": st.integers(0, 49),
        "p_y": st.sampled_from(slider_values("log10_p_y")).map(lambda x: 10**x),
        "lr": st.sampled_from(slider_values("step_size")).flatmap(
            lambda size: st.sampled_from([-size, size])
        ),
        "steps": st.integers(0, 50),
    }
)


# ---- the family and the numbers ----


@settings(deadline=None)
@given(
    peakiness=st.floats(0, 5),
    p_y=st.floats(1e-9, 1 - 1e-9),
    v_and_y=st.integers(2, 200).flatmap(lambda v: st.tuples(st.just(v), st.integers(0, v - 1))),
)
def test_distribution_gives_y_its_probability_and_orders_the_others(peakiness, p_y, v_and_y):
    v, y = v_and_y
    probs = distribution(peakiness, y, p_y, n_labels=v)
    assert probs.shape == (v,) and probs.dtype == torch.float64
    assert probs.sum().item() == pytest.approx(1, rel=1e-12)
    assert probs[y].item() == p_y
    others = torch.cat([probs[:y], probs[y + 1 :]])
    assert (others > 0).all() and (others.diff() <= 0).all()


def test_peakiness_runs_from_flat_to_peaky():
    tops = [distribution(peakiness, 30, 0.02)[0].item() for peakiness in slider_values("peakiness")]
    assert tops == sorted(tops)
    assert tops[0] == pytest.approx(0.98 / 49) and tops[-1] > 0.8


@settings(deadline=None, max_examples=25)
@given(any_setting)
def test_explore_repeats_the_exact_step(setting):
    result = explore(**setting)
    after = before = distribution(setting["peakiness"], setting["y"], setting["p_y"])
    for _ in range(setting["steps"]):
        after = softmax_step(after, setting["y"], setting["lr"])
    torch.testing.assert_close(result.after, after, rtol=0, atol=0)

    change = (after - before).tolist()
    others = [i for i in range(50) if i != setting["y"]]
    top = max(others, key=lambda i: before[i].item())
    numbers = result.numbers()
    assert numbers["top"] == top
    assert numbers["moved"] == pytest.approx(sum(map(abs, change)) / 2, abs=ABS_OF_DIFFERENCE)
    assert numbers["gaining"] == sum(change[i] > 0 for i in others)
    assert numbers["line"] == squeeze_line(before, setting["y"]).item()
    assert numbers["exact_line"] == squeeze_line(before, setting["y"], setting["lr"]).item()
    if setting["steps"] == 0:
        assert numbers["moved"] == 0 and math.isnan(numbers["share"])
    elif numbers["moved"] > 0:
        assert numbers["share"] == pytest.approx(max(0, change[top]) / numbers["moved"])


def test_presets_are_the_four_regimes():
    valley, peak, flat, positive = (
        explore(**vars(PRESETS[k])) for k in ("valley", "peak", "flat", "positive")
    )
    assert valley.gaining == 1 and valley.share == pytest.approx(1)
    assert valley.moved > 100 * valley.before[valley.y].item()
    assert peak.gaining == flat.gaining == 49
    assert peak.share > 10 * flat.share
    assert positive.after[positive.y] > positive.before[positive.y]
    assert positive.after[positive.top] < positive.before[positive.top]


@pytest.mark.parametrize(
    ("change", "opening"),
    [
        ({}, "Squeezed: label 30 loses"),
        ({"peakiness": 1}, "Partly squeezed: label 30 loses"),
        ({"peakiness": 0}, "Not squeezed: label 30 loses"),
        ({"lr": 4}, "Learned: label 30 gains"),
        ({"steps": 0}, "No step"),
    ],
)
def test_verdict_names_what_happened(change, opening):
    verdict = explore(**vars(PRESETS["valley"]) | change).verdict()
    assert verdict.startswith(opening) and verdict.count(". ") == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"y": 50}, r"y must be an integer in 0 … 49, got 50"),
        ({"y": -1}, r"y must be an integer in 0 … 49"),
        ({"y": 1.5}, r"y must be an integer"),
        ({"p_y": 0.0}, r"p_y must lie strictly between 0 and 1, got 0.0"),
        ({"p_y": 1.0}, r"p_y must lie strictly between 0 and 1"),
        ({"p_y": math.nan}, r"p_y must lie strictly between 0 and 1"),
        ({"peakiness": -0.1}, r"peakiness must be finite and not negative"),
        ({"peakiness": math.inf}, r"peakiness must be finite"),
        ({"steps": -1}, r"steps must be an integer of at least 0, got -1"),
        ({"steps": 1.5}, r"steps must be an integer"),
        ({"lr": math.inf}, r"lr must be finite"),
        ({"n_labels": 1}, r"n_labels must be an integer of at least 2"),
    ],
)
def test_bad_input_is_named(change, message):
    with pytest.raises(ValueError, match=message):
        explore(**vars(PRESETS["valley"]) | change)


# ---- the fragment, without a browser ----


class Outline(HTMLParser):
    def __init__(self, html):
        super().__init__()
        self.tags, self.ids, self.links = [], [], []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(value)
            if name in ("src", "href"):
                self.links.append(value)


def test_fragment_is_self_contained():
    html = explorer.page()._repr_html_()
    assert not re.search(
        r"https?:|//\w|@import|\bimport\b|\brequire\b|\bfetch\b|url\(", strip(html)
    )
    outline = Outline(html)
    assert outline.tags == ["style", "div", "p", "code", "script"]
    assert outline.links == []


def strip(html):
    """Without comments, which may say anything."""
    return re.sub(r"/\*.*?\*/|^ *//[^\n]*$", "", html, flags=re.DOTALL | re.MULTILINE)


def test_two_fragments_share_no_id_and_are_the_same_each_time():
    one, two = explorer.page()._repr_html_(), explorer.page()._repr_html_()
    ids = Outline(one + two).ids
    assert len(ids) == len(set(ids))
    assert one == two  # a notebook that is executed again does not change


def test_colours_are_those_of_the_figures():
    html = explorer.page()._repr_html_()
    assert f"--lmdyn-gain: {plots.GAIN};" in html and f"--lmdyn-loss: {plots.LOSS};" in html


# ---- the widget ----


def test_widget_shows_the_numbers_of_the_exact_step():
    shown = explorer.widget()
    controls = shown.controls
    start = bytes(shown.figure.value)
    for name, value in {
        "peakiness": 0.7,
        "y": 3,
        "p_y": 0.05,
        "direction": 1,
        "step_size": 2.5,
        "steps": 3,
    }.items():
        controls[name].value = value
        at = {k: controls[k].value for k in ("peakiness", "y", "p_y", "steps")}
        result = explore(lr=controls["direction"].value * controls["step_size"].value, **at)
        for key, number in result.numbers().items():
            assert float(shown.readouts[key].value) == pytest.approx(number, rel=1e-5)
        assert result.verdict() in shown.verdict.value
    figure = bytes(shown.figure.value)
    assert figure != start and b"<svg" in figure
    after = distribution(0.7, 3, 0.05)
    for _ in range(3):
        after = softmax_step(after, 3, 2.5)
    assert float(shown.readouts["p_y_after"].value) == pytest.approx(after[3].item(), rel=1e-5)


def test_widget_presets_and_axis():
    shown = explorer.widget()
    for button, setting in zip(shown.children[0].children, PRESETS.values(), strict=True):
        button.click()
        assert shown.result.numbers() == explore(**vars(setting)).numbers()
    linear = bytes(shown.figure.value)
    shown.controls["log"].value = True
    assert bytes(shown.figure.value) != linear


# ---- the fragment in a browser ----

FLAGS = (
    "--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run "
    "--disable-background-networking --disable-component-update --disable-sync"
).split()
PAGE = """<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Explorers</title>
<style>
  * {{ font-size: 40px; letter-spacing: 3px; }} td {{ background: lime; }} body {{ width: 800px; }}
</style></head><body>
<p class="card">A paragraph</p><table class="numbers"><tr><td>1</td></tr></table>
<button>A button</button><input type="range"><p id="verdict" class="note">Mine</p>
<script>
  const looks = () => [...document.querySelectorAll("body > :not(main, script), td")].map(
    (e) => e.tagName + [...getComputedStyle(e)].map((k) => k + getComputedStyle(e)[k]).join());
  window.before = looks();
</script>
<main><div class="output text_html">{one}</div><div style="width: 360px">{two}</div></main>
</body></html>"""

HELPERS = """
const roots = [...document.querySelectorAll('.lmdyn-explorer')].map((host) => host.shadowRoot);
const set = (root, setting) => {
  let control;
  for (const [name, value] of Object.entries(setting)) {
    control = root.getElementById(name)
      ?? root.querySelector(`input[name=${name}][value="${value}"]`);
    if (control.type === 'radio') control.checked = true; else control.value = value;
  }
  control.dispatchEvent(new Event('input', { bubbles: true, composed: true }));
};
const data = (list) => Object.fromEntries([...list].map(
  (e) => [e.dataset.name ?? e.getAttribute('for'), [e.dataset.value, e.textContent]]));
const read = (root) => ({
  setting: data(root.querySelectorAll('.controls output')),
  direction: root.querySelector('input[name=direction]:checked').value,
  numbers: data(root.querySelectorAll('[data-name]')),
  verdict: root.getElementById('verdict').textContent,
  bars: [...root.querySelectorAll('.slot')].map((e) => [e.dataset.before, e.dataset.after]),
  pressed: [...root.querySelectorAll('[aria-pressed=true]')].map((e) => e.dataset.preset),
});
"""


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    from selenium import webdriver

    names = ("chromium", "chromium-browser", "google-chrome")
    browser = next(filter(None, map(shutil.which, names)), None)
    service = shutil.which("chromedriver")
    if not (browser and service):
        reason = f"no {'chromedriver' if browser else 'Chromium'} on the PATH"
        if os.environ.get("LMDYN_REQUIRE_BROWSER") == "1":
            pytest.fail(f"{reason}, and LMDYN_REQUIRE_BROWSER=1 asks for it")
        pytest.skip(reason)
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for flag in [*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"]:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(service))
    yield driver
    driver.quit()


@pytest.fixture
def run(driver, tmp_path):
    """Open a fresh page with two explorers; run JavaScript there. Nothing may go wrong on it."""
    from selenium.webdriver.support.wait import WebDriverWait

    html = explorer.page()._repr_html_()
    path = tmp_path / "page.html"
    path.write_text(PAGE.format(one=html, two=html), encoding="utf-8")
    driver.get(path.as_uri())

    def run(script, *args):
        return driver.execute_script(HELPERS + script, *args)

    drawn = "return roots.length === 2 && roots.every((root) => root.querySelector('.slot'))"
    WebDriverWait(driver, 20).until(lambda _: run(drawn))
    yield run
    assert driver.get_log("browser") == []
    messages = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    requests = [m["params"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    # The browser's own start page may still be loading: only what this page asked for counts.
    asked = {r["request"]["url"] for r in requests if r["documentURL"] == path.as_uri()}
    assert asked == {path.as_uri()}


def as_number(text):
    """What a reader takes a shown number for."""
    digits = str.maketrans("−⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "--0123456789")
    text = text.translate(digits).split(" of ")[0].replace("·10", "e")
    return float(text[:-1]) / 100 if text.endswith("%") else float(text)


def check(shown, expected=None):
    """Every number shown is Python's, for the setting that the page says it stands at."""
    at = {name: float(value) for name, (value, _) in shown["setting"].items()}
    setting = {
        "peakiness": at["peakiness"],
        "y": int(at["y"]),
        "p_y": at["log10_p_y"],  # the readout of this slider is the probability itself
        "lr": int(shown["direction"]) * at["step_size"],
        "steps": int(at["steps"]),
    }
    if expected is not None:
        assert setting == pytest.approx(expected, rel=1e-12)
    result = explore(**setting)
    numbers = result.numbers()
    assert shown["numbers"].keys() == numbers.keys()
    for name, number in numbers.items():
        value, text = shown["numbers"][name]
        tolerance = {
            "moved": ABS_OF_DIFFERENCE,
            "share": ABS_OF_DIFFERENCE / (result.moved or 1),
            "line": ABS_OF_DIFFERENCE,
            "exact_line": ABS_OF_DIFFERENCE / abs(setting["lr"]),
        }.get(name, ABS_OF_PROBABILITY)
        close = pytest.approx(number, rel=REL, abs=tolerance, nan_ok=True)
        assert float(value) == close, (name, setting)
        if math.isnan(number):
            assert text == "–"
        else:
            assert as_number(text) == pytest.approx(float(value), rel=0.05, abs=6e-4), name
    bars = torch.tensor([[float(p) for p in bar] for bar in shown["bars"]], dtype=torch.float64)
    both = torch.stack([result.before, result.after], dim=-1)
    torch.testing.assert_close(bars, both, rtol=REL, atol=ABS_OF_PROBABILITY)
    assert shown["verdict"] == result.verdict()


def test_page_opens_on_the_squeeze(run):
    for shown in run("return roots.map(read)"):
        check(shown, vars(PRESETS["valley"]))
        assert shown["pressed"] == ["valley"]


def test_page_equals_python_over_a_grid(run):
    grid = itertools.product(
        (0, 0.3, 1, 1.5, 3),
        (0, 1, 30, 49),
        (-6, -3, -1.7, -0.4, -0.05),
        (0.1, 0.9, 1, 4, 10),
        (-1, 1),
        (0, 1, 2, 9, 50),
    )
    names = ("peakiness", "y", "log10_p_y", "step_size", "direction", "steps")
    chosen = [
        dict(zip(names, point, strict=True)) for point in random.Random(0).sample(list(grid), 150)
    ]
    seen = run(
        "return arguments[0].map((at) => { set(roots[0], at); return read(roots[0]); })", chosen
    )
    for at, shown in zip(chosen, seen, strict=True):
        expected = {
            "peakiness": at["peakiness"],
            "y": at["y"],
            "p_y": 10 ** at["log10_p_y"],
            "lr": at["direction"] * at["step_size"],
            "steps": at["steps"],
        }
        check(shown, expected)


def test_page_by_keyboard(driver, run):
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    root = driver.find_element(By.CSS_SELECTOR, ".lmdyn-explorer").shadow_root

    def press(selector, *keys):
        root.find_element(By.CSS_SELECTOR, selector).send_keys(*keys)
        shown = run("return read(roots[0])")
        check(shown)
        return shown

    for name, slider in SLIDERS.items():
        unit = (lambda x: 10**x) if name == "log10_p_y" else (lambda x: x)
        for keys, expected in [
            ((Keys.HOME,), slider.low),
            ((Keys.ARROW_RIGHT, Keys.ARROW_UP), slider.low + 2 * slider.step),
            ((Keys.END,), slider.high),
            ((Keys.ARROW_LEFT,), slider.high - slider.step),
        ]:
            value, _ = press(f"#{name}", *keys)["setting"][name]
            assert float(value) == pytest.approx(unit(expected), rel=1e-12), (name, keys)
    assert press("[name=direction]:checked", Keys.ARROW_DOWN)["direction"] == "1"
    for key in PRESETS:
        shown = press(f"[data-preset={key}]", Keys.ENTER)
        assert shown["pressed"] == [key]
        check(shown, vars(PRESETS[key]))
    linear = run("return roots[0].querySelector('svg').innerHTML")
    shown = press("[name=axis]:checked", Keys.ARROW_RIGHT)
    assert run("return roots[0].querySelector('svg').innerHTML") != linear
    assert shown["pressed"] == [key]  # the axis is no part of the setting
    focus = "getComputedStyle(roots[0].activeElement)"
    assert run(f"return [{focus}.outlineStyle, {focus}.outlineWidth]") == ["solid", "2px"]


def test_explorers_on_one_page_are_independent(run):
    before = run("return read(roots[1])")
    run("set(roots[0], { peakiness: 0.5, y: 7, direction: 1, axis: 'log' })")
    assert run("return read(roots[1])") == before
    assert run("return roots[1].querySelector('[name=axis]:checked').value") == "linear"
    check(run("return read(roots[0])"))


def test_page_starts_where_scripts_are_put_in_later(run):
    """JupyterLab sets innerHTML, which runs nothing, then puts each script in again."""
    run(
        """
        const output = document.createElement('div');
        output.innerHTML = arguments[0];
        for (const old of output.querySelectorAll('script')) {
          const script = document.createElement('script');
          script.textContent = old.textContent;
          old.replaceWith(script);
        }
        document.querySelector('main').replaceChildren(output);""",
        explorer.page()._repr_html_(),
    )
    shown = run("return roots.map((root) => root.getElementById('verdict').textContent)")
    assert shown == [explore(**vars(PRESETS["valley"])).verdict()]


def test_page_and_explorer_leave_each_other_their_styles(run):
    assert run("return JSON.stringify(looks()) === JSON.stringify(window.before)")
    verdict = "getComputedStyle(roots[0].getElementById('verdict'))"
    assert run(f"return [{verdict}.fontSize, {verdict}.letterSpacing]") == ["16px", "normal"]
    cell = "getComputedStyle(roots[0].querySelector('td'))"
    assert run(f"return {cell}.backgroundColor") == "rgba(0, 0, 0, 0)"


def test_explorer_follows_the_theme_and_fits_a_phone(run):
    card = "return getComputedStyle(roots[0].querySelector('.card')).backgroundColor"
    light, dark = "rgb(255, 255, 255)", "rgb(26, 30, 37)"
    assert run(card) == light
    run("document.documentElement.dataset.theme = 'dark'")  # the book
    assert run(card) == dark
    run("document.documentElement.dataset.theme = 'light'")
    assert run(card) == light
    run("document.body.dataset.jpThemeLight = 'false'")  # JupyterLab
    assert run(card) == dark
    outside = """
        const edge = roots[1].host.getBoundingClientRect();
        const sticksOut = (box) => box.width && (box.right > edge.right || box.left < edge.left);
        return [...roots[1].querySelectorAll('*')]
          .filter((e) => sticksOut(e.getBoundingClientRect())).map((e) => e.outerHTML)"""
    for key in PRESETS:
        run(f"roots[1].querySelector('[data-preset={key}]').click()")
        assert run(outside) == []
