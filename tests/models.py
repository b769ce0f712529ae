"""Small modules that use their weights in every way `entk` must get right."""

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.parametrizations import weight_norm


class Lambda(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def mlp():
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)), torch.randn(7, 6)


def inplace_relu():
    return nn.Sequential(
        nn.Linear(6, 8), nn.ReLU(inplace=True), nn.Linear(8, 3, bias=False)
    ), torch.randn(5, 6)


def lenet():
    from lmdyn.digits import LeNet

    return LeNet(), torch.rand(3, 1, 28, 28)


def batch_norm():
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(64, 5),
        nn.BatchNorm1d(5),
    )
    x = torch.randn(6, 2, 6, 6)
    model(x)  # fills the running statistics
    return model.eval(), x


def frozen_layer():
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3))
    model[2].requires_grad_(False)
    model[4].bias.requires_grad_(False)
    return model, torch.randn(5, 6)


def grouped_dilated_conv():
    return nn.Sequential(
        nn.Conv2d(4, 6, 3, stride=(2, 1), padding=(2, 1), dilation=(1, 2), groups=2),
        nn.GELU(),
        nn.Conv2d(6, 6, 2, padding="same", groups=6),
        nn.Conv2d(6, 4, 3, padding=1, padding_mode="circular"),
        nn.Flatten(),
        nn.LazyLinear(3),
    ), torch.randn(3, 4, 7, 6)


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


def tied():
    return Tied(), torch.randint(0, 9, (5, 4))


def attention():
    layer = nn.TransformerEncoderLayer(8, 2, 12, dropout=0.0, batch_first=True)
    model = nn.Sequential(
        nn.Embedding(9, 8), layer, nn.RMSNorm(8), Lambda(lambda h: h[:, -1]), nn.Linear(8, 4)
    )
    return model, torch.randint(0, 9, (5, 4))


def group_norm():
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4), nn.SiLU(), nn.Flatten(), nn.Linear(64, 3)
    ), torch.randn(4, 1, 6, 6)


class UsedTwoWays(nn.Module):
    """The first weight also enters the logits through plain arithmetic."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(5, 5)
        self.scale = nn.Parameter(torch.randn(5))

    def forward(self, x):
        return self.layer(x) * self.scale + x @ self.layer.weight.square()


def used_two_ways():
    return UsedTwoWays(), torch.randn(4, 5)


def shared_bias():
    model = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6))
    model[2].bias = model[0].bias
    return model, torch.randn(4, 6)


def positions_first():
    """Tokens before examples, as many of them as examples: the shapes alone cannot tell."""
    return nn.Sequential(
        Lambda(lambda x: x.transpose(0, 1)),
        nn.Linear(3, 5),
        nn.ReLU(inplace=True),  # on what is a view inside Linear
        Lambda(lambda x: x.transpose(0, 1)),
        nn.Linear(5, 4),
        nn.LayerNorm(4),
        Lambda(lambda x: x.sum(1)),
    ), torch.randn(6, 6, 3)


def flattened_positions():
    return nn.Sequential(
        Lambda(lambda x: x.flatten(0, 1)),
        nn.Linear(3, 5),
        nn.Tanh(),
        Lambda(lambda x: x.unflatten(0, (-1, 4)).transpose(0, 1).flatten(0, 1)),
        nn.Linear(5, 4),
        Lambda(lambda x: x.unflatten(0, (4, -1)).sum(0)),
    ), torch.randn(6, 4, 3)


def reordered():
    return nn.Sequential(
        Lambda(lambda x: x.flip(0)), nn.Linear(3, 5), nn.Tanh(), Lambda(lambda x: x.flip(0))
    ), torch.randn(6, 3)


class Experts(nn.Module):
    """Each example goes to one of two layers: the number of rows depends on the data."""

    def __init__(self):
        super().__init__()
        self.experts = nn.ModuleList([nn.Linear(4, 3), nn.Linear(4, 3)])

    def forward(self, x):
        chosen = (x[:, 0] > 0).long()
        out = x.new_zeros(len(x), 3)
        for number, expert in enumerate(self.experts):
            rows = (chosen == number).nonzero().squeeze(1)
            if len(rows):
                out = out.index_put((rows,), expert(x[rows]))
        return out


def experts():
    return Experts(), torch.randn(8, 4)


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


def custom_function():
    return CustomFunction(), torch.randn(5, 4)


def reparametrized():
    return nn.Sequential(weight_norm(nn.Linear(4, 5)), nn.Tanh(), nn.Linear(5, 2)), torch.randn(
        5, 4
    )


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(3, 5, batch_first=True)
        self.head = nn.Linear(5, 3)

    def forward(self, x):
        return self.head(self.lstm(x)[0][:, -1])


def recurrent():
    return Recurrent(), torch.randn(4, 6, 3)


def positions_as_parameters():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Embedding(4, 5)
            self.head = nn.Linear(5, 3)
            self.unused = nn.Linear(2, 2)

        def forward(self, x):
            where = self.table(torch.arange(4, device=x.device))  # no axis of examples
            return self.head(F.gelu(x + where).mean(1))

    return Model(), torch.randn(4, 4, 5)


class WrittenOut(nn.Module):
    """Layers as plain arithmetic: x W with and without a bias, both W and Wᵀ, a norm's weight."""

    def __init__(self):
        super().__init__()
        self.first = nn.Parameter(torch.randn(3, 6))
        self.square = nn.Parameter(torch.randn(6, 6))
        self.both = nn.Parameter(torch.randn(6, 6))
        self.bias = nn.Parameter(torch.randn(6))
        self.norm = nn.Parameter(torch.randn(6))
        self.last = nn.Parameter(torch.randn(6, 4))

    def forward(self, x):
        hidden = self.norm * torch.tanh(x @ self.first)
        rows = torch.addmm(self.bias, hidden.flatten(0, 1), self.square)
        rows = torch.addmm(self.bias, rows.tanh(), self.square)
        hidden = F.linear(rows.tanh(), self.both, self.bias).unflatten(0, hidden.shape[:2])
        hidden = torch.tanh(hidden @ self.both) * self.norm
        return (hidden @ self.last).sum(1)


def written_out():
    return WrittenOut(), torch.randn(5, 4, 3)


# Those whose weights all take the structured path, and those of which some take the generic one.
STRUCTURED = [
    mlp, inplace_relu, lenet, batch_norm, frozen_layer, grouped_dilated_conv, tied, group_norm,
    shared_bias, positions_first, flattened_positions,
    written_out,
]  # fmt: skip
GENERIC = [
    attention, used_two_ways, reordered, experts, custom_function, reparametrized, recurrent,
    positions_as_parameters,
]  # fmt: skip
