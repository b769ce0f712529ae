"""The metrics of how much texts repeat."""

import gzip
import math
import random
import string

import pytest

from lmdyn.lm.generate import repeated
from text import compression_ratio, distinct, summary


def test_distinct_counts_different_ngrams_over_all_texts():
    assert distinct(["a b c d"]) == 1
    assert distinct(["a b", "a b"], 1) == pytest.approx(2 / 4)
    assert distinct(["a b a b", "c"], 2) == pytest.approx(2 / 3)  # ab ba ab; none across texts
    assert distinct(["a"], 2) == 0
    assert distinct(["", " "]) == 0
    assert distinct(["a\nb  a"]) == pytest.approx(2 / 3)


def test_compression_ratio_is_bytes_over_gzipped_bytes(tmp_path):
    texts = ["naïve answers", "all alike", "all alike"]
    (tmp_path / "text").write_text(" ".join(texts), encoding="utf-8")
    with gzip.open(tmp_path / "text.gz", "wb") as file:
        file.write((tmp_path / "text").read_bytes())
    # That file carries its name as well, and a zero byte to end it.
    sizes = (tmp_path / "text").stat().st_size, (tmp_path / "text.gz").stat().st_size - 5
    assert compression_ratio(texts) == pytest.approx(sizes[0] / sizes[1])
    assert compression_ratio([""]) == 0


def test_compression_ratio_grows_with_repetition_within_and_across_texts():
    rng = random.Random(0)
    noise = ["".join(rng.choices(string.ascii_lowercase, k=40)) for _ in range(100)]
    assert compression_ratio(noise) < 2  # a letter of 26 is 4.7 of 8 bits
    assert compression_ratio(noise[:10] * 10) > 5
    assert compression_ratio([" ".join(noise[:10] * 10)]) == compression_ratio(noise[:10] * 10)


def test_summary_is_a_row_of_a_table():
    texts = ["a b a b a b", "c d"]
    row = summary(texts, [False, True])
    assert row == {
        "words": 4,
        "distinct-1": distinct(texts, 1),
        "distinct-2": distinct(texts, 2),
        "repeated 3-grams": repeated(texts, 3),
        "compression ratio": compression_ratio(texts),
        "ended": 0.5,
    }
    assert summary(texts) == {key: row[key] for key in row if key != "ended"}
    assert all(math.isfinite(value) for value in summary([""]).values())
    with pytest.raises(ValueError, match="2 texts and 1"):
        summary(texts, [True])


@pytest.mark.parametrize("metric", [distinct, compression_ratio, summary])
@pytest.mark.parametrize(
    ("texts", "message"),
    [("a b", "list"), ([], "list"), (["a", None], r"texts\[1\] must be a text, got NoneType")],
)
def test_bad_texts_are_named(metric, texts, message):
    with pytest.raises(ValueError, match=message):
        metric(texts)


def test_an_ngram_has_a_word():
    with pytest.raises(ValueError, match="n must be an integer of at least 1, got 0"):
        distinct(["a b"], 0)
