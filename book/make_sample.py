"""Complete lmdyn/lm/sample.jsonl, whose prompts and answers were written for this book.

`python book/make_sample.py` reads the written part of each row (`WRITTEN`), derives the
mechanical types from it with a fixed seed, lets SmolLM2-135M-Instruct answer and rephrase
(a few minutes), and writes the file again. ``--no-generate`` keeps the model's texts as they are:
then the file comes out the same, byte for byte, on any machine. To add or correct a row, edit the
file by hand and run this. lmdyn/lm/sample.md says what each type is.
"""

import argparse
import json
import random
import re
from difflib import SequenceMatcher
from pathlib import Path

from lmdyn.lm import TYPES

FILE = Path(__file__).resolve().parent.parent / "lmdyn" / "lm" / "sample.jsonl"
WRITTEN = (
    *("chosen", "chosen_gptsemantic", "chosen_gptformat"),
    *("rejected", "reject_gptsemantic", "reject_gptformat", "irr_hum"),
)
MODEL = "smollm2-135m"
SEED = 0
ATTEMPTS = 10
REPHRASE = (
    "Rephrase the following answer in your own words. Keep its meaning and its length. "
    "Write only the new answer.\n\n{}"
)


def read(path: Path = FILE) -> list[dict[str, str]]:
    """The rows of the file, training prompts first."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return sorted(rows, key=lambda row: row["split"], reverse=True)


def write(rows: list[dict[str, str]], path: Path = FILE) -> None:
    """Write the rows, with the keys in the order of `TYPES`."""
    keys = ("split", "prompt", *TYPES)
    lines = [
        json.dumps({key: row[key] for key in keys if key in row}, ensure_ascii=False)
        for row in rows
    ]
    temporary = path.with_suffix(".tmp")
    temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")
    temporary.replace(path)


def derive(rows: list[dict[str, str]]) -> None:
    """Set the types that follow from the written ones: other answers, shuffled, random words."""
    vocabulary = sorted(
        {word for row in rows for key in WRITTEN for word in words_of(row[key]) if len(word) > 1}
    )
    order = random.Random(SEED).sample(range(len(rows)), len(rows))
    for split, key in (("train", "irr_train"), ("test", "irr_test")):
        pool = [rows[i] for i in order if rows[i]["split"] == split]
        others = [row for row in rows if row["split"] != split]
        # Round the circle: each answer of the split goes to the next row, never to its own.
        for row, other in zip(pool, pool[1:] + pool[:1], strict=True):
            row[key] = other["chosen"]
        for i, row in enumerate(others):
            row[key] = pool[i % len(pool)]["chosen"]
    for row in rows:
        # Seeded by the prompt, so that a new row leaves the others as they are.
        rng = random.Random(row["prompt"])
        words = row["chosen"].split()
        shuffled = words
        while shuffled == words:
            shuffled = rng.sample(words, len(words))
        row["random_permute"] = " " + " ".join(shuffled)
        row["random_nonhum"] = " " + " ".join(rng.choices(vocabulary, k=len(words)))


def words_of(text: str) -> list[str]:
    """The plain words of a text, in lower case."""
    return re.findall(r"[a-z]+(?:'[a-z]+)?", text.lower())


def add_generations(rows: list[dict[str, str]]) -> None:
    """Set the types that the model writes: its own answer, and its rephrase of ``chosen``."""
    from lmdyn.lm import load

    model, tokenizer = load(MODEL, device="cpu")
    own = complete(model, tokenizer, [row["prompt"] for row in rows])
    chosen = [row["chosen"] for row in rows]
    requests = [as_chat(tokenizer, text) for text in chosen]
    rephrased = complete(model, tokenizer, requests, of=chosen)
    for row, answer, other in zip(rows, own, rephrased, strict=True):
        row["chosen_initial"], row["chosen_selfr"] = answer, other


def as_chat(tokenizer, answer: str) -> str:
    """The request to rephrase an answer, in the model's chat template."""
    message = {"role": "user", "content": REPHRASE.format(answer.strip())}
    return tokenizer.apply_chat_template([message], tokenize=False, add_generation_prompt=True)


def complete(model, tokenizer, prompts: list[str], of: list[str] | None = None) -> list[str]:
    """Greedy answers; where one is of no use, sampled ones in its place until one is.

    Args:
        of: the text that each answer should rephrase, if any.

    Raises:
        RuntimeError: a prompt that stays without an answer.
    """
    from lmdyn.lm.generate import generate

    answers = [""] * len(prompts)
    for seed in range(ATTEMPTS):
        left = [i for i, answer in enumerate(answers) if not answer]
        if not left:
            break
        asked = [prompts[i] for i in left]
        options = {"max_new_tokens": 80, "sample": seed > 0, "temperature": 0.7, "seed": seed}
        texts = generate(model, tokenizer, asked, batch_size=8, **options)
        for i, text in zip(left, texts, strict=True):
            text = clean(text)
            if is_useful(text, of and of[i]):
                answers[i] = text
    if "" in answers:
        prompt = prompts[answers.index("")]
        raise RuntimeError(f"no useful answer in {ATTEMPTS} attempts to {prompt!r}")
    return answers


def clean(text: str) -> str:
    """The first turn of a text, in whole sentences, after one space; "" if there is none."""
    text = re.split(r"\n+(?:Human|Assistant|User):", text)[0].strip()
    whole = re.match(r".*(?<!\n\d)[.!?][\"')*`]*(?=\s|$)", text, re.DOTALL)
    return f" {whole[0]}" if whole else ""


def is_useful(text: str, of: str | None = None) -> bool:
    """Whether a text has five words, does not go in circles, and rephrases without copying."""
    from lmdyn.lm.generate import repeated

    words = words_of(text)
    if len(words) < 5 or repeated([text]) > 0.25:
        return False
    return (
        of is None
        or 0.15 < SequenceMatcher(None, words_of(of), words, autojunk=False).ratio() < 0.9
    )


def main(path: Path = FILE, with_model: bool = True) -> None:
    """Complete the file in place."""
    rows = read(path)
    derive(rows)
    if with_model:
        add_generations(rows)
    write(rows, path)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--no-generate", action="store_true", help="keep the model's texts")
    main(with_model=not parser.parse_args().no_generate)
