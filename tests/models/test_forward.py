"""Forward passes: equal to the plain transformers computation, in chunks, with caches, with gradients."""

import math

import pytest
import torch
from torch.nn.functional import cross_entropy

from kobza.core.errors import BadValue, EmptyText, OutOfRange
from kobza.models import forward
from kobza.models.model import Change, Factors, Model
from kobza.models.tiny import FAMILIES, PARAGRAPH, tiny

SOME = ("llama", "gemma2", "gpt2", "gpt_neox", "opt", "cohere", "granite", "phi")


def ids_of(model: Model, count: int = 150) -> list[int]:
    return model.tokenizer.encode(PARAGRAPH)[:count]


def plain_bits(model: Model, ids: list[int]) -> torch.Tensor:
    """Bits of each token by the plain computation: start token, full logits, cross entropy in float64."""
    fed = torch.tensor([[0, *ids[:-1]]])
    with torch.no_grad():
        logits = model.module(fed).logits[0].double()
    return cross_entropy(logits, torch.tensor(ids), reduction="none") / math.log(2)


@pytest.mark.parametrize("family", FAMILIES)
def test_bits_equal_the_cross_entropy_of_the_full_logits(family: str) -> None:
    model = tiny(family)
    ids = ids_of(model)
    bits = forward.token_bits(model, ids, window=512, overlap=0, chunk=13)
    assert bits.shape == (150,) and bits.dtype == torch.float32
    assert torch.allclose(bits.double(), plain_bits(model, ids), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", SOME)
@pytest.mark.parametrize(("window", "overlap"), [(32, 0), (32, 8), (31, 30), (1, 0), (150, 10), (149, 1)])
def test_every_window_is_scored_as_if_it_stood_alone(family: str, window: int, overlap: int) -> None:
    model = tiny(family)
    ids = ids_of(model)
    bits = forward.token_bits(model, ids, window=window, overlap=overlap)
    for begin, score_from, end in forward.windows(len(ids), window, overlap)[:5]:
        alone = plain_bits(model, ids[begin:end])
        assert torch.allclose(bits[score_from:end].double(), alone[score_from - begin :], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("n", "window", "overlap"), [(10, 4, 1), (1, 1, 0), (7, 7, 3), (8, 7, 3), (100, 32, 31)])
def test_windows_score_every_token_once_and_are_never_too_long(n: int, window: int, overlap: int) -> None:
    cut = forward.windows(n, window, overlap)
    assert [i for _, first, end in cut for i in range(first, end)] == list(range(n))
    assert all(end - begin <= window and 0 <= begin <= first < end for begin, first, end in cut)
    assert all(first - begin == overlap for begin, first, _ in cut[1:])


def test_without_a_start_token_a_first_token_costs_the_logarithm_of_the_vocabulary() -> None:
    model = tiny("qwen2")
    bare = Model("bare", model.module, _without_start(model))
    ids = ids_of(model, 40)
    bits = forward.token_bits(bare, ids, window=16, overlap=0)
    assert [i for i, b in enumerate(bits.tolist()) if b == pytest.approx(math.log2(300))] == [0, 16, 32]
    logits = bare.module(torch.tensor([ids[:16]])).logits[0].double()
    alone = cross_entropy(logits[:-1], torch.tensor(ids[1:16]), reduction="none") / math.log(2)
    assert torch.allclose(bits[1:16].double(), alone, rtol=1e-5, atol=1e-5)
    overlapped = forward.token_bits(bare, ids, window=16, overlap=4)
    assert float(overlapped[0]) == pytest.approx(math.log2(300)) and len(overlapped) == 40
    assert float(forward.token_bits(bare, ids[:1])[0]) == pytest.approx(math.log2(300))
    rows = _filled(forward.log_probabilities(bare, ids, window=16, overlap=0), 40)
    assert torch.allclose(-rows[torch.arange(40), ids], bits, atol=1e-5)


def _without_start(model: Model) -> object:
    from kobza.tokens.base import Marks, Tokenizer

    return Tokenizer(model.tokenizer._backend, Marks(), name="bare")


def _filled(pieces: object, count: int) -> torch.Tensor:
    rows = torch.full((count, 300), float("nan"))
    for at, part in pieces:  # type: ignore[attr-defined]
        assert torch.isnan(rows[at]).all(), "every position comes once"
        rows[at] = part
    assert not torch.isnan(rows).any()
    return rows


@pytest.mark.parametrize(("window", "overlap"), [(64, 16), (16, 0), (300, 0)])
def test_log_probabilities_sum_to_one_and_hold_the_bits(window: int, overlap: int) -> None:
    model = tiny()
    ids = ids_of(model)
    rows = _filled(forward.log_probabilities(model, ids, window=window, overlap=overlap, chunk=50), len(ids))
    assert torch.allclose((rows.double() * math.log(2)).exp().sum(-1), torch.ones(150, dtype=torch.float64), atol=1e-5)
    bits = forward.token_bits(model, ids, window=window, overlap=overlap)
    assert torch.allclose(-rows[torch.arange(150), ids], bits, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_head_applied_to_states_gives_the_modules_logits_bit_for_bit(family: str) -> None:
    model = tiny(family)
    ids = torch.tensor([[0, 40, 50, 60], [0, 44, 55, 66]])
    assert forward.head_fits(model)
    with torch.inference_mode():
        assert torch.equal(forward.head(model, forward.final_states(model, ids)), forward.logits(model, ids))


def test_a_forward_that_is_not_body_and_head_falls_back_to_its_own_logits() -> None:
    model = tiny()

    class Shifted(type(model.module)):  # type: ignore[misc]
        def forward(self, input_ids: torch.Tensor | None = None, **kwargs: object) -> object:
            out = super().forward(input_ids, **kwargs)
            out.logits = out.logits + (0 if input_ids is None else 0.1 * torch.arange(300))
            return out

    odd = model.fork()
    odd.module.__class__ = Shifted
    odd = Model("odd", odd.module, model.tokenizer)
    ids = ids_of(model)
    assert not forward.head_fits(odd)
    bits = forward.token_bits(odd, ids, window=512, overlap=0)
    assert torch.allclose(bits.double(), plain_bits(odd, ids), rtol=1e-5, atol=1e-5)
    with pytest.raises(BadValue, match="'odd'"):
        forward.head(odd, torch.zeros(1, 32))


@pytest.mark.parametrize("family", FAMILIES)
def test_cached_steps_equal_the_whole_run_also_after_a_rollback(family: str) -> None:
    model = tiny(family)
    ids = [0, *ids_of(model, 60)]
    whole = forward.logits(model, torch.tensor([ids]))[0]
    stepper = forward.Stepper(model)
    assert torch.allclose(stepper.feed([ids[:20]])[0], whole[19], atol=1e-5)
    assert torch.allclose(stepper.feed([ids[20:40]], keep=3)[0], whole[37:40], atol=1e-5)
    stepper.rollback(25)
    assert stepper.length == 15
    assert torch.allclose(stepper.feed([ids[15:50]])[0], whole[49], atol=1e-5)
    stepper.rollback(50)
    assert torch.allclose(stepper.feed([ids[:5]])[0], whole[4], atol=1e-5)


def test_a_batch_is_stepped_row_by_row_alike() -> None:
    model = tiny("gemma3")
    rows = torch.tensor([[0, *ids_of(model, 30)], [0, *ids_of(model, 60)[30:]]])
    stepper = forward.Stepper(model, batch=2)
    stepper.feed(rows[:, :10])
    assert torch.allclose(stepper.feed(rows[:, 10:]), forward.logits(model, rows)[:, -1], atol=1e-5)


def test_greedy_generation_equals_transformers() -> None:
    model = tiny()
    prompt = [0, *ids_of(model, 12)]
    expected = model.module.generate(
        torch.tensor([prompt]), attention_mask=torch.ones(1, 13), max_new_tokens=20, do_sample=False, pad_token_id=0
    )[0, 13:].tolist()
    found = list(forward.generate(model, prompt, tokens=20, stop=[1]))
    assert [i for i, _ in found] == expected
    bits = plain_bits(model, [*prompt[1:], *expected])[12:]
    assert [-p for _, p in found] == pytest.approx(bits.tolist(), abs=1e-4)


def test_sampling_depends_on_the_seed_alone_and_keeps_its_cuts() -> None:
    model = tiny()
    prompt = [0, *ids_of(model, 5)]

    def draw(seed: int, **how: float) -> list[int]:
        return [i for i, _ in forward.generate(model, prompt, tokens=30, temperature=1.5, seed=seed, **how)]  # type: ignore[arg-type]

    assert draw(1) == draw(1) != draw(2)
    greedy = [i for i, _ in forward.generate(model, prompt, tokens=30)]
    assert draw(3, top_k=1) == greedy == draw(4, top_p=1e-6)


def test_draws_follow_the_probabilities() -> None:
    from kobza.models.stepping import draw

    logits = torch.tensor([0.0, 1.0, 2.0, -30.0])
    generator = torch.Generator().manual_seed(0)
    counts = torch.zeros(4)
    for _ in range(3000):
        counts[draw(logits, 1.0, 0, 1.0, generator)] += 1
    assert torch.allclose(counts / 3000, logits.softmax(0), atol=0.03)
    assert {draw(logits, 1.0, 2, 1.0, generator) for _ in range(200)} == {1, 2}
    assert {draw(logits, 1.0, 0, 0.7, generator) for _ in range(200)} == {1, 2}  # 0.665 is not enough alone


def test_generation_ends_at_a_stop_and_where_the_context_is_full() -> None:
    model = tiny(context=16)
    prompt = [0, *ids_of(model, 9)]
    assert len(list(forward.generate(model, prompt, tokens=100))) == 7
    first = next(forward.generate(model, prompt, tokens=1))[0]
    assert [i for i, _ in forward.generate(model, prompt, tokens=100, stop=[first])] == [first]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("window", [512, 20])
def test_embedding_gradients_equal_autograd_through_the_table(family: str, window: int) -> None:
    model = tiny(family)
    ids = ids_of(model, 50)
    gradients = forward.embedding_gradients(model, ids, window=window, chunk=7)
    assert gradients.shape == (50, 32)
    untied = model.replace({"embed.in": model.matrix("embed").clone()}, change=Change("x"))
    table = untied.module.get_input_embeddings().weight.requires_grad_()
    loss = torch.zeros(())
    for begin, _, end in forward.windows(50, window, 0):
        logits = untied.module(torch.tensor([[0, *ids[begin : end - 1]]])).logits[0]
        loss = loss + cross_entropy(logits, torch.tensor(ids[begin:end]), reduction="sum") / math.log(2)
    (expected,) = torch.autograd.grad(loss, table)
    summed = torch.zeros_like(expected).index_add_(0, torch.tensor(ids), gradients)
    assert torch.allclose(summed[1:], expected[1:], atol=1e-4)  # row 0 is the start token's
    assert float(gradients[min(window, 50) - 1].abs().max()) == 0
    assert not any(p.requires_grad for p in model.module.parameters())


def test_gradients_pass_through_factored_ends_and_half_of_a_context_manager() -> None:
    model = tiny()
    U, S, Vt = torch.linalg.svd(model.matrix("embed"), full_matrices=False)
    factored = model.replace({"embed": Factors(U * S, Vt)}, change=Change("x"))
    ids = ids_of(model, 30)
    with torch.inference_mode():
        ours = forward.embedding_gradients(factored, ids)
    assert torch.allclose(ours, forward.embedding_gradients(model, ids), atol=1e-3)


@pytest.mark.parametrize("window", [512, 16])
def test_output_moments_equal_autograd_and_the_explicit_hessian(window: int) -> None:
    model = tiny(tied=False)
    ids = ids_of(model, 40)
    moments = forward.output_moments(model, ids, window=window, chunk=9)
    rows, columns, energy, squares = 0.0, 0.0, 0.0, 0.0
    for begin, _, end in forward.windows(40, window, 0):
        states = forward.final_states(model, torch.tensor([[0, *ids[begin : end - 1]]]))[0].double()
        for h, target in zip(states.clone(), ids[begin:end], strict=True):
            W = model.matrix("embed.out").double().requires_grad_()
            loss = cross_entropy((W @ h)[None], torch.tensor([target]))
            (G,) = torch.autograd.grad(loss, W)
            p = (W.detach() @ h).softmax(0)
            rows, energy = rows + p * (1 - p), energy + G.square().sum(1)
            columns, squares = columns + (p * (1 - p)).sum() * torch.outer(h, h), squares + torch.outer(h, h)
    assert moments.tokens == 40
    for ours, theirs in (
        (moments.rows, rows),
        (moments.columns, columns),
        (moments.gradients, energy),
        (moments.states, squares),
    ):
        assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-5)


def test_what_does_not_fit_is_refused_with_both_values() -> None:
    model = tiny(context=64)
    with pytest.raises(EmptyText):
        forward.token_bits(model, [])
    with pytest.raises(EmptyText):
        forward.log_probabilities(model, [], window=8, overlap=0)
    with pytest.raises(OutOfRange, match="65 tokens exceeds the 64"):
        forward.token_bits(model, [5], window=65, overlap=0)
    with pytest.raises(OutOfRange, match="5 .. 300 do not fit the 300"):
        forward.token_bits(model, [5, 300], window=8, overlap=0)
    with pytest.raises(OutOfRange, match="window 8 and overlap 8"):
        forward.token_bits(model, [5], window=8, overlap=8)
    with pytest.raises(OutOfRange, match="chunk 0"):
        forward.token_bits(model, [5], window=8, overlap=0, chunk=0)
    stepper = forward.Stepper(model)
    stepper.feed([[0] * 60])
    with pytest.raises(OutOfRange, match="65 positions exceed the 64"):
        stepper.feed([[0] * 5])
    with pytest.raises(OutOfRange, match="61 of 60"):
        stepper.rollback(61)
    with pytest.raises(OutOfRange, match="need"):
        forward.Stepper(model, batch=2).feed([[0]])
    with pytest.raises(EmptyText):
        forward.generate(model, [], tokens=3)
    with pytest.raises(OutOfRange, match="top_p=0"):
        forward.generate(model, [0], tokens=3, top_p=0)


def test_the_largest_block_of_memory_is_a_chunk_of_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny()
    sizes: list[int] = []
    original = forward.head

    def watched(model: Model, states: torch.Tensor) -> torch.Tensor:
        sizes.append(len(states))
        return original(model, states)

    monkeypatch.setattr(forward, "head", watched)
    forward.token_bits(model, ids_of(model), window=64, overlap=16, chunk=10)
    assert max(sizes) <= 10


@pytest.mark.real
def test_the_real_model_gives_the_bits_of_plain_transformers(smollm2: Model) -> None:
    ids = smollm2.tokenizer.encode(PARAGRAPH)
    start = smollm2.tokenizer.start_id
    with torch.no_grad():
        logits = smollm2.module(torch.tensor([[start, *ids[:-1]]])).logits[0].double()
    plain = cross_entropy(logits, torch.tensor(ids), reduction="none") / math.log(2)
    bits = forward.token_bits(smollm2, ids)
    assert float(bits.double().sum()) == pytest.approx(float(plain.sum()), rel=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_head_with_its_own_table_given_is_the_head_and_the_table_learns(family: str) -> None:
    model = tiny(family)
    states = torch.randn(5, model.width, generator=torch.Generator().manual_seed(0))
    table = model.matrix("embed.out").detach().clone().requires_grad_()
    found = forward.head(model, states, table=table)
    assert torch.allclose(found, forward.head(model, states), atol=1e-6)
    found.sum().backward()
    assert table.grad is not None and bool(table.grad.any())
    few = forward.head(model, states, table=table, tokens=[3, 1])
    assert torch.allclose(few, found[:, [3, 1]], atol=1e-6)
