"""Models from nothing: the published sizes, exact vocabularies, and what transformers makes of the result."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import kobza
from kobza.core.errors import BadValue, EmptyText, OutOfRange
from kobza.models.tiny import byte_tokenizer
from kobza.tokens import pairs
from kobza.training import scratch
from kobza.training.parts import classic, corpus, trimming
from kobza.training.parts.classic import Sizes

TEXT = b"the banks of the wide Dnipro, the steep cliffs, the waves that roar and moan. " * 20


class Vocabulary(list[None]):
    """Stands for 200,019 ids, of which only the number matters here."""

    start_id = end_id = None


@pytest.mark.parametrize(("layers", "count"), [(12, 112_086_355), (16, 115_242_323)])
def test_the_classic_model_has_the_published_number_of_parameters(layers: int, count: int) -> None:
    sizes = Sizes(layers, 256, 8, 8, 1024, 32)
    with torch.device("meta"):
        module = classic.build("classic", sizes, Vocabulary([None] * 200_019), seed=0)  # type: ignore[arg-type]
    assert sum(p.numel() for p in module.parameters() if p.requires_grad) == count


class Notebook(nn.Module):
    """The published model, written plainly: one head after the other, no fused anything."""

    def __init__(self, vocabulary: int, sizes: Sizes) -> None:
        super().__init__()
        D, E = sizes.width, sizes.width // sizes.heads
        self.tokens, self.places = nn.Embedding(vocabulary, D), nn.Embedding(sizes.context, D)
        self.blocks = nn.ModuleList()
        for _ in range(sizes.layers):
            heads = nn.ModuleList(nn.ModuleList(nn.Linear(D, E, bias=False) for _ in "qkv") for _ in range(sizes.heads))
            mlp = nn.Sequential(nn.Linear(D, 4 * D), nn.ReLU(), nn.Linear(4 * D, D))
            self.blocks.append(nn.ModuleList([nn.LayerNorm(D), heads, nn.Linear(D, D), nn.LayerNorm(D), mlp]))
        self.norm, self.head = nn.LayerNorm(D), nn.Linear(D, vocabulary)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.tokens(ids) + self.places(torch.arange(ids.shape[1]))
        mask = torch.ones(ids.shape[1], ids.shape[1]).tril() == 0
        for norm1, heads, out, norm2, mlp in self.blocks:
            n = norm1(x)
            found = []
            for q, k, v in heads:
                scores = q(n) @ k(n).transpose(-1, -2) * k.weight.shape[0] ** -0.5
                found.append(scores.masked_fill(mask, -torch.inf).softmax(-1) @ v(n))
            x = x + out(torch.cat(found, -1))
            x = x + mlp(norm2(x))
        return self.head(self.norm(x))


def copied(notebook: Notebook, module: Any) -> None:
    """Put the notebook's weights into the GPT-2 module."""
    state = {"transformer.wte.weight": notebook.tokens.weight, "transformer.wpe.weight": notebook.places.weight}
    state |= {f"transformer.ln_f.{k}": v for k, v in notebook.norm.state_dict().items()}
    state |= {f"lm_head.{k}": v for k, v in notebook.head.state_dict().items()}
    for n, (norm1, heads, out, norm2, mlp) in enumerate(notebook.blocks):
        at = f"transformer.h.{n}."
        joined = torch.cat([head[i].weight for i in range(3) for head in heads])
        state |= {f"{at}ln_1.{k}": v for k, v in norm1.state_dict().items()}
        state |= {f"{at}ln_2.{k}": v for k, v in norm2.state_dict().items()}
        state |= {f"{at}attn.c_attn.weight": joined.T, f"{at}attn.c_attn.bias": torch.zeros(len(joined))}
        for name, part in (("attn.c_proj", out), ("mlp.c_fc", mlp[0]), ("mlp.c_proj", mlp[2])):
            state |= {f"{at}{name}.weight": part.weight.T, f"{at}{name}.bias": part.bias}
    module.load_state_dict(state)


def test_the_classic_model_computes_what_the_notebook_does_also_when_its_head_is_folded() -> None:
    sizes = Sizes(2, 32, 4, 4, 128, 16)
    torch.manual_seed(0)
    notebook = Notebook(300, sizes)
    nn.init.normal_(notebook.norm.weight)
    nn.init.normal_(notebook.norm.bias)
    module = classic.build("classic", sizes, byte_tokenizer(), seed=1)
    copied(notebook, module)
    ids = torch.randint(300, (3, 16))
    with torch.no_grad():
        wanted = notebook(ids)
        assert torch.allclose(module.eval()(input_ids=ids).logits, wanted, atol=1e-5)
        assert torch.allclose(classic.folded(module)(input_ids=ids).logits, wanted, atol=1e-5)


def test_a_trimmed_vocabulary_gives_the_same_tokens_and_any_text_still_encodes() -> None:
    whole = pairs.train(TEXT + "кобза і бандура ".encode() * 9, size=320)
    ids = whole.encode("the wide Dnipro and its steep banks")
    small, kept = trimming.trimmed(whole, ids)
    assert len(small) == len(kept) < len(whole)
    assert kept[torch.tensor(small.encode("the wide Dnipro and its steep banks"))].tolist() == ids
    for text in ("бандура 日本", b"\xff\x00", "Dnipro Dnipro"):
        assert small.decode(small.encode(text)) == (text.encode() if isinstance(text, str) else text)


def test_a_trimmed_tokenizer_json_gives_the_same_tokens(tiny: Any) -> None:
    ids = tiny.tokenizer.encode("the banks of it")
    small, kept = trimming.trimmed(tiny.tokenizer, ids)
    assert kept[torch.tensor(small.encode("the banks of it"))].tolist() == ids
    assert small.bytes_of(small.start_id) == tiny.tokenizer.bytes_of(tiny.tokenizer.start_id)


@pytest.mark.real
def test_o200k_is_cut_to_the_published_number_of_ids(data: Path) -> None:
    whole = kobza.vocabulary(data / "tokenizers" / "o200k_base.tiktoken")
    texts, notes = corpus.documents(data / "text" / "kobzar.txt")
    assert notes == ["4841 line ends CR LF are read as LF"]
    ids = whole.encode(texts[0])
    assert len(ids) == 209_951
    small, _ = trimming.trimmed(whole, ids)
    assert len(set(ids)) == 4_767
    assert len(small) == 5_143 + len(whole.special)


def test_a_vocabulary_without_merges_cannot_be_trimmed() -> None:
    import tokenizers

    from kobza.tokens.base import Tokenizer

    words = Tokenizer(tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0}, unk_token="a")))
    with pytest.raises(BadValue, match="trim=false"):
        trimming.trimmed(words, [0])


def test_the_restored_model_says_what_the_trimmed_one_did() -> None:
    whole = pairs.train(TEXT + "кобза і бандура ".encode() * 9, size=320)
    run = scratch.train(whole, TEXT, kind="classic", size=1, width=32, heads=2, steps=3, seed=3)
    again = scratch.train(whole, TEXT, kind="classic", size=1, width=32, heads=2, steps=3, seed=3, restore=True)
    _, kept = trimming.trimmed(whole, whole.encode(TEXT))
    small = torch.tensor([run.model.tokenizer.encode("the banks of")])
    large = torch.tensor([whole.encode("the banks of")])
    first = run.model.module(input_ids=small).logits.softmax(-1)
    second = again.model.module(input_ids=large).logits.softmax(-1)
    assert again.model.vocabulary == len(whole)
    assert torch.allclose(second[..., kept], first, atol=1e-6)
    assert float(second.sum(-1).sub(second[..., kept].sum(-1)).max()) < 1e-6


@pytest.mark.parametrize("kind", ["llama", "classic"])
def test_the_trained_model_opens_in_kobza_and_transformers(kind: Any, tmp_path: Path) -> None:
    run = scratch.train(byte_tokenizer(), TEXT, kind=kind, size=1, width=32, heads=2, context=16, steps=4)
    run.model.save(tmp_path / "model")  # opens it again by transformers and compares the logits
    again = kobza.open(tmp_path / "model")
    assert again.fingerprint == run.model.fingerprint
    assert again.tokenizer.encode("banks") == run.model.tokenizer.encode("banks")


def test_a_model_learns_and_its_curve_is_drawn() -> None:
    run = scratch.train(byte_tokenizer(), TEXT, size=1, width=32, heads=2, context=32, steps=40, rate=1e-2)
    assert run.history["held_all"][-1] < 0.7 * run.history["held_all"][0]
    assert run.history.figures[0].kind == "lines"
    assert run.facts["leak"] > 0.9, "the text repeats itself"


def test_memory_and_time_are_told_before_the_run() -> None:
    said: list[str] = []
    run = scratch.train(byte_tokenizer(), TEXT, size=1, width=32, heads=2, steps=1, tell=said.append)
    assert "parameters are trained" in said[0]
    assert any("held out" in line for line in said)
    assert run.facts["predicted_bytes"] > 4 * run.model.parameters * 3


def test_one_token_an_empty_text_and_sizes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(EmptyText):
        scratch.train(byte_tokenizer(), b"")
    with pytest.raises(EmptyText, match="at least 2"):
        scratch.train(byte_tokenizer(), b"x", held=0.0)
    with pytest.raises(OutOfRange, match="width 30"):
        scratch.train(byte_tokenizer(), TEXT, width=30, heads=4, steps=1)
