"""The command line: each command reads its options and calls one public function."""

import argparse
import sys
from collections.abc import Sequence

from lmdyn._cli_run import add_recipes, add_run


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; what is wrong with its input ends as one line, not as a traceback."""
    parser = argparse.ArgumentParser(prog="python -m lmdyn", description="Learning dynamics.")
    commands = parser.add_subparsers(dest="command", required=True)
    for add in (_add_diagnose, _add_report, add_run, add_recipes):
        add(commands)
    options = parser.parse_args(arguments)
    try:
        return options.run(options)
    except (ValueError, OSError, ImportError, FloatingPointError) as error:
        print(f"lmdyn {options.command}: {error}", file=sys.stderr)
        return 1


def _add_diagnose(commands) -> None:
    command = commands.add_parser(
        "diagnose", help="rank preference pairs by what a step on each does to good answers"
    )
    command.add_argument("rows", metavar="FILE", help="JSONL with prompt, chosen, rejected")
    command.add_argument("--model", required=True, help="a hub id, a folder, or 'tiny'")
    command.add_argument("--loss", default="dpo", help="of pairs, such as dpo, ipo, rpo")
    command.add_argument("--held-out", metavar="FILE", help="rows whose chosen should not fall")
    command.add_argument("--limit", type=int, help="the first so many pairs")
    command.add_argument("--out", metavar="FILE", help="where to write all pairs, as JSONL")
    command.add_argument("--show", type=int, default=10, help="how many pairs to print")
    command.add_argument("--device", default="auto")
    command.set_defaults(run=_diagnose)


def _diagnose(options) -> int:
    from lmdyn.lm import diagnose, load, load_probes

    rows = load_probes(options.rows, limit=options.limit)
    held_out = None if options.held_out is None else load_probes(options.held_out)
    model, tokenizer = load(options.model, device=options.device)
    found = diagnose(model, tokenizer, rows, options.loss, held_out=held_out)
    print(found.table(options.show))
    print(f"{found!r}; nats per unit learning rate")
    if options.out:
        found.save(options.out)
    return 0


def _add_report(commands) -> None:
    command = commands.add_parser(
        "report", help="write one HTML page about a run: the verdict, the curves, the settings"
    )
    command.add_argument("folder", metavar="DIR", help="of finetune, or of a trainer with probes")
    command.add_argument("--out", metavar="FILE", help="the page; DIR/report.html if not given")
    command.add_argument("--model", help="the model that the run began with; needs --rows")
    command.add_argument(
        "--rows", metavar="FILE", help="JSONL to look at with the model and the last checkpoint"
    )
    command.add_argument("--device", default="auto")
    command.set_defaults(run=_report)


def _report(options) -> int:
    from lmdyn.lm.report import report

    page = report(
        options.folder,
        options.out,
        model=options.model,
        rows=options.rows,
        device=options.device,
    )
    print(page)
    return 0
