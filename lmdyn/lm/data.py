"""Preference pairs and probe sets: load and validate."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lmdyn.checks import unknown
from lmdyn.lm.from_dataset import probe_rows
from lmdyn.lm.generate import OWN, with_own_samples
from lmdyn.lm.rows import SPLITS, TYPES, checked, read_jsonl
from lmdyn.lm.tokens import Format
from lmdyn.lm.world import probes as world_rows

_REFERENCE = (
    "https://raw.githubusercontent.com/Joshua-Ren/Learning_dynamics_LLM/"
    "08e3bd25cb7debcf263244046a697e355715bbd9/src/data"
)
# source → its folder in the reference's repository, and which side of a long prompt it keeps.
PAPERS = {"hh": ("helpful-base", "end"), "ultrafeedback": ("ultrafeedback", "start")}


@dataclass(frozen=True)
class ProbeSet:
    """Prompts, each with its responses of several types.

    Slices, index lists and `split` give smaller probe sets; iterating gives the rows.

    Attributes:
        rows: one dict a prompt, with the text of its ``prompt``, its ``chosen`` response and of
            any other type; ``split`` ("train" or "test") where the source tells.
        types: the R response types to look at, in order.
        format: how the texts become tokens.
    """

    rows: tuple[Mapping[str, str], ...]
    types: tuple[str, ...]
    format: Format = Format()  # noqa: RUF009 (frozen)

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Mapping[str, str]]:
        return iter(self.rows)

    def __getitem__(self, which):
        if isinstance(which, int):
            return self.rows[which]
        rows = self.rows[which] if isinstance(which, slice) else [self.rows[i] for i in which]
        return ProbeSet(tuple(rows), self.types, self.format)

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
        is, a conversation through the tokenizer's chat template. Three types that cost nothing
        are added: the chosen response to another prompt (``irr_train``), the words of ``chosen``
        shuffled (``random_permute``), and random words (``random_nonhum``). With ``model``, so is
        its own answer to each prompt (``chosen_initial``), as it is before the run; a row whose
        answer is empty, or did not end by itself, goes without. `rephrase` adds rephrases.

        Args:
            dataset: rows, such as a `datasets.Dataset`; of a stream, the first ones are taken.
            tokenizer: writes conversations as text, and tells EOS, which is cut off.
            limit: how many rows to take, evenly spread over the dataset.
            types: the response types to keep; all that there are, if not given.
            format: how the texts become tokens.
            seed: of what is drawn.
            model: answers the prompts itself; a Hugging Face causal language model.
            max_new_tokens: of its answers.
            temperature: of its answers; 1 draws from π itself, 0 takes the likeliest token.

        Raises:
            ValueError: a row in no known format, a conversation without a chat template, an empty
                prompt or response (it names the row); not one answer of the model's can be kept.

        Warns:
            UserWarning: rows go without an answer of the model's, how many and why.

        Example:
            >>> pairs = [
            ...     {"prompt": "Say hi.", "chosen": " Hi there!", "rejected": " No."},
            ...     {"prompt": "Say bye.", "chosen": " Good bye!", "rejected": " Why?"},
            ... ]
            >>> ProbeSet.from_dataset(pairs).types
            ('chosen', 'rejected', 'irr_train', 'random_permute', 'random_nonhum')
        """
        rows = probe_rows(dataset, tokenizer, limit, seed, types)
        if model is not None and (types is None or OWN in types):
            settings = {"max_new_tokens": max_new_tokens, "temperature": temperature, "seed": seed}
            rows = with_own_samples(model, tokenizer, rows, format or Format(), **settings)
        return as_probes(rows, types, format, drop_empty=True)

    def split(self, name: str) -> "ProbeSet":
        """The rows of one split, "train" or "test"."""
        if name not in SPLITS:
            raise ValueError(f"split must be 'train' or 'test', got {name!r}")
        rows = tuple(row for row in self.rows if row.get("split", "train") == name)
        return ProbeSet(rows, self.types, self.format)

    def only(self, *types: str) -> "ProbeSet":
        """The same prompts, with these response types alone."""
        return ProbeSet(self.rows, _known_types(types, self.rows), self.format)


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
        types: the response types to keep, in this order; all that occur, if not given.
        limit: keep the first so many prompts.
        split: "train" or "test" alone; both, training prompts first, if not given.
        format: how the texts become tokens; the source's own, if not given.
        drop_empty: take an empty response as missing. The paper's files hold a few.

    Returns:
        A `ProbeSet` of N prompts and R types.

    Raises:
        ValueError: an unknown source or type (with the nearest name), a file that is not there,
            a line that is not JSON, a row without ``prompt`` or ``chosen``, an empty response.
        ConnectionError: the reference's files cannot be fetched.

    Example:
        >>> load_probes("sample", types=["chosen", "rejected"], limit=8)
        ProbeSet(8 prompts, 2 types: chosen, rejected)
    """
    if split is not None and split not in SPLITS:
        raise ValueError(f"split must be 'train', 'test' or None, got {split!r}")
    source, where = str(source), None
    if source == "world":
        rows = world_rows()
    elif source in PAPERS:
        rows, drop_empty = _fetch(source), True
        format = format or Format(prompt_keeps=PAPERS[source][1])
    else:
        path = Path(__file__).parent / "sample.jsonl" if source == "sample" else Path(source)
        if not path.is_file():
            raise ValueError(
                f"{unknown('source', source, ['world', 'sample', *PAPERS])}, or the path of a "
                "JSONL file, and there is no such file"
            )
        rows, where = read_jsonl(path)
    probes = as_probes(rows, types, format, drop_empty=drop_empty, where=where)
    if split is not None:
        probes = probes.split(split)
    if limit is not None:
        probes = probes[:limit]
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
    """Rows, validated, as a `ProbeSet`; a `ProbeSet` passes with its types narrowed.

    Args:
        rows: a `ProbeSet`, or dicts with ``prompt``, ``chosen`` and other response types.
        types: the response types to keep, in this order; all that occur, if not given.
            A key that is no type of the paper is read only if it is named here.
        format: how the texts become tokens.
        drop_empty: take an empty response as missing.
        where: a name for each row in error messages; ``rows[i]`` if not given.

    Raises:
        ValueError: as in `load_probes`.
    """
    if isinstance(rows, ProbeSet):
        types = rows.types if types is None else _known_types(types, rows.rows)
        return ProbeSet(rows.rows, types, format or rows.format)
    if isinstance(rows, Mapping | str):
        raise ValueError(f"rows must be a list of dicts, got one {type(rows).__name__}")
    rows = list(rows)
    where = where or [f"rows[{i}]" for i in range(len(rows))]
    if not rows:
        raise ValueError("there is no row: pass at least one with 'prompt' and 'chosen'")
    rows = [checked(row, types, drop_empty, name) for row, name in zip(rows, where, strict=True)]
    if types is None:
        types = [name for name in TYPES if any(name in row for row in rows)]
    return ProbeSet(tuple(rows), _known_types(types, rows), format or Format())


def with_all(probes: ProbeSet, types: Sequence[str], reader: str, what: str = "rows") -> ProbeSet:
    """The same prompts with these types alone, each of which every row must have.

    Args:
        probes: the rows.
        types: what the reader reads.
        reader: who it is, for the error.
        what: the caller's name for the rows, for the error.

    Raises:
        ValueError: a row without one of the types.
    """
    probes = probes.only(*types)
    for i, row in enumerate(probes):
        for name in types:
            if name not in row:
                raise ValueError(
                    f"{what}[{i}] has no {name!r}, which {reader} reads: add it, or leave the row "
                    "out"
                )
    return probes


def _known_types(types: Sequence[str], rows: Sequence[Mapping]) -> tuple[str, ...]:
    if isinstance(types, str):
        raise ValueError(f"types must be a list of names, got {types!r}: write [{types!r}]")
    own = {key for row in rows for key in row} - {"prompt", "split"}
    for name in types:
        if name not in TYPES and name not in own:
            raise ValueError(unknown("response type", name, [*TYPES, *sorted(own - set(TYPES))]))
    if len(set(types)) < len(types):
        raise ValueError(f"types must differ, got {list(types)}")
    if not types:
        raise ValueError("types is empty: name at least one response type")
    return tuple(types)


def _fetch(source: str) -> list[dict]:
    """The paper's probing files, through `datasets`, which keeps them in its cache."""
    try:
        import datasets
    except ImportError:
        raise ImportError(f"{source!r} needs the package datasets: pip install datasets") from None
    folder = PAPERS[source][0]
    files = {split: f"{_REFERENCE}/{folder}/formal_prob_{split}.jsonl" for split in SPLITS}
    try:
        loaded = datasets.load_dataset("json", data_files=files)
    except Exception as error:  # offline, datasets raises one of many kinds
        raise ConnectionError(
            f"{source!r} could not be fetched from the reference's repository ({error!s:.120}): "
            "connect once, it is cached then; or use 'world' or 'sample', or the path of a JSONL "
            "file"
        ) from error
    return [{**row, "split": split} for split in SPLITS for row in loaded[split]]
