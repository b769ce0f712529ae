"""Language models: the same equation, token by token.

Score every response of a probe set, predict what a step does to them, find who moved whom, and
finetune while recording it all.
"""

from lmdyn.lm._tokens import Format
from lmdyn.lm.data import TYPES, ProbeSet, load_probes

__all__ = ["TYPES", "Format", "ProbeSet", "load_probes"]
