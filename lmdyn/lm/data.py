"""Preference pairs and probe sets: load and validate."""

import operator
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice, product
from pathlib import Path

import numpy as np

from lmdyn.checks import check_count, check_known, is_number, unknown
from lmdyn.lm.generate import CORRECT, OWN, WRONG, with_own_samples, with_rewarded_samples
from lmdyn.lm.rows import SPLITS, TYPES, checked, listed, read_file, with_made_types
from lmdyn.lm.tokens import KEYS, Format, check_tokenizer, each, encode

_REPOSITORY = "https://raw.githubusercontent.com/Joshua-Ren/Learning_dynamics_LLM"
_REFERENCE = f"{_REPOSITORY}/08e3bd25cb7debcf263244046a697e355715bbd9/src/data"
# source → its folder in the reference's repository, and which side of a long prompt it keeps.
PAPERS = {"hh": ("helpful-base", "end"), "ultrafeedback": ("ultrafeedback", "start")}
NAMED = ("world", "sample", *PAPERS)


@dataclass(frozen=True)
class ProbeSet(Sequence):
    """Prompts, each with its responses of several types.

    Slices, lists of numbers or booleans and `split` give smaller ones; iterating gives the rows.

    Attributes:
        rows: one dict a prompt: ``prompt``, ``chosen`` and other types, each a text, a conversation
            (a list of turns) or token ids; ``split`` ("train" or "test") where the source tells;
            ``tools`` and ``chat_template_kwargs`` for the chat template.
        types: the R response types to look at, in order.
        format: how the texts become tokens.
    """

    rows: tuple[Mapping, ...]
    types: tuple[str, ...]
    format: Format = Format()  # noqa: RUF009 (frozen)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, which):
        if isinstance(which, slice):
            return replace(self, rows=self.rows[which])
        numbers = np.asarray(which)
        if numbers.dtype == bool and numbers.shape != (len(self),):
            raise ValueError(f"a mask must be {len(self)} booleans, got shape {numbers.shape}")
        if numbers.ndim == 0:
            return self.rows[operator.index(which)]
        numbers = numbers.nonzero()[0] if numbers.dtype == bool else numbers
        return replace(self, rows=tuple(self.rows[operator.index(i)] for i in numbers))

    def __repr__(self) -> str:
        return f"ProbeSet({len(self)} prompts, {len(self.types)} types: {', '.join(self.types)})"

    @classmethod
    def from_dataset(
        cls,
        dataset: Iterable[Mapping],
        tokenizer=None,
        limit: int = 64,
        *,
        types: Sequence[str] | None = None,
        format: Format | None = None,
        seed: int = 0,
        model=None,
        reward: Callable[[Mapping, str], float] | None = None,
        group_size: int = 8,
        max_new_tokens: int = 64,
        temperature: float = 1.0,
    ) -> "ProbeSet":
        """Probes out of the data of one's own run, as TRL's trainers read them.

        A row may hold, as texts or as conversations, ``prompt`` with ``chosen`` and ``rejected`` or
        with ``completion`` (whose ``label`` decides its type); ``chosen`` and ``rejected`` that
        begin with the prompt; ``messages`` or ``text``; a prompt alone, which ``model`` answers.
        The types ``irr_train``, ``random_permute`` and ``random_nonhum``, which cost nothing, are
        added, and with ``model`` its own answers (``chosen_initial``). `rephrase` adds rephrases.

        Args:
            dataset: rows, such as a `datasets.Dataset`, a dict of splits, a pandas table; of a
                stream, the first ones are taken.
            tokenizer: that of the run; with it, a ValueError names a row that it cannot read.
            limit: how many rows to take, evenly spread over the dataset.
            types, format: as in `load_probes`; the format is by default that of TRL's trainers.
            seed: of what is drawn.
            model: a causal language model that answers the prompts itself. Where it says nothing,
                or does not end within ``max_new_tokens``, the row goes without, with a warning.
            reward: from a row and an answer's text to a number. Then the model samples
                ``group_size`` answers to each prompt, and ``correct`` is the first that gets more
                than a half, ``wrong`` the first that does not; both stay as they are from now on.
            temperature: of its answers; 1 draws from π itself, 0 takes the likeliest token.
        """
        _check(types, format)
        check_count("limit", limit, 1)
        check_count("seed", seed, 0)
        if tokenizer is not None:
            check_tokenizer(tokenizer)
        if isinstance(dataset, Iterable) and not hasattr(dataset, "__len__"):
            dataset = list(islice(dataset, limit))
        elif not hasattr(dataset, "__getitem__") or hasattr(dataset, "keys"):  # splits, pandas
            dataset = listed(dataset)
        if not len(dataset):
            raise ValueError("the dataset has no row to probe")
        places = np.linspace(0, len(dataset) - 1, min(limit, len(dataset))).astype(int).tolist()
        where, form = [f"dataset[{i}]" for i in places], format or Format()
        asks = model is not None and (types is None or OWN in types or reward is not None)
        given = [dataset[i] for i in places]
        rows = each(given, where, lambda row: checked(row, types, not asks))
        settings = {"max_new_tokens": max_new_tokens, "temperature": temperature, "seed": seed}
        if reward is not None:
            if model is None or not callable(reward):
                raise ValueError("a reward is a function of a row and an answer: pass model, too")
            how = reward, given, group_size
            rows = with_rewarded_samples(model, tokenizer, rows, form, where, *how, **settings)
            types = types or [t for t in (OWN, CORRECT, WRONG) if any(t in row for row in rows)]
        elif asks:
            rows = with_own_samples(model, tokenizer, rows, form, where, **settings)
        probes = _probes(with_made_types(rows, tokenizer, seed), types, form)
        if tokenizer is not None:
            encode(tokenizer, probes, where)
        return probes

    def split(self, name: str) -> "ProbeSet":
        """The rows of one split, "train" or "test"."""
        check_known("split", name, SPLITS)
        return self[[row.get("split", "train") == name for row in self]]

    def only(self, *types: str) -> "ProbeSet":
        """The same prompts, with these response types alone."""
        return replace(self, types=_known_types(types, self.rows))


Rows = ProbeSet | Iterable[Mapping]  # what every function here takes as rows


def load_probes(
    source: str | Path,
    types: Sequence[str] | None = None,
    limit: int | None = None,
    *,
    split: str | None = None,
    format: Format | None = None,
) -> ProbeSet:
    """Load prompts with their responses.

    Args:
        source: ``"world"``, the toy world, whose facts are known; ``"sample"``, 64 English
            prompts written for this book; ``"hh"`` or ``"ultrafeedback"``, the paper's own
            probing files, fetched once from the reference's repository; or the path of a JSONL
            file, or of a JSON array, whose rows are as in `ProbeSet.from_dataset`.
        types: the response types to keep, in this order; all of `TYPES` that occur, if not given.
        limit: keep the first so many prompts.
        split: "train" or "test" alone; both, if not given.
        format: how rows become tokens; by default the paper's for a name, training's for a file.
    """
    source, where, keeps = str(source), None, "end"
    check_count("limit", limit, 1, optional=True)
    if source in PAPERS:
        import datasets  # takes a second, and keeps the files in its cache

        folder, keeps = PAPERS[source]
        files = {name: f"{_REFERENCE}/{folder}/formal_prob_{name}.jsonl" for name in SPLITS}
        try:
            loaded = datasets.load_dataset("json", data_files=files)
        except Exception as error:  # offline, datasets raises one of many kinds
            told = f"could not be fetched from the reference's repository ({error!s:.120})"
            how = "connect once, it is cached then; or take 'world', 'sample' or a JSONL file"
            raise ConnectionError(f"{source!r} {told}: {how}") from error
        rows = [{**row, "split": name} for name in SPLITS for row in loaded[name]]
    else:
        path = Path(__file__).parent / f"{source}.jsonl" if source in NAMED else Path(source)
        if not path.is_file():
            known = unknown("source", source, NAMED)
            raise ValueError(f"{known}, or the path of a JSONL file, and there is no such file")
        rows, where = read_file(path)
    if source in NAMED:
        format = format or Format("paper", prompt_keeps=keeps)
    probes = as_probes(rows, types, format, where=where)
    probes = (probes if split is None else probes.split(split))[:limit]
    if not len(probes):
        raise ValueError(f"{source} has no row" + (f" in split {split!r}" if split else ""))
    return probes


def as_probes(
    rows: Rows, types: Sequence[str] | None = None, format: Format | None = None, *, where=None
) -> ProbeSet:
    """Rows, validated, as a `ProbeSet`; a `ProbeSet` passes with its types narrowed.

    Rows and errors are as in `ProbeSet.from_dataset`. A column that is no type of the paper is read
    only if ``types`` names it; ``where`` names rows in errors as in `encode`.
    """
    _check(types, format)
    if isinstance(rows, ProbeSet):
        return _probes(rows.rows, rows.types if types is None else types, format or rows.format)
    if not (rows := listed(rows)):
        raise ValueError("there is no row: pass at least one with a prompt and a response")
    return _probes(each(rows, where, lambda row: checked(row, types)), types, format or Format())


def _probes(rows: Sequence[Mapping], types, format: Format) -> ProbeSet:
    if types is None:
        types = [name for name in TYPES if any(name in row for row in rows)] or ["response"]
    types = _known_types(types, rows)
    if not any(name in row for row in rows for name in types):
        raise ValueError(f"no row has a response of type {' or '.join(types)}")
    return ProbeSet(tuple(rows), types, format)


def with_all(probes: ProbeSet, types: Sequence[str], reader: str, what: str = "rows") -> ProbeSet:
    """The same prompts with these types alone, none of which a row may lack."""
    probes = probes.only(*types)
    for (i, row), name in product(enumerate(probes), types):
        if name not in row:
            needs = f"{what}[{i}] has no {name!r}, which {reader} reads"
            raise ValueError(f"{needs}: add it, or leave the row out")
    return probes


def read_by(loss, probes: ProbeSet, what: str = "rows", chosen: str = "chosen"):
    """What a loss reads: the prompts with these types, its name → type, the advantages or None.

    ``chosen`` takes the place of its "chosen", and of "response" where rows have none.
    """
    sample = chosen if chosen != "chosen" or "response" not in probes[0] else "response"
    keys = {name: {"chosen": chosen, "response": sample}.get(name, name) for name in loss.responses}
    reader = f"the loss {type(loss).__name__}"
    probes, found = with_all(probes, tuple(keys.values()), reader, what), None
    if loss.needs_advantage:
        found = [row.get("advantage") for row in probes]
        if bad := [i for i, x in enumerate(found) if not is_number(x)]:
            needs = f"{what}[{bad[0]}] has no finite 'advantage', which {reader} reads"
            raise ValueError(f"{needs}: `lmdyn.losses.advantages` makes them of rewards")
    return probes, keys, found


def _check(types, format=None) -> None:
    """Refuse what is no list of names, or no format; either may be None."""
    names = types if isinstance(types, Collection) and not isinstance(types, str) else ()
    names = {name for name in names if isinstance(name, str)}
    if types is not None and (not names or len(names) < len(types)):
        raise ValueError(f"types must be a list of one or more different names, got {types!r:.60}")
    if not isinstance(format, Format | None):
        raise ValueError(f"format must be a Format, such as Format('paper'), got {format!r:.60}")


def _known_types(types: Sequence[str], rows: Sequence[Mapping]) -> tuple[str, ...]:
    if "argmax" in types:
        raise ValueError("'argmax' is the likeliest tokens along chosen: name the type otherwise")
    own = {key for row in rows for key in row} - {*KEYS}
    for name in types:
        check_known("response type", name, [*TYPES, *sorted(own - set(TYPES))])
    return tuple(types)
