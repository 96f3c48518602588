"""Path patching: equal to whole passes with everything else held, and a hand-written circuit is read off exactly."""

from typing import Any

import pytest
import torch

from kobza.core.errors import BadValue
from kobza.interventions import paths
from kobza.interventions.base import aligned_ids
from kobza.models.hooks import Hook, hooked
from kobza.models.tiny import tiny as make

CLEAN, CORRUPT = "the winds of it", "the winks of it"
TOKEN = 40


def values(model: Any, ids: list[int], site: str) -> torch.Tensor:
    found: torch.Tensor = model.trace(ids, site)[site]
    return found


def held(model: Any, ids: list[int], through: str, sender: str, difference: torch.Tensor) -> list[Hook]:
    """Hooks that keep every attention (and MLP) at its own value, the sender's with a difference."""
    kinds = ("attn_out",) if through == "mlps" else ("attn_out", "mlp_out")
    hooks = []
    for layer in range(model.layers):
        for kind in kinds:
            own = values(model, ids, f"{kind}.{layer}")
            name = f"{kind}.{layer}"
            hooks.append(Hook(name, lambda v, own=own + difference * (name == sender): own.expand_as(v)))
    if sender.startswith("mlp_out") and through == "mlps":
        hooks.append(Hook(sender, lambda v: v + difference))
    return hooks


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2", "gpt_neox"])
@pytest.mark.parametrize("through", ["nothing", "mlps"])
@pytest.mark.parametrize("sender", ["attn_out.0", "mlp_out.0", "attn_out.1"])
@pytest.mark.parametrize("receiver", ["logits", "q.1.2", "k.1.1", "v.1.0", "mlp_out.1"])
def test_a_path_equals_whole_passes_with_all_else_held(family: str, through: Any, sender: str, receiver: str) -> None:
    model = make(family)
    is_parallel = model.family.is_parallel(model.config)
    if (sender == "attn_out.1" and receiver[0] in "qkv") or (is_parallel and receiver == "mlp_out.1"):
        pytest.skip("the receiver does not see this sender")
    ids, other = aligned_ids(model, CLEAN, CORRUPT)
    word = model.tokenizer.bytes_of(TOKEN).decode()
    options = {"clean": CLEAN, "corrupt": CORRUPT, "metric": f"logit:{word}", "controls": 0, "through": through}
    found = paths.run(model, **options, senders=sender, receiver=receiver).tables[0][0][f"logit:{word}"]
    hooks = held(model, other, through, sender, values(model, ids, sender) - values(model, other, sender))
    fed = torch.tensor([other])
    with torch.inference_mode():
        if receiver == "logits":
            with hooked(model, hooks):
                expected = model.module(input_ids=fed).logits[0, -1, TOKEN]
        else:
            seen: list[torch.Tensor] = []
            own = [h for h in hooks if h.site != receiver]  # the receiver itself is not held
            with hooked(model, [*own, Hook(receiver, lambda v: seen.append(v.clone()))]):
                model.module(input_ids=fed)
            with hooked(model, [Hook(receiver, lambda v: seen[0])]):
                expected = model.module(input_ids=fed).logits[0, -1, TOKEN]
    assert found == pytest.approx(float(expected), rel=1e-4, abs=1e-5)


def test_heads_add_up_to_their_attention(tiny: Any) -> None:
    """The differences of all heads of a layer together are that of attn_out."""
    options = {"clean": CLEAN, "corrupt": CORRUPT, "controls": 0, "metric": "logit:k"}
    ids, other = aligned_ids(tiny, CLEAN, CORRUPT)
    from kobza.interventions.base import places
    from kobza.interventions.planner import Run

    source, target = Run(tiny, ids), Run(tiny, other)
    parts = [paths._difference(source, target, p) for p in places(tiny, ids, "head_out.0.*")]
    whole = paths._difference(source, target, places(tiny, ids, "attn_out.0")[0])
    torch.testing.assert_close(torch.stack(parts).sum(0), whole, rtol=1e-4, atol=1e-6)
    assert len(paths.run(tiny, **options).tables[0]) == 8


def test_the_written_induction_circuit_is_read_off(written_induction: Any) -> None:
    """The previous-token head reaches the keys of the induction head, and not its queries."""
    model = written_induction
    options: dict[str, Any] = {"clean": "kbcdk", "corrupt": "xbcdk", "metric": "logit:b"}
    effects = {}
    for receiver in ("k.1.2", "q.1.2", "k.1.0", "logits"):
        table = paths.run(model, **options, receiver=receiver, senders="head_out.0.*").tables[0]
        effects[receiver] = {row["short"]: abs(row["logit:b change"]) for row in table}
    assert effects["k.1.2"]["L0H1"] > 0.05
    others = [
        e for receiver, row in effects.items() for name, e in row.items() if (receiver, name) != ("k.1.2", "L0H1")
    ]
    assert max(others) < 1e-3


def test_without_controls_it_is_labelled(tiny: Any) -> None:
    assert "uncontrolled" in paths.run(tiny, clean=CLEAN, corrupt=CORRUPT, controls=0).title
    assert "uncontrolled" not in paths.run(tiny, clean=CLEAN, corrupt=CORRUPT).title


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"senders": "q.0.1"}, "does not write"),
        ({"receiver": "q.1.*"}, "not one place"),
        ({"receiver": "resid_post.1"}, "not one place"),
        ({"receiver": "q.0.1"}, "no sender"),
        ({"metric": "loss"}, "take prob"),
    ],
)
def test_what_is_no_path_is_refused(tiny: Any, options: dict[str, str], text: str) -> None:
    with pytest.raises(BadValue, match=text):
        paths.run(tiny, **{"clean": CLEAN, "corrupt": CORRUPT, **options})
