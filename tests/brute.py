"""The slow truth: gradients one number at a time, sequences one at a time."""

import torch


def gradient(model, value):
    """(P,) over the trainable parameters, by plain autograd."""
    params = [p for p in model.parameters() if p.requires_grad]
    grads = torch.autograd.grad(value, params, retain_graph=True, materialize_grads=True)
    return torch.cat([grad.flatten() for grad in grads])


def jacobian(model, logits):
    """(…, P) of logits (…)."""
    rows = [gradient(model, value) for value in logits.flatten()]
    return torch.stack(rows).unflatten(0, logits.shape)


def kernel(model, x_o, x_u):
    """(N_o, N_u, V, V), each example on its own."""
    o, u = (torch.cat([jacobian(model, model(x)) for x in xs.split(1)]) for xs in (x_o, x_u))
    return torch.einsum("oip,ujp->ouij", o, u)


def logits(model, prompt, ids):
    """(T, V), those that predict the tokens of a response."""
    whole = model(input_ids=torch.tensor([prompt + ids])).logits[0]
    return whole[len(prompt) - 1 : -1]


def log_prob(model, prompt, ids):
    """log π(y|x) of one sequence alone."""
    return logits(model, prompt, ids).log_softmax(-1)[range(len(ids)), ids].sum()
