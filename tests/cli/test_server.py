"""The server speaks OpenAI's language to OpenAI's own client, loses no stream, and survives what clients do."""

import copy
import http.client
import json
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest

from kobza.cli.server import BODY, Server
from kobza.decoding import greedy
from kobza.models.tiny import tiny as make_tiny

openai = pytest.importorskip("openai", reason="the client 'openai' is not installed (extra 'dev')")
TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    model = make_tiny()
    model.tokenizer = copy.copy(model.tokenizer)
    model.tokenizer.marks = replace(model.tokenizer.marks, chat_template=TEMPLATE)
    with Server(model, at_once=3, most=80) as running:
        thread = threading.Thread(target=running.serve_forever, daemon=True)
        thread.start()
        yield running
        running.shutdown()


@pytest.fixture(scope="module")
def client(server: Server) -> Any:
    return openai.OpenAI(base_url=server.url, api_key="none", max_retries=0)


def post(server: Server, body: bytes, path: str = "/v1/completions", **headers: str) -> tuple[int, dict[str, Any]]:
    connection = http.client.HTTPConnection(*server.server_address[:2], timeout=20)
    connection.request("POST", path, body, headers)
    answer = connection.getresponse()
    found = json.loads(answer.read() or b"{}")
    connection.close()
    return answer.status, found


def settled(server: Server) -> bool:
    """Wait until nothing generates any more."""
    for _ in range(100):
        if server.running == 0:
            return True
        time.sleep(0.05)
    return False


def test_the_official_client_gets_the_text_of_the_model(server: Server, client: Any) -> None:
    right = greedy.generate(server.model, "The kobza", tokens=12)
    found = client.completions.create(model=server.model.name, prompt="The kobza", max_tokens=12, temperature=0,
                                      logprobs=1)  # fmt: skip
    assert found.choices[0].text == right.text
    assert found.choices[0].finish_reason == "length"
    assert found.choices[0].logprobs.token_logprobs == pytest.approx(right.logprobs)
    assert found.usage.completion_tokens == 12
    assert [m.id for m in client.models.list()] == [server.model.name]


def test_a_chat_goes_through_the_template_whole_and_streamed(server: Server, client: Any) -> None:
    messages = [{"role": "user", "content": "hello"}]
    right = greedy.generate(server.model, messages, tokens=20)
    ask = {"model": server.model.name, "messages": messages, "max_tokens": 20, "temperature": 0}
    whole = client.chat.completions.create(**ask, logprobs=True)
    assert whole.choices[0].message.content == right.text
    assert [t.logprob for t in whole.choices[0].logprobs.content] == pytest.approx(right.logprobs)
    pieces = list(client.chat.completions.create(**ask, stream=True, stream_options={"include_usage": True}))
    assert "".join(p.choices[0].delta.content or "" for p in pieces if p.choices) == right.text
    assert pieces[-2].choices[0].finish_reason == "length"
    assert pieces[-1].usage.completion_tokens == 20


def test_a_schema_is_kept(server: Server, client: Any) -> None:
    pytest.importorskip("llguidance", reason="the extra 'constrained' is not installed")
    schema = {"type": "object", "properties": {"n": {"type": "integer", "minimum": 1, "maximum": 9}},
              "required": ["n"], "additionalProperties": False}  # fmt: skip
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    found = client.chat.completions.create(
        model=server.model.name, messages=[{"role": "user", "content": "a"}], response_format=form, max_tokens=30
    )
    assert 1 <= json.loads(found.choices[0].message.content)["n"] <= 9


def test_fifty_streams_at_once_lose_nothing(server: Server, client: Any) -> None:
    def one(seed: int) -> tuple[str, str]:
        ask = {"model": server.model.name, "prompt": "The kobza", "max_tokens": 24, "seed": seed}
        pieces = list(client.completions.create(**ask, stream=True))
        assert pieces[-1].choices[0].finish_reason in ("length", "stop")
        return "".join(p.choices[0].text for p in pieces), ask["prompt"]

    most: list[int] = []
    watching = threading.Event()

    def watch() -> None:
        while not watching.is_set():
            most.append(server.running)
            time.sleep(0.01)

    thread = threading.Thread(target=watch)
    thread.start()
    with ThreadPoolExecutor(50) as pool:
        found = list(pool.map(one, range(50)))
    watching.set()
    thread.join()
    assert len(found) == 50 and len({text for text, _ in found}) > 40
    assert found[7][0] == one(7)[0], "equal seeds, equal texts, also among fifty"
    assert max(most) <= 3, "no more caches than turns"
    assert settled(server)


def test_a_client_that_goes_away_frees_its_cache(server: Server) -> None:
    body = json.dumps({"prompt": "a", "max_tokens": 1900, "stream": True, "temperature": 1.5}).encode()
    head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(body)
    sockets = []
    for _ in range(6):  # three generate, three wait
        one = socket.create_connection(server.server_address[:2])
        one.sendall(head + body)
        sockets.append(one)
    assert sockets[0].recv(100).startswith(b"HTTP/1.1 200")
    for one in sockets:
        one.close()
    assert settled(server)
    assert post(server, b'{"prompt": "a", "max_tokens": 2}')[0] == 200


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        (b"{", 400, "not JSON"),
        (b"[" * 100_000, 400, "not JSON"),
        (b"[]", 400, "not a JSON object"),
        (b"{}", 400, "prompt is not a text"),
        (b'{"prompt": 5}', 400, "prompt is not a text"),
        (b'{"prompt": "a", "max_tokens": 0}', 400, "max_tokens is 0; allowed is a whole number, 1 to"),
        (b'{"prompt": "a", "max_tokens": 1e9}', 400, "max_tokens is"),
        (b'{"prompt": "a", "max_tokens": 5000}', 400, "was trained for 2048"),
        (b'{"prompt": "a", "temperature": -1}', 400, "temperature is -1; allowed is a number, 0 to 100"),
        (b'{"prompt": "a", "temperature": NaN}', 400, "temperature is nan"),
        (b'{"prompt": "a", "top_p": 0}', 400, "top_p is 0"),
        (b'{"prompt": "a", "n": 2}', 400, "n is not 1"),
        (b'{"prompt": "a", "stop": [""]}', 400, "stop is not"),
        (b'{"prompt": "a", "tools": []}', 400, "the field 'tools' is not known"),
        (b'{"prompt": "a", "strategy": "beem"}', 404, "Nearest: 'beam'"),
        (b'{"prompt": "a", "model": "gpt"}', 404, "the model 'gpt' is not here"),
        (b'{"prompt": "a", "response_format": {"type": "json_schema"}}', 400, "response_format is none of"),
    ],
)
def test_bad_requests_are_answered_with_what_is_wrong(server: Server, body: bytes, status: int, message: str) -> None:
    found = post(server, body)
    assert (found[0], found[1]["error"]["type"]) == (status, "invalid_request_error")
    assert message in found[1]["error"]["message"]


def test_requests_that_are_too_large_or_lead_nowhere_are_refused(server: Server) -> None:
    assert post(server, b"{}", "/v1/nothing")[0] == 404
    assert post(server, b"{}", Host="evil.example")[0] == 403
    with socket.create_connection(server.server_address[:2]) as raw:
        raw.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % (BODY + 1))
        assert raw.recv(100).startswith(b"HTTP/1.1 413")
    with socket.create_connection(server.server_address[:2]) as raw:
        raw.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert raw.recv(100).startswith(b"HTTP/1.1 411")
    with socket.create_connection(server.server_address[:2]) as raw:
        raw.sendall(b"\x00\xff" * 40 + b"\r\n\r\n")
        assert b"400" in raw.recv(200)
    with socket.create_connection(server.server_address[:2]) as raw:
        raw.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 50\r\n\r\n{")  # and gone
    connection = http.client.HTTPConnection(*server.server_address[:2])
    connection.request("GET", "/health")
    assert json.loads(connection.getresponse().read())["status"] == "ok"
    connection.close()


def test_more_connections_than_allowed_are_turned_away() -> None:
    with Server(make_tiny(), most=2) as small:
        threading.Thread(target=small.serve_forever, daemon=True).start()
        held = [socket.create_connection(small.server_address[:2]) for _ in range(2)]
        time.sleep(0.2)
        with socket.create_connection(small.server_address[:2]) as third:
            assert third.recv(100).startswith(b"HTTP/1.1 503")
        for one in held:
            one.close()
        small.shutdown()
