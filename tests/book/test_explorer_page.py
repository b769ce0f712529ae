"""The explorers in a browser: every number that JavaScript shows is Python's."""

import functools
import itertools
import json
import math
import random

import pytest
import torch

import world
from explorer import PRESETS, SLIDERS, explore, page, tokens, zoo
from explorer.pairs import START, TOKENS, pair_losses
from explorer.words import TYPES, influences
from lmdyn import lm, losses

pytestmark = pytest.mark.slow

NAME, VALLEY = next(iter(PRESETS.items()))
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
const find = (root, name) => root.getElementById(name) ?? root.host.querySelector(`[name=${name}]`);
const set = (root, setting) => {
  let control;
  for (const [name, value] of Object.entries(setting)) {
    control = find(root, name)
      ?? root.querySelector(`input[name=${name}][value="${value}"]`);
    if (control.type === 'radio') control.checked = true; else control.value = value;
  }
  control.dispatchEvent(new Event('input', { bubbles: true, composed: true }));
};
const data = (list) => Object.fromEntries([...list].map(
  (e) => [e.dataset.name ?? e.getAttribute('for'), [e.dataset.value, e.textContent]]));
const read = (root) => ({
  setting: data(root.querySelectorAll('output')),
  direction: root.querySelector('input[name=direction]:checked')?.value,
  numbers: data(root.querySelectorAll('[data-name]')),
  verdict: root.getElementById('verdict').textContent,
  bars: [...root.querySelectorAll('.slot')].map((e) => [e.dataset.before, e.dataset.after]),
  pressed: [...root.querySelectorAll('[aria-pressed=true]')].map((e) => e.textContent),
});
"""


KINDS = {"label": page, "zoo": zoo, "tokens": functools.cache(tokens)}


@pytest.fixture(params=["label"])
def run(driver, tmp_path, request):
    """Open a fresh page with two explorers; run JavaScript there. Nothing may go wrong on it."""
    from selenium.webdriver.support.wait import WebDriverWait

    html = KINDS[request.param]()._repr_html_()
    path = tmp_path / "page.html"
    path.write_text(PAGE.format(one=html, two=html), encoding="utf-8")
    driver.get(path.as_uri())

    def run(script, *args):
        return driver.execute_script(HELPERS + script, *args)

    run.html = html
    drawn = "return roots.length === 2 && roots.every((root) => root?.querySelector('svg *, li'))"
    WebDriverWait(driver, 20).until(lambda _: run(drawn))
    yield run
    assert driver.get_log("browser") == []
    messages = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    requests = [m["params"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    # The browser's own start page may still be loading: only what this page asked for counts.
    asked = {r["request"]["url"] for r in requests if r["documentURL"] == path.as_uri()}
    assert asked == {path.as_uri()}


of_zoo = pytest.mark.parametrize("run", ["zoo"], indirect=True)
of_tokens = pytest.mark.parametrize("run", ["tokens"], indirect=True)
each_kind = pytest.mark.parametrize("run", KINDS, indirect=True)


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
    numbers = result.numbers
    assert shown["numbers"].keys() == numbers.keys()
    for name, number in numbers.items():
        value, text = shown["numbers"][name]
        tolerance = {
            "moved": ABS_OF_DIFFERENCE,
            "share": ABS_OF_DIFFERENCE / (result.numbers["moved"] or 1),
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
        check(shown, vars(VALLEY))
        assert shown["pressed"] == [NAME]


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

    host = driver.find_element(By.CSS_SELECTOR, ".lmdyn-explorer")
    root = host.shadow_root

    def press(selector, *keys):
        where = host if selector == "[name=y]" else root
        where.find_element(By.CSS_SELECTOR, selector).send_keys(*keys)
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
            selector = "[name=y]" if name == "y" else f"#{name}"
            value, _ = press(selector, *keys)["setting"][name]
            assert float(value) == pytest.approx(unit(expected), rel=1e-12), (name, keys)
    assert press("[name=direction]:checked", Keys.ARROW_DOWN)["direction"] == "1"
    for number, key in enumerate(PRESETS, 1):
        shown = press(f"#presets > :nth-child({number})", Keys.ENTER)
        assert shown["pressed"] == [key]
        check(shown, vars(PRESETS[key]))
    assert run("return roots[0].querySelector('[name=axis]:checked').value") == "log"
    log = run("return roots[0].querySelector('svg').innerHTML")
    shown = press("[name=axis]:checked", Keys.ARROW_RIGHT)
    assert run("return roots[0].querySelector('svg').innerHTML") != log
    assert shown["pressed"] == [key]  # the axis is no part of the setting
    focus = "getComputedStyle(roots[0].activeElement)"
    assert run(f"return [{focus}.outlineStyle, {focus}.outlineWidth]") == ["solid", "2px"]


def test_a_click_on_a_bar_pushes_its_label(driver, run):
    from selenium.webdriver import ActionChains
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    root = driver.find_element(By.CSS_SELECTOR, ".lmdyn-explorer").shadow_root
    svg = root.find_element(By.CSS_SELECTOR, "svg")
    middle = """
        const svg = roots[0].querySelector('svg').getBoundingClientRect();
        const bar = roots[0].querySelectorAll('.slot')[arguments[0]].getBoundingClientRect();
        return Math.round((bar.left + bar.right - svg.left - svg.right) / 2)"""
    for label in (7, 0, 49):
        ActionChains(driver).move_to_element_with_offset(
            svg, run(middle, label), 20
        ).click().perform()
        shown = run("return read(roots[0])")
        check(shown)
        assert shown["setting"]["y"] == [str(label)] * 2
    ActionChains(driver).send_keys(Keys.ARROW_LEFT).perform()  # the click left the keyboard there
    assert run("return read(roots[0]).setting.y[0]") == "48"


@pytest.mark.parametrize("motion", ["no-preference", "reduce"])
def test_steps_play_one_by_one_or_without_motion(driver, run, motion):
    from selenium.webdriver.support.wait import WebDriverWait

    feature = {"name": "prefers-reduced-motion", "value": motion}
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
    try:
        seen = run("roots[0].getElementById('play').click(); return read(roots[0])")
        assert seen["setting"]["steps"][0] == {"no-preference": "1", "reduce": "11"}[motion]
        done = "return find(roots[0], 'steps').value === '11'"
        WebDriverWait(driver, 20).until(lambda _: run(done))
        check(run("return read(roots[0])"), vars(VALLEY) | {"steps": 11})
        drawn = "return roots[0].querySelector('.ring').getAttribute('cy')"
        if motion == "reduce":  # there at once, with one drawing
            assert run(drawn) == run("roots[0].getElementById('play'); " + drawn)
        at_top = "set(roots[0], {steps: 50}); roots[0].getElementById('play').click();"
        assert run(at_top + "return read(roots[0]).setting.steps[0]") in {"0", "10"}
        run("roots[0].querySelector('[aria-pressed]').click()")  # stops it
        check(run("return read(roots[0])"), vars(VALLEY))
    finally:
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def test_explorers_on_one_page_are_independent(run):
    before = run("return read(roots[1])")
    run("set(roots[0], { peakiness: 0.5, y: 7, direction: 1, axis: 'linear' })")
    assert run("return read(roots[1])") == before
    assert run("return roots[1].querySelector('[name=axis]:checked').value") == "log"
    check(run("return read(roots[0])"))


# The zoo.


@of_zoo
def test_zoo_equals_python_over_a_grid(run):
    grid = list(itertools.product((-30, -7, 0, 3, 12, 60), (-30, -1, 0, 20), (-1, -0.3, 0, 0.85)))
    for name, loss in pair_losses().items():
        chosen = [
            dict(zip(("h", "up", "factor"), point, strict=True), loss=name)
            for point in random.Random(name).sample(grid, 40)
        ]
        seen = run(
            "return arguments[0].map((at) => { set(roots[0], at); return read(roots[0]); })", chosen
        )
        hyper = next(key for key in ("beta", "eta", "weight") if hasattr(loss, key))
        for at, shown in zip(chosen, seen, strict=True):
            value = float(shown["setting"]["factor"][0])
            assert value == pytest.approx(getattr(loss, hyper) * 10 ** at["factor"], rel=1e-12)
            delta = {"chosen": at["up"], "rejected": at["up"] - at["h"], "irr_train": 0}
            ref = {r: torch.tensor([START], dtype=torch.float64) for r in delta}
            logps = {r: ref[r] + d for r, d in delta.items()}
            lengths = {r: torch.tensor([TOKENS]) for r in delta}
            c = losses.get(name, **{hyper: value}).coefficients(logps, ref, lengths)
            for response in ("chosen", "rejected"):
                number, text = shown["numbers"][response]
                close = pytest.approx(c[response].item(), rel=1e-6, abs=1e-12)
                assert float(number) == close, (name, at, response)
                assert as_number(text) == pytest.approx(float(number), rel=0.05, abs=6e-4)
            up, down, ratio = (
                float(shown["numbers"][key][0]) for key in ("chosen", "rejected", "ratio")
            )
            if up != 0:
                assert ratio == pytest.approx(-down / up, rel=1e-12)


@of_zoo
@pytest.mark.parametrize(
    ("at", "verdict"),
    [
        ({}, "DPO at h = 0: y⁺ is pulled up, y⁻ is pushed down, equally hard."),
        ({"loss": "ipo", "h": 20}, "IPO at h = 20: y⁺ is pushed down, y⁻ is pulled up, equally"),
        ({"loss": "hinge", "h": 30}, "Hinge at h = 30: y⁺ is left alone, y⁻ is left alone."),
        ({"loss": "dpop", "up": -1}, "DPOP at h = 0: y⁺ is pulled up, y⁻ is pushed down, y⁺ 51"),
        ({"loss": "sppo", "h": 9, "up": 4}, "SPPO at h = 9: y⁺ is pulled up, y⁻ is left alone."),
    ],
)
def test_zoo_says_what_the_loss_does(run, at, verdict):
    said = run("set(roots[0], arguments[0]); return read(roots[0]).verdict", at or {"h": 0})
    assert said.startswith(verdict)


@of_zoo
def test_zoo_by_pointer_and_keyboard(driver, run):
    from selenium.webdriver import ActionChains
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    svg = driver.find_element(By.CSS_SELECTOR, ".lmdyn-explorer").shadow_root
    svg = svg.find_element(By.CSS_SELECTOR, "svg")
    ActionChains(driver).move_to_element(svg).click().perform()
    h = int(run("return read(roots[0]).setting.h[0]"))
    assert 10 < h < 15  # the middle of the element; the plot begins right of its left end
    ActionChains(driver).send_keys(Keys.ARROW_RIGHT).perform()
    assert run("return read(roots[0]).setting.h[0]") == str(h + 1)
    assert run("return read(roots[1]).setting.h[0]") == "0"


# The tokens.

SHOWN = """
const chips = (root) => [...root.querySelectorAll('#moved li')].map(
  (li) => [li.firstChild.textContent, Number(li.dataset.value), li.lastChild.textContent]);
const pressed = (root, box) => [...root.querySelectorAll(`#${box} [aria-pressed=true]`)].map(
  (button) => button.textContent);
"""


@of_tokens
def test_tokens_are_moved_as_python_says(run):
    model, tokenizer = lm.load("tiny", dtype=torch.float64)
    rows = [row for row in world.probes() if row["prompt"] in run.html]
    assert len(rows) == 3 and len(run.html.encode()) < 60_000
    row = rows[0]
    case = influences(model, tokenizer, row)
    number = run(
        "return [...roots[0].querySelectorAll('option')].findIndex("
        "(option) => option.textContent === arguments[0])",
        row["prompt"],
    )
    run("set(roots[0], { case: arguments[0] })", number)
    for kind, watched in enumerate(case["watched"]):
        run(f"roots[0].querySelectorAll('#watched button')[{kind}].click()")
        for token in range(len(case["words"]) + 1):
            script = "set(roots[0], { token: arguments[0] }); return chips(roots[0])"
            shown = run(SHOWN + script, token)
            assert [word for word, _, _ in shown] == watched["words"]
            for (_, value, text), line in zip(shown, watched["table"], strict=True):
                exact = line[token - 1] if token else sum(line)
                rounded = 5e-4 * (abs(exact) if token else sum(map(abs, line)))
                assert value == pytest.approx(exact, rel=0, abs=rounded + 1e-9)
                assert (text == "unchanged") == (f"{abs(value):.1f}" == "0.0")
                if text != "unchanged":
                    said = float(text[1:].replace("−", "-"))
                    assert said == pytest.approx(value, rel=0.01, abs=0.51)
                    assert text[0] == ("▼" if value < 0 else "▲")
    assert len(case["watched"]) == len(TYPES)


@of_tokens
def test_tokens_by_chip_and_keyboard(driver, run):
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    host = driver.find_element(By.CSS_SELECTOR, ".lmdyn-explorer")
    chips = host.shadow_root.find_elements(By.CSS_SELECTOR, "#learned button")
    chips[2].send_keys(Keys.ENTER)
    state = SHOWN + "return [pressed(roots[0], 'learned'), read(roots[0]).setting.token]"
    word = chips[2].text
    assert run(state) == [[word], ["2", f"“{word}”"]]
    slider = host.find_element(By.CSS_SELECTOR, "input")
    slider.send_keys(Keys.ARROW_RIGHT)
    assert run(state)[1][0] == "3"
    slider.send_keys(Keys.HOME)
    assert run(state) == [["the whole answer"], ["0", "the whole answer"]]
    verdict = run("return read(roots[0]).verdict")
    assert verdict.startswith("Learning the whole answer lifts “")
    other = run("return read(roots[1]).verdict")
    host.shadow_root.find_elements(By.CSS_SELECTOR, "#watched button")[2].click()
    assert run(SHOWN + "return pressed(roots[0], 'watched')") == ["format twin of y⁺"]
    assert run("return read(roots[0]).verdict") != verdict
    assert run("return read(roots[1]).verdict") == other


# What holds for all of them.


@each_kind
def test_page_starts_where_scripts_are_put_in_later(run):
    """JupyterLab sets innerHTML, which runs nothing, then puts each script in again."""
    said = run("return roots[0].getElementById('verdict').textContent")
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
        run.html,
    )
    assert run("return roots.map((root) => root.getElementById('verdict').textContent)") == [said]


@each_kind
def test_page_and_explorer_leave_each_other_their_styles(run):
    assert run("return JSON.stringify(looks()) === JSON.stringify(window.before)")
    verdict = "getComputedStyle(roots[0].getElementById('verdict'))"
    assert run(f"return [{verdict}.fontSize, {verdict}.letterSpacing]") == ["16px", "normal"]


@each_kind
def test_explorer_follows_the_theme(run):
    card = "return getComputedStyle(roots[0].querySelector('.card')).backgroundColor"
    light, dark = "rgb(255, 255, 255)", "rgb(26, 30, 37)"
    assert run(card) == light
    run("document.documentElement.dataset.theme = 'dark'")  # the book
    assert run(card) == dark
    run("document.documentElement.dataset.theme = 'light'")
    assert run(card) == light
    run("document.body.dataset.jpThemeLight = 'false'")  # JupyterLab
    assert run(card) == dark


@each_kind
def test_explorer_fits_a_phone(driver, run):
    screen = {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": False}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
    try:
        outside = """
            const edge = roots[1].host.getBoundingClientRect();
            const sticksOut = (b) => b.width && (b.right > edge.right || b.left < edge.left);
            return [...roots[1].querySelectorAll('*:not(option)')]
              .filter((e) => sticksOut(e.getBoundingClientRect())).map((e) => e.outerHTML)"""
        n = run("return roots[1].querySelectorAll('button').length")
        for i in range(n or 1):
            run(f"roots[1].querySelectorAll('button')[{i}]?.click()")
            assert run(outside) == []
        small = """
            const targets = 'button, select, input[type=range], label:has(input)';
            return [...roots[1].querySelectorAll(targets), roots[1].host.querySelector('input')]
              .map((e) => [e.outerHTML, e.getBoundingClientRect()])
              .filter(([, box]) => box.width < 40 || box.height < 40).map(([html]) => html)"""
        assert run(small) == []
        hidden = """
            const seen = (e) => {
              const { top, bottom } = e.getBoundingClientRect();
              return top >= 0 && bottom <= innerHeight;
            };
            return [...roots[1].querySelectorAll('button, select, input, svg')].filter((e) => {
              e.scrollIntoView({ block: 'center' });
              return !seen(roots[1].getElementById('verdict'));
            }).map((e) => e.outerHTML)"""
        assert run(hidden) == []
    finally:
        driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


@each_kind
def test_every_control_has_a_name(run):
    nameless = """
        const named = (e) => e.textContent.trim() || e.labels?.length || e.ariaLabel;
        const controls = [...roots[0].querySelectorAll('button, input, select, svg')];
        return [...controls, roots[0].host.querySelector('input')]
          .filter((e) => !named(e)).map((e) => e.outerHTML)"""
    assert run(nameless) == []
    assert run("return document.querySelectorAll('[id]').length") == 1  # the page's own
