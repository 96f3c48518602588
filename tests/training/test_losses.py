"""The head and the loss in pieces: equal to torch's own in value and gradient."""

import pytest
import torch
from torch import nn

import kobza
from kobza.training.parts import losses


@pytest.fixture
def pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make even these small tables go in several pieces."""
    monkeypatch.setattr(losses, "PIECE", 4)
    monkeypatch.setattr(losses, "_LEAST", 3)


def drawn() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    states = torch.randn(11, 8, generator=g, requires_grad=True)
    weight = torch.randn(50, 8, generator=g, requires_grad=True)
    bias = torch.randn(50, generator=g, requires_grad=True)
    return states, weight, bias, torch.randint(50, (11,), generator=g)


@pytest.mark.usefixtures("pieces")
def test_loss_and_gradients_equal_cross_entropy() -> None:
    states, weight, bias, targets = drawn()
    wanted = nn.functional.cross_entropy(states @ weight.T + bias, targets)
    slopes = torch.autograd.grad(3 * wanted, (states, weight, bias))
    found, each = losses.linear_cross_entropy(states, weight, targets, bias=bias)
    assert found.item() == pytest.approx(wanted.item(), abs=1e-5)
    assert each.mean().item() == pytest.approx(wanted.item(), abs=1e-5)
    for ours, theirs in zip(torch.autograd.grad(3 * found, (states, weight, bias)), slopes, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-5)


@pytest.mark.usefixtures("pieces")
def test_shares_weigh_the_rows() -> None:
    states, weight, bias, targets = drawn()
    shares = torch.linspace(0, 1, 11)
    each = nn.functional.cross_entropy(states @ weight.T + bias, targets, reduction="none")
    found, _ = losses.linear_cross_entropy(states, weight, targets, bias=bias, shares=shares)
    assert found.item() == pytest.approx((each * shares).sum().item(), rel=1e-5)
    ours = torch.autograd.grad(found, weight)[0]
    assert torch.allclose(ours, torch.autograd.grad((each * shares).sum(), weight)[0], atol=1e-5)


@pytest.mark.usefixtures("pieces")
def test_log_probabilities_of_rows_and_their_gradients_equal_log_softmax() -> None:
    states, weight, bias, targets = drawn()
    wanted = (states @ weight.T + bias).log_softmax(-1).gather(-1, targets[:, None])[:, 0]
    upstream = torch.linspace(-1, 2, 11)
    slopes = torch.autograd.grad(wanted, (states, weight, bias), upstream)
    found = losses._Rows.apply(states, weight, bias, targets)
    assert torch.allclose(found, wanted, atol=1e-5)
    for ours, theirs in zip(torch.autograd.grad(found, (states, weight, bias), upstream), slopes, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-5)


def test_a_frozen_head_gets_no_gradient() -> None:
    states, weight, bias, targets = drawn()
    found, _ = losses.linear_cross_entropy(states, weight.detach(), targets, bias=bias.detach())
    found.backward()
    assert states.grad is not None
    assert weight.grad is None


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "cohere", "granite"])
def test_the_loss_of_a_model_is_that_of_its_own_logits(family: str) -> None:
    module = kobza.open(f"tiny:{family}").module
    ids = torch.randint(300, (2, 9), generator=torch.Generator().manual_seed(1))
    logits = module(input_ids=ids[:, :-1]).logits
    wanted = nn.functional.cross_entropy(logits.reshape(16, -1), ids[:, 1:].reshape(-1))
    assert losses.mean_loss(module, ids[:, :-1], ids[:, 1:])[0].item() == pytest.approx(wanted.item(), abs=1e-5)
    mask = torch.tensor([[True] * 8, [False] * 4 + [True] * 4])
    logps = losses.token_logps(module, ids[:, :-1], ids[:, 1:], mask)
    theirs = logits.log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0] * mask
    assert torch.allclose(logps, theirs, atol=1e-4)
