"""The folder of a run: what it takes to go on after a kill at any moment.

    settings.json         the recipe, written before the first update
    trajectory.npz, .json what was recorded, at least up to the checkpoint
    checkpoint-000120/    weights, configuration and tokenizer after 120 updates, as the Hugging
                          Face libraries load them; optimizer.pt while the run is not finished

Every file and folder is written under another name, then renamed. The trajectory comes before
the checkpoint that needs it and the old checkpoint goes after the new one has come, so that a
kill between any two of these leaves one that fits: what the trajectory has beyond it is cut.
"""

import hashlib
import json
import shutil
from pathlib import Path

import torch

from lmdyn.lm._sharded import is_sharded, like, whole, whole_weights
from lmdyn.lm.files import new_folder, replacing
from lmdyn.lm.models import no_progress_bar
from lmdyn.lm.trajectory import Recorder, Trajectory

_SAMPLED = 1024  # numbers of each tensor that a fingerprint reads


class RunFolder:
    """The files of one run.

    Args:
        path: the folder; made if it is not there.
        settings: all that the course of the run depends on, as JSON can hold it.
        resume: go on with the run in the folder, if there is one.
        writes: whether this process is the one that writes.

    Raises:
        ValueError: the folder holds a run already, or, on resuming, another one.
    """

    def __init__(self, path: str | Path, settings: dict, resume: bool, writes: bool = True):
        self.path, self.writes = Path(path), writes
        self._settings = json.loads(json.dumps(settings))
        file = self.path / "settings.json"
        if not file.is_file():
            return
        if not resume:
            raise ValueError(
                f"{path} holds a run already: pass resume=True to go on with it, or another out"
            )
        before = json.loads(file.read_text(encoding="utf-8"))
        differ = [
            f"{key} (was {before.get(key)!r}, now {self._settings.get(key)!r})"
            for key in {**before, **self._settings}
            if before.get(key) != self._settings.get(key)
        ]
        if differ:
            raise ValueError(
                f"{path} is a run of another recipe: {', '.join(differ)}; "
                "resume with what it began with, or choose another out"
            )

    @property
    def checkpoint(self) -> Path | None:
        """The last whole checkpoint."""
        found = [p for p in self.path.glob("checkpoint-*") if p.suffix != ".tmp"]
        return max(found, key=_update, default=None)

    @property
    def update(self) -> int:
        """How many updates the last checkpoint has made; 0 if there is none."""
        return 0 if self.checkpoint is None else _update(self.checkpoint)

    def begin(self) -> None:
        """Write the settings, and remove what a kill has left beside the last checkpoint."""
        if not self.writes:
            return
        self._remove_others(self.checkpoint)
        with replacing(self.path / "settings.json") as temporary:
            text = json.dumps(self._settings, indent=2, ensure_ascii=False)
            temporary.write_text(text + "\n", encoding="utf-8")

    def save(self, update: int, model, tokenizer, optimizer, trajectory: Trajectory) -> None:
        """Write a checkpoint; without an optimizer, the last one.

        Where processes share out the weights, all must call this.
        """
        weights = whole_weights(model, self.writes) if is_sharded(model) else None
        state = None if optimizer is None else whole(optimizer.state_dict(), self.writes)
        if not self.writes:
            return
        trajectory.save(self.path / "trajectory")
        new = self.path / f"checkpoint-{update:06d}"
        with new_folder(new) as folder:
            with no_progress_bar():
                model.save_pretrained(folder, state_dict=weights)
            tokenizer.save_pretrained(folder)
            if state is not None:
                torch.save(state, folder / "optimizer.pt")
        self._remove_others(new)

    def restore(self, model, optimizer, recorder: Recorder) -> dict:
        """Put the last checkpoint into the model, the optimizer and the recorder: its meta."""
        folder = self.checkpoint
        with no_progress_bar():  # what save_pretrained renames, only from_pretrained names back
            saved = type(model).from_pretrained(folder, dtype=model.dtype, use_safetensors=True)
        there = model.state_dict()
        model.load_state_dict(
            {name: like(t, there[name]) for name, t in saved.state_dict().items()}
        )
        file = folder / "optimizer.pt"
        if file.is_file():
            state = torch.load(file, map_location="cpu", weights_only=True)
            learned = [p for group in optimizer.param_groups for p in group["params"]]
            for number, values in state["state"].items():
                values |= {name: like(x, learned[number]) for name, x in values.items()}
            optimizer.load_state_dict(state)
        trajectory = Trajectory.load(self.path / "trajectory")
        recorder.restore(trajectory, self.update)
        return trajectory.meta

    def _remove_others(self, checkpoint: Path | None) -> None:
        for other in self.path.glob("checkpoint-*"):
            if other != checkpoint:
                shutil.rmtree(other)


def fingerprint(things) -> str:
    """A short name for anything JSON can hold: other things, another name."""
    return hashlib.sha256(json.dumps(things, sort_keys=True).encode()).hexdigest()[:16]


@torch.no_grad()
def fingerprint_model(model) -> str:
    """A short name for the weights of a model, from some numbers of each tensor."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        stride = max(1, tensor.numel() // _SAMPLED)
        some = whole(tensor.detach()).flatten()[::stride].double().cpu().numpy()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode() + some.tobytes())
    return digest.hexdigest()[:16]


def _update(folder: Path) -> int:
    return int(folder.name.removeprefix("checkpoint-"))
