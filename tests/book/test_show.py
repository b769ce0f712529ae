import pytest

from show import Table, minus, say


@pytest.mark.parametrize(
    "text, shown",
    [
        ("-0.5 and -3", "−0.5 and −3"),
        ("on-policy, 1e-5, x^-1", "on-policy, 1e-5, x^-1"),
        ("(-2, -.5)", "(−2, −.5)"),
        ("$10^{-3}$ and y-2", "$10^{-3}$ and y-2"),
    ],
)
def test_a_minus_stands_before_numbers_alone(text, shown):
    assert minus(text) == shown


def test_sentences_become_one_text():
    assert say("It falls by -1.", "Then it rises.").data == "It falls by −1. Then it rises."


def test_a_table_has_a_header_and_a_line_for_each_row():
    lines = Table([("DPO", -1.5), ("SFT", 2)], ("arm", "Δ"))._repr_markdown_().split("\n")
    assert lines == ["| arm | Δ |", "| --- | --- |", "| DPO | −1.5 |", "| SFT | 2 |"]


def test_a_row_of_the_wrong_length_is_named():
    with pytest.raises(ValueError, match="row 1 has 1 entries, not 2"):
        Table([("DPO",)], ("arm", "Δ"))
