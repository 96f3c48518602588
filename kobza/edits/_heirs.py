"""Copied tokens that inherit: where the new vocabulary lacks an old token, the first token of its bytes is said there.

"▁inaugurated" becomes "▁inaug" and "urated", so the output row of "▁inaug" must say yes wherever the longer one was
expected. What an heir should get at a place is known: its own probability and that of all it inherits. Its row is
changed as little as possible, counted over usual states, to give that at the places of a text where it gets most.

Source: the least change of a linear memory over usual inputs: Meng et al. (2022), arXiv:2202.05262, equation 2, here
with many keys and a ridge.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kobza.models.model import Model
from kobza.models.states import head

TOP = 16  # places that a row is fitted to
RIDGE = 0.3  # of their squared error, in units of a usual state's length
DAMPING = 1e-3  # of the states' second moments, in units of their mean
ROWS = 256  # states whose logits are held at once


@torch.inference_mode()
def changes(model: Model, table: Tensor, states: Tensor, first: Tensor, same: Tensor) -> tuple[Tensor, Tensor]:
    """Return ids of heirs (n,) and what is added to their output rows (n, D).

    Args:
        model: the original.
        table: output rows of the new vocabulary (V', D).
        states: final states behind tokens of a text (P, D).
        first: of every old token, the first of the new tokens that say its bytes (V,), -1 where none do.
        same: of every new token, the old one that it is, or -1 (V').
    """
    lost = torch.nonzero((first >= 0) & (same[first] != torch.arange(len(first))) & (same[first] >= 0))[:, 0]
    ids, heir = first[lost].unique(return_inverse=True)
    if not len(ids):
        return ids, table.new_zeros(0, table.shape[1])
    wanted, masses = [], []
    for h in states.split(ROWS):
        logits = head(model, h).float()
        whole = logits.logsumexp(-1, keepdim=True)
        gained = h.new_zeros(len(h), len(ids)).index_add_(1, heir, (logits[:, lost] - whole).exp())
        own = head(model, h, table=table[ids]).float() - whole
        masses.append(torch.logaddexp(own, gained.clamp_min(1e-30).log()))
        wanted.append(masses[-1] - own)
    return ids, least(states, torch.cat(wanted).T, torch.cat(masses).T)


def least(states: Tensor, wanted: Tensor, masses: Tensor) -> Tensor:
    """Return the d (n, D) that give d h = wanted where the mass is largest, and change usual logits least.

    That is the minimum of |H d - wanted|^2 + ridge D d C d over the `TOP` states of most mass, C = E h h^T over all.

    Args:
        states: (P, D).
        wanted, masses: (n, P).
    """
    C = states.T @ states / len(states)
    C += DAMPING * C.diagonal().mean() * torch.eye(len(C))
    whitened = torch.linalg.solve(C, states.T).T / states.shape[1]  # (P, D)
    found = []
    for want, mass in zip(wanted.split(ROWS), masses.split(ROWS), strict=True):
        at = mass.topk(min(TOP, len(states)), 1).indices
        H, A = states[at], whitened[at]  # (b, TOP, D)
        K = H @ A.transpose(1, 2) + RIDGE * torch.eye(at.shape[1])
        weights = torch.linalg.solve(K, want.gather(1, at)[:, :, None])
        found.append((weights * A).sum(1))
    return torch.cat(found) if found else states.new_zeros(0, states.shape[1])
