"""Models with circuits written by hand."""

from typing import Any

import pytest
import torch

from kobza.models.tiny import tiny as make

E = 64  # width of a head, of the token part, of the position part, of the part for the previous token
TOKEN, POSITION, PREVIOUS = slice(0, E), slice(E, 2 * E), slice(2 * E, 3 * E)
SHARP = 40.0


@pytest.fixture(scope="session")
def written_induction() -> Any:
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
        # roll(-1, 1) sends position t to t - 1
        _write(
            body.h[0], 1, q=(POSITION, SHARP * one.roll(-1, 1)), k=(POSITION, one), v=(TOKEN, one), o=(PREVIOUS, one)
        )
        _write(body.h[1], 2, q=(TOKEN, SHARP * one), k=(PREVIOUS, one), v=(PREVIOUS, one), o=(TOKEN, one))
    return model


def _write(block: Any, head: int, **parts: Any) -> None:
    """Put matrices (inputs x outputs) into one head."""
    at = slice(head * E, (head + 1) * E)
    for number, name in enumerate("qkv"):
        rows, matrix = parts[name]
        block.attn.c_attn.weight[rows, slice(number * 3 * E + at.start, number * 3 * E + at.stop)] = matrix
    columns, matrix = parts["o"]
    block.attn.c_proj.weight[at, columns] = matrix
