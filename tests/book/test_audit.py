import pytest

from audit import ClaimTable, found, guarantee, trend

ROW = ("it falls", "yes", "$|x| < 1$", "reproduced")


def test_the_verdict_comes_first_and_a_claim_is_one_line():
    lines = ClaimTable([ROW, ROW])._repr_markdown_().split("\n")
    assert lines[:2] == ["| verdict | claim |", "| --- | --- |"]
    assert len(lines) == 4
    assert lines[2].startswith("| ✓ reproduced | it falls<br><small>paper: yes<br>here: ")


def test_a_bar_in_a_cell_does_not_end_the_cell():
    assert r"$\|x\| < 1$" in ClaimTable([ROW])._repr_markdown_()


def test_a_claim_of_the_book_needs_no_paper():
    table = ClaimTable([("it rises", "-0.5", "not found")])
    assert table._repr_markdown_().endswith(
        "| ✗ not found | it rises<br><small>here: −0.5</small> |"
    )


def test_what_supports_a_claim_may_have_other_names():
    header = ("claim", "paper", "its logs", "here", "verdict")
    table = ClaimTable([("it falls", "yes", "−3.1", "no", "partly")], header)
    assert "◐ partly" in table._repr_markdown_() and "its logs: −3.1" in table._repr_markdown_()
    assert repr(table) == "it falls: partly"
    with pytest.raises(ValueError, match="row 1 has 4 entries, not 5"):
        ClaimTable([ROW], header)


@pytest.mark.parametrize(
    "verdict, mark",
    [("violated", "✗"), ("not found", "✗"), ("guarantee, holds", "✓"), ("partly, on two", "◐")],
)
def test_a_mark_follows_the_verdict(verdict, mark):
    assert f"| {mark} {verdict} |" in ClaimTable([("a", "b", verdict)])._repr_markdown_()


def test_a_row_of_the_wrong_length_is_named():
    with pytest.raises(ValueError, match="row 2 has 3 entries, not 4"):
        ClaimTable([ROW, ROW[:3]])


def test_verdicts_follow_their_conditions():
    assert [guarantee(True), guarantee(False)] == ["guarantee, holds", "violated"]
    assert [trend(True, True), trend(True, False), trend(False)] == [
        "reproduced",
        "partly",
        "not reproduced",
    ]
    assert [found(True), found(True, False), found(False)] == ["found", "partly", "not found"]
    with pytest.raises(ValueError, match="at least one part"):
        trend()
