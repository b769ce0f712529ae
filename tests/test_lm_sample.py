"""The English sample: what was written, what follows from it, what the model added."""

import difflib
import importlib.util
import re
import sys
from pathlib import Path
from statistics import mean

import pytest

import lmdyn.lm.generate  # noqa: F401 (a test replaces it)
from lmdyn.lm import TYPES, load_probes

ROOT = Path(__file__).resolve().parent.parent


def _load_script():
    spec = importlib.util.spec_from_file_location("make_sample", ROOT / "book" / "make_sample.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


make_sample = _load_script()
ROWS = make_sample.read()
GENERATED = ("chosen_initial", "chosen_selfr")
TWINS = [
    ("chosen", "chosen_gptsemantic", "chosen_gptformat"),
    ("rejected", "reject_gptsemantic", "reject_gptformat"),
]
# Words that carry the form of a sentence rather than what it is about.
FORM = frozenset(
    "a an the of to in on at for with by from into as and or but so if when where while because "
    "than that this it its it's is are was were be been has have had do does did no not you your "
    "they them their he his she her we us our i i'm i'd i'll you're can could should will would "
    "may might one two what which who how there then up out off down over under".split()
)


def form(text):
    """The text with every word that is not of the form blotted out."""
    return [word if word in FORM else "_" for word in make_sample.words_of(text)]


def content(text):
    return {w for w in make_sample.words_of(text) if w not in FORM and len(w) > 3}


def alike(a, b):
    return difflib.SequenceMatcher(None, a, b, autojunk=False).ratio()


def shared(row, a, b):
    """The share of the content words of a that occur in b."""
    return len(content(row[a]) & content(row[b])) / len(content(row[a]))


def test_every_row_has_every_type_and_the_loader_takes_them():
    probes = load_probes("sample")
    assert probes.types == tuple(TYPES) and len(probes) == 64
    assert [set(row) for row in probes] == [{"prompt", "split", *TYPES}] * 64
    assert [row["split"] for row in probes] == ["train"] * 48 + ["test"] * 16


def test_prompts_are_dialogues_that_end_with_the_assistant_s_turn():
    for row in ROWS:
        turns = re.split(r"\n\n(Human|Assistant):", row["prompt"])
        speakers, said = turns[1::2], turns[2::2]
        assert turns[0] == "" and said[-1] == ""
        assert speakers == ["Human", "Assistant"] * (len(speakers) // 2)
        assert all(text.startswith(" ") and text.strip() for text in said[:-1])
    assert sum(row["prompt"].count("Human:") > 1 for row in ROWS) >= 5


def test_nothing_is_there_twice():
    written = ["prompt", *make_sample.WRITTEN]
    texts = [row[key].lower() for row in ROWS for key in written]
    assert len(set(texts)) == len(texts)
    starts = [" ".join(make_sample.words_of(text)[:8]) for text in texts]
    assert len(set(starts)) > 0.93 * len(starts)  # format twins may begin alike


@pytest.mark.parametrize("key", list(TYPES))
def test_responses_begin_with_one_space_and_are_clean(key):
    for row in ROWS:
        text = row[key]
        assert re.match(r" \S", text) and not text[-1].isspace()
        assert not re.search(r"<\||\|>|</?s>|endoftext|Human:|Assistant:|\t|\r", text)
        if key not in GENERATED:
            assert text.isascii() and "  " not in text
        if key in make_sample.WRITTEN:
            assert text[-1] in '.?!"' or text.endswith(("regards", "best", "greetings"))
            assert text.count('"') % 2 == 0 and not re.search(r"\s[,.;:?!]|\.\.|,,", text)


def test_written_lengths_are_moderate_and_varied():
    for key in make_sample.WRITTEN:
        lengths = [len(row[key].split()) for row in ROWS]
        assert 15 <= min(lengths) and max(lengths) <= 60
        assert len(set(lengths)) >= 10
    for row in ROWS:
        assert 0.75 <= len(row["irr_hum"].split()) / len(row["chosen"].split()) <= 1.35


@pytest.mark.parametrize(("original", "semantic", "other"), TWINS)
def test_semantic_rephrases_share_hardly_a_content_word(original, semantic, other):
    shares = [shared(row, original, semantic) for row in ROWS]
    assert mean(shares) < 0.05 and max(shares) < 0.35  # code has to be repeated
    # Format twins keep more of them, such as "usually" or "start", and unrelated text still fewer.
    assert mean(shares) < mean(shared(row, original, other) for row in ROWS) < 0.3


@pytest.mark.parametrize(("original", "semantic", "other"), TWINS)
def test_format_twins_have_the_form_and_semantic_rephrases_do_not(original, semantic, other):
    def ratios(key):
        return [alike(form(row[original]), form(row[key])) for row in ROWS]

    assert mean(ratios(other)) > 0.85 and min(ratios(other)) > 0.6
    assert mean(ratios(semantic)) < mean(ratios("irr_hum")) + 0.15 < 0.6
    for row in ROWS:
        assert abs(len(row[original].split()) - len(row[other].split())) <= 3


def test_rephrases_mean_something_else_than_unrelated_sentences():
    for row in ROWS:
        assert shared(row, "chosen", "irr_hum") < 0.2


def test_other_answers_are_chosen_answers_of_another_row():
    for split, key in (("train", "irr_train"), ("test", "irr_test")):
        pool = [row["chosen"] for row in ROWS if row["split"] == split]
        for row in ROWS:
            assert row[key] in pool and row[key] != row["chosen"]
        # Each answer of the split serves one other row of the split.
        assert sorted(row[key] for row in ROWS if row["split"] == split) == sorted(pool)


def test_shuffled_words_are_the_same_words_in_another_order():
    for row in ROWS:
        chosen, shuffled = row["chosen"].split(), row["random_permute"].split()
        assert sorted(chosen) == sorted(shuffled) and chosen != shuffled


def test_random_words_are_as_many_and_known():
    known = {
        w for row in ROWS for key in make_sample.WRITTEN for w in make_sample.words_of(row[key])
    }
    for row in ROWS:
        words = row["random_nonhum"].split()
        assert len(words) == len(row["chosen"].split()) and set(words) <= known


def test_the_model_s_texts_are_whole_sentences_and_the_rephrase_is_one():
    for row in ROWS:
        for key, of in (("chosen_initial", None), ("chosen_selfr", row["chosen"])):
            assert make_sample.clean(row[key]) == row[key]
            assert make_sample.is_useful(row[key], of)
            assert len(row[key].split()) <= 80


def test_the_script_reproduces_the_file_byte_for_byte(tmp_path):
    path = tmp_path / "sample.jsonl"
    path.write_bytes(make_sample.FILE.read_bytes())
    make_sample.main(path, with_model=False)
    assert path.read_bytes() == make_sample.FILE.read_bytes()
    assert [file.name for file in tmp_path.iterdir()] == ["sample.jsonl"]


def test_the_script_derives_what_is_missing(tmp_path):
    path = tmp_path / "sample.jsonl"
    keep = ("split", "prompt", *make_sample.WRITTEN, *GENERATED)
    make_sample.write([{key: row[key] for key in keep} for row in ROWS], path)
    make_sample.main(path, with_model=False)
    assert path.read_bytes() == make_sample.FILE.read_bytes()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (" Boil it for ten minutes. Then", " Boil it for ten minutes."),
        ("\nIt is 3.5 km away!\n\nHuman: thanks", " It is 3.5 km away!"),
        ('He said "come along now." And', ' He said "come along now."'),
        ("no sentence ends here", ""),
        (" Two ways:\n1. Sell it.\n2. Keep", " Two ways:\n1. Sell it."),
        (" Two ways are known. These:\n1. Sell", " Two ways are known."),
    ],
)
def test_clean_cuts_to_whole_sentences_of_the_first_turn(text, expected):
    assert make_sample.clean(text) == expected


@pytest.mark.parametrize(
    ("text", "of", "expected"),
    [
        ("Boil it for ten minutes.", None, True),
        ("Yes, of course.", None, False),
        ("I am sorry. I am sorry. I am sorry. I am sorry.", None, False),
        ("Simmer it for a good ten minutes.", "Boil the egg for ten minutes.", True),
        ("Boil the egg for ten minutes.", "Boil the egg for ten minutes!", False),
        ("Nobody knows where swans sleep.", "Boil the egg for ten minutes.", False),
    ],
)
def test_texts_that_are_short_circular_copied_or_off_are_of_no_use(text, of, expected):
    assert make_sample.is_useful(text, of) is expected


def test_useless_answers_are_asked_for_again_and_never_invented(monkeypatch):
    asked = []

    def generate(model, tokenizer, prompts, *, sample, seed, **_):
        asked.append((seed, sample, list(prompts)))
        return [f"This is answer {seed} to {p}." if p == "a" or seed == 2 else "" for p in prompts]

    monkeypatch.setattr(sys.modules["lmdyn.lm.generate"], "generate", generate)
    answers = make_sample.complete(None, None, ["a", "b"])
    assert answers == [" This is answer 0 to a.", " This is answer 2 to b."]
    assert asked == [(0, False, ["a", "b"]), (1, True, ["b"]), (2, True, ["b"])]
    monkeypatch.setattr(make_sample, "ATTEMPTS", 2)
    with pytest.raises(RuntimeError, match="no useful answer in 2 attempts to 'b'"):
        make_sample.complete(None, None, ["b"])
