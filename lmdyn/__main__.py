"""The command `lmdyn`: each command calls one public function; `--help` needs no transformers."""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; what is wrong with its input ends as one line, not as a traceback."""
    options = vars(_parser().parse_args(arguments))
    run = options.pop("run")
    try:
        run(**options)
    except (ValueError, OSError, ImportError, FloatingPointError) as error:
        print(f"lmdyn {run.__name__.strip('_')}: {error}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="lmdyn", description="Learning dynamics.")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def add(run, about: str):
        command = commands.add_parser(run.__name__.strip("_"), help=about)
        command.set_defaults(run=run)
        return command.add_argument

    option = add(_diagnose, "rank preference pairs by what a step on each does to good answers")
    option("rows", metavar="FILE", help="JSONL, or a JSON array, of pairs in any of TRL's formats")
    option("--model", required=True, help="a hub id, a folder, also of an adapter, or 'tiny'")
    option("--base", metavar="NAME", help="the model of an adapter, if it names none or another")
    option("--max-length", type=int, help="tokens of prompt and response, which loses its end")
    option("--loss", default="dpo", help="of pairs, such as dpo, ipo, rpo")
    option("--lr", type=float, default=1.0, help="of SGD, for nats per update")
    option("--held-out", metavar="FILE", help="rows whose chosen should not fall")
    option("--limit", type=int, help="the first so many pairs")
    option("--keep", metavar="FILE", help="takes each pair as it is done, to go on from")
    option("--out", metavar="FILE", help="where to write all pairs, as JSONL")
    option("--show", type=int, default=10, help="how many pairs to print")
    option("--device", default="auto")

    option = add(_report, "write one HTML page about a run: the verdict, the curves, the settings")
    option("folder", metavar="DIR", help="of finetune, or of a trainer with probes")
    option("--out", metavar="FILE", help="the page; DIR/report.html if not given")
    option("--model", help="the model that the run began with; needs --rows")
    option("--rows", metavar="FILE", help="JSONL to look at with it and the last checkpoint")
    option("--device", default="auto")

    option = add(_run, "train as a recipe says, stage by stage, and record the dynamics")
    option("recipe", metavar="RECIPE", help="a name, or the path of a YAML file")
    change = {"metavar": "KEY=VALUE", "action": "append", "default": [], "dest": "changes"}
    option("--set", help="such as stages.0.lr=1e-5; may come several times", **change)
    option("--rows", metavar="FILE", help="learn the rows of this JSONL file")
    option("--out", metavar="DIR", help="the run's folder; runs/NAME if not given")
    option("--resume", action="store_true", help="go on with the run in the folder")
    option("--dry-run", action="store_true", help="print the plan, train nothing")

    add(_recipes, "list the recipes that `run` knows by name")
    return parser


def _diagnose(rows, model, base, device, limit, max_length, held_out, show, out, **options) -> None:
    from lmdyn import lm

    def read(source: str, limit: int | None = None) -> lm.ProbeSet:
        found = lm.load_probes(source, limit=limit)
        longest = found.format.max_length if max_length is None else max_length
        return replace(found, format=replace(found.format, max_length=longest))

    rows, held_out = read(rows, limit), held_out and read(held_out)
    found = lm.diagnose(*lm.load(model, device, base=base), rows, held_out=held_out, **options)
    print(f"{found.table(show)}\n{found!r}; nats per update at learning rate {options['lr']:g}")
    if out:
        found.save(out)


def _report(**options) -> None:
    from lmdyn import lm

    print(lm.report(**options))


def _run(recipe, changes, rows, out, resume, dry_run) -> None:
    from accelerate import PartialState

    from lmdyn.lm import recipes

    rows = [f"data.source={json.dumps(rows)}"] if rows else []
    recipe = recipes.read(recipe, [*changes, *rows])
    state, out = PartialState(cpu=recipe.device == "cpu"), out or f"runs/{recipe.name}"
    if dry_run:
        state.print(recipes.dry_run(recipe) if state.is_main_process else "")
    else:
        recipes.run(recipe, out, resume=resume, tell=lambda text: print(text, flush=True))
        state.print(f"{out}: a folder for each stage, with its trajectory and last checkpoint")
    state.destroy_process_group()


def _recipes() -> None:
    from lmdyn.lm import recipes

    for name in recipes.catalogue():
        print(f"{name:<36}{recipes.read(name).about}")


if __name__ == "__main__":
    sys.exit(main())
