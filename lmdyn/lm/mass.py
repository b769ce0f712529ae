"""Where probability goes: at each token of a response, the label, its rival, and all the rest."""

from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lmdyn.checks import check_known
from lmdyn.lm.batches import Batch
from lmdyn.lm.data import Rows, as_probes
from lmdyn.lm.forward import evaluating
from lmdyn.lm.records import DAMAGED, replacing
from lmdyn.lm.tokens import encode
from lmdyn.lm.ways import check_kind, token_values


@dataclass(frozen=True, eq=False)
class TokenMass:
    """π at each of M response tokens, in three parts that add up to one.

    All arrays are (M,), in the order of rows, types and text; probabilities in float64.
    """

    types: tuple[str, ...]  #: the response types
    row: np.ndarray  #: which prompt
    type: np.ndarray  #: which of ``types``
    position: np.ndarray  #: the place in the response
    label: np.ndarray  #: the id of the response's token y
    rival: np.ndarray  #: of the likeliest other one, i* = argmax_{i≠y} π_i, or the one followed
    label_prob: np.ndarray  #: π_y
    rival_prob: np.ndarray  #: π_{i*}
    rest_prob: np.ndarray  #: Σ π_i of all others
    prob_sq: np.ndarray  #: ‖π‖²

    def __repr__(self) -> str:
        return f"TokenMass({len(self.row)} tokens of {', '.join(self.types)})"

    @property
    def squeeze(self) -> np.ndarray:
        """(M,) ‖π‖² − π_y, positive where the label lies in a valley."""
        return self.prob_sq - self.label_prob

    def of(self, name: str) -> np.ndarray:
        """(M,) booleans, the tokens of one response type."""
        check_known("response type", name, self.types)
        return self.type == self.types.index(name)

    def save(self, path: str | Path) -> None:
        """Write all arrays to one .npz file."""
        with replacing(Path(path)) as temporary, temporary.open("wb") as file:
            np.savez_compressed(file, **vars(self))

    @classmethod
    def load(cls, path: str | Path) -> "TokenMass":
        """Read what `save` wrote; a ValueError for other files."""
        try:
            with open(path, "rb") as raw, np.load(raw, allow_pickle=False) as file:
                arrays = {field.name: file[field.name] for field in fields(cls)}
        except DAMAGED as error:
            raise ValueError(f"{path} is no TokenMass: {error!r:.200}") from None
        return cls(**arrays | {"types": tuple(arrays["types"].tolist())})

    def moved(self, after: "TokenMass") -> dict[str, np.ndarray]:
        """What each part has gained since: "label", "rival", "rest" → (M,), adding up to zero.

        ``after`` is that of the same tokens under the later model, made with ``follow=`` this one.
        """
        for name in ("row", "type", "position", "label", "rival"):
            if not np.array_equal(getattr(self, name), getattr(after, name)):
                remedy = "take the later one with token_mass(…, follow=the earlier one)"
                raise ValueError(f"the two differ in {name}: {remedy}")
        parts = "label", "rival", "rest"
        return {p: getattr(after, f"{p}_prob") - getattr(self, f"{p}_prob") for p in parts}


def token_mass(
    model, tokenizer, probes: Rows, types=("chosen", "rejected"), follow: TokenMass | None = None
) -> TokenMass:
    """Split π at each response token into the label, its rival (the likeliest other) and the rest.

    To the rival a negative gradient on y moves mass for sure (Claim 2 of section 3 of the paper).
    To see where mass went in training, follow it: ``before.moved(token_mass(…, follow=before))``.

    Args:
        model, tokenizer, probes: as in `score`, with its errors.
        types: the response types to look at.
        follow: an earlier split of the same responses, whose rivals are kept.
    """
    check_kind(model)
    probes = as_probes(probes, types)
    encoded = encode(tokenizer, probes)
    labels = {(i, name): y for i, row in enumerate(encoded) for name, y in row.responses.items()}
    where = [
        (i, probes.types.index(name), place, label)
        for (i, name), ids in labels.items()
        for place, label in enumerate(ids)
    ]
    where = np.array(where).T.copy()  # (4, M)
    if follow is not None:
        theirs = follow.row, follow.type, follow.position, follow.label
        if follow.types != probes.types or not np.array_equal(theirs, where):
            raise ValueError("follow is a split of other responses: pass the same rows and types")
        parts = torch.from_numpy(follow.rival).split([*map(len, labels.values())])
        rivals = dict(zip(labels, parts, strict=True))

    def read(logits: Tensor, batch: Batch, part: slice) -> Tensor:
        logits, label = logits.double(), batch.target[part].unsqueeze(-1)
        if follow is None:
            low = logits.clamp(min=torch.finfo(logits.dtype).min)  # what is ruled out, above label
            rival = low.scatter(-1, label, -torch.inf).argmax(-1)
        else:
            rival = torch.cat([rivals[key] for key in batch.responses])[part].to(label.device)
        rival, p = rival.unsqueeze(-1), logits.softmax(-1)
        rest = p.scatter(-1, label, 0.0).scatter(-1, rival, 0.0).sum(-1, keepdim=True)
        prob_sq = p.square().sum(-1, keepdim=True)
        return torch.cat([rival, p.gather(-1, label), p.gather(-1, rival), rest, prob_sq], -1)

    with evaluating(model):
        found = dict(token_values(model, encoded, read))
    rival, *probs = np.concatenate([found[key] for key in labels]).T
    return TokenMass(probes.types, *where, rival.astype(np.int64), *probs)
