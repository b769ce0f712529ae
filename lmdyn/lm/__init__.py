"""Language models: the same equation, token by token.

Score every response of a probe set, predict what a step does to them, find who moved whom, and
finetune while recording it all. Needs transformers: `pip install lmdyn[lm]`.
"""

try:
    from transformers.utils.versions import require_version

    require_version("transformers>=5.4")
except ImportError as error:
    raise ImportError(f"lmdyn.lm needs transformers ({error}): pip install 'lmdyn[lm]'") from error

from lmdyn.lm.callback import ProbeCallback
from lmdyn.lm.data import TYPES, ProbeSet, load_probes
from lmdyn.lm.diagnose import Diagnosis, ches, diagnose
from lmdyn.lm.influence import influence, pushes
from lmdyn.lm.mass import TokenMass, token_mass
from lmdyn.lm.models import load
from lmdyn.lm.on_policy import finetune_on_policy, sample_rejected
from lmdyn.lm.predict import Change, measure_change, predict_change, sgd_direction, update_direction
from lmdyn.lm.report import report
from lmdyn.lm.score import Scores, score
from lmdyn.lm.token_kernel import token_influence, token_kernel
from lmdyn.lm.tokens import Format
from lmdyn.lm.train import finetune
from lmdyn.lm.trajectory import Trajectory

__all__ = ["TYPES", "Change", "Diagnosis", "Format", "ProbeCallback", "ProbeSet", "Scores"]
__all__ += ["TokenMass", "Trajectory", "ches", "diagnose", "finetune", "finetune_on_policy"]
__all__ += ["influence", "load", "load_probes", "measure_change", "predict_change", "pushes"]
__all__ += ["report", "sample_rejected", "score", "sgd_direction", "token_influence"]
__all__ += ["token_kernel", "token_mass", "update_direction"]
