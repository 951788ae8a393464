"""A server that speaks the OpenAI protocol over real HTTP, with the faults that real ones have."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Row = dict[str, Any]


class ModelServer:
    """Answers with `answer(text of the prompt, seed)`. requests: the bodies that came, in order.

    faults: taken one a request before anything is answered: a status with headers, "cut" (half a body), "garbage",
    "hang up". obeys_n: whether `n` choices come.
    """

    def __init__(self, answer: Callable[[str, int], str]) -> None:
        self.answer = answer
        self.obeys_n = True
        self.reasoning: str | None = None
        self.finish = "stop"
        self.faults: list[Any] = []
        self.requests: list[Row] = []
        self.headers: list[dict[str, str]] = []
        self.most_at_once = 0
        self.at_once = 0
        self.gate: threading.Barrier | None = None
        self.lock = threading.Lock()
        self.url = ""

    def choices(self, path: str, body: Row) -> list[Row]:
        chat = path == "/v1/chat/completions"
        prompt = body["messages"][-1]["content"] if chat else body["prompt"]
        found = []
        for index in range(body.get("n", 1) if self.obeys_n else 1):
            text = self.answer(prompt, body["seed"] + index)
            message: Row = {"role": "assistant", "content": text}
            if self.reasoning:
                message["reasoning_content"] = self.reasoning
            given: Row = {"message": message} if chat else {"text": text}
            found.append({"index": index, "finish_reason": self.finish, **given})
        return found


@contextmanager
def running(answer: Callable[[str, int], str]) -> Iterator[ModelServer]:
    model = ModelServer(answer)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with model.lock:
                model.requests.append(body)
                model.headers.append(dict(self.headers))
                model.at_once += 1
                model.most_at_once = max(model.most_at_once, model.at_once)
                fault = model.faults.pop(0) if model.faults else None
            if model.gate is not None:
                model.gate.wait(20)
            with model.lock:
                model.at_once -= 1
            self.reply(body, fault)

        def reply(self, body: Row, fault: Any) -> None:
            if fault == "hang up":
                self.close_connection = True
                return
            if self.path not in ("/v1/chat/completions", "/v1/completions"):
                fault = (404, {})
            status, headers = fault if isinstance(fault, tuple) else (200, {})
            if status == 200:
                content = json.dumps({"choices": model.choices(self.path, body)}).encode()
            else:
                content = json.dumps({"error": {"message": f"the reason for {status}"}}).encode()
            if fault == "garbage":
                content = b"<html>busy</html>"
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content[: len(content) // 2] if fault == "cut" else content)
            if fault == "cut":
                self.close_connection = True

        def log_message(self, format: str, *arguments: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    model.url = f"http://127.0.0.1:{server.server_port}/v1"
    try:
        yield model
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
