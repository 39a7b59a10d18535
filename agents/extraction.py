"""The decision maker taken out of a Stable-Baselines3 policy, as a plain torch module with copied weights.

What comes out is held against the policy on random observations; one that it cannot stand for, e.g. with another
activation or feature extractor, is refused. Normalisation by a wrapper (`VecNormalize`) is not the policy's, and lost.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from ..envs.observation import ObservationLayout
from .networks import LstmRule, MlpRule, PerUnitRule, PlanRule
from .policy import Policy


def extract_actor(policy: Any, layout: ObservationLayout) -> Policy:
    """The actor of an actor-critic: its two logits become one log-odds.

    Raises:
        ValueError: for a policy that `MlpRule` cannot stand for: tanh between linear layers on the flat observation.
    """
    _expect(policy, layout, "mlp_extractor", "extract_actor", "an actor-critic without a memory")
    extracted = _from_two_outputs([*_linears(policy.mlp_extractor.policy_net), policy.action_net], layout)
    return _checked(extracted, policy, lambda seen: _run_minus_skip(_actor_outputs(policy, seen).T)[0])


def extract_planner(policy: Any, layout: ObservationLayout, look_after: int) -> Policy:
    """The actor of an actor-critic with MultiBinary actions, which looks after so many blocks."""
    _expect(policy, layout, "mlp_extractor", "extract_planner", "an actor-critic without a memory", layout.num_units)
    hidden, output = _linears(policy.mlp_extractor.policy_net), policy.action_net
    extracted = Policy("plan", layout, widths=[layer.out_features for layer in hidden], look_after=look_after)
    extracted = _with_layers(extracted, hidden, output.weight, output.bias)
    return _checked(extracted, policy, lambda seen: _actor_outputs(policy, seen))


def extract_recurrent_actor(policy: Any, layout: ObservationLayout) -> Policy:
    """The actor's memory and its output layer.

    Raises:
        ValueError: for a policy without a memory, or with other layers than one of an LSTM and the last.
    """
    _expect(policy, layout, "lstm_actor", "extract_recurrent_actor", "an actor-critic with an LSTM")
    lstm: nn.LSTM = policy.lstm_actor
    if lstm.num_layers != 1 or _linears(policy.mlp_extractor.policy_net) or lstm.input_size != layout.size:
        raise ValueError("policy: expected one LSTM layer on the observation and no layers after it (net_arch=[])")
    extracted = Policy("lstm", layout, hidden_size=lstm.hidden_size)
    assert isinstance(extracted.rule, LstmRule)
    weights = {name.removesuffix("_l0"): tensor for name, tensor in lstm.state_dict().items()}
    extracted.rule.cell.load_state_dict(weights)
    weight, bias = policy.action_net.weight, policy.action_net.bias
    _set(extracted.rule.output, _run_minus_skip(weight), _run_minus_skip(bias))
    return extracted.eval()


def extract_q_network(policy: Any, layout: ObservationLayout) -> Policy:
    """The value of RUN minus the value of SKIP takes the place of log-odds.

    Raises:
        ValueError: for a policy that is no Q-network of tanh between linear layers on the flat observation.
    """
    _expect(policy, layout, "q_net", "extract_q_network", "DQN's")
    extracted = _from_two_outputs(_linears(policy.q_net.q_net), layout)
    return _checked(extracted, policy, lambda seen: _run_minus_skip(policy.q_net(seen).T)[0])


def extract_quantile_network(policy: Any, layout: ObservationLayout) -> Policy:
    """As `extract_q_network`, with the mean of the quantiles as the value."""
    _expect(policy, layout, "quantile_net", "extract_quantile_network", "QR-DQN's")
    *hidden, last = _linears(policy.quantile_net.quantile_net)
    mean = nn.Linear(last.in_features, 2)
    _set(mean, last.weight.unflatten(0, (-1, 2)).mean(0), last.bias.unflatten(0, (-1, 2)).mean(0))
    extracted = _from_two_outputs([*hidden, mean], layout)
    return _checked(extracted, policy, lambda seen: _run_minus_skip(policy.quantile_net(seen).mean(1).T)[0])


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


def _expect(policy: Any, layout: ObservationLayout, part: str, extractor: str, kind: str, num_outputs: int = 2) -> None:
    """Refuse a policy of another kind, or for other observations or actions."""
    fits = hasattr(policy, part) and (part == "lstm_actor" or not hasattr(policy, "lstm_actor"))
    if not fits:
        raise ValueError(f"policy: {extractor} expected {kind}, got {type(policy).__name__}")
    shape, actions = tuple(policy.observation_space.shape), policy.action_space
    if shape != (layout.size,):
        raise ValueError(f"policy: expected one of observations [{layout.size}], got {list(shape)}")
    if int(getattr(actions, "n", 0)) != num_outputs:
        raise ValueError(f"policy: expected one of {num_outputs} outputs, got the action space {actions}")


def _actor_outputs(policy: Any, seen: Tensor) -> Tensor:
    features = policy.extract_features(seen, policy.pi_features_extractor)
    return policy.action_net(policy.mlp_extractor.forward_actor(features))


@torch.no_grad()
def _checked(extracted: Policy, policy: Any, log_odds: Callable[[Tensor], Tensor]) -> Policy:
    """The extracted policy, if its log-odds are those of the policy that it was taken from, but for rounding."""
    seen = 2 * torch.rand(64, extracted.layout.size, generator=torch.Generator().manual_seed(0)) - 1
    theirs = log_odds(seen.to(policy.device)).cpu()
    ours = extracted.log_odds(seen)[0].reshape(theirs.shape)
    if (ours - theirs).abs().max() > 0.02 * theirs.abs().max() + 1e-4:  # as far as TF32 may be off
        raise ValueError(
            "policy: expected tanh between linear layers on the flat observation (SB3's default for PPO and A2C; "
            "of others policy_kwargs=dict(activation_fn=torch.nn.Tanh)), got one that decides otherwise"
        )
    return extracted


def _run_minus_skip(rows: Tensor) -> Tensor:
    """Row 1 (RUN) minus row 0 (SKIP), [1, ...]."""
    return rows[1:] - rows[:1]


@torch.no_grad()
def _set(layer: nn.Linear, weight: Tensor, bias: Tensor) -> None:
    layer.weight.copy_(weight)
    layer.bias.copy_(bias)


def _linears(modules: Iterable[nn.Module]) -> list[nn.Linear]:
    return [layer for layer in modules if isinstance(layer, nn.Linear)]
