"""How much texts repeat: metrics of generated text.

They take a text as words between white space, in upper and lower case as they stand. All but
`lmdyn.lm.generate.repeated` depend on how much text there is, so compare equal numbers of texts of
like length.
"""

import gzip
from collections.abc import Sequence

from lmdyn.checks import check_count, check_texts
from lmdyn.lm.generate import repeated


def distinct(texts: Sequence[str], n: int = 1) -> float:
    """Distinct-n: the different n-grams of words in all texts together, over all their n-grams.

    Li et al. 2016 (arXiv:1510.03055), who divide by the words; over the n-grams, as is usual
    since, the most is 1 for every n. It falls as texts grow (Liu et al. 2022, arXiv:2202.13587).

    Args:
        texts: at least one.
        n: words in an n-gram.

    Returns:
        1 if no n-gram comes twice, near 0 if they are all the same; 0 if there is none.

    Raises:
        ValueError: one text instead of a list, no text, an entry that is no text, n below 1.

    Example:
        >>> distinct(["to be or not to be", "to be"], n=1)
        0.5
    """
    check_texts("texts", texts)
    check_count("n", n, 1)
    split = [text.split() for text in texts]
    grams = [tuple(words[i : i + n]) for words in split for i in range(len(words) - n + 1)]
    return len(set(grams)) / len(grams) if grams else 0.0


def compression_ratio(texts: Sequence[str]) -> float:
    """How many times smaller gzip makes the texts: what they repeat, also from one to another.

    Shaib et al. 2024 (arXiv:2403.00553): the bytes of all texts, joined by spaces, over the bytes
    that gzip leaves. Ten kilobytes of English give about 2. Below about a kilobyte the header
    of gzip counts, and repeats more than 32 kB apart are not found.

    Args:
        texts: at least one.

    Returns:
        Bytes over bytes; 0 if there is not a single character.

    Raises:
        ValueError: as in `distinct`.

    Example:
        >>> compression_ratio(["the otter lives in the attic"] * 50) > 10
        True
    """
    # Rather than self-BLEU: gzip is in the standard library and linear in the texts. Shaib et al.
    # find that it tells much of what slow n-gram overlaps between the texts tell.
    check_texts("texts", texts)
    data = " ".join(texts).encode()
    return len(data) / len(gzip.compress(data, mtime=0))


def summary(texts: Sequence[str], ended: Sequence[bool] | None = None) -> dict[str, float]:
    """The metrics in one row of a table.

    Args:
        texts: at least one.
        ended: whether each ended on its own, as `generate` tells.

    Returns:
        ``words``: mean per text. ``distinct-1`` and ``distinct-2``. ``repeated 3-grams``.
        ``compression ratio``. ``ended``: the share that did, if it is known.

    Raises:
        ValueError: as in `distinct`; another number of ``ended`` than texts.

    Example:
        >>> summary(["to be or not to be", "to be"], ended=[True, False])["ended"]
        0.5
    """
    row = {
        "distinct-1": distinct(texts, 1),
        "distinct-2": distinct(texts, 2),
        "repeated 3-grams": repeated(texts, 3),
        "compression ratio": compression_ratio(texts),
    }
    row = {"words": sum(len(text.split()) for text in texts) / len(texts), **row}
    if ended is None:
        return row
    if len(ended) != len(texts):
        raise ValueError(f"there are {len(texts)} texts and {len(ended)} entries of ended")
    return {**row, "ended": sum(map(bool, ended)) / len(ended)}
