"""The folder of a run: what it takes to go on after a kill at any moment.

    settings.json         the recipe, written before the first update
    trajectory.npz, .json what was recorded, at least up to the checkpoint
    checkpoint-000120/    weights, configuration and tokenizer after 120 updates, for
                          `from_pretrained`; optimizer.pt while the run is not finished

Each is written under another name, then renamed; the old checkpoint goes last.
`Accelerator.save_state` writes what `from_pretrained`, or one process after two, could not load.
"""

import hashlib
import json
import shutil
from dataclasses import asdict
from pathlib import Path

import torch
from accelerate import PartialState
from torch.distributed.checkpoint import state_dict as states

from lmdyn.checks import check_resumed, differences
from lmdyn.lm.data import ProbeSet
from lmdyn.lm.models import no_progress_bar
from lmdyn.lm.processes import whole
from lmdyn.lm.records import replacing, write_json
from lmdyn.lm.trajectory import Recorder, Trajectory

_SAVED = states.StateDictOptions(full_state_dict=True, cpu_offload=True)  # by the first process
_LOADED = states.StateDictOptions(full_state_dict=True)
_SOME = states.StateDictOptions(full_state_dict=True, strict=False)  # none without a gradient


class RunFolder:
    """The files of one run, of which ``settings`` are all that its course depends on."""

    def __init__(self, path: str | Path, settings: dict, resume: bool):
        self.path, self.settings, self.process = Path(path), settings, PartialState()
        file, found = self.path / "settings.json", [p.name for p in self.path.glob("checkpoint-*")]
        if file.is_file():
            check_resumed(path, differences(json.loads(file.read_text("utf-8")), settings), resume)
        elif found:
            what = f"it has {', '.join(sorted(found))}, but no settings.json"
            raise ValueError(f"{path} holds no run of lmdyn: {what}; choose another out (--out)")
        self.last = max((int(name[11:]) for name in found if name[11:].isdigit()), default=0)

    def begin(self) -> int:
        """Write the settings, keep the last checkpoint alone, and tell its number of updates."""
        self.process.wait_for_everyone()  # until each has read what the first one writes over
        if self.process.is_main_process:
            self._keep(self.last)
            write_json(self.path / "settings.json", self.settings)
        return self.last

    def save(self, update: int, model, tokenizer, optimizer, trajectory: Trajectory) -> None:
        """Write a checkpoint; without an optimizer, the last one. All processes must call this."""
        weights = states.get_model_state_dict(model, options=_SAVED)
        state = optimizer and states.get_optimizer_state_dict(model, optimizer, options=_SAVED)
        if not self.process.is_main_process:
            return
        trajectory.save(self.path / "trajectory")
        for tied in model.all_tied_weights_keys:  # gathered twice, they would no longer be one
            weights.pop(tied, None)
        with replacing(self._checkpoint(update)) as folder:
            shutil.rmtree(folder, ignore_errors=True)  # of a run that was killed
            with no_progress_bar():
                model.save_pretrained(folder, state_dict=weights)
            tokenizer.save_pretrained(folder)
            if state is not None:
                torch.save(state, folder / "optimizer.pt")
        self._keep(update)

    def restore(self, model, optimizer, recorder: Recorder) -> dict:
        """Put the last checkpoint into the model, the optimizer and the recorder: its meta."""
        folder = self._checkpoint(self.last)
        if hasattr(model, "get_base_model"):  # of peft, which has written the adapters alone
            for name in model.peft_config:  # mode and dtype stay
                at = folder if name == "default" else folder / name
                model.load_adapter(at, name, is_trainable=True, autocast_adapter_dtype=False)
        else:
            with no_progress_bar():  # what save_pretrained renames, only from_pretrained names back
                saved = type(model).from_pretrained(folder, dtype=model.dtype, use_safetensors=True)
            states.set_model_state_dict(model, saved.state_dict(), options=_LOADED)
        if (file := folder / "optimizer.pt").is_file():
            state = torch.load(file, map_location="cpu", weights_only=True)
            if state["state"]:  # plain SGD has none
                states.set_optimizer_state_dict(model, optimizer, state, options=_SOME)
        trajectory = Trajectory.load(self.path / "trajectory")
        recorder.restore(trajectory, self.last)
        return trajectory.meta

    def _checkpoint(self, update: int) -> Path:
        return self.path / f"checkpoint-{update:06d}"

    def _keep(self, update: int) -> None:
        for other in set(self.path.glob("checkpoint-[0-9]*")) - {self._checkpoint(update)}:
            shutil.rmtree(other)


def fingerprint(things) -> str:
    """A short name for anything JSON can hold: other things, another name."""
    return hashlib.sha256(json.dumps(things, sort_keys=True, default=str).encode()).hexdigest()[:16]


def fingerprint_probes(probes: ProbeSet | None) -> str | None:
    """A short name for the rows, the types and the format of a probe set; None for none."""
    return probes and fingerprint([list(probes), probes.types, asdict(probes.format)])


@torch.no_grad()
def fingerprint_model(model) -> str:
    """A short name for the weights of a model, from about 1,024 numbers of each tensor."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        some = whole(tensor).flatten()[:: max(1, tensor.numel() // 1024)].double().cpu().numpy()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode() + some.tobytes())
    return digest.hexdigest()[:16]
