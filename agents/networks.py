"""Rules that are learnt: small networks on the observation, as plain torch modules.

All are built from JSON values, count the multiply-accumulates of one decision, and can `lean`: shift every decision
towards RUN by an amount of log-odds.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ..envs.observation import ObservationLayout

LstmState = tuple[Tensor, Tensor]  # hidden and cell state, each [B, H]


class MlpRule(nn.Module):
    """A small tanh network on the observation: what reinforcement learning trains.

    Args:
        layout: of the observations.
        widths: hidden units of each layer.
    """

    samples = False

    def __init__(self, layout: ObservationLayout, widths: Sequence[int]) -> None:
        super().__init__()
        self.arguments = {"widths": list(widths)}
        self.network = tanh_network(layout.size, widths, 1)
        self.macs = count_macs(self.network)

    @property
    def output(self) -> nn.Linear:
        """The layer that gives the log-odds."""
        return last_linear(self.network)

    def forward(self, observation: Float[Tensor, "B O"]) -> Float[Tensor, " B"]:
        return self.network(observation)[:, 0]

    def lean(self, amount: float) -> None:
        self.output.bias.add_(amount)


class LstmRule(nn.Module):
    """A long short-term memory over the depth, then a linear layer: it remembers how the belief came about.

    Args:
        layout: of the observations.
        hidden_size: H, of the memory.
    """

    samples = False

    def __init__(self, layout: ObservationLayout, hidden_size: int) -> None:
        super().__init__()
        _check_widths([hidden_size], "hidden_size")
        self.arguments = {"hidden_size": hidden_size}
        self.cell = nn.LSTMCell(layout.size, hidden_size)
        self.output = nn.Linear(hidden_size, 1)
        self.macs = sum(weight.numel() for weight in self.parameters() if weight.ndim == 2)

    def forward(
        self, observation: Float[Tensor, "B O"], state: LstmState | None
    ) -> tuple[Float[Tensor, " B"], LstmState]:
        """Log-odds and the next state; None begins an episode."""
        hidden, cell = self.cell(observation, state)
        return self.output(hidden)[:, 0], (hidden, cell)

    def lean(self, amount: float) -> None:
        self.output.bias.add_(amount)


class PerUnitRule(nn.Module):
    """One linear layer for each unit, on the class token alone (Mersha and Assefa, 2022); needs "tokens".

    Args:
        layout: of the observations.
        samples: whether deployment draws its decisions, as the published code does.
    """

    def __init__(self, layout: ObservationLayout, samples: bool = True) -> None:
        super().__init__()
        if layout.kind != "tokens":
            raise ValueError(f'observation: expected "tokens", which hold the class token, got {layout.kind!r}')
        self.arguments = {"samples": bool(samples)}
        self.samples = bool(samples)
        self.depth, self.cls_token = layout.depth, layout.cls_token
        self.weight = nn.Parameter(torch.zeros(layout.num_units, layout.embed_dim))
        self.bias = nn.Parameter(torch.zeros(layout.num_units))
        self.macs = layout.embed_dim

    def forward(self, observation: Float[Tensor, "B O"]) -> Float[Tensor, " B"]:
        unit = observation[:, self.depth]  # one-hot [B, U]
        return (observation[:, self.cls_token] * (unit @ self.weight)).sum(1) + unit @ self.bias

    def lean(self, amount: float) -> None:
        self.bias.add_(amount)


class PlanRule(nn.Module):
    """All decisions at once, from one look after the first blocks (BlockDrop's setting; Wu et al., 2018).

    Args:
        layout: of the observations.
        widths: hidden units of each layer.
        paths: the codebook, a list of keep-masks of U truth values: the network then chooses one of them. Without
            one it decides each unit apart.
        look_after: blocks that always run, before the look.
    """

    samples = False
    codebook: Tensor  # bool [P, U]

    def __init__(
        self,
        layout: ObservationLayout,
        widths: Sequence[int],
        paths: Sequence[Sequence[bool]] | None = None,
        look_after: int = 1,
    ) -> None:
        super().__init__()
        units = layout.num_units
        if look_after < 1:
            raise ValueError(f"look_after: expected at least 1 block, got {look_after}")
        if paths is not None and (not paths or any(len(path) != units for path in paths)):
            raise ValueError(f"paths: expected at least one keep-mask of {units} units, got {paths!r}")
        codebook = [[bool(kept) for kept in path] for path in paths or ()]
        self.arguments = {"widths": list(widths), "paths": codebook or None, "look_after": look_after}
        self.look_after = look_after
        self.network = tanh_network(layout.size, widths, len(codebook) or units)
        self.register_buffer("codebook", torch.tensor(codebook, dtype=torch.bool), persistent=False)
        self.macs = count_macs(self.network)

    @property
    def output(self) -> nn.Linear:
        """The layer that gives the log-odds."""
        return last_linear(self.network)

    def forward(self, observation: Float[Tensor, "B O"]) -> Float[Tensor, "B U"]:
        """Log-odds of each unit, or logits of the codebook's paths, [B, P]."""
        return self.network(observation)

    def choose(self, observation: Float[Tensor, "B O"]) -> Bool[Tensor, "B U"]:
        """The likeliest path of each image."""
        scores = self(observation)
        return self.codebook[scores.argmax(1)] if len(self.codebook) else scores > 0

    def lean(self, amount: float) -> None:
        self.output.bias.add_(amount * self.codebook.sum(1) if len(self.codebook) else amount)


def tanh_network(size: int, widths: Sequence[int], outputs: int) -> nn.Sequential:
    """Linear layers with tanh between them."""
    _check_widths(widths, "widths")
    layers: list[nn.Module] = []
    for before, after in pairwise([size, *widths]):
        layers += [nn.Linear(before, after), nn.Tanh()]
    return nn.Sequential(*layers, nn.Linear([size, *widths][-1], outputs))


def last_linear(network: nn.Sequential) -> nn.Linear:
    """The output layer of `tanh_network`."""
    layer = network[-1]
    assert isinstance(layer, nn.Linear)
    return layer


def count_macs(network: nn.Module) -> int:
    """Multiply-accumulates of the linear layers on one row."""
    return sum(layer.weight.numel() for layer in network.modules() if isinstance(layer, nn.Linear))


def _check_widths(widths: Sequence[int], argument: str) -> None:
    if not all(isinstance(width, int) and not isinstance(width, bool) and width > 0 for width in widths):
        raise ValueError(f"{argument}: expected positive integers, got {widths!r}")
