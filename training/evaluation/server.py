"""Answers from any OpenAI-compatible server: chat and plain completions, several at a time, with retries.

Only the standard library: what the protocol needs of HTTP is a POST with JSON.
"""

from __future__ import annotations

import http.client
import json
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from typing import Any

from training.evaluation.prompts import Prompt, messages_of

Row = dict[str, Any]

_AGAIN = {408, 409, 425, 429, 500, 502, 503, 504, 529}
_LONGEST_WAIT_S = 60.0


class ServerError(RuntimeError):
    """The server refused a request, or kept failing; the message says what it answered."""


@dataclass(frozen=True)
class Answer:
    """text: what the model wrote, its reasoning in front in tags; ended: false where the limit cut it."""

    text: str
    ended: bool


class Server:
    """One model behind an address such as http://localhost:8000/v1.

    attempts: how often a request is made that fails for a reason that may pass (no connection, a timeout, a broken
    answer, status 408, 409, 425, 429, 5xx); `backoff_s` doubles between them, and a Retry-After is obeyed.
    """

    def __init__(
        self,
        url: str,
        model: str,
        *,
        api_key: str | None = None,
        timeout_s: float = 600.0,
        attempts: int = 6,
        backoff_s: float = 1.0,
    ) -> None:
        if not url.startswith(("http://", "https://")):
            raise ValueError(f"url: got {url!r}, wants an address such as http://localhost:8000/v1")
        self.url = url.rstrip("/")
        self.model = model
        self.timeout_s = timeout_s
        self.attempts = attempts
        self.backoff_s = backoff_s
        self._headers = {"Content-Type": "application/json"}
        if api_key:
            self._headers["Authorization"] = f"Bearer {api_key}"
        self._ignores_n = False

    def ask(
        self, prompt: Prompt, problem: Row, *, n: int, temperature: float, max_new_tokens: int, seed: int
    ) -> list[Answer]:
        """Between 1 and `n` answers: a server that ignores `n` gives one, and is asked for one from then on.

        Raises ServerError if the request is refused, or fails `attempts` times.
        """
        body: Row = {
            "model": self.model,
            "n": 1 if self._ignores_n else n,
            "temperature": temperature,
            "max_tokens": max_new_tokens,
            "seed": seed,
        }
        if prompt.chat:
            path, body["messages"] = "/chat/completions", messages_of(prompt, problem)
        else:
            path, body["prompt"] = "/completions", prompt.write(problem)
        answers = self._with_retries(path, body)
        if len(answers) < body["n"]:
            self._ignores_n = True
        return [Answer(prompt.opening + answer.text, answer.ended) for answer in answers[:n]]

    def _with_retries(self, path: str, body: Row) -> list[Answer]:
        wait = self.backoff_s
        for attempt in range(1, self.attempts + 1):
            asked_to_wait = 0.0
            try:
                return _answers(self._post(path, body))
            except urllib.error.HTTPError as error:
                said = error.read(2000).decode(errors="replace").strip()
                reason = f"status {error.code}: {said or error.reason}"
                if error.code not in _AGAIN:
                    hint = " (the address wants its /v1)" if error.code == 404 and not self.url.endswith("/v1") else ""
                    raise ServerError(f"{self.url}{path} refused the request with {reason}{hint}") from None
                asked_to_wait = _seconds(error.headers.get("Retry-After"))
            except (OSError, http.client.HTTPException, ValueError) as error:
                # URLError is an OSError; a body that is no JSON, or lacks its fields, is a ValueError.
                reason = f"{type(error).__name__}: {error}"
            if attempt < self.attempts:
                time.sleep(min(max(wait, asked_to_wait), _LONGEST_WAIT_S))
                wait *= 2
        raise ServerError(f"{self.url}{path} failed {self.attempts} times, at last with {reason}")

    def _post(self, path: str, body: Row) -> Any:
        request = urllib.request.Request(self.url + path, json.dumps(body).encode(), self._headers)
        with urllib.request.urlopen(request, timeout=self.timeout_s) as response:
            content = response.read()
        try:
            return json.loads(content)
        except ValueError:
            raise ValueError(f"the answer is not JSON: {content[:200]!r}") from None


def _answers(body: Any) -> list[Answer]:
    try:
        return [_answer(choice) for choice in body["choices"]] or _nothing(body)
    except (KeyError, TypeError, AttributeError):
        return _nothing(body)


def _nothing(body: Any) -> list[Answer]:
    raise ValueError(f"the answer holds no choices: {json.dumps(body)[:300]}")


def _answer(choice: Row) -> Answer:
    ended = choice.get("finish_reason") != "length"
    if "message" not in choice:
        return Answer(choice["text"], ended)
    message = choice["message"]
    content = message.get("content") or ""
    # Servers that take reasoning apart name its field in one of these ways.
    reasoning = message.get("reasoning_content") or message.get("reasoning")
    if not reasoning:
        return Answer(content, ended)
    return Answer(f"<think>\n{reasoning}\n" + (f"</think>\n{content}" if content else ""), ended)


def _seconds(header: str | None) -> float:
    try:
        return float(header or 0)
    except ValueError:  # a date
        return 0.0


def ask_all(
    server: Server,
    prompt: Prompt,
    missing: Sequence[tuple[Row, list[int]]],
    emit: Callable[[Row, int, Answer], None],
    *,
    concurrency: int,
    temperature: float,
    max_new_tokens: int,
    seed: int,
) -> None:
    """Asks for every missing (problem, sample indices); `emit` gets each answer as it comes, one call at a time.

    Every request has a seed of its own, or a server that ignores `n` would give one sample n times. The first request
    that fails for good ends it all, after those that are under way.
    """
    lock = threading.Lock()
    stopped = threading.Event()

    def work(problem: Row, place: int, indices: list[int]) -> None:
        left = list(indices)
        while left and not stopped.is_set():
            own = seed * 1_000_003 + place * 1009 + left[0]
            answers = server.ask(
                prompt, problem, n=len(left), temperature=temperature, max_new_tokens=max_new_tokens,
                seed=own % (1 << 31),
            )  # fmt: skip
            with lock:
                for answer in answers:
                    emit(problem, left.pop(0), answer)

    with ThreadPoolExecutor(concurrency) as pool:
        tasks = [pool.submit(work, problem, place, indices) for place, (problem, indices) in enumerate(missing)]
        try:
            for task in as_completed(tasks):
                task.result()
        except BaseException:
            stopped.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
