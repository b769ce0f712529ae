"""Small modules that use their weights in every way `entk` must get right."""

import torch
import torch.nn.functional as F
from torch import nn, randn
from torch.nn.utils.parametrizations import weight_norm

from lmdyn.digits import LeNet


class Lambda(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def sequence(*layers):
    return nn.Sequential(*(x if isinstance(x, nn.Module) else Lambda(x) for x in layers))


def frozen_layer():
    model = sequence(nn.Linear(6, 8), torch.tanh, nn.Linear(8, 8), torch.tanh, nn.Linear(8, 3))
    model[2].requires_grad_(False)
    model[4].bias.requires_grad_(False)
    return model


class Tied(nn.Module):
    """An embedding whose table is also the output layer, and one layer called twice."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(9, 6)
        self.marks = nn.Embedding(3, 6, padding_idx=-1)
        self.layer = nn.Linear(6, 6)
        self.norm = nn.LayerNorm(6)
        self.head = nn.Linear(6, 9)
        self.head.weight = self.embedding.weight

    def forward(self, tokens):
        hidden = self.embedding(tokens) + self.marks(tokens % 3)
        hidden = torch.tanh(self.layer(torch.tanh(self.layer(hidden))))
        return self.head(self.norm(hidden).mean(1))


class WrittenOut(nn.Module):
    """Layers as plain arithmetic: x W with and without a bias, both W and Wᵀ, a norm's weight."""

    def __init__(self):
        super().__init__()
        shapes = {"first": (3, 6), "square": (6, 6), "both": (6, 6), "bias": (6,), "norm": (6,)}
        for name, shape in (shapes | {"last": (6, 4)}).items():
            self.register_parameter(name, nn.Parameter(randn(shape)))

    def forward(self, x):
        hidden = self.norm * torch.tanh(x @ self.first)
        rows = torch.addmm(self.bias, hidden.flatten(0, 1), self.square)
        rows = torch.addmm(self.bias, rows.tanh(), self.square)
        hidden = F.linear(rows.tanh(), self.both, self.bias).unflatten(0, hidden.shape[:2])
        hidden = torch.tanh(hidden @ self.both) * self.norm
        return (hidden @ self.last).sum(1)


def shared_bias():
    model = sequence(nn.Linear(6, 6), torch.tanh, nn.Linear(6, 6))
    model[2].bias = model[0].bias
    return model


class UsedTwoWays(nn.Module):
    """The first weight also enters the logits through plain arithmetic."""

    def __init__(self):
        super().__init__()
        self.layer, self.scale = nn.Linear(5, 5), nn.Parameter(randn(5))

    def forward(self, x):
        return self.layer(x) * self.scale + x @ self.layer.weight.square()


class Experts(nn.Module):
    """Each example goes to one of two layers: the number of rows depends on the data."""

    def __init__(self):
        super().__init__()
        self.experts = nn.ModuleList([nn.Linear(4, 3), nn.Linear(4, 3)])

    def forward(self, x):
        out = x.new_zeros(len(x), 3)
        for number, expert in enumerate(self.experts):
            rows = ((x[:, 0] > 0) == number).nonzero().squeeze(1)
            if len(rows):
                out = out.index_put((rows,), expert(x[rows]))
        return out


class _Sine(torch.autograd.Function):
    """sin(xWᵀ) with a backward pass but no forward mode."""

    @staticmethod
    def forward(ctx, x, weight):
        ctx.save_for_backward(x, weight)
        return (x @ weight.T).sin()

    @staticmethod
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        inner = grad * (x @ weight.T).cos()
        return inner @ weight, inner.T @ x


class CustomFunction(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x):
        return _Sine.apply(self.layer(x), self.layer.weight)


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm, self.head = nn.LSTM(3, 5, batch_first=True), nn.Linear(5, 3)

    def forward(self, x):
        return self.head(self.lstm(x)[0][:, -1])


class Positions(nn.Module):
    """A table whose rows are positions: it has no axis of examples."""

    def __init__(self):
        super().__init__()
        self.table, self.head, self.unused = nn.Embedding(4, 5), nn.Linear(5, 3), nn.Linear(2, 2)

    def forward(self, x):
        return self.head(F.gelu(x + self.table(torch.arange(4, device=x.device))).mean(1))


def swap(x):
    return x.transpose(0, 1)


def attention():
    layer = nn.TransformerEncoderLayer(8, 2, 12, dropout=0.0, batch_first=True)
    return sequence(nn.Embedding(9, 8), layer, nn.RMSNorm(8), lambda h: h[:, -1], nn.Linear(8, 4))


# name → (model, inputs). The weights of these all take the structured path …
STRUCTURED = {
    "mlp": lambda: (sequence(nn.Linear(6, 8), torch.tanh, nn.Linear(8, 3)), randn(7, 6)),
    "inplace_relu": lambda: (
        sequence(nn.Linear(6, 8), nn.ReLU(inplace=True), nn.Linear(8, 3, bias=False)),
        randn(5, 6),
    ),
    "lenet": lambda: (LeNet(), torch.rand(3, 1, 28, 28)),
    "batch_norm": lambda: (
        sequence(
            nn.Conv2d(2, 4, 3, bias=False), nn.BatchNorm2d(4), torch.relu, nn.Flatten(),
            nn.Linear(64, 5), nn.BatchNorm1d(5),
        ),
        randn(6, 2, 6, 6),
    ),
    "frozen_layer": lambda: (frozen_layer(), randn(5, 6)),
    "convolutions": lambda: (
        sequence(
            nn.Conv2d(4, 6, 3, stride=(2, 1), padding=(2, 1), dilation=(1, 2), groups=2), F.gelu,
            nn.Conv2d(6, 6, 2, padding="same", groups=6),
            nn.Conv2d(6, 4, 3, padding=1, padding_mode="circular"), nn.Flatten(), nn.LazyLinear(3),
        ),
        randn(3, 4, 7, 6),
    ),
    "tied": lambda: (Tied(), torch.randint(0, 9, (5, 4))),
    "group_norm": lambda: (
        sequence(nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4), F.silu, nn.Flatten(), nn.Linear(64, 3)),
        randn(4, 1, 6, 6),
    ),
    "shared_bias": lambda: (shared_bias(), randn(4, 6)),
    # Tokens before examples, as many of them as examples: the shapes alone cannot tell. The
    # activation in place changes what is a view inside Linear.
    "positions_first": lambda: (
        sequence(
            swap, nn.Linear(3, 5), nn.ReLU(inplace=True), swap, nn.Linear(5, 4), nn.LayerNorm(4),
            lambda x: x.sum(1),
        ),
        randn(6, 6, 3),
    ),
    "flattened_positions": lambda: (
        sequence(
            lambda x: x.flatten(0, 1), nn.Linear(3, 5), torch.tanh,
            lambda x: x.unflatten(0, (-1, 4)).transpose(0, 1).flatten(0, 1), nn.Linear(5, 4),
            lambda x: x.unflatten(0, (4, -1)).sum(0),
        ),
        randn(6, 4, 3),
    ),
    "written_out": lambda: (WrittenOut(), randn(5, 4, 3)),
}  # fmt: skip
# … and of these some weights take the generic one.
GENERIC = {
    "attention": lambda: (attention(), torch.randint(0, 9, (5, 4))),
    "used_two_ways": lambda: (UsedTwoWays(), randn(4, 5)),
    "reordered": lambda: (
        sequence(lambda x: x.flip(0), nn.Linear(3, 5), torch.tanh, lambda x: x.flip(0)),
        randn(6, 3),
    ),
    "experts": lambda: (Experts(), randn(8, 4)),
    "custom_function": lambda: (CustomFunction(), randn(5, 4)),
    "reparametrized": lambda: (
        sequence(weight_norm(nn.Linear(4, 5)), torch.tanh, nn.Linear(5, 2)),
        randn(5, 4),
    ),
    "recurrent": lambda: (Recurrent(), randn(4, 6, 3)),
    "positions": lambda: (Positions(), randn(4, 4, 5)),
}


def build(name):
    """(model, inputs): seeded, in float64, in eval mode after one pass in training mode."""
    torch.manual_seed(0)
    model, x = (STRUCTURED | GENERIC)[name]()
    model(x)  # lazy layers take their shapes, norms their statistics
    return model.double().eval(), x.double() if x.is_floating_point() else x
