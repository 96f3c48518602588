"""Planted answers: circuits written by hand, which the tools must read off."""

from typing import Any

import pytest
import torch

from kobza.interventions import ablate
from kobza.interventions.base import Edit, metrics, prompt_ids
from kobza.interventions.planner import Run
from kobza.models.sites import Site
from kobza.models.tiny import tiny as make

PROMPT = "the banks of it"


@pytest.fixture(scope="module")
def backups() -> Any:
    """A 1-layer GPT-2 whose heads 0 and 2 write the same long vector: behind the final norm one of them is enough."""
    model = make("gpt2", layers=1, width=32, heads=4, kv_heads=4, tied=False)
    block = model.module.transformer.h[0]
    token = model.tokenizer.encode("k")[0]
    with torch.no_grad():
        block.mlp.c_proj.weight.zero_()
        block.attn.c_proj.weight.zero_()
        block.attn.c_attn.weight.zero_()
        block.attn.c_attn.bias.zero_()
        direction = model.module.lm_head.weight[token] - model.module.lm_head.weight[token].mean()
        for head in (0, 2):
            block.attn.c_attn.bias[2 * 32 + head * 8] = 1.0  # a value that is the same at every position
            block.attn.c_proj.weight[head * 8] = 1e4 * direction / direction.norm()
    return model


def test_two_backup_heads_do_nothing_alone_and_everything_together(backups: Any) -> None:
    run = Run(backups, prompt_ids(backups, PROMPT))
    wanted = metrics(backups, "logit:k", run.top)
    off = [Edit(Site("z", 0, head), tuple(range(run.length)), torch.tensor(0.0)) for head in range(4)]
    cells = [(off[0],), (off[2],), (off[0], off[2]), (off[1], off[3])]
    one, other, both, bystanders = (run.outcome(cells, wanted).values[:, 0] - run.clean(wanted).values[0, 0]).tolist()
    assert abs(both) > 0.1
    assert max(abs(one), abs(other)) < 1e-3 * abs(both)
    assert bystanders == 0


def test_ablate_shows_the_pair_only_together(backups: Any) -> None:
    result = ablate.run(backups, prompt=PROMPT, over="z.0.*", metric="logit:k", top=2)
    assert {row["short"] for row in result.tables[0].head(2)} == {"L0H0", "L0H2"}
    alone = max(abs(row["logit:k change"]) for row in result.tables[0])
    assert alone < 1e-3 * abs(result.reading("together").value)
    assert result.reading("control").value == 0
