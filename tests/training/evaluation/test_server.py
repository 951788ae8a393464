"""Asking a real HTTP server: both ways to ask, its faults, and samples that are gone on with."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from training.config import ConfigError
from training.evaluation.generation import Sampling, sample_from_server
from training.evaluation.prompts import PROMPTS
from training.evaluation.samples import read_samples
from training.evaluation.server import Answer, Server, ServerError
from training.jsonl import read_jsonl
from training.runs import read_json

from .model_server import ModelServer, running
from .sets import benchmark

PROBLEM = benchmark().problems[3]
CODE, CHAT = PROMPTS["code-1"], PROMPTS["chat-1"]


def echo(prompt: str, seed: int) -> str:
    return f"    return {seed}\n"


@pytest.fixture
def model() -> Any:
    with running(echo) as server:
        yield server


def server(model: ModelServer, **options: Any) -> Server:
    return Server(model.url, "small", **({"backoff_s": 0.001, "timeout_s": 20} | options))


def ask(of: Server, prompt: Any = CODE, n: int = 1, seed: int = 5) -> list[Answer]:
    return of.ask(prompt, PROBLEM, n=n, temperature=0.5, max_new_tokens=64, seed=seed)


def test_both_ways_to_ask(model: ModelServer) -> None:
    assert ask(server(model, api_key="secret"), n=2) == [
        Answer("    return 5\n", True),
        Answer("    return 6\n", True),
    ]
    assert ask(server(model), CHAT) == [Answer("    return 5\n", True)]
    plain, chat = model.requests
    assert plain == {
        "model": "small", "prompt": PROBLEM["prompt"], "n": 2, "temperature": 0.5, "max_tokens": 64, "seed": 5,
    }  # fmt: skip
    (message,) = chat["messages"]
    assert message["role"] == "user"
    assert PROBLEM["prompt"].strip() in message["content"]
    assert model.headers[0]["Authorization"] == "Bearer secret"
    assert "Authorization" not in model.headers[1]


def test_reasoning_that_the_server_took_apart_stands_in_its_tags(model: ModelServer) -> None:
    model.reasoning = "so it adds"
    assert ask(server(model), CHAT)[0].text == "<think>\nso it adds\n</think>\n    return 5\n"
    model.answer, model.finish = lambda prompt, seed: "", "length"
    assert ask(server(model), CHAT) == [Answer("<think>\nso it adds\n", False)]


@pytest.mark.parametrize("fault", [(500, {}), (429, {"Retry-After": "0"}), (503, {}), "cut", "garbage", "hang up"])
def test_faults_that_pass_are_tried_again(model: ModelServer, fault: Any) -> None:
    model.faults = [fault, fault]
    assert ask(server(model)) == [Answer("    return 5\n", True)]
    assert len(model.requests) == 3


def test_an_error_says_what_the_server_said(model: ModelServer) -> None:
    model.faults = [(400, {})]
    with pytest.raises(ServerError, match=r"/v1/completions refused the request with status 400: .*reason for 400"):
        ask(server(model))
    assert len(model.requests) == 1, "what is refused is not tried again"
    model.faults = [(500, {})] * 3
    with pytest.raises(ServerError, match=r"failed 3 times, at last with status 500: .*the reason for 500"):
        ask(server(model, attempts=3))
    with pytest.raises(ServerError, match=r"status 404: .*\(the address wants its /v1\)"):
        ask(Server(model.url.removesuffix("/v1"), "small"))
    model.faults = ["garbage"]
    with pytest.raises(ServerError, match="the answer is not JSON: b'<html>"):
        ask(server(model, attempts=1))
    with pytest.raises(ServerError, match=r"failed 2 times, at last with URLError: .*refused"):
        ask(Server("http://127.0.0.1:9/v1", "small", attempts=2, backoff_s=0.001))
    with pytest.raises(ValueError, match="url: got 'localhost:8000'"):
        Server("localhost:8000", "small")


def sampled(model: ModelServer, out: Path, n: int = 3, **options: Any) -> list[Any]:
    sampling = Sampling(n=n, temperature=0.5, max_new_tokens=64)
    given = {"prompt_id": "code-1", "concurrency": 2} | options
    path = sample_from_server(server(model, attempts=2), benchmark(), out, sampling, **given)
    return list(read_samples(path))


@pytest.mark.parametrize("obeys_n", [True, False])
def test_n_samples_whether_or_not_the_server_knows_n(model: ModelServer, tmp_path: Path, obeys_n: bool) -> None:
    model.obeys_n = obeys_n
    samples = sampled(model, tmp_path)
    assert sorted((s.task_id, s.index) for s in samples) == [(f"Adding/{k}", i) for k in range(4) for i in range(3)]
    assert len(model.requests) == (4 if obeys_n else 12)
    for k in range(4):
        assert len({s.text for s in samples if s.task_id == f"Adding/{k}"}) == 3, "each has a seed of its own"
    row = next(iter(read_jsonl(tmp_path / "samples.jsonl")))
    assert row["solution"] == f"{benchmark().problems[int(row['task_id'][-1])]['prompt']}{row['output']}"
    noted = read_json(tmp_path / "generation.json")
    assert (noted["prompt"], noted["temperature"], noted["n"], noted["model"]) == ("code-1", 0.5, 3, "small")
    assert noted["server"] == model.url


def test_sampling_goes_on_where_it_stopped(model: ModelServer, tmp_path: Path) -> None:
    model.obeys_n = False
    model.faults = [None] * 5 + [(400, {})] * 100
    with pytest.raises(ServerError, match="refused"):
        sampled(model, tmp_path)
    first = list(read_samples(tmp_path / "samples.jsonl"))
    assert len(first) == 5
    # A kill leaves half a line.
    with (tmp_path / "samples.jsonl").open("ab") as file:
        file.write(b'{"task_id": "Adding/3", "sam')
    model.faults, asked = [], len(model.requests)
    samples = sampled(model, tmp_path)
    assert samples[:5] == first
    assert sorted((s.task_id, s.index) for s in samples) == [(f"Adding/{k}", i) for k in range(4) for i in range(3)]
    assert len(model.requests) - asked == 7
    assert sampled(model, tmp_path) == samples, "nothing is missing, nothing is asked"
    with pytest.raises(ConfigError, match=r"other values of n \(n was 3, now 4\)"):
        sampled(model, tmp_path, n=4)


def test_requests_run_side_by_side(model: ModelServer, tmp_path: Path) -> None:
    """The server answers none of four requests before all have come."""
    model.gate = threading.Barrier(4)
    assert len(sampled(model, tmp_path, concurrency=4)) == 12
    assert model.most_at_once == 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n": 0}, "--n: got 0"),
        ({"n": 2}, "--n: 2 greedy samples are all the same"),
        ({"temperature": -1.0}, "--temperature: got -1.0"),
    ],
)
def test_wrong_sampling(options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Sampling(**options)
