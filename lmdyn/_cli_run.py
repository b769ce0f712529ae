"""The commands about recipes: what there is, what one will take, and running it."""

import json
from pathlib import Path


def add_run(commands) -> None:
    """`run RECIPE`."""
    command = commands.add_parser(
        "run", help="train as a recipe says, stage by stage, and record the dynamics"
    )
    command.add_argument("recipe", metavar="RECIPE", help="a name, or the path of a YAML file")
    command.add_argument(
        "--set",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        help="change a key of the recipe, such as stages.0.lr=1e-5; may come several times",
    )
    command.add_argument("--rows", metavar="FILE", help="learn the rows of this JSONL file")
    command.add_argument("--out", metavar="DIR", help="the run's folder; runs/NAME if not given")
    command.add_argument("--resume", action="store_true", help="go on with the run in the folder")
    command.add_argument("--dry-run", action="store_true", help="print the plan, train nothing")
    command.set_defaults(run=_run)


def add_recipes(commands) -> None:
    """`recipes`."""
    command = commands.add_parser("recipes", help="list the recipes that `run` knows by name")
    command.set_defaults(run=_recipes)


def _run(options) -> int:
    from accelerate import PartialState

    from lmdyn.lm.recipe import read
    from lmdyn.lm.run import run

    rows = [] if options.rows is None else [f"data.source={json.dumps(options.rows)}"]
    recipe = read(options.recipe, [*options.set, *rows])
    state = PartialState(cpu=recipe.device == "cpu")
    if options.dry_run:
        from lmdyn.lm._dry_run import dry_run

        if state.is_main_process:
            print(dry_run(recipe))
    else:
        out = Path(options.out or Path("runs") / recipe.name)
        run(recipe, out, resume=options.resume, tell=lambda text: print(text, flush=True))
        state.print(f"{out}: a folder for each stage, with its trajectory and last checkpoint")
    state.destroy_process_group()
    return 0


def _recipes(options) -> int:
    from lmdyn.lm.recipe import catalogue, read

    for name in catalogue():
        print(f"{name:<36}{read(name).about}")
    return 0
