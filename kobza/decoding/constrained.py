"""Constrained output: only tokens that keep the text inside a regular expression, JSON schema, grammar or script.

The masks are llguidance's (the extra `constrained`); the model's distribution is cut to them and drawn from. That is
the conditional distribution of each next token, not of the whole text: what a mask forbids later is not foreseen.

Sources: Willard & Louf (2023), Efficient Guided Generation, arXiv:2307.09702; Park et al. (2024), Grammar-Aligned
Decoding, arXiv:2405.21047, for the difference.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from kobza.core.errors import BadValue, MissingExtra
from kobza.decoding.base import Event, Generation, Session, check_ranges, speak
from kobza.decoding.lockstep import draw
from kobza.decoding.shaping import Shape
from kobza.models.model import Model
from kobza.models.prompts import Prompt, end_ids, prompt_ids
from kobza.models.stepping import chosen_backend
from kobza.tokens.base import Tokenizer

_VOCABULARIES: WeakKeyDictionary[Tokenizer, Any] = WeakKeyDictionary()


def generate(
    model: Model,
    prompt: Prompt,
    *,
    tokens: int = 64,
    regex: str = "",
    schema: str = "",
    grammar: str = "",
    script: str = "",
    temperature: float = 0.0,
    top_p: float = 1.0,
    stop: list[str] | None = None,
    chat: bool = False,
    seed: int = 0,
) -> Generation:
    """Go on with a prompt within a form; give one of the four, or none for any text.

    Args:
        model: the model.
        prompt: a text, or messages {"role", "content"} for its chat template.
        tokens: tokens at most [tokens, 1 ..].
        regex: regular expression (of Rust's kind) that the whole text matches.
        schema: JSON schema as JSON; the text is compact JSON that satisfies it.
        grammar: context-free grammar in Lark's syntax with the rule `start`.
        script: characters allowed: a name of Unicode (Cyrillic, Latin, Greek, ...; its letters, digits, spaces and
            punctuation) or the characters themselves.
        temperature: divides the logits; 0 takes the likeliest allowed token [ratio, 0 ..].
        top_p: keep the likeliest allowed tokens that together reach this probability [fraction, 0 < .. 1].
        stop: texts that end the generation.
        chat: put the text into the model's chat template as the user's message.
        seed: of the draws [number, 0 ..].

    Returns:
        A Generation. Stopped by "end" where the form is complete, by "length" where `tokens` did not suffice: only a
        form of bounded length is certain to be completed.

    Raises:
        BadValue: more than one form, or one that is invalid; the message says where.
        MissingExtra: llguidance is not installed.

    Cost: one step with cache per token, and a mask of some ten microseconds to a few milliseconds.
    """
    shape = Shape(temperature, top_p=top_p).checked()
    form = compiled(model, regex=regex, schema=schema, grammar=grammar, script=script)

    def strategy(session: Session) -> Iterator[Event]:
        generator = torch.Generator().manual_seed(seed)
        rule = Constraint(model, form) if form else None
        new = session.ids
        while session.left:
            logits = session.feed(new)
            token = shape.pick(shape(rule(logits) if rule else logits), generator)
            event = session.say(token, logits)
            yield event
            if isinstance(event, str):
                return
            if rule and rule.take(token):
                yield "end"
                return
            new = session.ids[-1:]

    return speak(model, prompt, strategy, tokens=tokens, stop=stop or (), chat=chat)


def many(
    model: Model, prompt: Prompt, count: int, *, tokens: int, temperature: float = 1.0, chat: bool = False,
    seed: int = 0, **form: str,
) -> list[tuple[str, bool]]:  # fmt: skip
    """Draw several texts within a form at once.

    Args:
        model, prompt, tokens, temperature, chat, seed: as in `generate`.
        count: texts [count, 1 ..].
        form: one of regex, schema, grammar, script.

    Returns:
        (text, whether its form is complete) of each.
    """
    check_ranges(("count", count, count >= 1, "1 or more"), ("tokens", tokens, tokens >= 1, "1 or more"))
    made = compiled(model, **form)
    session = Session(model, prompt_ids(model, prompt, chat=chat), tokens, chosen_backend())
    rules = [Constraint(model, made) for _ in range(count)] if made else ()
    drawn = draw(session, count, Shape(temperature).checked(), seed, rules)
    return [(model.tokenizer.text(text.ids), text.is_ended) for text in drawn]


def compiled(model: Model, *, regex: str = "", schema: str = "", grammar: str = "", script: str = "") -> str:
    """Return a form as llguidance takes it, checked; "" for none.

    Raises:
        BadValue: more than one form, or one that is invalid. MissingExtra: llguidance is not installed.
    """
    given = {"regex": regex, "schema": schema, "grammar": grammar, "script": script}
    chosen = [name for name, value in given.items() if value]
    if not chosen:
        return ""
    if len(chosen) > 1:
        raise BadValue(f"{' and '.join(chosen)} are given; a text has one form.", "Leave all but one out.")
    matcher = _library().LLMatcher
    if schema:
        made = matcher.grammar_from_json_schema(_parsed(schema), overrides={"whitespace_flexible": False})
    elif grammar:
        made = matcher.grammar_from_lark(grammar)
    else:
        made = matcher.grammar_from_regex(regex or f"[{_characters(script)}]*")
    if complaint := matcher.validate_grammar(made, _vocabulary(model)):
        raise BadValue(f"the {chosen[0]} {given[chosen[0]][:80]!r} is not valid: {' '.join(complaint.split())}")
    return str(made)


class Constraint:
    """The state of one text within a form."""

    def __init__(self, model: Model, form: str) -> None:
        self._ends = end_ids(model)
        self._matcher = _library().LLMatcher(_vocabulary(model), form, log_level=0)

    def __call__(self, logits: Tensor) -> Tensor:
        """Return logits (V,), -inf for tokens that would leave the form."""
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        allowed = torch.from_numpy(np.unpackbits(bits, bitorder="little", count=len(logits)).astype(bool))
        for end in self._ends:
            if end < len(allowed):
                allowed[end] = self._matcher.is_accepting()
        return logits.masked_fill(~allowed, -torch.inf)

    def take(self, token: int) -> bool:
        """Go on by a token; return whether the form is complete and nothing can follow.

        Raises:
            BadValue: the token does not fit, or the form became too complex.
        """
        if not self._matcher.consume_token(token):
            raise BadValue(f"token {token} does not fit the form: {self._matcher.get_error()}")
        return bool(self._matcher.is_stopped())


def _characters(script: str) -> str:
    """Return the inside of a class of characters for a name of Unicode, or for the characters themselves."""
    if len(script) > 3 and script.isascii() and script[0].isupper() and script.replace("_", "").isalpha():
        return rf"\p{{{script}}}\p{{N}}\p{{P}}\s"
    return "".join(f"\\{c}" if c in r"\[]^-&~" else c for c in dict.fromkeys(script))


def _parsed(schema: str) -> str:
    try:
        return json.dumps(json.loads(schema))
    except ValueError as error:
        raise BadValue(f"the schema {schema[:80]!r} is not JSON: {error}.") from None


def _library() -> Any:
    try:
        import llguidance
    except ImportError:
        raise MissingExtra.of("constrained output", "llguidance", "constrained") from None
    return llguidance


class _Words:
    """A vocabulary as llguidance asks for it: bytes of every id, and text to ids."""

    def __init__(self, tokenizer: Tokenizer, size: int, end: int) -> None:
        self._tokenizer = tokenizer
        self.eos_token_id = end
        self.bos_token_id = tokenizer.start_id
        special = set(tokenizer.special.values())
        self.special_token_ids = sorted({*special, *range(len(tokenizer), size), end})
        empty = set(self.special_token_ids)
        # a control token stands for no bytes of a text; its name would be taken for them
        self.tokens = [b"<%d>" % n if n in empty else tokenizer.bytes_of(n) for n in range(size)]

    def __call__(self, text: bytes | str) -> list[int]:
        return self._tokenizer.encode(text)


def _vocabulary(model: Model) -> Any:
    """Return the tokenizer for llguidance; making it takes a second, so it is kept."""
    tokenizer = model.tokenizer
    if tokenizer not in _VOCABULARIES:
        ends = sorted(end_ids(model))
        if not ends:
            raise BadValue(f"'{model.name}' has no end token, and a constrained text needs one.")
        library = _library()
        words = library.TokenizerWrapper(_Words(tokenizer, model.vocabulary, ends[0]))
        _VOCABULARIES[tokenizer] = library.LLTokenizer(words, n_vocab=model.vocabulary)
    return _VOCABULARIES[tokenizer]
