"""The English sample: what was written, what follows from it, what the model added."""

import difflib
import re
import sys
from statistics import mean

import pytest

import lmdyn.lm.generate  # noqa: F401 (a test replaces it)
import make_sample
from lmdyn.lm import TYPES, load_probes
from make_sample import WRITTEN, words_of

ROWS = make_sample.read()
GENERATED = ("chosen_initial", "chosen_selfr")
# Words that carry the form of a sentence rather than what it is about.
FORM = frozenset(
    "a an the of to in on at for with by from into as and or but so if when where while because "
    "than that this it its it's is are was were be been has have had do does did no not you your "
    "they them their he his he she her we us our i i'm i'd i'll you're can could should will would "
    "may might one two what which who how there then up out off down over under".split()
)


def form_alike(a, b):
    """How alike two texts are once every word that is not of the form is blotted out."""
    forms = [[w if w in FORM else "_" for w in words_of(text)] for text in (a, b)]
    return difflib.SequenceMatcher(None, *forms, autojunk=False).ratio()


def shared(row, a, b):
    """The share of the content words of a that occur in b."""
    words, others = (set(words_of(row[key])) - FORM for key in (a, b))
    words = {word for word in words if len(word) > 3}
    return len(words & others) / len(words)


def test_every_row_has_every_type_and_a_dialogue_that_ends_with_the_assistant_s_turn():
    probes = load_probes("sample")
    assert probes.types == tuple(TYPES)
    assert [set(row) for row in probes] == [{"prompt", "split", *TYPES}] * 64
    assert [row["split"] for row in probes] == ["train"] * 48 + ["test"] * 16
    for row in ROWS:
        turns = re.split(r"\n\n(Human|Assistant):", row["prompt"])
        speakers, said = turns[1::2], turns[2::2]
        assert turns[0] == "" and said[-1] == ""
        assert speakers == ["Human", "Assistant"] * (len(speakers) // 2)
        assert all(text.startswith(" ") and text.strip() for text in said[:-1])
    assert sum(row["prompt"].count("Human:") > 1 for row in ROWS) >= 5


def test_nothing_is_there_twice():
    texts = [row[key].lower() for row in ROWS for key in ("prompt", *WRITTEN)]
    assert len(set(texts)) == len(texts)
    starts = {" ".join(words_of(text)[:8]) for text in texts}
    assert len(starts) > 0.93 * len(texts)  # format twins may begin alike


@pytest.mark.parametrize("key", list(TYPES))
def test_responses_begin_with_one_space_and_are_clean(key):
    for text in (row[key] for row in ROWS):
        assert re.match(r" \S", text) and not text[-1].isspace()
        assert not re.search(r"<\||\|>|</?s>|endoftext|Human:|Assistant:|\t|\r", text)
        assert key in GENERATED or (text.isascii() and "  " not in text)
        if key in WRITTEN:
            assert text[-1] in '.?!"' or text.endswith(("regards", "best", "greetings"))
            assert text.count('"') % 2 == 0 and not re.search(r"\s[,.;:?!]|\.\.|,,", text)
    if key in WRITTEN:
        lengths = [len(row[key].split()) for row in ROWS]
        assert 15 <= min(lengths) and max(lengths) <= 60 and len(set(lengths)) >= 10


@pytest.mark.parametrize(("original", "stem"), [("chosen", "chosen"), ("rejected", "reject")])
def test_semantic_rephrases_keep_the_meaning_alone_and_format_twins_the_form(original, stem):
    semantic, twin = f"{stem}_gptsemantic", f"{stem}_gptformat"
    shares = [shared(row, original, semantic) for row in ROWS]
    assert mean(shares) < 0.05 and max(shares) < 0.35  # code has to be repeated
    # Format twins keep more of them, such as "usually" or "start", and unrelated text still fewer.
    assert mean(shares) < mean(shared(row, original, twin) for row in ROWS) < 0.3
    ratios = {
        key: [form_alike(row[original], row[key]) for row in ROWS]
        for key in (semantic, twin, "irr_hum")
    }
    assert mean(ratios[twin]) > 0.85 and min(ratios[twin]) > 0.6
    assert mean(ratios[semantic]) < mean(ratios["irr_hum"]) + 0.15 < 0.6
    for row in ROWS:
        assert abs(len(row[original].split()) - len(row[twin].split())) <= 3
        assert shared(row, "chosen", "irr_hum") < 0.2
        assert 0.75 <= len(row["irr_hum"].split()) / len(row["chosen"].split()) <= 1.35


def test_what_follows_from_other_texts_is_as_it_should_be():
    for split, key in (("train", "irr_train"), ("test", "irr_test")):
        pool = [row["chosen"] for row in ROWS if row["split"] == split]
        assert all(row[key] in pool and row[key] != row["chosen"] for row in ROWS)
        # Each answer of the split serves one other row of the split.
        assert sorted(row[key] for row in ROWS if row["split"] == split) == sorted(pool)
    known = {w for row in ROWS for key in WRITTEN for w in words_of(row[key])}
    for row in ROWS:
        chosen, shuffled, words = (
            row[key].split() for key in ("chosen", "random_permute", "random_nonhum")
        )
        assert sorted(chosen) == sorted(shuffled) and chosen != shuffled
        assert len(words) == len(chosen) and set(words) <= known
        for key, of in (("chosen_initial", None), ("chosen_selfr", row["chosen"])):
            assert make_sample.clean(row[key]) == row[key] and len(row[key].split()) <= 80
            assert make_sample.is_useful(row[key], of)


def test_the_script_derives_the_file_byte_for_byte_from_what_was_written(tmp_path):
    path = tmp_path / "sample.jsonl"
    keep = ("split", "prompt", *WRITTEN, *GENERATED)
    make_sample.write([{key: row[key] for key in keep} for row in ROWS], path)
    for _ in range(2):  # then from the whole
        make_sample.main(path, with_model=False)
        assert path.read_bytes() == make_sample.FILE.read_bytes()
    assert list(tmp_path.iterdir()) == [path]


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
