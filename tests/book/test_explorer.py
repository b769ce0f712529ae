"""The explorer: its numbers, its fragment of HTML and its widget, against the exact step."""

import math
import re
from html.parser import HTMLParser

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from explorer import PRESETS, SLIDERS, distribution, explore, page, tokens, widget, zoo
from explorer.pairs import pair_losses
from lmdyn import plots, softmax_step, squeeze_line

VALLEY = next(iter(PRESETS.values()))
ABS_OF_DIFFERENCE = 1e-14  # of two probabilities, each with a rounding of about 1e-16


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


@settings(deadline=None, max_examples=25)
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
    numbers = result.numbers
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
    results = [explore(**vars(setting)) for setting in PRESETS.values()]
    valley, peak, flat, positive = (result.numbers for result in results)
    assert valley["gaining"] == 1 and valley["share"] == pytest.approx(1)
    assert valley["moved"] > 100 * valley["p_y_before"]
    assert peak["gaining"] == flat["gaining"] == 49
    assert peak["share"] > 10 * flat["share"]
    assert positive["p_y_after"] > positive["p_y_before"]
    assert positive["top_after"] < positive["top_before"]


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
    verdict = explore(**vars(VALLEY) | change).verdict()
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
        explore(**vars(VALLEY) | change)


class Outline(HTMLParser):
    def __init__(self, html):
        super().__init__()
        self.tags, self.attributes = [], []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [name for name, _ in attrs]


def small_tokens():
    prompt = "question : where is the compass kept ? answer :"
    return tokens(rows=[{"prompt": prompt, "chosen": "in the pantry ."}], types=("chosen",))


@pytest.mark.parametrize("make", [page, zoo, small_tokens])
def test_fragment_is_self_contained_and_the_same_each_time(make):
    html = make()._repr_html_()
    said = re.sub(r"/\*.*?\*/|^ *//[^\n]*$", "", html, flags=re.DOTALL | re.MULTILINE)
    assert not re.search(r"https?:|//\w|@import|\bimport\b|\brequire\b|\bfetch\b|url\(http", said)
    outline = Outline(html)
    assert outline.tags == ["style", "div", "p", "input", "script"]
    # No link; no id either, so that two fragments on a page have none in common.
    assert not {"id", "src", "href"} & set(outline.attributes)
    assert make()._repr_html_() == html  # a notebook that is executed again does not change


def test_colours_are_those_of_the_figures():
    html = page()._repr_html_()
    assert f"--lmdyn-gain: {plots.GAIN};" in html and f"--lmdyn-loss: {plots.LOSS};" in html


def test_the_zoo_holds_every_loss_of_pairs():
    known = pair_losses()
    assert {"dpo", "ipo", "slic", "simpo", "orpo", "kto"} <= set(known)
    assert not {"sft", "grpo", "npo"} & set(known)
    with pytest.raises(ValueError, match=r"first must be one of slic, .*; got 'sft'"):
        zoo("sft")


def test_widget_shows_the_numbers_of_the_exact_step():
    shown = widget()
    controls = shown.controls
    start = bytes(shown.figure.value)
    setting = {"peakiness": 0.7, "y": 3, "p_y": 0.05, "steps": 3}
    for name, value in (setting | {"direction": 1, "step_size": 2.5}).items():
        controls[name].value = value
        at = {k: controls[k].value for k in setting}
        result = explore(lr=controls["direction"].value * controls["step_size"].value, **at)
        for key, number in result.numbers.items():
            assert float(shown.readouts[key].value) == pytest.approx(number, rel=1e-5)
        assert result.verdict() in shown.verdict.value
    figure = bytes(shown.figure.value)
    assert figure != start and b"<svg" in figure
    controls["log"].value = False
    assert bytes(shown.figure.value) != figure


def test_widget_presets():
    shown = widget()
    for button, setting in zip(shown.children[0].children, PRESETS.values(), strict=True):
        button.click()
        assert shown.result.numbers == explore(**vars(setting)).numbers
