"""Pages of the book that are text: their examples run, from top to bottom."""

import doctest
import re
import warnings
from pathlib import Path

BOOK = Path(__file__).parent.parent / "book"


def check(name: str, least: int) -> None:
    """Every example of a page prints what is written there, and there are ``least`` of them."""
    text, names, said = (BOOK / name).read_text(encoding="utf-8"), {}, []
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    for fence in re.finditer(r"```python\n(.*?)```", text, re.S):
        line = text.count("\n", 0, fence.start(1))
        block = doctest.DocTestParser().get_doctest(fence[1], names, "", name, line)
        with warnings.catch_warnings():
            if "Trainer" in fence[1] or "trainer" in fence[1]:
                warnings.simplefilter("ignore")  # TRL's own
            runner.run(block, out=said.append, clear_globs=False)
        names = block.globs
    assert runner.summarize(verbose=False).attempted > least
    assert not said, "".join(said)
