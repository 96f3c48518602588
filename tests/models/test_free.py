"""The free form: parts against closed formulas and transformers, no leak from the future, saved and opened."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import kobza
from kobza.core.errors import BadValue, NothingMatched, OutOfRange, UnknownName
from kobza.models import building, free, free_parts
from kobza.models.model import Model
from kobza.models.rereading import Rereader
from kobza.models.stepping import steps
from kobza.models.tiny import byte_tokenizer, tiny

FORMS: list[dict[str, Any]] = [
    {}, {"norm": "layer", "position": "learned", "mlp": "relu"}, {"norm": "none", "position": "none", "mlp": "gelu"},
    {"position": "alibi", "factor": 2.0}, {"scores": "normed", "key_heads": 1}, {"value_heads": 2},
    {"mixers": "fft"}, {"mixers": "state"}, {"mixers": "state+attention+fft"}, {"experts": 4, "active": 2},
    {"distinct": 2}, {"taper": 0.5}, {"taper": -0.5, "distinct": 2},
]  # fmt: skip
every_form = pytest.mark.parametrize("form", FORMS, ids=str)
IDS = torch.randint(0, 300, (2, 16), generator=torch.Generator().manual_seed(0))


def module(seed: int = 0, **form: Any) -> Any:
    config = building.configuration({"model_type": free.FAMILY, "num_hidden_layers": 3, **form})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made = building.model_class(config)(config)
        for p in made.parameters():
            if p.ndim > 1:
                nn.init.normal_(p, std=0.2)
    return made.eval()


def logits(made: Any, ids: torch.Tensor = IDS) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = made(input_ids=ids).logits
    return found


@every_form
def test_no_token_hears_of_those_that_follow_and_all_hear_of_those_before(form: dict[str, Any]) -> None:
    made = module(**form)
    other = IDS.clone()
    other[:, 9] = (other[:, 9] + 1) % 300
    change = (logits(made) - logits(made, other)).abs().amax((0, 2))
    assert change[:9].max() < 2e-5
    assert change[9] > 1e-3
    first = IDS.clone()
    first[:, 0] = (first[:, 0] + 1) % 300
    assert (logits(made) - logits(made, first))[:, 1:].abs().max() > 1e-4


@every_form
def test_parameters_and_multiplications_follow_their_formulas(form: dict[str, Any]) -> None:
    made = module(**form)
    assert free.parameters(made.config) == sum(p.numel() for p in made.parameters())
    if "fft" not in form.get("mixers", "") and "state" not in form.get("mixers", ""):
        with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
            made(input_ids=IDS)
        assert counter.get_total_flops() == 2 * IDS.numel() * free.multiplications(made.config, 16)


@pytest.mark.parametrize("heads", [4, 2])
def test_the_default_form_is_a_llama(heads: int) -> None:
    model = tiny("llama", width=32, heads=4, kv_heads=heads)
    sizes = {"num_hidden_layers": 2, "intermediate_size": model.config.intermediate_size}
    made = module(key_heads=heads, value_heads=heads, **sizes)
    made.load_state_dict(model.module.state_dict(), strict=True)
    for part in made.modules():
        if isinstance(part, nn.RMSNorm):
            part.eps = model.config.rms_norm_eps
    assert torch.allclose(logits(made), logits(model.module), atol=2e-5)


def test_alibi_is_that_of_the_paper() -> None:
    found = free_parts.alibi(8, 3, 1.0)
    assert found[:, 2, 1].tolist() == [-(2.0**-n) for n in range(1, 9)]  # Press et al., figure 3
    assert found[0].tolist() == [[0, -torch.inf, -torch.inf], [-0.5, 0, -torch.inf], [-1.0, -0.5, 0]]


def test_a_convolution_by_fourier_is_the_sum_it_stands_for() -> None:
    x, kernel = torch.randn(2, 7, 3), torch.randn(3, 7)
    wanted = torch.stack([sum(kernel[:, k] * x[:, t - k] for k in range(t + 1)) for t in range(7)], 1)
    assert torch.allclose(free_parts.convolved(x, kernel), wanted, atol=1e-5)


def test_the_state_space_is_its_recurrence() -> None:
    mixer = module(mixers="state").model.layers[0].self_attn
    x = torch.randn(1, 9, 32)
    v, gate = mixer.v_proj(x), nn.functional.silu(mixer.gate_proj(x))
    state, said = torch.zeros(32, free_parts.STATES), []
    for t in range(9):
        state = torch.exp(-mixer.rates.exp()) * state + v[0, t][:, None]
        said.append((mixer.mix * state).sum(-1) + mixer.skip * v[0, t])
    assert torch.allclose(mixer(x), mixer.o_proj(torch.stack(said)[None] * gate), atol=1e-4)


def test_equal_experts_that_are_all_asked_are_one_mlp() -> None:
    experts = module(experts=3, active=3).model.layers[0].mlp
    for expert in experts.experts[1:]:
        expert.load_state_dict(experts.experts[0].state_dict())
    x = torch.randn(2, 5, 32)
    assert torch.allclose(experts(x), experts.experts[0](x), atol=1e-5)
    assert experts.load.tolist() == pytest.approx([1 / 3] * 3)


def test_an_even_load_costs_the_balance_and_a_lopsided_one_more_and_routers_get_gradients() -> None:
    made = module(experts=4, balance=0.5, num_hidden_layers=1).train()
    router = made.model.layers[0].mlp.router
    nn.init.zeros_(router.weight)
    made(input_ids=IDS)
    even: Any = free.penalty(made)
    assert even.item() == pytest.approx(0.5)  # Fedus et al., eq. 4: X sum f P, P = 1 / X
    assert free.penalty(made) == 0.0, "asked once, it is forgotten"
    nn.init.normal_(router.weight, std=5.0)
    made(input_ids=IDS)
    cost: Any = free.penalty(made)
    assert cost.item() > 0.5
    cost.backward()
    ((load, slope),) = free.routers(made)
    assert float(load.sum()) == pytest.approx(1)
    assert float(slope.norm()) > 0  # type: ignore[union-attr]


def test_normalized_scores_do_not_know_how_long_queries_are() -> None:
    made = module(scores="normed")
    before = logits(made)
    with torch.no_grad():
        made.model.layers[1].self_attn.q_proj.weight.mul_(7)
    assert torch.allclose(logits(made), before, atol=1e-4)


def test_shared_layers_are_equal_layers() -> None:
    shared, whole = module(distinct=1), module(distinct=0)
    state = shared.state_dict()
    whole.load_state_dict({name: state[name.replace("layers.1", "layers.0").replace("layers.2", "layers.0")]
                           for name in whole.state_dict()})  # fmt: skip
    assert torch.allclose(logits(shared), logits(whole), atol=1e-5)


@every_form
def test_it_is_saved_and_opened_again(form: dict[str, Any], tmp_path: Path) -> None:
    model = Model("own", module(**form), byte_tokenizer())
    saved = model.save(tmp_path / "model")
    assert not saved.opens_in_transformers
    assert "kobza.open" in saved.statement
    again = kobza.open(tmp_path / "model")
    assert again.fingerprint == model.fingerprint
    assert torch.equal(logits(again.module), logits(model.module))


def test_plain_transformers_refuses_it_by_name(tmp_path: Path) -> None:
    Model("own", module(), byte_tokenizer()).save(tmp_path / "model")
    code = f"from transformers import AutoConfig; AutoConfig.from_pretrained({str(tmp_path / 'model')!r})"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert shown.returncode != 0
    assert "`kobza`" in shown.stderr


def test_without_a_cache_pieces_equal_the_whole_run() -> None:
    model = Model("own", module(mixers="state+attention"), byte_tokenizer())
    expected = logits(model.module)
    run = steps(model, 2)
    assert isinstance(run, Rereader)
    assert torch.allclose(run.feed(IDS[:, :9], keep=9), expected[:, :9], atol=1e-5)
    twin = run.fork()
    run.feed(IDS[:, :3])
    run.rollback(3)
    assert torch.allclose(run.feed(IDS[:, 9:11]), expected[:, 10], atol=1e-5)
    twin.select([1])
    assert torch.allclose(twin.feed(IDS[1:, 9:12]), expected[1:, 11], atol=1e-5)
    assert set(run.feed_layers(IDS[:, 11:12], [1])) == {1, 3}
    logits_, states = run.feed_states(IDS[:, 12:14])
    assert states.shape == (2, 2, 32)
    assert torch.allclose(model.module.lm_head(states[:, -1]), logits_, atol=1e-5)


def test_a_tree_is_read_branch_by_branch() -> None:
    model = Model("own", module(mixers="state+attention"), byte_tokenizer())
    run = steps(model)
    run.feed(IDS[:1, :5])
    found, states = run.feed_tree([7, 8, 9], [-1, 0, 0])
    for ids, row in (([7], 0), ([7, 8], 1), ([7, 9], 2)):
        whole = torch.cat([IDS[:1, :5], torch.tensor([ids])], 1)
        assert torch.allclose(found[row], logits(model.module, whole)[0, -1], atol=1e-5)
    assert states.shape == (3, 32)
    run.prune(3, [0, 2])
    whole = torch.cat([IDS[:1, :5], torch.tensor([[7, 9, 4]])], 1)
    assert torch.allclose(run.feed([[4]])[0], logits(model.module, whole)[0, -1], atol=1e-5)


def test_what_a_form_cannot_be_is_said() -> None:
    with pytest.raises(UnknownName, match="attention"):
        free.form(mixers="atention")
    with pytest.raises(OutOfRange, match="active 3 of 2"):
        free.form(experts=2, active=3)
    with pytest.raises(OutOfRange, match="3 of keys"):
        module(key_heads=3)
    with pytest.raises(BadValue, match="norm='nrm'"):
        building.configuration({"model_type": free.FAMILY, "norm": "nrm"})
    with pytest.raises(BadValue, match="mask"):
        module()(input_ids=IDS, attention_mask=torch.zeros_like(IDS))
    with pytest.raises(NothingMatched, match="neuron"):
        Model("own", module(experts=2), byte_tokenizer()).trace("the", ["neuron"])
