"""Constrained text has the form asked for, whatever the model would like to say."""

import json
import re
from typing import Any

import pytest
import torch

from kobza.core.errors import BadValue
from kobza.decoding import constrained, greedy
from kobza.models.tiny import tiny as make_tiny

pytest.importorskip("llguidance", reason="the extra 'constrained' is not installed")

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "pattern": "^[a-z]{1,8}$"},
        "strings": {"type": "integer", "minimum": 3, "maximum": 68},
        "is_plucked": {"type": "boolean"},
    },
    "required": ["name", "strings", "is_plucked"], "additionalProperties": False,
}  # fmt: skip


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("pattern", [r"[0-9]{3}-[0-9]{4}", r"(lute|kobza|drum)s?", r"[а-яіїєґ]{2,6}!"])
def test_texts_match_the_expression(tiny: Any, pattern: str, seed: int) -> None:
    found = constrained.generate(tiny, "ab", tokens=40, regex=pattern, temperature=1.0, seed=seed)
    assert found.stopped_by == "end"
    assert re.fullmatch(pattern, found.text)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_texts_satisfy_the_schema(family: str) -> None:
    model = make_tiny(family)
    for text, is_complete in constrained.many(model, "ab", 12, tokens=90, schema=json.dumps(SCHEMA)):
        assert is_complete
        found = json.loads(text)
        assert set(found) == {"name", "strings", "is_plucked"}
        assert re.fullmatch("[a-z]{1,8}", found["name"]) and 3 <= found["strings"] <= 68
        assert isinstance(found["is_plucked"], bool)


def test_texts_follow_the_grammar(tiny: Any) -> None:
    grammar = 'start: sum\nsum: NUMBER ("+" NUMBER)~1..3\nNUMBER: /[1-9][0-9]?/'
    for seed in range(4):
        found = constrained.generate(tiny, "ab", tokens=30, grammar=grammar, temperature=1.0, seed=seed)
        assert re.fullmatch(r"[1-9][0-9]?(\+[1-9][0-9]?){1,3}", found.text)


@pytest.mark.parametrize(("script", "allowed"), [("Cyrillic", r"[\u0400-\u04ff\W\d_]*"), ("abc ]-", r"[abc \]-]*")])
def test_only_characters_of_the_script_are_said(tiny: Any, script: str, allowed: str) -> None:
    found = constrained.generate(tiny, "ab", tokens=40, script=script, temperature=1.0)
    assert len(found.text) > 3
    assert re.fullmatch(allowed, found.text.rstrip("\ufffd"))


def test_no_form_changes_nothing(tiny: Any) -> None:
    assert constrained.generate(tiny, "ab", tokens=20).ids == greedy.generate(tiny, "ab", tokens=20).ids


def test_the_mask_cuts_the_distribution_and_nothing_else(tiny: Any) -> None:
    rule = constrained.Constraint(tiny, constrained.compiled(tiny, regex="(a|b)c"))
    logits = torch.randn(300, generator=torch.Generator().manual_seed(0))
    masked = rule(logits)
    kept = [tiny.tokenizer.bytes_of(i) for i in masked.isfinite().nonzero()[:, 0].tolist()]
    assert set(kept) <= {b"a", b"b", b"ac", b"bc"} and {b"a", b"b"} <= set(kept)
    assert torch.equal(masked[masked.isfinite()], logits[masked.isfinite()])
    assert rule.take(int(tiny.tokenizer.id_of(b"a"))) is False
    assert rule.take(int(tiny.tokenizer.id_of(b"c"))) is True
    with pytest.raises(BadValue, match="does not fit the form"):
        rule.take(int(tiny.tokenizer.id_of(b"x")))


def test_the_end_is_allowed_where_the_form_is_complete(tiny: Any) -> None:
    rule = constrained.Constraint(tiny, constrained.compiled(tiny, regex="a*"))
    assert torch.isfinite(rule(torch.zeros(300))[1])
    rule = constrained.Constraint(tiny, constrained.compiled(tiny, regex="a+"))
    assert rule(torch.zeros(300))[1] == -torch.inf


@pytest.mark.parametrize(
    ("form", "message"),
    [
        ({"regex": "(a"}, "the regex '\\(a' is not valid"),
        ({"schema": "{"}, "is not JSON"),
        ({"schema": '{"type": "nonsense"}'}, "the schema .* is not valid"),
        ({"grammar": "start: undefined"}, "the grammar .* is not valid"),
        ({"script": "Klingon"}, "the script 'Klingon' is not valid"),
        ({"regex": "a", "script": "abc"}, "regex and script are given"),
    ],
)
def test_invalid_forms_are_refused_before_anything_is_said(tiny: Any, form: dict[str, str], message: str) -> None:
    tiny.module.forward = None
    with pytest.raises(BadValue, match=message):
        constrained.generate(tiny, "ab", **form)
