"""Transplants: onto its own vocabulary nothing changes, the causes sum to the total, no row is NaN."""

import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch

from kobza.core.errors import EmptyText, KobzaError
from kobza.core.texts import text
from kobza.edits import _chain, _contexts, _distilling, _heirs, _rows, transplant
from kobza.measures import bits_per_byte
from kobza.models import forward
from kobza.models.tiny import PARAGRAPH
from kobza.tokens import pairs
from kobza.tokens.base import Tokenizer
from kobza.tokens.mapping import match, with_controls
from kobza.tokens.ranks import bytes_vocabulary

TEXT = PARAGRAPH.encode()
METHODS = ("chained", "fitted", "hybrid", "neighbors", "subtokens", "mean", "random")


@pytest.fixture(scope="module")
def trained() -> Any:
    return pairs.train(PARAGRAPH * 3, size=330)


def permuted(tokenizer: Tokenizer) -> Tokenizer:
    """The same vocabulary with every id renamed."""
    source = json.loads(tokenizer._backend.to_str())
    size = len(source["model"]["vocab"])
    new = [(id * 7 + 3) % size for id in range(size)] if size % 7 else list(range(size))[::-1]
    source["model"]["vocab"] = {name: new[id] for name, id in source["model"]["vocab"].items()}
    for token in source["added_tokens"]:
        token["id"] = new[token["id"]]
    return Tokenizer(tokenizers.Tokenizer.from_str(json.dumps(source)), name="permuted")


def heirs(new: Tokenizer, old: Tokenizer) -> set[int]:
    """Copied tokens that are the first of an old token which the new vocabulary lacks, the slow way."""
    lost = [old.bytes_of(id) for id in range(len(old)) if id not in old.special.values()]
    firsts = {new.encode(data)[0] for data in lost if data and new.id_of(data) is None}
    return {id for id in firsts if old.id_of(new.bytes_of(id)) is not None}


def bits(model: Any) -> float:
    return bits_per_byte.measure(model, TEXT).value


def test_its_own_vocabulary_changes_nothing(tiny: Any) -> None:
    assert abs(bits(transplant.onto(tiny, tiny.tokenizer)) - bits(tiny)) < 1e-6


def test_a_permuted_vocabulary_changes_nothing(tiny: Any) -> None:
    moved = transplant.onto(tiny, permuted(tiny.tokenizer))
    assert moved.tokenizer.encode(TEXT) != tiny.tokenizer.encode(TEXT)
    assert abs(bits(moved) - bits(tiny)) < 1e-6


@pytest.mark.real
def test_smollm2_keeps_its_bits_on_a_permuted_vocabulary(smollm2: Any) -> None:
    moved = transplant.onto(smollm2, permuted(smollm2.tokenizer))
    assert abs(bits(moved) - bits(smollm2)) < 1e-6


@pytest.mark.parametrize("method", METHODS)
def test_every_method_copies_what_both_have_and_gives_finite_rows(tiny: Any, trained: Any, method: str) -> None:
    moved = transplant.onto(tiny, trained, method=method)
    found = match(moved.tokenizer, tiny.tokenizer)
    old = tiny.matrix("embed")
    for end in ("embed.in", "embed.out"):
        table = moved.matrix(end)
        may_change = heirs(moved.tokenizer, tiny.tokenizer) if (method, end) == ("chained", "embed.out") else set()
        kept = [id for id in found.copied if id not in may_change]
        assert len(kept) > 200
        assert torch.equal(table[kept], old[[found.same[id] for id in kept]])
        assert torch.isfinite(table).all()
    assert moved.is_tied == (method != "chained")
    assert moved.tokenizer.start_id is not None
    assert moved.tokenizer.decode(moved.tokenizer.encode(TEXT)) == TEXT


def test_subtokens_is_the_mean_of_the_parts(tiny: Any, trained: Any) -> None:
    moved = transplant.onto(tiny, trained, method="subtokens")
    id = match(moved.tokenizer, tiny.tokenizer).composed[0]
    parts = tiny.tokenizer.encode(moved.tokenizer.bytes_of(id))
    assert torch.allclose(moved.matrix("embed")[id], tiny.matrix("embed")[parts].mean(0))


def test_the_fitted_map_recovers_a_linear_law() -> None:
    draw = torch.Generator().manual_seed(0)
    table = torch.randn(600, 4, generator=draw)
    law = torch.randn(8, 4, generator=draw)
    known = [(200 + n, [n % 200, (n * 37 + 11) % 200]) for n in range(400)]
    for token, (left, right) in known:
        table[token] = torch.cat([table[left], table[right]]) @ law
    found = _rows.Composition(table, known, shrinkage=1e-8)([[3, 5], [150, 20]])
    wanted = torch.stack([torch.cat([table[3], table[5]]) @ law, torch.cat([table[150], table[20]]) @ law])
    assert torch.allclose(found, wanted, atol=1e-3)


def test_a_chain_is_the_probability_of_the_later_parts_after_the_first(tiny: Any) -> None:
    splits = [[70, 80], [70, 80, 90], [71, 72], [73]]
    logs, states = _chain.continuations(tiny, splits, 100)
    start = tiny.tokenizer.start_id
    rows = forward.logits(tiny, torch.tensor([[start, 70, 80]]))[0].log_softmax(-1)
    assert torch.allclose(logs[:2], torch.stack([rows[1, 80], rows[1, 80] + rows[2, 90]]), atol=1e-5)
    assert float(logs[3]) == 0
    assert states.shape == (3, tiny.width)
    few, _ = _chain.continuations(tiny, splits, 1)  # only the beginning that two tokens share
    assert torch.allclose(few, rows[1, 80] * torch.tensor([1.0, 2, 1, 0]), atol=1e-5)


def test_branches_of_a_tree_are_read_as_texts_of_their_own(tiny: Any) -> None:
    run, splits = [tiny.tokenizer.start_id, 60, 61, 62, 63], [[70, 80], [70, 80, 90], [71, 81]]
    reader, wanted = _contexts.Reader(tiny, torch.float32), _chain.beginnings(splits, 100)
    assert reader.can_branch()
    trees = {70: [(70,), (70, 80)], 71: [(71,)]}
    places = [_contexts.Place(0, 4), _contexts.Place(0, 2)]
    with torch.inference_mode():
        said = _contexts._read(reader, [run], dict.fromkeys(trees, places), trees, wanted)
    for place in places:
        behind = forward.logits(tiny, torch.tensor([[*run[: place.at + 1], 70, 80]]))[0, place.at + 1 :].log_softmax(-1)
        assert said[70, place][70, 80] == pytest.approx(float(behind[0, 80]), abs=1e-5)
        assert said[70, place][70, 80, 90] == pytest.approx(float(behind[1, 90]), abs=1e-5)
    found = _contexts._joined(splits, dict.fromkeys(trees, places), said).exp()
    whole = torch.tensor([sum(said[70, place].values()) for place in places]).exp()
    assert float(found[1]) == pytest.approx(float(whole.sum()), rel=1e-4)


def test_chances_behind_the_start_alone_are_continuations(tiny: Any) -> None:
    splits = [[70, 80], [70, 80, 90], [71, 72], [73]]
    reader, wanted = _contexts.Reader(tiny, torch.float32), _chain.beginnings(splits, 100)
    trees = {70: [(70,), (70, 80)], 71: [(71,)]}
    start = {first: [_contexts.Place(0, 0)] for first in trees}
    with torch.inference_mode():
        said = _contexts._read(reader, [[tiny.tokenizer.start_id]], start, trees, wanted)
    plain, _ = _chain.continuations(tiny, splits, 100)
    assert torch.allclose(_contexts._joined(splits, start, said), plain, atol=1e-5)
    options: Any = {"places": 1, "limit": 100, "dtype": torch.float32, "seed": 0}
    assert torch.equal(_contexts.chances(tiny, splits, [], windows=0, **options)[0], plain)


def test_places_are_drawn_in_proportion_to_the_probability_of_the_part_there(tiny: Any) -> None:
    reader = _contexts.Reader(tiny, torch.float32)
    with torch.inference_mode():
        states = reader.states([60, 61, 62, 63, 64], range(-1, 4)) * 8  # far apart
        wanted = reader.logs(states)[:, 70].softmax(0)
        drawn = [_contexts.draw(tiny, reader, [states], {70: 1}, 1, seed)[70][0].at for seed in range(400)]
    found = torch.bincount(torch.tensor(drawn), minlength=5) / len(drawn)
    assert float(wanted.max() - wanted.min()) > 0.1
    assert torch.allclose(found, wanted, atol=0.08)


def test_the_least_change_is_the_minimum_of_its_formula() -> None:
    draw = torch.Generator().manual_seed(0)
    states, wanted, masses = (torch.randn(40, n, generator=draw, dtype=torch.float64) for n in (6, 3, 3))
    found = _heirs.least(states, wanted.T, masses.T)
    C = states.T @ states / 40
    C += _heirs.DAMPING * C.diagonal().mean() * torch.eye(6)
    for n in range(3):
        H = states[masses[:, n].topk(_heirs.TOP).indices]
        gram = H.T @ H + _heirs.RIDGE * 6 * C
        assert torch.allclose(
            found[n], torch.linalg.solve(gram, H.T @ wanted[masses[:, n].topk(_heirs.TOP).indices, n])
        )


def test_an_heir_gets_what_it_and_the_lost_tokens_had(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_heirs, "RIDGE", 1e-6)
    monkeypatch.setattr(_heirs, "TOP", 1)
    new, old = with_controls(pairs.train(PARAGRAPH[::-1], size=262), tiny.tokenizer), tiny.tokenizer
    found = match(new, old)
    table = transplant.Maker(tiny, new, found, {"method": "subtokens"}, [], 0).table("embed")
    states = _contexts.Reader(tiny, torch.float32).states(list(range(60, 90)), range(-1, 29)).detach()
    first = _distilling.firsts(new, old, found)
    ids, change = _heirs.changes(tiny, table, states, first, torch.tensor(found.same))
    assert set(ids.tolist()) == heirs(new, old)
    id = int(ids[0])
    lost = [v for v in range(len(old)) if int(first[v]) == id]
    assert found.same[id] in lost
    told = (states @ tiny.matrix("embed")[lost].T).logsumexp(1)
    best = int((told - (states @ tiny.matrix("embed").T).logsumexp(1)).argmax())
    assert float(states[best] @ (table[id] + change[ids.tolist().index(id)])) == pytest.approx(
        float(told[best]), abs=1e-3
    )


def test_an_old_token_that_the_new_vocabulary_cannot_say_has_no_heir(tiny: Any) -> None:
    source = json.loads(tiny.tokenizer._backend.to_str())
    source["model"]["merges"] = []
    spoken = [name for name in source["model"]["vocab"] if len(name) == 1 and name != "e"]
    source["model"]["vocab"] = {name: id for id, name in enumerate(spoken)}
    source["added_tokens"] = []
    new, old = Tokenizer(tokenizers.Tokenizer.from_str(json.dumps(source)), name="mute"), tiny.tokenizer
    first = _distilling.firsts(new, old, match(new, old))
    silent = [id for id in range(len(old)) if b"e" in old.bytes_of(id) and id not in old.special.values()]
    assert silent
    assert set(first[silent].tolist()) == {-1}
    states = torch.randn(3, tiny.width, generator=torch.Generator().manual_seed(0))
    table = torch.zeros(len(new), tiny.width)
    ids, _ = _heirs.changes(tiny, table, states, first, torch.tensor(match(new, old).same))
    assert len(ids)
    assert set(ids.tolist()) <= set(first.tolist()) - {-1}


def test_a_constant_direction_adds_a_constant_to_logits() -> None:
    draw = torch.Generator().manual_seed(0)
    states = torch.randn(400, 8, generator=draw) * torch.tensor([1e-3, *[1.0] * 7]) + torch.tensor([2.0, *[0.0] * 7])
    assert torch.allclose(states @ _chain.constant(states), torch.ones(400), atol=0.02)


def test_neighbors_of_an_old_token_are_itself() -> None:
    table = torch.eye(5)
    rows, there = _rows.neighbors(table, table, table[:2], count=1, temperature=0.3, threshold=0.6)
    assert torch.equal(rows, table[:2])
    assert there.all()
    _, there = _rows.neighbors(table, table, -table[:2], count=1, temperature=0.3, threshold=0.6)
    assert not there.any()


def test_the_causes_sum_to_the_total(tiny: Any, trained: Any) -> None:
    moved = transplant.onto(tiny, trained, method="subtokens")
    rows = list(transplant.causes(tiny, moved, TEXT, window=1024, overlap=256))
    change = bits(moved) - bits(tiny)
    assert rows[-1]["change"] == pytest.approx(change, abs=1e-6)
    assert sum(row["change"] for row in rows[:-1]) == pytest.approx(rows[-1]["change"], abs=1e-9)
    assert rows[0]["change"] > 0


@pytest.mark.parametrize("method", ["chained", "fitted"])
def test_the_second_stage_lowers_the_loss_and_moves_only_rows_that_are_used_otherwise(
    tiny: Any, trained: Any, method: str
) -> None:
    options: Any = {"method": method, "steps": 8, "rate": 0.02, "calibration": ["topics[320000:324000]"]}
    moved = transplant.onto(tiny, trained, precision="float32", **options)
    first, last = moved.changes[-1].facts["losses"]
    assert last < first
    assert moved.is_tied == (method == "fitted")
    before = transplant.onto(tiny, trained, method=method)
    changed = (moved.matrix("embed.in") != before.matrix("embed.in")).any(1)
    assert int(changed.sum()) <= moved.changes[-1].facts["rows"] < moved.vocabulary
    for name in tiny.find("blocks.*"):
        assert torch.equal(moved.matrix(name), tiny.matrix(name))


def test_a_text_that_both_cut_alike_teaches_nothing(tiny: Any) -> None:
    with pytest.raises(EmptyText, match="differently"):
        transplant.onto(tiny, permuted(tiny.tokenizer), steps=1, calibration=["topics[320000:322000]"])


def test_what_the_original_says_is_told_in_new_tokens_and_sums_to_one(tiny: Any, trained: Any) -> None:
    moved = transplant.onto(tiny, trained)
    found = match(moved.tokenizer, tiny.tokenizer)
    windows = _distilling.windows(moved.tokenizer, tiny.tokenizer, text("topics[320000:322000]"))[:2]
    learner = _distilling.Learner(tiny, moved, found, found.composed, torch.float32)
    places, said = learner._said(windows)
    assert torch.allclose(said.sum(1), torch.ones(len(places)), atol=1e-4)
    window = windows[0]
    fed = torch.tensor([[tiny.tokenizer.start_id, *window.old[:-1]]])
    probability = forward.logits(tiny, fed)[0, int(window.there[3])].softmax(-1)
    old = found.same[found.copied[100]]
    alike = [id for id, new in enumerate(learner.first.tolist()) if new == found.copied[100]]
    assert old in alike
    assert float(said[3, found.copied[100]]) == pytest.approx(float(probability[alike].sum()), rel=1e-4)


def test_windows_meet_where_both_have_read_the_same_bytes(tiny: Any, trained: Any) -> None:
    new, old = with_controls(trained, tiny.tokenizer), tiny.tokenizer
    for window in _distilling.windows(new, old, text("topics[320000:322000]")):
        for here, there in zip(window.here.tolist(), window.there.tolist(), strict=True):
            assert new.decode(window.new[:here]) == old.decode(window.old[:there])
        assert new.decode(window.new) == old.decode(window.old)


def test_a_fitted_leak_gives_new_rows_the_probability_they_have_in_the_text(tiny: Any, trained: Any) -> None:
    moved = transplant.onto(tiny, trained, leak="fit", calibration=["topics[320000:324000]"])
    assert abs(moved.changes[-1].facts["offset"]) < 12


def test_a_saved_transplant_opens_in_transformers_with_equal_ids(tiny: Any, trained: Any, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    moved = transplant.onto(tiny, trained)
    moved.save(tmp_path / "moved")
    ids = AutoTokenizer.from_pretrained(tmp_path / "moved")(PARAGRAPH, add_special_tokens=False)["input_ids"]
    assert ids == moved.tokenizer.encode(TEXT)
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "moved")
    assert again.config.vocab_size == moved.vocabulary == len(moved.tokenizer)
    assert again.config.bos_token_id == moved.tokenizer.start_id


@pytest.mark.real
def test_bytes_that_smollm2_lacks_get_the_mean_row_and_are_counted(smollm2: Any) -> None:
    moved = transplant.onto(smollm2, bytes_vocabulary())
    lacking = smollm2.tokenizer.missing_bytes()
    assert moved.changes[-1].facts["empty"] == moved.changes[-1].facts["lost_bytes"] == len(lacking) == 21
    table = moved.matrix("embed")
    assert torch.allclose(table[sorted(lacking)], smollm2.matrix("embed").mean(0).expand(21, -1), atol=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_a_row_that_is_no_number_becomes_the_mean(
    tiny: Any, trained: Any, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = transplant.Maker._rows
    monkeypatch.setattr(
        transplant.Maker, "_rows", lambda self, W: rows(self, W).index_fill(0, torch.tensor([0]), torch.nan)
    )
    moved = transplant.onto(tiny, trained, method=method)
    id = match(moved.tokenizer, tiny.tokenizer).composed[0]
    assert torch.allclose(moved.matrix("embed.in")[id], tiny.matrix("embed").mean(0), atol=1e-6)
    assert torch.isfinite(forward.logits(moved, torch.tensor([[id, id]]))).all()


def test_a_split_without_parts_is_the_mean_of_the_table() -> None:
    table = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(_rows.subtokens(table, [[], [1, 2]])[0], table.mean(0))


def test_a_vocabulary_that_does_not_exist_is_refused(tiny: Any) -> None:
    with pytest.raises(KobzaError, match="nowhere"):
        transplant.apply(tiny, vocabulary="nowhere.tiktoken")


def test_the_input_model_is_not_touched(tiny: Any, trained: Any) -> None:
    before, rows = tiny.matrix("embed").clone(), tiny.vocabulary
    transplant.onto(tiny, trained)
    assert torch.equal(tiny.matrix("embed"), before)
    assert tiny.vocabulary == rows == tiny.config.vocab_size
