import pytest

from audit import ClaimTable, guarantee, trend

ROW = ("it falls", "yes", "$|x| < 1$", "reproduced")


def test_markdown_has_a_header_and_one_line_per_claim():
    lines = ClaimTable([ROW, ROW])._repr_markdown_().split("\n")
    assert lines[0] == "| claim | paper | here | verdict |"
    assert lines[1] == "| --- | --- | --- | --- |"
    assert len(lines) == 4


def test_a_bar_in_a_cell_does_not_end_the_cell():
    assert ClaimTable([ROW])._repr_markdown_().endswith(r"$\|x\| < 1$ | reproduced |")


def test_cells_become_text():
    assert "| 0.5 |" in ClaimTable([("a", "b", 0.5, "c")])._repr_markdown_()


def test_a_table_may_have_other_columns():
    header = ("claim", "paper", "its logs", "here", "verdict")
    table = ClaimTable([("it falls", "yes", "−3.1", "no", "partly")], header)
    assert table._repr_markdown_().split("\n")[0] == "| claim | paper | its logs | here | verdict |"
    assert repr(table) == "it falls: partly"
    with pytest.raises(ValueError, match="row 1 has 4 entries, not 5"):
        ClaimTable([ROW], header)


def test_repr_gives_claims_and_verdicts():
    assert repr(ClaimTable([ROW])) == "it falls: reproduced"


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
    with pytest.raises(ValueError, match="at least one part"):
        trend()
