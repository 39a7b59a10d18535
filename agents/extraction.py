"""The decision maker taken out of a Stable-Baselines3 policy, as a plain torch module with copied weights."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from ..envs.observation import ObservationLayout
from .networks import LstmRule, MlpRule, PerUnitRule, PlanRule
from .policy import Policy


def extract_actor(policy: Any, layout: ObservationLayout) -> Policy:
    """The actor of an actor-critic: its two logits become one log-odds."""
    return _from_two_outputs([*_linears(policy.mlp_extractor.policy_net), policy.action_net], layout)


def extract_planner(policy: Any, layout: ObservationLayout, look_after: int) -> Policy:
    """The actor of an actor-critic with MultiBinary actions, which looks after so many blocks."""
    hidden, output = _linears(policy.mlp_extractor.policy_net), policy.action_net
    extracted = Policy("plan", layout, widths=[layer.out_features for layer in hidden], look_after=look_after)
    return _with_layers(extracted, hidden, output.weight, output.bias)


def extract_recurrent_actor(policy: Any, layout: ObservationLayout) -> Policy:
    """The actor's memory and its output layer."""
    lstm: nn.LSTM = policy.lstm_actor
    assert lstm.num_layers == 1 and not _linears(policy.mlp_extractor.policy_net)
    extracted = Policy("lstm", layout, hidden_size=lstm.hidden_size)
    assert isinstance(extracted.rule, LstmRule)
    weights = {name.removesuffix("_l0"): tensor for name, tensor in lstm.state_dict().items()}
    extracted.rule.cell.load_state_dict(weights)
    weight, bias = policy.action_net.weight, policy.action_net.bias
    _set(extracted.rule.output, _run_minus_skip(weight), _run_minus_skip(bias))
    return extracted.eval()


def extract_q_network(policy: Any, layout: ObservationLayout) -> Policy:
    """The value of RUN minus the value of SKIP takes the place of log-odds."""
    return _from_two_outputs(_linears(policy.q_net.q_net), layout)


def extract_quantile_network(policy: Any, layout: ObservationLayout) -> Policy:
    """As `extract_q_network`, with the mean of the quantiles as the value."""
    *hidden, last = _linears(policy.quantile_net.quantile_net)
    mean = nn.Linear(last.in_features, 2)
    _set(mean, last.weight.unflatten(0, (-1, 2)).mean(0), last.bias.unflatten(0, (-1, 2)).mean(0))
    return _from_two_outputs([*hidden, mean], layout)


def extract_per_unit(policy: Any, layout: ObservationLayout) -> Policy:
    """The linear layers of `PerUnitPolicy`."""
    extracted = Policy("per-unit", layout)
    assert isinstance(extracted.rule, PerUnitRule)
    weight = _run_minus_skip(policy.action_net.weight)[0].unflatten(0, (layout.num_units, layout.embed_dim + 1))
    with torch.no_grad():
        extracted.rule.weight.copy_(weight[:, :-1])
        extracted.rule.bias.copy_(weight[:, -1] + _run_minus_skip(policy.action_net.bias))
    return extracted.eval()


def _from_two_outputs(layers: list[nn.Linear], layout: ObservationLayout) -> Policy:
    """Of a network with one output for SKIP and one for RUN."""
    *hidden, last = layers
    extracted = Policy("mlp", layout, widths=[layer.out_features for layer in hidden])
    return _with_layers(extracted, hidden, _run_minus_skip(last.weight), _run_minus_skip(last.bias))


def _with_layers(extracted: Policy, hidden: list[nn.Linear], weight: Tensor, bias: Tensor) -> Policy:
    assert isinstance(extracted.rule, MlpRule | PlanRule)
    for target, source in zip(_linears(extracted.rule.network)[:-1], hidden, strict=True):
        target.load_state_dict(source.state_dict())
    _set(extracted.rule.output, weight, bias)
    return extracted.eval()


def _run_minus_skip(rows: Tensor) -> Tensor:
    """Row 1 (RUN) minus row 0 (SKIP), [1, ...]."""
    return rows[1:] - rows[:1]


@torch.no_grad()
def _set(layer: nn.Linear, weight: Tensor, bias: Tensor) -> None:
    layer.weight.copy_(weight)
    layer.bias.copy_(bias)


def _linears(modules: Iterable[nn.Module]) -> list[nn.Linear]:
    return [layer for layer in modules if isinstance(layer, nn.Linear)]
