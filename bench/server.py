"""Fifty streams at once against `kobza serve`: are all whole, and what memory do they take? python -m bench.server.

Every stream must equal what the model says alone. Memory is the server's peak resident set, read by the kernel: idle,
behind one stream, behind all. The bound is what the formula says: so many caches as answers are made together.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

PROMPTS = 10


def main() -> None:
    """Print the table."""
    words = argparse.ArgumentParser()
    words.add_argument("--model", default="smollm2")
    words.add_argument("--streams", type=int, default=50)
    words.add_argument("--tokens", type=int, default=24)
    words.add_argument("--at-once", type=int, default=4)
    asked = words.parse_args()
    command = [sys.executable, "-m", "kobza", "serve", asked.model, "--port", "0", "--at-once", str(asked.at_once)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        try:
            url = found[0] if (found := re.findall(r"http://\S+", _line(server))) else ""
            idle = _peak(server.pid)
            alone = [_stream(url, i, asked.tokens) for i in range(PROMPTS)]
            one = _peak(server.pid)
            texts = [""] * asked.streams
            began = time.perf_counter()
            threads = [threading.Thread(target=_into, args=(texts, url, i, asked.tokens)) for i in range(asked.streams)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            seconds, many = time.perf_counter() - began, _peak(server.pid)
        finally:
            server.terminate()
    whole = sum(text == alone[i % PROMPTS] for i, text in enumerate(texts))
    print(f"{asked.streams} streams of {asked.tokens} tokens, {asked.at_once} at once: {whole} equal the answer alone")
    print(f"peak memory [MB]: idle {idle:.0f}, one after another +{one - idle:.1f}, all +{many - one:.1f} on top")
    print(f"{asked.streams * asked.tokens / seconds:.1f} tokens per second in all")


def _line(server: subprocess.Popen[str]) -> str:
    assert server.stderr is not None
    for line in server.stderr:
        if "answers at" in line:
            threading.Thread(target=server.stderr.read, daemon=True).start()
            return line
    raise SystemExit("the server did not begin")


def _peak(process: int) -> float:
    """Return the peak resident set of a process [MB]."""
    status = Path(f"/proc/{process}/status").read_text()
    return int(re.findall(r"VmHWM:\s+(\d+)", status)[0]) / 1000


def _into(texts: list[str], url: str, i: int, tokens: int) -> None:
    texts[i] = _stream(url, i, tokens)


def _stream(url: str, i: int, tokens: int) -> str:
    prompt = f"Story {i % PROMPTS}: there was a kobza player who came to a village and"
    body = {"prompt": prompt * 8, "max_tokens": tokens, "temperature": 0, "stream": True}
    request = urllib.request.Request(f"{url}/completions", json.dumps(body).encode(), {"Content-Type": "text/json"})
    with urllib.request.urlopen(request, timeout=600) as answer:
        pieces = [line[6:] for line in answer.read().decode().splitlines() if line.startswith("data: {")]
    return "".join(json.loads(piece)["choices"][0]["text"] for piece in pieces)


if __name__ == "__main__":
    main()
