"""The explorer's page in a browser: every number that JavaScript shows is Python's."""

import itertools
import json
import math
import random

import pytest
import torch

from explorer import PRESETS, SLIDERS, explore, page

pytestmark = pytest.mark.slow

# Differences of probabilities carry the rounding of the probabilities, about 1e-16 each.
REL, ABS_OF_DIFFERENCE = 1e-9, 1e-14
ABS_OF_PROBABILITY = 1e-300  # below, doubles lose digits on their way to zero
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


@pytest.fixture
def run(driver, tmp_path):
    """Open a fresh page with two explorers; run JavaScript there. Nothing may go wrong on it."""
    from selenium.webdriver.support.wait import WebDriverWait

    html = page()._repr_html_()
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
        page()._repr_html_(),
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
