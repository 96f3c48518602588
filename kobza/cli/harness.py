"""A model of kobza, edited or not, as lm-evaluation-harness sees one: its tasks, our model.

Answers behind one context share its keys and values: requests are sorted by their tokens, and a run goes back to where
the next one parts from the last. Scores are those of the harness's own class for transformers.

Source: Gao et al., lm-evaluation-harness, doi:10.5281/zenodo.10256836; interface `lm_eval.api.model.TemplateLM`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from kobza.core.errors import BadValue, MissingExtra, OutOfRange, UnknownName
from kobza.core.progress import task
from kobza.core.result import Reading, Result
from kobza.core.table import Table
from kobza.measures.base import record
from kobza.models.model import Model
from kobza.models.prompts import end_ids
from kobza.models.stepping import Steps, steps

try:
    from lm_eval.api.model import TemplateLM
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
except ImportError:
    raise MissingExtra.of("evaluating on tasks", "lm-eval", "evaluate") from None

TOKENS = 256  # an answer is so long where its task does not say
LONGEST = 2048  # context of a model that does not say [tokens]
NORMAL = 1.96  # standard errors on either side of 95 %
LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")  # names for one option
Scored = tuple[Any, list[int], list[int]]  # (texts, tokens of the context, tokens of the continuation)


class Harness(TemplateLM):
    """A model behind the interface of lm-evaluation-harness: `lm_eval.simple_evaluate(model=Harness(model), ...)`.

    Control tokens that a chat template writes are read as such; so is their name where a document has it, as the
    harness does with models of transformers.

    Args:
        model: an opened or edited model.
    """

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model = model
        self.longest = model.context or LONGEST
        names = sorted(model.tokenizer.special, key=len, reverse=True)
        self._control = re.compile("(" + "|".join(map(re.escape, names)) + ")") if names else None

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text."""
        ends = end_ids(self.model)
        if not ends:
            raise BadValue(f"'{self.model.name}' has no token that ends a text.")
        return min(ends)

    @property
    def prefix_token_id(self) -> int:
        """What an empty context is read as: the start token, else the end."""
        start = self.model.tokenizer.start_id
        return self.eot_token_id if start is None else start

    @property
    def tokenizer_name(self) -> str:
        """What requests are kept under."""
        return self.model.tokenizer.fingerprint

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """Return the source of the model's own template."""
        return self.model.tokenizer.chat_template if chat_template else None

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Return a conversation in the model's format, as text."""
        tokenizer = self.model.tokenizer
        return tokenizer.decode(tokenizer.chat(chat_history, reply=add_generation_prompt)).decode("utf-8", "replace")

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """Return the tokens of a text; the start token goes in front where the model is used with one."""
        tokenizer = self.model.tokenizer
        pieces = self._control.split(string) if self._control else [string]
        ids = [
            i
            for at, piece in enumerate(pieces)
            if piece
            for i in ([tokenizer.special[piece]] if at % 2 else tokenizer.encode(piece))
        ]
        starts = tokenizer.marks.adds_start if add_special_tokens is None else add_special_tokens
        is_begun = bool(ids) and ids[0] == tokenizer.start_id
        return ids if not starts or is_begun or tokenizer.start_id is None else [tokenizer.start_id, *ids]

    def _loglikelihood_tokens(self, requests: list[Scored], **kwargs: Any) -> list[tuple[float, bool]]:
        found: list[tuple[float, bool]] = [(0.0, True)] * len(requests)
        order = sorted(range(len(requests)), key=lambda i: (*requests[i][1], *requests[i][2]))
        run, read = steps(self.model), list[int]()
        with task("requests", len(requests)) as shown:
            for i in order:
                _, context, answer = requests[i]
                fed = [*context, *answer][-(self.longest + 1) : -1]
                answer = answer[-len(fed) :]
                found[i] = _scored(run, read, fed, answer)
                read = fed
                shown.step()
        return found

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """Return the log-probability of whole texts [nats], in windows of the trained context."""
        cut, owners = list[Scored](), list[int]()
        for owner, request in enumerate(requests):
            ids = self.tok_encode(request.args[0], add_special_tokens=False)
            for pair in get_rolling_token_windows(ids, self.prefix_token_id, self.longest, 1):
                cut.append(("", *make_disjoint_window(pair)))
                owners.append(owner)
        totals = [0.0] * len(requests)
        for owner, (value, _) in zip(owners, self._loglikelihood_tokens(cut), strict=True):
            totals[owner] += value
        return totals

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """Return what the model goes on with, up to a stop text, its end token or so many tokens."""
        said = []
        with task("answers", len(requests)) as shown:
            for request in requests:
                context, wanted = request.args
                said.append(self._answer(context, wanted))
                shown.step()
        return said

    def _answer(self, context: str, wanted: Mapping[str, Any]) -> str:
        from kobza.decoding import greedy, sample

        stop = wanted.get("until") or []
        stop = [text for text in ([stop] if isinstance(stop, str) else stop) if text]
        tokens = int(next((wanted[name] for name in LENGTHS if wanted.get(name) is not None), TOKENS))
        if tokens >= self.longest:
            raise OutOfRange(f"an answer of {tokens} tokens leaves no room in the {self.longest} of the model.")
        ids = self.tok_encode(context)[-(self.longest - tokens) :] or [self.prefix_token_id]
        warm = float(wanted.get("temperature") or 0.0)
        if not wanted.get("do_sample", warm > 0):
            return greedy.generate(self.model, ids, tokens=tokens, stop=stop).text
        rules = {name: wanted[name] for name in ("top_k", "top_p", "min_p") if wanted.get(name) is not None}
        return sample.generate(self.model, ids, tokens=tokens, stop=stop, temperature=warm or 1.0, **rules).text


def _scored(run: Steps, read: Sequence[int], fed: Sequence[int], answer: Sequence[int]) -> tuple[float, bool]:
    """Return the log-probability of an answer, and whether greedy would say it; `run` has read `read` before."""
    first = len(fed) - len(answer)  # the logits behind this place judge the answer's first token
    same = next((i for i, (a, b) in enumerate(zip(read, fed, strict=False)) if a != b), min(len(read), len(fed)))
    run.rollback(run.length - min(same, first))
    logits = run.feed([list(fed[run.length :])], keep=len(answer))[0].reshape(len(answer), -1)
    targets = torch.tensor(answer)
    chosen = logits.double().log_softmax(-1).gather(1, targets[:, None].to(logits.device))
    return float(chosen.sum()), bool((logits.argmax(-1).cpu() == targets).all())


def evaluate(
    model: Model,
    tasks: Sequence[str],
    *,
    shots: int | None = None,
    limit: int = 0,
    include: str = "",
    chat: bool = False,
    seed: int = 0,
) -> Result:
    """Run tasks of lm-evaluation-harness on a model.

    Args:
        model: an opened or edited model.
        tasks: names of tasks; the harness fetches their data.
        shots: solved examples before each question; None takes the task's own number [count, 0 ..].
        limit: documents of each task; 0 takes all [count, 0 ..].
        include: a folder with further tasks in YAML.
        chat: put questions into the chat template.
        seed: of the choice of examples.

    Returns:
        A Result with a reading per task and metric; the interval is 1.96 of the harness's standard errors.

    Raises:
        UnknownName: no such task. OutOfRange: a negative number.
    """
    try:
        import lm_eval
        from lm_eval.tasks import TaskManager
    except ImportError as error:  # the interface alone needs less than its tasks do
        raise MissingExtra.of("evaluating on tasks", str(error.name), "evaluate") from None
    if limit < 0 or (shots is not None and shots < 0):
        raise OutOfRange(f"limit {limit}, shots {shots}: give 0 or more.")
    manager = TaskManager(include_path=include or None)
    for name in tasks:
        if name not in manager.all_tasks:
            raise UnknownName.of("task", name, manager.all_tasks)
    found = lm_eval.simple_evaluate(
        model=Harness(model), tasks=list(tasks), num_fewshot=shots, limit=limit or None, task_manager=manager,
        apply_chat_template=chat, log_samples=False, random_seed=seed, fewshot_random_seed=seed,
    )  # fmt: skip
    made = record(model, None, tasks=list(tasks), shots=shots, limit=limit, chat=chat, seed=seed)
    made["versions"] |= {"lm-eval": lm_eval.__version__}
    made["how"]["task_versions"] = {name: found["versions"].get(name) for name in found["results"]}
    readings = [
        _reading(name, metric, value, values, made)
        for name, values in found["results"].items()
        for metric, value in values.items()
        if isinstance(value, int | float) and "," in metric and "_stderr" not in metric
    ]
    rows = [{"task_metric": r.name, "value": r.value, "low": r.low, "high": r.high} for r in readings]
    return Result(f"{model.name} on {', '.join(tasks)}", readings, [Table(rows, title="Tasks")], made_by=made)


def _reading(name: str, metric: str, value: float, values: Mapping[str, Any], made: dict[str, Any]) -> Reading:
    plain, _, filtered = metric.partition(",")
    error = values.get(f"{plain}_stderr,{filtered}")
    label = f"{name} {plain}" + (f" ({filtered})" if filtered != "none" else "")
    if not isinstance(error, float):
        return Reading(label, float(value), record=made)
    low, high = value - NORMAL * error, value + NORMAL * error
    return Reading(label, float(value), "", low, high, "95 %, normal, the harness's standard error", made)
