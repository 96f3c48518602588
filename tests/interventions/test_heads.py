"""Heads: a hand-written induction head is found exactly, together with the previous-token head it stands on."""

from typing import Any

import pytest
import torch

from kobza.core.errors import OutOfRange
from kobza.interventions import heads
from kobza.models.tiny import tiny as make

E = 64  # width of a head, of the token part, of the position part, of the part for the previous token
TOKEN, POSITION, PREVIOUS = slice(0, E), slice(E, 2 * E), slice(2 * E, 3 * E)
SHARP = 40.0


@pytest.fixture(scope="module")
def wired() -> Any:
    """A 2-layer GPT-2: head 1 of layer 0 copies the previous token, head 2 of layer 1 finds it again; nothing else."""
    model = make("gpt2", width=3 * E, heads=3, kv_heads=3, tied=False)
    body = model.module.transformer
    with torch.no_grad():
        for parameter in (*body.h.parameters(), body.wte.weight, body.wpe.weight):
            parameter.zero_()
        for block in body.h:
            block.ln_1.weight.fill_(1)
            block.ln_2.weight.fill_(1)
        draw = torch.Generator().manual_seed(0)
        tokens = torch.randn(model.vocabulary, E, generator=draw)
        body.wte.weight[:, TOKEN] = tokens / tokens.norm(dim=1, keepdim=True)
        body.wpe.weight[:E, POSITION] = torch.eye(E)
        one = torch.eye(E)
        write(body.h[0], 1, q=(POSITION, SHARP * one.roll(-1, 1)), k=(POSITION, one), v=(TOKEN, one), o=(PREVIOUS, one))
        write(body.h[1], 2, q=(TOKEN, SHARP * one), k=(PREVIOUS, one), v=(PREVIOUS, one), o=(TOKEN, one))
    return model


def write(block: Any, head: int, **parts: Any) -> None:
    """Put matrices (inputs x outputs) into one head; `roll(-1, 1)` sends position t to t - 1."""
    at = slice(head * E, (head + 1) * E)
    for number, name in enumerate("qkv"):
        rows, matrix = parts[name]
        block.attn.c_attn.weight[rows, slice(number * 3 * E + at.start, number * 3 * E + at.stop)] = matrix
    columns, matrix = parts["o"]
    block.attn.c_proj.weight[at, columns] = matrix


def test_the_written_induction_head_is_found_exactly(wired: Any) -> None:
    table = heads.run(wired, length=16, count=1).tables[0]
    assert table[0]["head"] == "L1H2"
    assert table[0]["induction"] > 0.9
    assert all(value < 0.2 for value in table["induction"][1:])


def test_the_written_previous_token_head_is_found_exactly(wired: Any) -> None:
    table = heads.run(wired, length=16, count=1).tables[0].sorted("previous", reverse=True)
    assert table[0]["head"] == "L0H1"
    assert table[0]["previous"] > 0.9
    assert all(value < 0.2 for value in table["previous"][1:])


@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma2", "gpt2", "gpt_neox", "opt", "phi"])
def test_rows_of_the_pattern_sum_to_1_and_look_only_back(family: str) -> None:
    model = make(family)
    before = model.config._attn_implementation
    found = heads.patterns(model, list(range(3, 20)))
    torch.testing.assert_close(found.sum(-1), torch.ones(found.shape[:-1]), rtol=0, atol=1e-5)
    assert float(found.triu(1).abs().max()) == 0
    assert model.config._attn_implementation == before


def test_the_way_of_attending_is_set_back_after_an_error(tiny: Any) -> None:
    before = tiny.config._attn_implementation
    with pytest.raises(IndexError):
        heads.patterns(tiny, [10**6])
    assert tiny.config._attn_implementation == before


def test_the_pattern_is_the_softmax_of_queries_and_keys() -> None:
    """Authority: computed from q and k by hand, where no rotation stands between (GPT-2)."""
    model = make("gpt2")
    ids = model.tokenizer.encode("the banks of it", start=True)
    trace = model.trace(ids, ["q.1", "k.1"])
    q, k = (trace[name, 1].transpose(0, 1) for name in ("q", "k"))
    weights = q @ k.transpose(1, 2) / q.shape[-1] ** 0.5
    masked = weights.masked_fill(torch.ones(len(ids), len(ids)).triu(1).bool(), -torch.inf)
    torch.testing.assert_close(heads.patterns(model, ids)[1], masked.softmax(-1), rtol=1e-4, atol=1e-6)


def test_without_controls_the_result_says_so(tiny: Any) -> None:
    assert "uncontrolled" in heads.run(tiny, controls=0).title
    assert "uncontrolled" not in heads.run(tiny).title


@pytest.mark.parametrize("options", [{"length": 3}, {"repeats": 0}, {"length": 400}])
def test_texts_that_cannot_be_made_are_refused(tiny: Any, options: dict[str, int]) -> None:
    with pytest.raises(OutOfRange, match=r"length"):
        heads.run(tiny, **options)


def test_zero_and_mean_are_what_their_names_say(wired: Any) -> None:
    """The written head's output differs from token to token: its mean carries no copy, so both cost the copying."""
    zero, mean = (heads.run(wired, length=16, count=1, kind=kind).reading("without").value for kind in ("zero", "mean"))
    assert zero > 0.003
    assert mean > 0.003
    assert zero != mean


def test_each_head_alone_is_the_set_of_one(wired: Any) -> None:
    result = heads.run(wired, length=16, count=1, alone=True)
    assert result.tables[0][0]["alone"] == result.reading("without").value
    silent = [row["alone"] for row in result.tables[0] if row["head"] not in ("L0H1", "L1H2")]
    assert silent == pytest.approx([0] * 4, abs=1e-6)


def test_bystanders_look_at_none_of_the_three(wired: Any) -> None:
    """L0H1 looks back one: it may be drawn as any other head, not as a bystander."""
    result = heads.run(wired, length=16, count=1, controls=30)
    assert result.reading("control").high == pytest.approx(0, abs=1e-6)
    assert result.reading("control_any").high > 0.003


@pytest.mark.real
@pytest.mark.parametrize("kind", ["zero", "mean"])
def test_on_smollm2_the_heads_found_carry_the_copying(smollm2: Any, kind: Any) -> None:
    result = heads.run(smollm2, kind=kind, controls=6)
    assert result.tables[0][0]["head"] == "L18H6"
    assert result.reading("without").value > 4
    assert result.reading("control").value < 1
