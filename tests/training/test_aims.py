"""What the loss asks for beyond the next token, and tables that are frozen, sparse, or whole again."""

from typing import Any

import pytest
import torch
from torch import nn

import kobza
from kobza.core.errors import BadValue, OutOfRange, UnknownOption
from kobza.models.tiny import byte_tokenizer, tiny
from kobza.tokens import pairs
from kobza.training import scratch
from kobza.training.parts import aims, classic, optimizers, tables, trimming
from kobza.training.parts.classic import Sizes

TEXT = b"the banks of the wide Dnipro, the steep cliffs, the waves that roar and moan. " * 20
SMALL: dict[str, Any] = {"size": 1, "width": 32, "heads": 2, "context": 16, "steps": 3}
READ, NEXT = torch.randint(0, 300, (2, 3, 8), generator=torch.Generator().manual_seed(0))


def module(kind: str = "llama", **how: Any) -> Any:
    return classic.build(kind, Sizes(1, 32, 2, 2, 64, 16), byte_tokenizer(), seed=0, **how)


def each(made: Any) -> torch.Tensor:
    logits = made(input_ids=READ).logits
    return nn.functional.cross_entropy(logits.flatten(0, 1), NEXT.reshape(-1), reduction="none").reshape(3, 8)


def test_the_loss_without_the_first_places_is_the_mean_of_the_others() -> None:
    made = module()
    assert aims.aimed_loss(made, READ, NEXT)[0].item() == pytest.approx(each(made).mean().item(), abs=1e-5)
    assert aims.aimed_loss(made, READ, NEXT, skip=5)[0].item() == pytest.approx(
        each(made)[:, 5:].mean().item(), abs=1e-5
    )


def test_two_tokens_ahead_are_two_losses_and_the_first_is_told_apart() -> None:
    made = module()
    aims.look_ahead(made, 3, 8)
    loss, said = aims.aimed_loss(made, READ, NEXT)
    states = made.model(input_ids=READ).last_hidden_state
    wanted = each(made).mean()
    for n in (1, 2):  # what stands between is begun as the identity
        logits = made.lm_head(states[:, :-n]).flatten(0, 1)
        wanted = wanted + nn.functional.cross_entropy(logits, NEXT[:, n:].reshape(-1))
    assert loss.item() == pytest.approx(wanted.item(), abs=1e-4)
    assert said["next"] == pytest.approx(each(made).mean().item(), abs=1e-5)
    loss.backward()
    assert all(part.map.weight.grad.norm() > 0 for part in made.further)


@pytest.mark.parametrize("how", [{"ahead": 2}, {"skip": 4}, {"kind": "free", "form": "experts=2,mlp=relu"}], ids=str)
def test_a_model_trained_so_is_saved_as_any_other(how: dict[str, Any], tmp_path: Any) -> None:
    run = scratch.train(byte_tokenizer(), TEXT, **SMALL, **how)
    run.model.save(tmp_path / "model")
    assert kobza.open(tmp_path / "model").fingerprint == run.model.fingerprint
    assert not any("further" in name for name in run.model.matrices)


def test_a_frozen_table_is_the_strongest_part_of_another_and_stays() -> None:
    given = tiny(width=64)
    run = scratch.train(given, TEXT, **SMALL, frozen=True, trim=False)
    rows = run.model.matrix("embed.in").double()
    theirs = given.matrix("embed.in").double()
    assert not run.model.is_tied
    close, far = rows @ rows.T, theirs @ theirs.T
    scale = (close * far).sum() / (close * close).sum()
    error = (far - scale * close).norm() / far.norm()
    kept = torch.linalg.svdvals(theirs)
    assert float(error) == pytest.approx(float((kept[32:] ** 4).sum().sqrt() / (kept**4).sum().sqrt()), rel=1e-3)
    with pytest.raises(BadValue, match="only a vocabulary"):
        scratch.train(byte_tokenizer(), TEXT, **SMALL, frozen=True)
    with pytest.raises(OutOfRange, match="width 32"):
        scratch.train(tiny(width=16, heads=2), TEXT, **SMALL, frozen=True)


@pytest.mark.parametrize("kind", ["llama", "classic"])
def test_sparse_gradients_change_only_rows_that_are_read_and_those_as_adam_does(kind: str) -> None:
    one, other = module(kind, tied=False), module(kind, tied=False)
    tables.spare(one)
    how: dict[str, Any] = {"rate": 1e-2, "decay": 0.0, "betas": (0.9, 0.999)}
    before = one.get_input_embeddings().weight.detach().clone()
    norms: list[float] = []
    for made in (one, other):
        optimizer = optimizers.build("adamw", [(n, p) for n, p in made.named_parameters() if p.requires_grad], **how)
        aims.aimed_loss(made, READ, NEXT)[0].backward()
        norms.append(float(optimizers.clip(made.parameters(), 0.5)))
        optimizer.step()
    assert one.get_input_embeddings().weight.grad.is_sparse
    assert norms[0] == pytest.approx(norms[1], rel=1e-5)
    rows = one.get_input_embeddings().weight
    changed = (rows != before).any(1).nonzero()[:, 0]
    assert changed.tolist() == sorted(set(READ.reshape(-1).tolist()))
    dense = other.get_input_embeddings().weight
    large = dense.grad.abs() > 1e-4  # torch's two Adams differ in where the 1e-8 is added, which small ones feel
    assert large.sum() > 100
    assert torch.allclose(rows[large], dense[large], atol=1e-4)


def test_a_run_with_sparse_gradients_goes_on_to_the_same_bits(tmp_path: Any) -> None:
    how: dict[str, Any] = SMALL | {"tied": False, "sparse": True, "schedule": "constant", "precision": "float32"}
    whole = scratch.train(byte_tokenizer(), TEXT, **how | {"steps": 6})
    scratch.train(byte_tokenizer(), TEXT, **how, folder=str(tmp_path))
    again = scratch.train(byte_tokenizer(), TEXT, **how | {"steps": 6}, folder=str(tmp_path))
    assert again.model.fingerprint == whole.model.fingerprint
    with pytest.raises(BadValue, match="tied=false"):
        scratch.train(byte_tokenizer(), TEXT, **SMALL, sparse=True)


@pytest.mark.parametrize("kind", ["llama", "classic"])
def test_given_all_ids_back_a_model_says_what_it_said(kind: Any, tmp_path: Any) -> None:
    whole = pairs.train(TEXT + "кобза і бандура ".encode() * 9, size=320)
    how = {**SMALL, "kind": kind, "steps": 30, "rate": 1e-2}
    run, again = (scratch.train(whole, TEXT, **how, restore=restore) for restore in (False, True))
    _, kept = trimming.trimmed(whole, whole.encode(TEXT))
    small = torch.tensor([run.model.tokenizer.encode("the banks of")])
    large = torch.tensor([whole.encode("the banks of")])
    first = run.model.module(input_ids=small).logits.softmax(-1)
    second = again.model.module(input_ids=large).logits.softmax(-1)
    assert again.model.vocabulary == len(whole)
    assert torch.allclose(second[..., kept], first, atol=2e-6)
    assert float(second.sum(-1).sub(second[..., kept].sum(-1)).max()) < 1e-6
    again.model.save(tmp_path / "model")  # opened again by transformers, with equal logits
    assert kobza.open(tmp_path / "model").fingerprint == again.model.fingerprint


def test_options_that_do_not_fit_are_refused() -> None:
    with pytest.raises(OutOfRange, match="skip 16"):
        scratch.train(byte_tokenizer(), TEXT, **SMALL, skip=16)
    with pytest.raises(OutOfRange, match="ahead 17"):
        scratch.train(byte_tokenizer(), TEXT, **SMALL, ahead=17)
    with pytest.raises(BadValue, match="kind=free"):
        scratch.train(byte_tokenizer(), TEXT, **SMALL, form="norm=none")
    with pytest.raises(UnknownOption, match="norm"):
        scratch.train(byte_tokenizer(), TEXT, **SMALL, kind="free", form="nrm=none")
    with pytest.raises(BadValue, match="restore=false"):
        scratch.train(byte_tokenizer(), TEXT, **SMALL, kind="free", restore=True)
