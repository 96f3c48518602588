"""Nothing outside the alphabet is ever said, not even by bytes; inside it nothing changes."""

from typing import Any

import pytest
import torch

import kobza
from kobza.core.errors import BadValue
from kobza.decoding import alphabet, sample
from kobza.models.alphabet import Alphabet
from kobza.models.tiny import byte_tokenizer, tiny


@pytest.mark.parametrize("seed", range(5))
def test_only_characters_of_the_text_are_said_also_where_bytes_spell_them(seed: int, tmp_path: Any) -> None:
    (tmp_path / "letters.txt").write_text("абвгїё – kobza🎸", encoding="utf-8")
    given = alphabet.generate(tiny(), "the", tokens=40, of=str(tmp_path / "letters.txt"), temperature=3.0, seed=seed)
    said = b"".join(tiny().tokenizer.bytes_of(id) for id in given.ids)
    assert set(said.decode("utf-8", errors="ignore")) <= set("абвгїё – kobza🎸")
    assert len(said) - len(said.decode("utf-8", errors="ignore").encode()) <= 3, "but for one that is begun"


@pytest.mark.parametrize("temperature", [0.0, 2.0])
def test_a_model_of_poems_keeps_to_the_letters_of_a_text(temperature: float) -> None:
    model = kobza.open("kobzar")
    said = alphabet.generate(model, "Як умру", tokens=30, of="ukrainian", temperature=temperature)
    free = sample.generate(model, "Як умру", tokens=30, temperature=temperature)
    assert set(said.text.rstrip("\ufffd")) <= set(kobza.text("ukrainian").string)
    assert temperature == 0 or said.ids != free.ids


def test_which_tokens_may_follow_is_the_definition() -> None:
    tokenizer = byte_tokenizer()
    letters = Alphabet(tokenizer, "the ї")
    first = {id for id in range(len(tokenizer)) if letters.allowed(b"")[id]}
    for id in range(len(tokenizer)):
        data = tokenizer.bytes_of(id)
        whole = set(data.decode("utf-8", errors="replace")) <= set("the ї")
        is_begun = data == "ї".encode()[:1]
        assert (id in first) == ((whole or is_begun) and id not in tokenizer.special.values())
    begun = "ї".encode()[:1]
    after = [tokenizer.bytes_of(id) for id in range(len(tokenizer)) if letters.allowed(begun)[id]]
    assert after == ["ї".encode()[1:]]
    assert letters.cut(torch.zeros(400), b"")[300:].isinf().all()


def test_a_vocabulary_that_cannot_spell_the_alphabet_is_refused() -> None:
    import tokenizers

    from kobza.tokens.base import Tokenizer

    words = Tokenizer(tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0}, unk_token="a")))
    with pytest.raises(BadValue, match="1 characters"):
        Alphabet(words, "z")
