"""Preference pairs and probe sets: load and validate."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lmdyn.checks import check_known, unknown
from lmdyn.lm.generate import OWN, with_own_samples
from lmdyn.lm.rows import SPLITS, TYPES, checked, probe_rows, read_jsonl
from lmdyn.lm.tokens import Format

_REFERENCE = (
    "https://raw.githubusercontent.com/Joshua-Ren/Learning_dynamics_LLM/"
    "08e3bd25cb7debcf263244046a697e355715bbd9/src/data"
)
# source → its folder in the reference's repository, and which side of a long prompt it keeps.
PAPERS = {"hh": ("helpful-base", "end"), "ultrafeedback": ("ultrafeedback", "start")}


@dataclass(frozen=True)
class ProbeSet(Sequence):
    """Prompts, each with its responses of several types.

    Slices, index lists and `split` give smaller probe sets; iterating gives the rows.

    Attributes:
        rows: one dict of texts a prompt: ``prompt``, ``chosen`` and other types; ``split`` ("train"
            or "test") where the source tells.
        types: the R response types to look at, in order.
        format: how the texts become tokens.
    """

    rows: tuple[Mapping[str, str], ...]
    types: tuple[str, ...]
    format: Format = Format()  # noqa: RUF009 (frozen)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, which):
        if isinstance(which, int):
            return self.rows[which]
        rows = self.rows[which] if isinstance(which, slice) else [self.rows[i] for i in which]
        return replace(self, rows=tuple(rows))

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
        max_new_tokens: int = 64,
        temperature: float = 1.0,
    ) -> "ProbeSet":
        """Probes out of the data of one's own run, in the formats that TRL's trainers take.

        A row may hold ``prompt`` with ``chosen`` and ``rejected`` or with ``completion``;
        ``chosen`` and ``rejected`` that begin with the prompt; or ``messages``. Text passes as it
        is, a conversation through the tokenizer's chat template. The types ``irr_train``,
        ``random_permute`` and ``random_nonhum``, which cost nothing, are added, and with ``model``
        its own answers (``chosen_initial``). `rephrase` adds rephrases.

        Args:
            dataset: rows, such as a `datasets.Dataset`; of a stream, the first ones are taken.
            tokenizer: writes conversations as text, and tells EOS, which is cut off.
            limit: how many rows to take, evenly spread over the dataset.
            types, format: as in `load_probes`.
            seed: of what is drawn.
            model: a causal language model that answers the prompts itself. Where it says nothing,
                or does not end within ``max_new_tokens``, the row goes without, with a warning.
            temperature: of its answers; 1 draws from π itself, 0 takes the likeliest token.

        Raises:
            ValueError: a row (which it names) in no known format, or with an empty prompt or
                response; no chat template, where one is needed; no answer of the model's ended.
        """
        rows = probe_rows(dataset, tokenizer, limit, seed)
        if model is not None and (types is None or OWN in types):
            settings = {"max_new_tokens": max_new_tokens, "temperature": temperature, "seed": seed}
            rows = with_own_samples(model, tokenizer, rows, format or Format(), **settings)
        return as_probes(rows, types, format, drop_empty=True)

    def split(self, name: str) -> "ProbeSet":
        """The rows of one split, "train" or "test"."""
        if name not in SPLITS:
            raise ValueError(f"split must be 'train' or 'test', got {name!r}")
        rows = tuple(row for row in self.rows if row.get("split", "train") == name)
        return replace(self, rows=rows)

    def only(self, *types: str) -> "ProbeSet":
        """The same prompts, with these response types alone."""
        return replace(self, types=_known_types(types, self.rows))


def load_probes(
    source: str | Path,
    types: Sequence[str] | None = None,
    limit: int | None = None,
    *,
    split: str | None = None,
    format: Format | None = None,
    drop_empty: bool = False,
) -> ProbeSet:
    """Load prompts with their responses.

    Args:
        source: ``"world"``, the toy world, whose facts are known; ``"sample"``, 64 English
            prompts written for this book; ``"hh"`` or ``"ultrafeedback"``, the paper's own
            probing files, fetched once from the reference's repository; or the path of a JSONL
            file whose lines are ``{"prompt": …, "chosen": …, "rejected": …, <type>: …}``.
        types: the response types to keep, in this order; all of `TYPES` that occur, if not given.
        limit: keep the first so many prompts.
        split: "train" or "test" alone; both, if not given.
        format: how the texts become tokens; the source's own, if not given.
        drop_empty: take an empty response as missing. The paper's files hold a few.

    Raises:
        ValueError: an unknown source or type (with the nearest name), a line that is not JSON, a
            row without ``prompt`` or ``chosen``, an empty response.
        ConnectionError: the paper's files cannot be fetched.
    """
    source, where = str(source), None
    if source in PAPERS:
        rows, drop_empty = _fetch(source), True
        format = format or Format(prompt_keeps=PAPERS[source][1])
    else:
        own = source in ("world", "sample")
        path = Path(__file__).parent / f"{source}.jsonl" if own else Path(source)
        if not path.is_file():
            known = unknown("source", source, ["world", "sample", *PAPERS])
            raise ValueError(f"{known}, or the path of a JSONL file, and there is no such file")
        rows, where = read_jsonl(path)
    probes = as_probes(rows, types, format, drop_empty=drop_empty, where=where)
    probes = (probes if split is None else probes.split(split))[:limit]
    if not len(probes):
        raise ValueError(f"{source} has no row" + (f" in split {split!r}" if split else ""))
    return probes


def as_probes(
    rows: ProbeSet | Iterable[Mapping[str, str]],
    types: Sequence[str] | None = None,
    format: Format | None = None,
    *,
    drop_empty: bool = False,
    where: Sequence[str] | None = None,
) -> ProbeSet:
    """Dicts, validated, as a `ProbeSet`; a `ProbeSet` passes with its types narrowed.

    Arguments and errors are those of `load_probes`. A key that is no type of the paper is read
    only if ``types`` names it; ``where`` names each row in errors, else it is ``rows[i]``.
    """
    if isinstance(rows, ProbeSet):
        types = rows.types if types is None else _known_types(types, rows.rows)
        probes = ProbeSet(rows.rows, types, format or rows.format)
    else:
        rows = list(rows)
        where = where or [f"rows[{i}]" for i in range(len(rows))]
        if not rows:
            raise ValueError("there is no row: pass at least one with 'prompt' and 'chosen'")
        rows = [checked(row, types, drop_empty, at) for row, at in zip(rows, where, strict=True)]
        if types is None:
            types = [name for name in TYPES if any(name in row for row in rows)]
        probes = ProbeSet(tuple(rows), _known_types(types, rows), format or Format())
    if not any(name in row for row in probes for name in probes.types):
        raise ValueError(f"no row has a response of type {' or '.join(probes.types)}")
    return probes


def with_all(probes: ProbeSet, types: Sequence[str], reader: str, what: str = "rows") -> ProbeSet:
    """The same prompts with these types alone; a ValueError if a row lacks one.

    It says who reads them, and ``what`` the caller calls the rows.
    """
    probes = probes.only(*types)
    for i, row in enumerate(probes):
        for name in types:
            if name not in row:
                needs = f"{what}[{i}] has no {name!r}, which {reader} reads"
                raise ValueError(f"{needs}: add it, or leave the row out")
    return probes


def _known_types(types: Sequence[str], rows: Sequence[Mapping]) -> tuple[str, ...]:
    if isinstance(types, str) or not types or len(set(types)) < len(types):
        raise ValueError(f"types must be a list of one or more different names, got {types!r}")
    own = {key for row in rows for key in row} - {"prompt", "split"}
    for name in types:
        check_known("response type", name, [*TYPES, *sorted(own - set(TYPES))])
    return tuple(types)


def _fetch(source: str) -> list[dict]:
    """The paper's probing files, through `datasets`, which keeps them in its cache."""
    import datasets  # takes a second

    where = f"{_REFERENCE}/{PAPERS[source][0]}/formal_prob"
    files = {split: f"{where}_{split}.jsonl" for split in SPLITS}
    try:
        loaded = datasets.load_dataset("json", data_files=files)
    except Exception as error:  # offline, datasets raises one of many kinds
        raise ConnectionError(
            f"{source!r} could not be fetched from the reference's repository ({error!s:.120}): "
            "connect once, it is cached then; or take 'world', 'sample' or a JSONL file"
        ) from error
    return [{**row, "split": split} for split in SPLITS for row in loaded[split]]
