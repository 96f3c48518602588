"""The commands that let a model speak: say, serve; and evaluate, which asks it."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kobza.cli import show, spec
from kobza.cli.frame import command
from kobza.cli.looking import opened_model
from kobza.core.errors import BadValue, NothingMatched

if TYPE_CHECKING:
    from kobza.core.options import Step
    from kobza.core.result import Result
    from kobza.models.model import Model

STRATEGY = "sample:temperature=0.7,top_p=0.9"
BYE = ("", "/bye")
Backend = Annotated[
    str, typer.Option(metavar="NAME", help="What runs the model: auto, transformers, bare, llama (GGUF by llama.cpp).")
]


Steer = Annotated[
    list[str] | None,
    typer.Option(
        metavar="FILE[:STRENGTH]",
        help="Add a direction that `kobza steer --keep FILE` wrote, so many times (1 unless said). May be repeated.",
    ),
]


def register(app: typer.Typer) -> None:
    """Add the commands of this file to the command line."""
    command(app, "say", output=False, threads=True)(say)
    command(app, "evaluate", threads=True)(evaluate)
    command(app, "serve", output=False, threads=True)(serve)


def say(
    model: spec.ModelName,
    prompt: Annotated[
        str | None, typer.Argument(metavar="[PROMPT]", help="What to say to it, or to go on with.")
    ] = None,
    plain: Annotated[bool, typer.Option("--plain", help="Go on with the text; no chat template.")] = False,
    system: Annotated[str, typer.Option(metavar="TEXT", help="Instruction in front of the chat.")] = "",
    tokens: Annotated[int, typer.Option("--tokens", "-n", min=1, metavar="N", help="Tokens at most.")] = 256,
    strategy: Annotated[
        str,
        typer.Option(
            metavar="SPEC",
            help="How to choose tokens: greedy, sample:temperature=0.7,top_p=0.9, ... (see: kobza list decoding).",
            autocompletion=spec.complete_strategy,
        ),
    ] = STRATEGY,
    edit: spec.Edits = None,
    steer: Steer = None,
    seed: spec.Seed = "0",
    dtype: spec.Dtype = "",
    backend: Backend = "auto",
    is_json: Annotated[bool, typer.Option("--json", help="Print one JSON document when done.")] = False,
) -> None:
    """Let a model speak. It chats where it has a chat template, else it goes on with the text. The answer
    comes as it is made.

    Without a prompt, a terminal opens a chat (an empty line ends it), and piped input is the prompt.

    Examples:

        kobza say smollm2 "Why is the sky blue?"
        kobza say smollm2 "Once upon a time" --plain --strategy greedy -n 50
        kobza say smollm2 "Why is the sky blue?" --edit lowrank:rank=386
        kobza say smollm2 "My day was" --plain --steer joy.safetensors:2

        echo "Name three rivers." | kobza say smollm2 --json
    """
    from kobza.models.stepping import using

    wanted = _strategy(strategy, tokens, seed)
    is_chat = prompt is None and sys.stdin.isatty() and not is_json
    words = "" if is_chat else _piped() if prompt is None else prompt
    opened = opened_model(model, dtype, edits=edit)
    with using(backend), _steered(opened, steer, backend):
        if is_chat:
            _chat(opened, wanted, system, plain)
            return
        begun = _prompt(opened, [], words, system, plain)
        said = _generation(opened, begun, wanted)
        if is_json:
            show.write(_document(opened, begun, said, wanted, steer or []) + "\n")
        else:
            stream(said)


def serve(
    model: spec.ModelName,
    host: Annotated[
        str, typer.Option(metavar="NAME", help="Where to listen; only this machine unless changed.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, metavar="N", help="Port; 0 takes a free one.")] = 8000,
    at_once: Annotated[int, typer.Option(min=1, max=64, metavar="N", help="Answers made together; others wait.")] = 4,
    edit: spec.Edits = None,
    steer: Steer = None,
    dtype: spec.Dtype = "",
    backend: Backend = "auto",
) -> None:
    """Answer requests in OpenAI's form, over an opened or edited model. No key is asked for: on other hosts than this
    machine everyone who reaches the port can use it.

    Paths: /v1/chat/completions, /v1/completions (streams too), /v1/models, /health. A field "strategy" names another
    way to choose tokens; response_format takes a JSON schema.

    Examples:

        kobza serve smollm2
        kobza serve smollm2 --port 8080 --edit lowrank:rank=386
    """
    from kobza.cli.server import Server
    from kobza.models.stepping import using

    opened = opened_model(model, dtype, edits=edit)
    with using(backend), _steered(opened, steer, backend):
        try:
            server = Server(opened, host, port, at_once=at_once, backend=backend)
        except OSError as error:
            raise BadValue(f"{host}:{port} cannot be listened on: {error.strerror}.", "Give another --port.") from None
        sys.stderr.write(f"{opened.name} answers at {server.url} (Ctrl-C ends it)\n")
        with server:
            server.serve_forever()


def evaluate(
    model: spec.ModelName,
    tasks: Annotated[list[str], typer.Argument(metavar="TASK...", help="Tasks of lm-evaluation-harness.")],
    shots: Annotated[
        int | None, typer.Option(min=0, metavar="N", help="Solved examples before each question; else the task's own.")
    ] = None,
    limit: Annotated[int, typer.Option(min=0, metavar="N", help="Documents of each task; 0 takes all.")] = 0,
    include: Annotated[str, typer.Option(metavar="DIR", help="A folder with further tasks in YAML.")] = "",
    chat: Annotated[bool, typer.Option("--chat", help="Put questions into the chat template.")] = False,
    edit: spec.Edits = None,
    seed: Annotated[int, typer.Option(min=0, metavar="N", help="Chooses the solved examples.")] = 0,
    dtype: spec.Dtype = "",
    backend: Backend = "auto",
) -> Result:
    """Evaluate a model, as it is or edited, on tasks of lm-evaluation-harness. Needs the extra `evaluate`; the tasks'
    data come from the hub.

    Examples:

        kobza evaluate smollm2 arc_easy piqa --limit 200
        kobza evaluate smollm2 arc_easy --edit lowrank:rank=386
    """
    from kobza.cli import harness
    from kobza.models.stepping import using

    opened = opened_model(model, dtype, edits=edit)
    with using(backend):
        return harness.evaluate(opened, tasks, shots=shots, limit=limit, include=include, chat=chat, seed=seed)


@contextmanager
def _steered(model: Model, steer: list[str] | None, backend: str) -> Iterator[None]:
    """Add the named directions to the stream while the block runs.

    Raises:
        BadValue: a strength that is no number, a direction of another width, or a backend that knows no hooks.
        OutOfRange: a layer that the model does not have.
    """
    if not steer:
        yield
        return
    from kobza.interventions.steer import Vector
    from kobza.models.hooks import hooked

    if backend not in ("auto", "transformers"):
        raise BadValue(f"the backend {backend!r} cannot be steered.", "Leave --backend out.")
    hooks = []
    for word in steer:
        name, _, last = word.rpartition(":")
        try:
            strength = float(last) if name else 1.0
        except ValueError:
            raise BadValue(f"the strength {last!r} is not a number.", "Write --steer FILE:2") from None
        vector = Vector.load(name or word)
        if vector.values.shape != (model.width,):
            raise BadValue(f"{word}: a direction of width {len(vector.values)}; '{model.name}' has {model.width}.")
        hooks += vector.hooks(strength)
    try:
        with hooked(model, hooks):
            yield
    except NothingMatched:  # nothing was said in the chat, or nothing asked of the server
        return


def stream(pieces: Iterable[str]) -> str:
    """Write pieces as they come, ending with a line end; returns them together."""
    whole = []
    for piece in pieces:
        show.write(show.printable(piece))
        whole.append(piece)
    text = "".join(whole)
    if not text.endswith("\n"):
        show.write("\n")
    return text


def _chat(model: Model, wanted: Step, system: str, plain: bool) -> None:
    history: list[dict[str, str]] = []
    sys.stderr.write(f"{model.name}: an empty line ends the chat.\n")
    while (words := _line()) not in BYE:
        answer = stream(_generation(model, _prompt(model, history, words, system, plain), wanted))
        history += [{"role": "user", "content": words}, {"role": "assistant", "content": answer}]


def _line() -> str:
    sys.stderr.write("> ")
    sys.stderr.flush()
    return sys.stdin.readline().rstrip("\n")


def _piped() -> str:
    from kobza.core.texts import text

    return text("-").string.rstrip("\n")


def _strategy(words: str, tokens: int, seed: str) -> Step:
    """Return the strategy with the number of tokens, and the seed where it draws."""
    from kobza.core import techniques
    from kobza.core.options import Step

    step = spec.parse_technique("decoding", words)
    known = {option.name for option in techniques.described("decoding", step.name)}
    if not seed.isdecimal():
        raise BadValue(f"seed {seed!r} is not a whole number.", "Write --seed 0")
    given = {"tokens": tokens, "seed": int(seed)}
    return Step(step.name, {**{k: v for k, v in given.items() if k in known}, **step.options})


def _prompt(model: Model, history: list[dict[str, str]], words: str, system: str, plain: bool) -> Any:
    """Return messages for the chat template, or the text alone."""
    if plain or model.tokenizer.chat_template is None:
        if system:
            raise BadValue("--system needs a chat, and this is plain text.", "Put it in front of the prompt.")
        return words
    front = [{"role": "system", "content": system}] if system else []
    return [*front, *history, {"role": "user", "content": words}]


def _generation(model: Model, prompt: Any, wanted: Step) -> Any:
    from kobza.core import techniques
    from kobza.core.options import check

    verb = techniques.verb("decoding", wanted.name)
    return verb(model, prompt, **check(verb, wanted.options, what=f"strategy {wanted.name!r}"))


def _document(model: Model, prompt: Any, said: Any, wanted: Step, steer: list[str]) -> str:
    import json

    from kobza.core.options import spell

    found = {
        "schema": "kobza.generation/1",
        "model": model.name,
        "changes": [str(change) for change in model.changes],
        "steer": steer,
        "strategy": spell(wanted),
        "prompt": prompt,
        "text": said.text,
        "ids": said.ids,
        "logprobs": said.logprobs,
        "entropies": said.entropies,
        "passes": said.passes,
        "acceptance": said.acceptance,
        "stopped_by": said.stopped_by,
        "tokens_per_second": said.tokens_per_second,
    }
    return json.dumps(found, ensure_ascii=False, allow_nan=False)
