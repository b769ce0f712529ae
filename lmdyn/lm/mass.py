"""Where probability goes: at each token of a response, the label, its rival, and all the rest."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lmdyn.checks import unknown
from lmdyn.lm.data import ProbeSet, as_probes
from lmdyn.lm.files import replacing
from lmdyn.lm.forward import Batch, evaluating, token_values
from lmdyn.lm.tokens import encode


@dataclass(frozen=True, eq=False)
class TokenMass:
    """π at each of M response tokens, in three parts that add up to one.

    All arrays are (M,), row by row, type by type, in the order of the text; probabilities in
    float64.

    Attributes:
        types: the response types.
        row: which prompt.
        type: which of ``types``.
        position: place in the response, from 0; EOS is the last.
        label: the id of the response's token y.
        rival: the id of the likeliest other token, i* = argmax_{i≠y} π_i, or the one followed.
        label_prob: π_y.
        rival_prob: π_{i*}.
        rest_prob: Σ π_i over all other tokens.
        prob_sq: ‖π‖².
    """

    types: tuple[str, ...]
    row: np.ndarray
    type: np.ndarray
    position: np.ndarray
    label: np.ndarray
    rival: np.ndarray
    label_prob: np.ndarray
    rival_prob: np.ndarray
    rest_prob: np.ndarray
    prob_sq: np.ndarray

    def __len__(self) -> int:
        return len(self.row)

    def __repr__(self) -> str:
        return f"TokenMass({len(self)} tokens of {', '.join(self.types)})"

    @property
    def squeeze(self) -> np.ndarray:
        """(M,) ‖π‖² − π_y: positive where the label lies in a valley (see `squeeze_line`)."""
        return self.prob_sq - self.label_prob

    def of(self, name: str) -> np.ndarray:
        """(M,) booleans: the tokens of one response type."""
        if name not in self.types:
            raise ValueError(unknown("response type", name, self.types))
        return self.type == self.types.index(name)

    def save(self, path: str | Path) -> None:
        """Write all arrays to one .npz file, whole or not at all."""
        with replacing(Path(path)) as temporary, temporary.open("wb") as file:
            np.savez_compressed(file, **{f.name: getattr(self, f.name) for f in fields(self)})

    @classmethod
    def load(cls, path: str | Path) -> "TokenMass":
        """Read what `save` wrote; a ValueError if it is the file of something else."""
        with np.load(path, allow_pickle=False) as file:
            missing = [f.name for f in fields(cls) if f.name not in file]
            if missing:
                raise ValueError(f"{path} is no TokenMass: it has no {', '.join(missing)}")
            arrays = {f.name: file[f.name] for f in fields(cls)}
        return cls(**arrays | {"types": tuple(arrays["types"].tolist())})

    def moved(self, after: "TokenMass") -> dict[str, np.ndarray]:
        """What each part has gained since: "label", "rival", "rest" → (M,), adding up to zero.

        ``after`` has the same tokens under the later model, and was made with ``follow=`` this one.
        """
        for name in ("row", "type", "position", "label", "rival"):
            if not np.array_equal(getattr(self, name), getattr(after, name)):
                raise ValueError(
                    f"the two differ in {name}: take the later one of the same rows with "
                    "token_mass(…, follow=the earlier one)"
                )
        return {
            "label": after.label_prob - self.label_prob,
            "rival": after.rival_prob - self.rival_prob,
            "rest": after.rest_prob - self.rest_prob,
        }


def token_mass(
    model,
    tokenizer,
    probes: ProbeSet | Sequence[Mapping[str, str]],
    types: Sequence[str] = ("chosen", "rejected"),
    follow: TokenMass | None = None,
) -> TokenMass:
    """Split π at each response token into the label, its rival and the rest.

    The rival is the likeliest token but the label, i* = argmax_{i≠y} π_i: the one to which a
    negative gradient on y moves mass for sure (Claim 2 of section 3 of the paper). To see where
    mass went in training, follow the same rivals: ``before.moved(token_mass(…, follow=before))``.

    Args:
        model: a Hugging Face causal language model; it stays as it is, and in its mode.
        tokenizer: its tokenizer.
        probes: a `ProbeSet`, or rows such as ``{"prompt": …, "chosen": …}``.
        types: the response types to look at; rows that lack one are passed over.
        follow: an earlier split of the same responses, whose rivals are kept.

    Raises:
        ValueError: rows or types that cannot be read (see `load_probes`), other tokens to follow.
    """
    probes = as_probes(probes, types)
    encoded = encode(tokenizer, probes)
    keys = [(i, name) for i, row in enumerate(encoded) for name in row.responses]
    labels = [encoded[i].responses[name] for i, name in keys]
    sizes = [len(ids) for ids in labels]
    where = {
        "row": np.repeat([i for i, _ in keys], sizes),
        "type": np.repeat([probes.types.index(name) for _, name in keys], sizes),
        "position": np.concatenate([np.arange(n) for n in sizes]),
        "label": np.concatenate(labels),
    }
    rivals = {}
    if follow is not None:
        same = (np.array_equal(getattr(follow, name), values) for name, values in where.items())
        if follow.types != probes.types or not all(same):
            raise ValueError("follow is a split of other responses: pass the same rows and types")
        rivals = dict(zip(keys, torch.from_numpy(follow.rival).split(sizes), strict=True))

    def read(logits: Tensor, batch: Batch, part: slice) -> Tensor:
        kept = torch.cat([rivals[key] for key in batch.responses])[part] if rivals else None
        return _parts(logits, batch.target[part], kept)

    with evaluating(model):
        found = dict(token_values(model, encoded, read))
    rival, *probs = np.concatenate([found[key] for key in keys]).T
    return TokenMass(probes.types, *where.values(), rival.astype(np.int64), *probs)


def _parts(logits: Tensor, label: Tensor, rival: Tensor | None) -> Tensor:
    """(m, 5): rival, π_y, π of the rival, the rest as a sum of its own, ‖π‖²; all in float64."""
    logits, label = logits.double(), label.unsqueeze(-1)
    if rival is None:
        rival = logits.scatter(-1, label, -torch.inf).argmax(-1)
    rival = rival.to(logits.device).unsqueeze(-1)
    p = logits.softmax(-1)
    rest = p.scatter(-1, label, 0.0).scatter(-1, rival, 0.0).sum(-1, keepdim=True)
    prob_sq = p.square().sum(-1, keepdim=True)
    return torch.cat([rival.double(), p.gather(-1, label), p.gather(-1, rival), rest, prob_sq], -1)
