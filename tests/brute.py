"""The slow truth: Jacobians one example and one logit at a time."""

import torch


def jacobian(model, x):
    """(N, V, P) over the trainable parameters, by plain autograd."""
    params = [p for p in model.parameters() if p.requires_grad]
    rows = []
    for example in x.split(1):
        for logit in model(example)[0]:
            grads = torch.autograd.grad(logit, params, retain_graph=True, allow_unused=True)
            pairs = zip(params, grads, strict=True)
            rows.append(
                torch.cat([(torch.zeros_like(p) if g is None else g).flatten() for p, g in pairs])
            )
    return torch.stack(rows).unflatten(0, (len(x), -1))


def kernel(model, x_o, x_u):
    return torch.einsum("oip,ujp->ouij", jacobian(model, x_o), jacobian(model, x_u))
