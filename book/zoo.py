"""All losses in a table."""

from lmdyn import losses


def table() -> str:
    """Markdown: the name of each loss, its formula, what it is and what it reads."""
    lines = ["| name | loss | what it is | reads | reference |", "|---|---|---|---|---|"]
    for name in losses.names():
        loss = losses.get(name)
        formula, _, what = type(loss).__doc__.splitlines()[0].replace("|", "\\|").partition(": ")
        more = ["advantage"] * loss.needs_advantage + ["old"] * loss.needs_old
        reads = ", ".join([*loss.responses, *more])
        lines.append(f"| `{name}` | {formula} | {what} | {reads} | {'✓' * loss.needs_ref} |")
    return "\n".join(lines)
