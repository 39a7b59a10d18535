"""What a policy is shown of a batch on its way through the depth."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from ..envs.observation import ObservationLayout


@dataclass(frozen=True)
class State:
    """Rows between two units.

    Attributes:
        tokens: [B, N, D].
        logits: what the head says of them, [B, K].
        observation: of everything but the next unit, [B, O]; a skip leaves it as it is.
        spent: MACs of the units that ran, float64 [B], which is exact.
    """

    tokens: Float[Tensor, "B N D"]
    logits: Float[Tensor, "B K"]
    observation: Float[Tensor, "B O"]
    spent: Float[Tensor, " B"]

    def write(self, rows: Int64[Tensor, " R"], new: "State") -> None:
        """Replace some rows, in place."""
        for name in ("tokens", "logits", "observation", "spent"):
            getattr(self, name).index_copy_(0, rows, getattr(new, name))


class Observer(nn.Module):
    """Makes the environment's observations of rows that need not be at the same depth.

    Args:
        layout: of the observations.
        all_macs: of all units.
    """

    _next_unit: Tensor  # one-hot where an observation shows it, [U, O]
    _no_progress: Tensor  # zeros [1, P]

    def __init__(self, layout: ObservationLayout, all_macs: int) -> None:
        super().__init__()
        self.layout, self.all_macs = layout, all_macs
        next_unit = torch.zeros(layout.num_units, layout.size)
        next_unit[:, layout.depth] = torch.eye(layout.num_units)
        self.register_buffer("_next_unit", next_unit, persistent=False)
        no_progress = torch.zeros(1, layout.progress.stop - layout.progress.start)
        self.register_buffer("_no_progress", no_progress, persistent=False)

    def observe(
        self,
        tokens: Float[Tensor, "B N D"],
        logits: Float[Tensor, "B K"],
        spent: Float[Tensor, " B"],
        budget: Float[Tensor, "B 1"] | float,
    ) -> State:
        """The state of rows whose tokens are new; the budget is not looked at if the layout does not show it."""
        layout = self.layout
        observation = layout.observe(logits, self._no_progress.expand(len(tokens), -1), tokens)
        observation[:, layout.depth.stop] = spent / self.all_macs
        if layout.shows_budget:
            observation[:, layout.budget] = budget
        return State(tokens, logits, observation.to(self._next_unit.dtype), spent)

    def before(self, window: slice, observation: Float[Tensor, "B O"]) -> Float[Tensor, "Q O"]:
        """What each row sees before each unit of a window if it skips those before it, row by row: Q = B * units."""
        return (observation[:, None] + self._next_unit[window]).flatten(0, 1)
