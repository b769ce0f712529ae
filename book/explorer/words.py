"""The token explorer: which token of what is learned moves which token of what is watched."""

from collections.abc import Mapping, Sequence

import torch

import world
from explorer.fragment import Page, fragment
from lmdyn import lm, plots

TYPES = ("chosen", "chosen_gptsemantic", "chosen_gptformat", "rejected")


def tokens(
    model=None, tokenizer=None, rows: Sequence[Mapping] = (), types: Sequence[str] = TYPES
) -> Page:
    """For each row, what each token of its chosen answer does to each token of other answers.

    The update is an SGD step on −log π of the chosen answer; an answer to watch is one of the same
    row, after the same prompt. Numbers are those of `lmdyn.lm.token_influence`, to 4 digits.

    Args:
        model, tokenizer: the shipped tiny model if absent.
        rows: prompt, chosen and other types as texts, which are tokenised apart and end in EOS;
            the three of the toy world whose answers are shortest if absent.
        types: which of a row's answers to watch.
    """
    if model is None:
        model, tokenizer = lm.load("tiny", dtype=torch.float64)
    rows = rows or sorted(world.probes(), key=lambda row: sum(len(row[t]) for t in types))[:3]
    cases = [influences(model, tokenizer, row, types) for row in rows]
    for watched in (watched for case in cases for watched in case["watched"]):
        watched["table"] = [[float(f"{x:.4g}") for x in line] for line in watched["table"]]
    slider = ("token", "Token learned; 0 is the whole answer")
    return fragment("tokens", "The token explorer", slider, {"cases": cases})


def influences(model, tokenizer, row: Mapping, types: Sequence[str] = TYPES) -> dict:
    """A row as words, and a table (M, L) for each answer watched, nats per unit of η."""

    def sequence(response):
        x = tokenizer(row["prompt"], add_special_tokens=False).input_ids
        y = [*tokenizer(response, add_special_tokens=False).input_ids, tokenizer.eos_token_id]
        return x + y, list(range(len(x) - 1, len(x) + len(y) - 1))

    def words(ids, places):
        eos = tokenizer.eos_token_id
        shown = [ids[place + 1] for place in places]
        return ["⟨end⟩" if i == eos else tokenizer.decode([i]).strip() for i in shown]

    ids_u, places_u = sequence(row["chosen"])
    watched = []
    for name in types:
        ids, places = sequence(row[name])
        at = {"positions_o": places, "positions_u": places_u}
        table = lm.token_influence(model, ids, ids_u, **at).tolist()
        label = "itself" if name == "chosen" else plots.NAMES[name][1]
        label = label.replace("$y^+$", "y⁺").replace("$y^-$", "y⁻")
        watched.append({"name": label, "words": words(ids, places), "table": table})
    return {"prompt": row["prompt"], "words": words(ids_u, places_u), "watched": watched}
