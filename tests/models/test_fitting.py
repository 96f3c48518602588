"""Fitting: finds known minima, follows its schedule, stops where numbers end."""

import pytest
import torch

from kobza.core.errors import NotFinite, OutOfRange
from kobza.models.fitting import fit, schedule


def test_least_squares_ends_at_the_closed_form():
    draw = torch.Generator().manual_seed(0)
    A, b = torch.randn(40, 3, generator=draw), torch.randn(40, generator=draw)
    x = torch.zeros(3, requires_grad=True)
    history = fit([x], lambda step: ((A @ x - b) ** 2).mean(), steps=400, rate=0.05)
    assert torch.allclose(x.detach(), torch.linalg.lstsq(A, b[:, None]).solution[:, 0], atol=1e-3)
    assert len(history) == 400 and history[-1] < history[0]


def test_the_schedule_rises_to_one_and_falls_to_zero():
    shares = [schedule(step, 100, 0.1) for step in range(100)]
    assert shares[9] == 1 and max(shares) == 1
    assert shares[:10] == sorted(shares[:10]) and shares[10:] == sorted(shares[10:], reverse=True)
    assert 0 < shares[-1] < 1e-3


def test_a_fit_inside_inference_mode_still_has_gradients():
    x = torch.ones(1, requires_grad=True)
    with torch.inference_mode():
        fit([x], lambda step: (x**2).sum(), steps=1, rate=0.5)
    assert x.item() == pytest.approx(0.5, abs=1e-4)


def test_a_loss_that_is_not_finite_stops_at_its_step_and_keeps_the_last_values():
    x = torch.ones(1, requires_grad=True)
    with pytest.raises(NotFinite, match="step 2 of 5"):
        fit([x], lambda step: (x * (float("nan") if step == 2 else 1)).sum(), steps=5, rate=0.1)
    assert torch.isfinite(x).all()


@pytest.mark.parametrize(("steps", "rate"), [(0, 0.1), (1, 0.0), (1, float("nan"))])
def test_nothing_to_do_is_refused(steps, rate):
    with pytest.raises(OutOfRange):
        fit([torch.ones(1, requires_grad=True)], lambda step: torch.tensor(0.0), steps=steps, rate=rate)


def test_a_killed_fit_goes_on_to_the_same_bits(tmp_path, monkeypatch):
    from kobza.models import fitting

    monkeypatch.setattr(fitting, "EVERY", -1.0)  # after every step
    state = tmp_path / "state.safetensors"
    target = torch.arange(6.0)

    def fitted(kill: int = -1):
        x = torch.zeros(6, requires_grad=True)

        def loss(step: int):
            if step == kill:
                raise KeyboardInterrupt
            return ((x - target) ** 2 * (1 + step % 3)).sum()

        return x, lambda: fit([x], loss, steps=20, rate=0.1, state=state)

    whole, run = fitted()
    history = run()
    assert not state.exists()
    _, run = fitted(kill=7)
    with pytest.raises(KeyboardInterrupt):
        run()
    assert state.exists()
    again, run = fitted()
    assert run() == history
    assert torch.equal(again, whole)
    assert not state.exists()
