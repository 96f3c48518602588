"""The two halves of a forward pass: the body up to the final states, and the head from states to logits."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions

from kobza.core.errors import BadValue
from kobza.models.model import Model


def body(module: Any, **inputs: Any) -> Tensor:
    """Return the states behind the final norm (B, T, D); inputs as transformers names them."""
    states: Tensor = module.base_model(**inputs, use_cache=False).last_hidden_state
    return states


@torch.inference_mode()
def final_states(model: Model, ids: Tensor) -> Tensor:
    """Return the states behind the final norm, (B, T, D), for ids (B, T)."""
    return body(model.module, input_ids=ids.to(model.device))


def head(model: Model, states: Tensor, *, tokens: Sequence[int] | None = None, table: Tensor | None = None) -> Tensor:
    """Return the logits (..., V) of final states (..., D), with the family's own scale and soft cap.

    It is the module's own forward with the body replaced by one that hands back the states, so nothing about a
    family has to be known; differentiable. With `tokens`, only their logits (..., tokens) are computed; with `table`
    (V, D), one that learns say, it stands in for the model's own output table.

    Raises:
        BadValue: the family's forward does more than body and head (see `head_fits`).
    """
    if not head_fits(model):
        raise BadValue(f"the head of {model.name!r} ({model.family.name}) cannot be applied to states given by hand.")
    module = model.module
    if table is not None:
        module = _with_output(module, _Table(table, getattr(module.get_output_embeddings(), "bias", None)))
    return _apply_head(
        module if tokens is None else _with_output(module, _Rows(module.get_output_embeddings(), list(tokens))), states
    )


def _with_output(module: Any, output: nn.Module) -> nn.Module:
    """The module with another output table."""
    own = module.get_output_embeddings()
    name = next(name for name, part in module._modules.items() if part is own)  # beside the body: `head_fits`
    twin = copy.copy(module)
    twin._modules = dict(module._modules)
    twin._modules[name] = output
    return twin


class _Table(nn.Module):
    """An output table given as a tensor, with the bias of the one in whose place it stands."""

    def __init__(self, table: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.table, self.bias = [table], bias

    def forward(self, states: Tensor) -> Tensor:
        (table,) = self.table
        return nn.functional.linear(states.to(table.dtype), table, self.bias)


class _Rows(nn.Module):
    """Some rows of an output table."""

    def __init__(self, table: Any, tokens: list[int]) -> None:
        super().__init__()
        self.table, self.tokens = [table], tokens
        self.is_linear = type(table) is nn.Linear

    def forward(self, states: Tensor) -> Tensor:
        (table,) = self.table
        if not self.is_linear:  # stored as factors or codes
            whole: Tensor = table(states)
            return whole[..., self.tokens]
        bias = None if table.bias is None else table.bias[self.tokens]
        return nn.functional.linear(states, table.weight[self.tokens], bias)


def head_fits(model: Model) -> bool:
    """Whether `head(final_states(ids))` equals the module's own logits; tried once per model, on four positions."""
    if model.head_is_exact is None:
        model.head_is_exact = _try_head(model)
    return model.head_is_exact


@torch.inference_mode()
def _try_head(model: Model) -> bool:
    ids = torch.arange(4, device=model.device)[None] % model.vocabulary
    whole = model.module(input_ids=ids, use_cache=False).logits
    try:
        halves = _apply_head(model.module, final_states(model, ids))
    except (AttributeError, KeyError, TypeError, ValueError, RuntimeError):
        return False  # a forward of another make: its logits are taken whole
    largest = float(whole.abs().nan_to_num(nan=0.0, posinf=0.0).max())  # weights may be broken: measures say so
    return halves.shape == whole.shape and torch.allclose(halves, whole, rtol=1e-4, atol=1e-4 * largest, equal_nan=True)


def _apply_head(module: Any, states: Tensor) -> Tensor:
    flat = states.reshape(1, -1, states.shape[-1])
    logits: Tensor = _headed(module, flat)(input_ids=None, use_cache=False).logits
    return logits.reshape(*states.shape[:-1], -1)


class _Given(nn.Module):
    """A body that returns given states, whatever it is asked."""

    def __init__(self, states: Tensor) -> None:
        super().__init__()
        self.states = states

    @property
    def decoder(self) -> _Given:  # OPT calls the decoder within its body
        return self

    def forward(self, *_: Any, **__: Any) -> BaseModelOutputWithPastAndCrossAttentions:
        return BaseModelOutputWithPastAndCrossAttentions(last_hidden_state=self.states)


def _headed(module: Any, states: Tensor) -> nn.Module:
    twin = copy.copy(module)  # shallow: weights and hooks are the same objects
    twin._modules = dict(module._modules)
    twin._modules[str(module.base_model_prefix)] = _Given(states)
    return twin
