"""Attention on dual tensors."""

import torch
import torch.autograd.forward_ad as fwd
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

QUERIES = 128  # in a block of attention on the CPU, so that its scores stay in the cache


class DualAttention(TorchFunctionMode):
    """Inside, `scaled_dot_product_attention` takes dual tensors.

    PyTorch's fused kernels have no forward mode. Its unfused one has, but passes some twenty times
    over all L × L scores: on the CPU, half the time of a long batch. Hence `_in_blocks`.
    """

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        attends = function is scaled_dot_product_attention
        if not attends or all(fwd.unpack_dual(x).tangent is None for x in args[:3]):
            return function(*args, **kwargs)
        mask, query = kwargs.get("attn_mask"), args[0]
        boolean = mask is not None and mask.ndim == 4 and mask.dtype == torch.bool
        usual = (boolean or kwargs.get("is_causal")) and query.ndim == 4 and len(args) == 3
        if usual and query.device.type == "cpu":
            return _in_blocks(*args, **kwargs)
        with sdpa_kernel(SDPBackend.MATH):
            return function(*args, **kwargs)


def _in_blocks(
    query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False
):
    """Attention on dual tensors (B, H, L, ·), some queries at a time.

    Each block of queries meets only the keys that one of them sees: none of the future, and of a
    batch with shared prompts few of other responses.
    """
    if enable_gqa:
        key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], 1) for x in (key, value))
    if attn_mask is None:
        attn_mask = torch.ones(1, 1, query.shape[2], key.shape[2], dtype=torch.bool).tril()
    mask = attn_mask.expand(len(query), -1, -1, -1)
    (q, dq), (k, dk), (v, dv) = (unpacked(x) for x in (query, key, value))
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
            low = torch.finfo(q.dtype).min
            scores = (q[b, :, rows] @ k[b, :, keys].mT).masked_fill_(~seen[..., keys], low)
            probs = scores.softmax(-1)
            dprobs = probs * (dq[b, :, rows] @ dk[b, :, keys].mT)
            dprobs -= probs * dprobs.sum(-1, keepdim=True)
            out[b, :, rows] = probs @ v[b, :, keys]
            dout[b, :, rows] = probs @ dv[b, :, keys] + dprobs @ v[b, :, keys]
    return fwd.make_dual(out, dout)


def unpacked(x: Tensor) -> tuple[Tensor, Tensor]:
    """Value and tangent; without one, zeros."""
    value, tangent = fwd.unpack_dual(x)
    return value, torch.zeros_like(value) if tangent is None else tangent
