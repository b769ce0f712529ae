"""`python -m lmdyn`: each command reads its options and calls one public function."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; what is wrong with its input ends as one line, not as a traceback."""
    options = _parser().parse_args(arguments)
    try:
        options.run(options)
    except (ValueError, OSError, ImportError, FloatingPointError) as error:
        print(f"lmdyn {options.command}: {error}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m lmdyn", description="Learning dynamics.")
    commands = parser.add_subparsers(dest="command", required=True)

    def add(run, about: str):
        command = commands.add_parser(run.__name__.strip("_"), help=about)
        command.set_defaults(run=run)
        return command.add_argument

    option = add(_diagnose, "rank preference pairs by what a step on each does to good answers")
    option("rows", metavar="FILE", help="JSONL with prompt, chosen, rejected")
    option("--model", required=True, help="a hub id, a folder, or 'tiny'")
    option("--loss", default="dpo", help="of pairs, such as dpo, ipo, rpo")
    option("--held-out", metavar="FILE", help="rows whose chosen should not fall")
    option("--limit", type=int, help="the first so many pairs")
    option("--out", metavar="FILE", help="where to write all pairs, as JSONL")
    option("--show", type=int, default=10, help="how many pairs to print")
    option("--device", default="auto")

    option = add(_report, "write one HTML page about a run: the verdict, the curves, the settings")
    option("folder", metavar="DIR", help="of finetune, or of a trainer with probes")
    option("--out", metavar="FILE", help="the page; DIR/report.html if not given")
    option("--model", help="the model that the run began with; needs --rows")
    rows = "JSONL to look at with the model and the last checkpoint"
    option("--rows", metavar="FILE", help=rows)
    option("--device", default="auto")

    option = add(_run, "train as a recipe says, stage by stage, and record the dynamics")
    option("recipe", metavar="RECIPE", help="a name, or the path of a YAML file")
    change = "change a key of the recipe, such as stages.0.lr=1e-5; may come several times"
    option("--set", metavar="KEY=VALUE", action="append", default=[], help=change)
    option("--rows", metavar="FILE", help="learn the rows of this JSONL file")
    option("--out", metavar="DIR", help="the run's folder; runs/NAME if not given")
    option("--resume", action="store_true", help="go on with the run in the folder")
    option("--dry-run", action="store_true", help="print the plan, train nothing")

    add(_recipes, "list the recipes that `run` knows by name")
    return parser


# lmdyn.lm is imported by the commands: `--help` answers without it, and needs no transformers.


def _diagnose(options) -> None:
    from lmdyn import lm

    rows = lm.load_probes(options.rows, limit=options.limit)
    held_out = None if options.held_out is None else lm.load_probes(options.held_out)
    model, tokenizer = lm.load(options.model, device=options.device)
    found = lm.diagnose(model, tokenizer, rows, options.loss, held_out=held_out)
    print(found.table(options.show))
    print(f"{found!r}; nats per unit learning rate")
    if options.out:
        found.save(options.out)


def _report(options) -> None:
    from lmdyn import lm

    wanted = {"model": options.model, "rows": options.rows, "device": options.device}
    print(lm.report(options.folder, options.out, **wanted))


def _run(options) -> None:
    from accelerate import PartialState

    from lmdyn.lm import recipes

    rows = [] if options.rows is None else [f"data.source={json.dumps(options.rows)}"]
    recipe = recipes.read(options.recipe, [*options.set, *rows])
    state = PartialState(cpu=recipe.device == "cpu")
    if options.dry_run:
        state.print(recipes.dry_run(recipe) if state.is_main_process else "")
    else:
        out = Path(options.out or Path("runs") / recipe.name)
        recipes.run(recipe, out, resume=options.resume, tell=lambda text: print(text, flush=True))
        state.print(f"{out}: a folder for each stage, with its trajectory and last checkpoint")
    state.destroy_process_group()


def _recipes(options) -> None:
    from lmdyn.lm import recipes

    for name in recipes.catalogue():
        print(f"{name:<36}{recipes.read(name).about}")


if __name__ == "__main__":
    sys.exit(main())
