"""Words of the glossary tell what they mean, by pointer, key and finger."""

from pathlib import Path

import pytest

BOOK = Path(__file__).parent.parent.parent / "book"
CONF = """
import sys
sys.path.insert(0, {ext!r})
extensions = ["myst_parser", "words"]
myst_enable_extensions = ["dollarmath"]
html_static_path = [{static!r}]
html_css_files = ["lmdyn.css"]
html_js_files = [["lmdyn.js", {{"defer": "defer"}}]]
html_theme = "basic"
mathjax_path = "none.js"
"""
NOTATION = """# Words

```{glossary}
eNTK
kernel
  The tie $K = J J^\\top$ of
  two examples.

valley
  Where $\\pi$ is small. Not a {term}`kernel`.

  Second paragraph.
```
"""
CHAPTER = """# Chapter

A {term}`valley` has {term}`its kernel <kernel>`, -1.5 ± 0.2, and `1 ± 2`.
From 2–5 at 1e-06, 45 % of `3e-04`; one-sided.

| a | b |
| - | - |
| 3 ± 1 | see [elsewhere](https://else.example "titled") |

$$
7 ± 1
$$

<div class="bd-article dropdown"><button onclick="this.nextElementSibling.hidden = false">Proof
</button><p hidden style="width: 200px">
It is <span class="math"><mjx-container><i style="display: inline-block; width: 400px">x</i>
</mjx-container></span></p></div>

<script>let small = 6e-4, range = "6–7";</script>
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A small book."""
    from sphinx.application import Sphinx

    root = tmp_path_factory.mktemp("book")
    (root / "book").mkdir()
    (root / "conf.py").write_text(
        CONF.format(ext=str(BOOK / "_ext"), static=str(BOOK / "_static")), encoding="utf-8"
    )
    (root / "book" / "notation.md").write_text(NOTATION, encoding="utf-8")
    (root / "index.md").write_text(CHAPTER + "\n```{toctree}\nbook/notation\n```\n")
    Sphinx(root, root, root / "_html", root / "_trees", "html", status=None).build()
    return root / "_html"


def test_each_link_to_a_word_has_its_definition(built):
    page = (built / "index.html").read_text(encoding="utf-8")
    kernel = "The tie \\(K = J J^\\top\\) of two examples."
    assert f'title="{kernel}"' in page
    assert 'title="Where \\(\\pi\\) is small. Not a kernel. Second paragraph."' in page
    assert 'title="titled"' in page  # other links keep theirs
    inner = (built / "book" / "notation.html").read_text(encoding="utf-8")
    assert f'title="{kernel}"' in inner  # a definition may use other words


def test_numbers_stay_with_their_errors(built):
    page = (built / "index.html").read_text(encoding="utf-8")
    assert "1.5\u00a0±\u00a00.2" in page and "3\u00a0±\u00a01" in page
    assert "1 ± 2" in page or ">±<" in page  # code is as it was written
    assert "2\u2060–\u20605 at 1e\u201106, 45\u00a0% of" in page
    assert "3e-04" in page and "one-sided" in page
    assert 'let small = 6e-4, range = "6–7";' in page and "7 ± 1" in page


@pytest.fixture
def page(driver, built):
    driver.get((built / "index.html").as_uri())
    links = driver.find_elements("css selector", "a:has(> .std-term)")
    assert [link.text for link in links] == ["valley", "its kernel"]
    return driver, links


def tip(driver):
    """What the definition's box says; None while it is hidden."""
    box = driver.find_element("id", "definition")
    return box.text if box.is_displayed() else None


VALLEY = "Where \\(\\pi\\) is small. Not a kernel. Second paragraph."


@pytest.mark.slow
def test_by_pointer(page):
    from selenium.webdriver import ActionChains
    from selenium.webdriver.support.wait import WebDriverWait

    driver, (valley, _) = page
    assert tip(driver) is None and valley.get_attribute("title") in ("", None)
    ActionChains(driver).move_to_element(valley).perform()
    assert tip(driver) == VALLEY
    ActionChains(driver).move_to_element(driver.find_element("id", "definition")).pause(
        0.4
    ).perform()
    assert tip(driver) == VALLEY  # one can go there to read or to copy
    ActionChains(driver).move_to_element(driver.find_element("css selector", "h1")).perform()
    WebDriverWait(driver, 5).until(lambda _: tip(driver) is None)


@pytest.mark.slow
def test_by_key(page):
    from selenium.webdriver import ActionChains, Keys

    driver, (valley, _) = page
    driver.execute_script("arguments[0].focus()", valley)
    assert tip(driver) == VALLEY
    assert valley.get_attribute("aria-describedby") == "definition"
    ActionChains(driver).send_keys(Keys.ESCAPE).perform()
    assert tip(driver) is None
    ActionChains(driver).send_keys(Keys.TAB).perform()
    assert tip(driver).startswith("The tie")
    assert not valley.get_attribute("aria-describedby")
    ActionChains(driver).send_keys(Keys.ENTER).perform()
    assert driver.current_url.endswith("#term-kernel")


@pytest.mark.slow
def test_by_finger(page):
    from selenium.webdriver import ActionChains
    from selenium.webdriver.common.actions import interaction
    from selenium.webdriver.common.actions.action_builder import ActionBuilder
    from selenium.webdriver.common.actions.pointer_input import PointerInput

    driver, (valley, kernel) = page
    here = driver.current_url

    def tap(element):
        touch = ActionBuilder(driver, mouse=PointerInput(interaction.POINTER_TOUCH, "finger"))
        touch.pointer_action.move_to(element).pointer_down().pointer_up()
        touch.perform()

    tap(valley)
    assert tip(driver) == VALLEY and driver.current_url == here
    tap(kernel)
    assert tip(driver).startswith("The tie") and driver.current_url == here
    tap(driver.find_element("css selector", "h1"))
    assert tip(driver) is None
    tap(kernel)
    tap(kernel)
    assert driver.current_url.endswith("#term-kernel")
    ActionChains(driver).reset_actions()


@pytest.mark.slow
def test_a_formula_that_is_wider_than_its_box_scrolls_once_the_box_is_open(page):
    from selenium.webdriver.support.wait import WebDriverWait

    driver, _ = page
    formula = driver.find_element("css selector", "mjx-container")
    assert formula.get_attribute("class") == ""  # closed, it has no width
    driver.find_element("css selector", "button").click()
    WebDriverWait(driver, 5).until(lambda _: formula.get_attribute("class") == "wide")
    assert formula.size["width"] == 200 and int(formula.get_property("scrollWidth")) == 400
