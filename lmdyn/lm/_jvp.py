"""Passes with other weights, dual ones too, and attention on dual tensors."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.autograd.forward_ad as fwd
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

from lmdyn.lm.forward import Batch, evaluating, head, hidden

QUERIES = 128  # in a block of attention on the CPU, so that its scores stay in the cache


@contextmanager
def undisturbed(model) -> Iterator[None]:
    """Derivatives of the plain function, whatever mode the model and its caller are in.

    Eval mode ends dropout and gradient checkpointing. Inference mode would drop tangents silently.
    """
    autocast = torch.autocast(model.device.type, enabled=False)
    with torch.inference_mode(False), evaluating(model), autocast:
        yield


def float_weights(model) -> dict[str, Tensor]:
    """The model's weights, detached; those in half precision as float32.

    A small step would vanish in half precision, and the difference that it makes with it.
    """
    if any(p.is_inference() for p in model.parameters()):
        raise ValueError(
            "the model was made under torch.inference_mode(), which rules out derivatives: "
            "load it outside"
        )
    return {
        name: p.detach().float() if p.dtype in (torch.float16, torch.bfloat16) else p.detach()
        for name, p in model.named_parameters()
    }


class Placed:
    """The packed forward pass of a model with other weights in the place of its own.

    Args:
        model: a Hugging Face causal language model. It stays as it is.
        weights: parameter name → tensor, dual or not; the rest are the model's own. A tied weight
            goes by its first name, as in ``named_parameters``.
    """

    def __init__(self, model, weights: dict[str, Tensor]):
        self._body = _Body(model)
        self._weights = {f"model.{name}": weight for name, weight in weights.items()}
        self._head = head(model)
        name_of = {id(p): name for name, p in model.named_parameters()}
        self._head_weights = {
            own: weights[name_of[id(p)]]
            for own, p in self._head.named_parameters()
            if name_of[id(p)] in weights
        }

    def hidden(self, batch: Batch) -> Tensor:
        """(M, d), the final hidden states at the positions that predict."""
        return functional_call(self._body, self._weights, (batch,))

    def logits(self, states: Tensor) -> Tensor:
        """(…, V), from some of the hidden states."""
        return functional_call(self._head, self._head_weights, (states,))


class _Body(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, batch: Batch) -> Tensor:
        return hidden(self.model, batch)


class DualAttention(TorchFunctionMode):
    """Inside, `scaled_dot_product_attention` takes dual tensors.

    PyTorch's fused kernels have no forward mode. Its unfused one has, but passes some twenty times
    over all L × L scores: on the CPU, half the time of a long batch. Hence `_in_blocks`.
    """

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function is not scaled_dot_product_attention:
            return function(*args, **kwargs)
        query, key, value, *rest = args
        if all(fwd.unpack_dual(x).tangent is None for x in (query, key, value)):
            return function(*args, **kwargs)
        if query.device.type == "cpu" and not rest and _is_usual(query, **kwargs):
            return _in_blocks(query, key, value, **kwargs)
        with sdpa_kernel(SDPBackend.MATH):
            return function(*args, **kwargs)


def _is_usual(query, attn_mask=None, dropout_p=0.0, is_causal=False, **_) -> bool:
    boolean = attn_mask is not None and attn_mask.ndim == 4 and attn_mask.dtype == torch.bool
    return query.ndim == 4 and not dropout_p and (boolean or is_causal)


def _in_blocks(
    query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False
):
    """Attention on dual tensors (B, H, L, ·), some queries at a time.

    Each block of queries meets only the keys that one of them sees: none of the future, and of a
    batch with shared prompts few of other responses.
    """
    if enable_gqa:
        groups = query.shape[1] // key.shape[1]
        key, value = (x.repeat_interleave(groups, 1) for x in (key, value))
    if attn_mask is None:
        ones = torch.ones(1, 1, query.shape[2], key.shape[2], dtype=torch.bool)
        attn_mask = ones.tril()
    mask = attn_mask.expand(len(query), -1, -1, -1)
    (q, dq), (k, dk), (v, dv) = (_parts(x) for x in (query, key, value))
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    # One product gives ds = dq·kᵀ + q·dkᵀ.
    q, dq, dk = q * scale, torch.cat([dq, q], -1) * scale, torch.cat([k, dk], -1)
    out = q.new_zeros(*q.shape[:-1], v.shape[-1])
    dout = torch.zeros_like(out)
    for b in range(len(q)):
        for start in range(0, q.shape[2], QUERIES):
            rows = slice(start, start + QUERIES)
            seen = mask[b, :, rows]
            keys = seen.flatten(0, 1).any(0).nonzero().squeeze(1)
            scores = (q[b, :, rows] @ k[b, :, keys].mT).masked_fill_(
                ~seen[..., keys], torch.finfo(q.dtype).min
            )
            probs = scores.softmax(-1)
            dprobs = probs * (dq[b, :, rows] @ dk[b, :, keys].mT)
            dprobs -= probs * dprobs.sum(-1, keepdim=True)
            out[b, :, rows] = probs @ v[b, :, keys]
            dout[b, :, rows] = probs @ dv[b, :, keys] + dprobs @ v[b, :, keys]
    return fwd.make_dual(out, dout)


def _parts(x: Tensor) -> tuple[Tensor, Tensor]:
    """Value and tangent; without one, zeros."""
    value, tangent = fwd.unpack_dual(x)
    return value, torch.zeros_like(value) if tangent is None else tangent
