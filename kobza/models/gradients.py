"""What the loss feels: gradients at the input embeddings, and second moments at the output head."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kobza.models import passes
from kobza.models.model import Model
from kobza.models.passes import BITS
from kobza.models.states import body, head


@torch.inference_mode(False)
def embedding_gradients(model: Model, ids: Sequence[int] | Tensor, *, window: int = 1024, chunk: int = 128) -> Tensor:
    """Return the gradient of the total bits of a text by the table row that was looked up at each position.

    One backward pass per window, windows without overlap, weights frozen; the head is differentiated `chunk`
    positions at a time. The last token of a window is predicted but not read: its gradient is zero.

    Args:
        model: the model; forks and factored ones too.
        ids: the T tokens of a text, without a start token.
        window: tokens per window [count, 1 .. the trained context].
        chunk: positions whose logits are held at once [count, 1 ..].

    Returns:
        (T, D) float32, bits per unit of the row.
    """
    tokens = passes.checked(model, ids, window, 0, chunk).clone()  # an inference tensor cannot be differentiated by
    table = model.module.get_input_embeddings()
    # a family's scale is applied inside the lookup: the chain rule by hand
    scale = torch.as_tensor(getattr(table, "embed_scale", 1.0)).float()
    gradients = torch.zeros(len(tokens), table.embedding_dim)
    start = model.tokenizer.start_id
    for begin, _, end in passes.windows(len(tokens), window, 0):
        fed = passes.fed_ids(tokens[begin:end], start).to(model.device)
        if len(fed):
            found = _window_gradients(model, fed, tokens[begin:end].to(model.device), chunk)
            first = 0 if start is None else 1
            gradients[begin : begin + len(fed) - first] = (found[first:] * scale.to(found.device)).cpu()
    return gradients


def _window_gradients(model: Model, fed: Tensor, tokens: Tensor, chunk: int) -> Tensor:
    """Return d(bits of the predicted tokens)/d(vectors looked up), (len(fed), D)."""
    with torch.enable_grad():
        vectors = model.module.get_input_embeddings()(fed[None]).detach().clone().requires_grad_()
        states = body(model.module, inputs_embeds=vectors)[0]
        targets = tokens[len(tokens) - len(fed) :]
        at_states = torch.cat(
            [_head_gradient(model, states[i : i + chunk], targets[i : i + chunk]) for i in range(0, len(fed), chunk)]
        )
        (gradient,) = torch.autograd.grad(states, vectors, at_states)
    return gradient[0].float()


def _head_gradient(model: Model, states: Tensor, targets: Tensor) -> Tensor:
    leaf = states.detach().requires_grad_()
    loss = torch.nn.functional.cross_entropy(head(model, leaf).float(), targets, reduction="sum") * BITS
    return torch.autograd.grad(loss, leaf)[0]


@dataclass(frozen=True)
class OutputMoments:
    """What a low-rank approximation of the output head W (V, D) should weigh by; sums over T positions.

    With p the model's probabilities and h the final state, the second derivative of the loss (nats) by row v of W is
    sum_t p_tv (1 - p_tv) h_t h_t^T: `rows` and `columns` are its two marginals (a Kronecker factorisation, as in
    Martens & Grosse 2015).

    Attributes:
        rows: (V,) sum_t p_tv (1 - p_tv).
        columns: (D, D) sum_t w_t h_t h_t^T with w_t = sum_v p_tv (1 - p_tv).
        gradients: (V,) sum_t (p_tv - [v is the target])^2 |h_t|^2, the energy of the gradient of each row.
        states: (D, D) sum_t h_t h_t^T.
        tokens: T.
    """

    rows: Tensor
    columns: Tensor
    gradients: Tensor
    states: Tensor
    tokens: int


@torch.inference_mode()
def output_moments(model: Model, ids: Sequence[int] | Tensor, *, window: int = 1024, chunk: int = 128) -> OutputMoments:
    """Stream over a text and return the moments of its final states and predictions (float64 sums).

    Args:
        model: the model.
        ids: the T tokens of a text, without a start token; windows do not overlap.
        window: tokens per window [count, 1 .. the trained context].
        chunk: positions whose logits are held at once [count, 1 ..].
    """
    tokens = passes.checked(model, ids, window, 0, chunk)
    width = model.matrices["embed.out"].shape[1]
    rows, gradients = (torch.zeros(model.vocabulary, dtype=torch.float64) for _ in range(2))
    columns, squares = (torch.zeros(width, width, dtype=torch.float64) for _ in range(2))
    count = 0
    for at, states, _ in passes.scored_states(model, tokens, window, 0):
        for part in range(0, len(at), chunk):
            h = states[part : part + chunk]
            p = head(model, h).float().softmax(-1)  # (t, V)
            spread = p * (1 - p)
            rows += spread.sum(0).double().cpu()
            h = h.float()
            columns += ((h * spread.sum(1, keepdim=True)).T @ h).double().cpu()
            squares += (h.T @ h).double().cpu()
            p[torch.arange(len(h)), tokens[at[part : part + chunk]].to(p.device)] -= 1
            gradients += (p.square_().T @ h.square().sum(1)).double().cpu()
            count += len(h)
    return OutputMoments(rows, columns, gradients, squares, count)
