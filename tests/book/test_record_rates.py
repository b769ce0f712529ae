import sys

import numpy as np
import pytest

import record
import record_rates
from audit.scale import Scale
from lmdyn import lm


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # responses that were cut
def test_each_arm_begins_with_the_same_model_and_is_made_once(tmp_path, monkeypatch, capsys):
    start = tmp_path / "start.model"
    model, tokenizer = lm.load("tiny", "cpu")
    model.save_pretrained(start)
    tokenizer.save_pretrained(start)
    monkeypatch.setattr(record, "RUNS", tmp_path)
    monkeypatch.setattr(record_rates, "LR", 1e-3)  # two updates that can be seen
    command = ["record_rates", "--rows", "world", "--start", str(start), "--small"]
    monkeypatch.setattr(sys, "argv", [*command, "--out", str(tmp_path)])
    record_rates.main()
    found = Scale.load(tmp_path / "scale-smollm2-rates")
    assert found.types == ["chosen", "rejected"]
    assert found.group.tolist() == ["test"] * 4 + ["tune"] * 4
    firsts = []
    for arm in record_rates.SWEPT:
        run = found.at_rate(arm, record_rates.LR, seed=record_rates.SEED)
        assert found.runs[run]["steps"].tolist() == [0, 2]
        for group in ("test", "tune"):
            before, after = found.pair(run, group)
            assert not np.allclose(before, after)
            firsts.append(before)
    for test, tune in zip(firsts[::2], firsts[1::2], strict=True):
        np.testing.assert_array_equal([test, tune], firsts[:2])
    assert str(tmp_path) not in (tmp_path / "scale-smollm2-rates.json").read_text()

    monkeypatch.delattr(record_rates, "tuned")
    record_rates.main()
    capsys.readouterr()
