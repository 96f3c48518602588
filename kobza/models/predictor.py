"""A Model as the codec's Predictor: next-token logits of K streams in lockstep, one batched step at a time."""

from __future__ import annotations

import platform

import numpy as np
import torch
from numpy.typing import NDArray

from kobza.core.errors import OutOfRange
from kobza.models.anatomy import kv_numbers
from kobza.models.model import Model
from kobza.models.stepping import Steps, plain


class ModelPredictor:
    """Gives the logits of a model to `codecs.lm`.

    Every context is begun by the start token, if the tokenizer has one; without one the first token of a context has
    equal logits, so it costs log2 V bits, as in `forward.token_bits`.

    Args:
        model: the model; its weights name it.
    """

    def __init__(self, model: Model) -> None:
        self._model = model
        self._stepper: Steps | None = None

    @property
    def fingerprint(self) -> str:
        """The model's own fingerprint."""
        return self._model.fingerprint

    @property
    def environment(self) -> str:
        """All that the last bits of a logit depend on: library, type, device, threads, processor."""
        import transformers

        model = self._model
        capability = torch.backends.cpu.get_cpu_capability()
        facts = (
            f"torch {torch.__version__}",
            f"transformers {transformers.__version__}",
            f"numpy {np.__version__}",
            f"{model.dtype}".removeprefix("torch."),
            f"{model.device}",
            f"{torch.get_num_threads()} threads",
            f"{platform.machine()} {capability}",
        )
        return "; ".join(facts)

    @property
    def context(self) -> int:
        """Tokens the model was trained to see, the start token among them; 0 where it does not say."""
        return self._model.context or 0

    def stream_bytes(self, positions: int) -> int:
        """Return the memory [bytes] that one stream of so many positions takes: its keys and values, and its tables."""
        tables = 36 * self._model.vocabulary  # float32 logits, and four arrays of 8 bytes each
        return positions * kv_numbers(self._model) * self._model.dtype.itemsize + tables

    def restart(self, prefix: NDArray[np.int64]) -> NDArray[np.float32]:
        """Forget all, begin K contexts by the start token and `prefix` (K, T); return the logits (K, V) behind them.

        Raises:
            OutOfRange: the context would be longer than the model was trained for.
        """
        streams = len(prefix)
        self._stepper = plain(self._model, batch=streams)
        start = self._model.tokenizer.start_id
        fed = torch.from_numpy(np.ascontiguousarray(prefix))
        if start is not None:
            fed = torch.cat([torch.full((streams, 1), start, dtype=torch.long), fed], dim=1)
        if not fed.shape[1]:
            return np.zeros((streams, self._model.vocabulary), np.float32)
        return self._fed(fed)

    def feed(self, ids: NDArray[np.int64]) -> NDArray[np.float32]:
        """Append one id to every stream (K,); return the logits (K, V) behind them."""
        return self._fed(torch.from_numpy(np.ascontiguousarray(ids))[:, None])

    def _fed(self, ids: torch.Tensor) -> NDArray[np.float32]:
        if self._stepper is None:
            raise OutOfRange("nothing can be fed before a context has begun: call restart first.")
        with torch.inference_mode():
            logits = self._stepper.feed(ids.to(self._model.device))
        return np.ascontiguousarray(logits.float().cpu().numpy())
