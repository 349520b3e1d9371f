"""Providers that say nothing for a while: clients do not notice, and a fault after that is still one."""

from __future__ import annotations

import json
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import openai
import pytest
import requests
from openai.types.chat import ChatCompletionMessageParam

from tests.clients.conftest import Shop
from tests.server.conftest import until
from tests.upstream_scripts import Answer, Exchange, Raw, Script, Stream, error, hang, words

HELLO: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Hello there"}]
SSE = {"content-type": "text/event-stream"}
COMMENT = b": keep-alive\n\n"


@pytest.fixture
def patient(quiet: Shop) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=quiet.base_url, api_key=quiet.secret, max_retries=0, timeout=90) as client:
        yield client


async def halting(exchange: Exchange) -> None:
    """Silent before the headers, after them, and between the events."""
    await exchange.pause(0.4)
    await exchange.head(200, SSE)
    await exchange.pause(0.4)
    for event, usage in Stream(words(3)).events(exchange):
        await exchange.write(event)
        exchange.usage = usage or exchange.usage
        await exchange.pause(0.3)
    await exchange.write(b"data: [DONE]\n\n")
    await exchange.end()


def late(seconds: float, script: Script) -> Script:
    async def waits(exchange: Exchange) -> None:
        await exchange.pause(seconds)
        await script(exchange)

    return waits


def ask(shop: Shop, *, model: str = "acme-chat", user: str = "", **headers: str) -> requests.Response:
    return requests.post(
        f"{shop.base_url}/chat/completions",
        headers={"Authorization": f"Bearer {shop.secret}", **headers},
        json={"model": model, "messages": HELLO, "stream": True, "user": user},
        stream=True,
        timeout=90,
    )


class Silences:
    """`halting`, but each silence lasts until the client has heard so many comments more."""

    def __init__(self) -> None:
        self.heard = 0

    async def __call__(self, exchange: Exchange) -> None:
        await self._until_heard(exchange, 2)
        await exchange.head(200, SSE)
        await self._until_heard(exchange, 1)
        for event, usage in Stream(words(3)).events(exchange):
            await exchange.write(event)
            exchange.usage = usage or exchange.usage
            await self._until_heard(exchange, 1)
        await exchange.write(b"data: [DONE]\n\n")
        await exchange.end()

    async def _until_heard(self, exchange: Exchange, more: int) -> None:
        wanted, deadline = self.heard + more, time.monotonic() + 60
        while self.heard < wanted and time.monotonic() < deadline:
            await exchange.pause(0.02)


def test_comments_come_between_events(quiet: Shop) -> None:
    silences, said = Silences(), b""
    quiet.serve(silences)
    response = ask(quiet)
    for part in response.iter_content(None):
        said += part
        silences.heard = said.count(COMMENT)
    events = said.split(b"\n\n")
    assert events[0] == events[1] == b": keep-alive" and events[-2] == b"data: [DONE]" and events[-1] == b""
    chunks = [json.loads(event[6:]) for event in events[:-2] if event != b": keep-alive"]
    assert "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks) == "w0 w1 w2 "
    assert said.count(COMMENT) > 5
    record = quiet.record(response.headers["x-request-id"])
    assert (record["status"], record["output_tokens"], record["http_status"]) == ("completed", 3, 200)


def test_a_header_turns_them_off(quiet: Shop) -> None:
    quiet.serve(halting)
    response = ask(quiet, **{"X-Counterfoil-Keep-Alive": "off"})
    assert all(not line or line.startswith(b"data: ") for line in response.content.split(b"\n"))


def test_a_provider_that_only_comments_is_silent(quiet: Shop) -> None:
    parts = (b": PROCESSING\n\n", 0.05) * 50
    events = b"".join(event for event, _ in Stream(words(1)).events(Fake()))
    quiet.serve(Raw((*parts, events, b"data: [DONE]\n\n"), headers=SSE))
    said = ask(quiet).content
    assert said.startswith(COMMENT) and b"PROCESSING" not in said and said.endswith(b"data: [DONE]\n\n")


class Fake:
    body: dict[str, Any] = {}


def test_openais_python_package_does_not_notice(quiet: Shop, patient: openai.OpenAI) -> None:
    quiet.serve(halting, Answer(delay=1.0))
    chunks = list(patient.chat.completions.create(model="acme-chat", messages=HELLO, stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "w0 w1 w2 "
    assert chunks[-1].choices[0].finish_reason == "stop"
    raw = patient.chat.completions.with_raw_response.create(model="acme-chat", messages=HELLO)
    assert raw.text.startswith(" ") and raw.headers["content-type"] == "application/json"
    assert raw.parse().choices[0].message.content == "Hello there."
    assert quiet.record(raw.headers["x-request-id"])["status"] == "completed"


async def test_its_async_client_does_not_either(quiet: Shop) -> None:
    quiet.serve(halting, Answer(delay=1.0))
    async with openai.AsyncOpenAI(base_url=quiet.base_url, api_key=quiet.secret, max_retries=0) as client:
        stream = await client.chat.completions.create(model="acme-chat", messages=HELLO, stream=True)
        assert "".join([chunk.choices[0].delta.content or "" async for chunk in stream]) == "w0 w1 w2 "
        answer = await client.chat.completions.create(model="acme-chat", messages=HELLO)
        assert answer.choices[0].message.content == "Hello there."


def test_nor_does_the_node_package(quiet: Shop, node: Callable[..., Any]) -> None:
    quiet.serve(Answer(delay=1.0), halting)
    said = node("openai_client.mjs", PARTS="whole streamed", BASE_URL=quiet.base_url)
    assert said["whole"]["content"] == "Hello there."
    assert said["streamed"] == {"text": "w0 w1 w2 ", "finish": "stop", "usage": 3, "role": "assistant"}


@pytest.mark.parametrize("stream", [True, False])
def test_a_line_that_is_cut_when_it_is_idle_stays_alive(quiet: Shop, stream: bool) -> None:
    script = Answer(delay=7.0)
    quiet.serve(script, script)  # asked for a stream, it answers whole
    with IdleProxy(quiet.server.port, idle_seconds=4) as port:
        url = f"http://127.0.0.1:{port}/v1/chat/completions"
        question = {"model": "acme-chat", "messages": HELLO, "stream": stream}
        headers = {"Authorization": f"Bearer {quiet.secret}"}
        answer = requests.post(url, json=question, headers=headers, timeout=90)
        assert answer.text.endswith("data: [DONE]\n\n") if stream else answer.json()["choices"]
        with pytest.raises(requests.ConnectionError):  # what would happen else
            requests.post(url, json=question, headers={**headers, "X-Counterfoil-Keep-Alive": "off"}, timeout=90)


class IdleProxy:
    """A load balancer that closes a connection on which nothing moves."""

    def __init__(self, port: int, idle_seconds: float) -> None:
        self.target, self.idle_seconds = port, idle_seconds
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.thread = threading.Thread(target=self._serve, daemon=True)

    def __enter__(self) -> int:
        self.thread.start()
        return int(self.listener.getsockname()[1])

    def __exit__(self, *_: object) -> None:
        self.listener.shutdown(socket.SHUT_RDWR)
        self.thread.join(10)
        self.listener.close()

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            with client, socket.create_connection(("127.0.0.1", self.target)) as server:
                self._pass(client, server)

    def _pass(self, client: socket.socket, server: socket.socket) -> None:
        other = {client: server, server: client}
        while ready := select.select([client, server], [], [], self.idle_seconds)[0]:
            for side in ready:
                data = side.recv(65_536)
                if not data:
                    return
                other[side].sendall(data)


def test_an_error_that_comes_late_is_still_an_error(quiet: Shop, patient: openai.OpenAI) -> None:
    broken = lambda: [line for line in quiet.server.request_lines() if line.get("broken")]  # noqa: E731
    before = len(broken())
    quiet.serve(late(2, error(400, "No such tool.")))
    response = ask(quiet, user="late stream")
    with pytest.raises(requests.exceptions.ChunkedEncodingError):
        assert not response.content
    record = quiet.record(response.headers["x-request-id"])
    assert (response.status_code, record["status"], record["http_status"]) == (200, "failed", 400)

    quiet.serve(late(2, error(400, "No such tool.")))
    stream = patient.chat.completions.create(model="acme-chat", messages=HELLO, stream=True)
    with pytest.raises(openai.APIError, match="No such tool"):
        list(stream)
    quiet.serve(late(2, error(400, "No such tool.")))
    with pytest.raises(openai.APIConnectionError):  # never taken for an answer
        patient.chat.completions.create(model="acme-chat", messages=HELLO)
    until(lambda: [line["status"] for line in broken()[before:]] == [200] * 3)


def test_the_node_package_does_not_take_it_for_an_answer(quiet: Shop, node: Callable[..., Any]) -> None:
    quiet.serve(late(2, error(400, "No such tool.")), late(2, error(400, "No such tool.")))
    said = node("openai_client.mjs", PARTS="lost broken", BASE_URL=quiet.base_url)
    assert (said["lost"]["kind"], said["broken"]["kind"]) == ("TypeError", "APIError")  # "terminated"


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_between_keep_alives_is_noticed(quiet: Shop, stream: bool) -> None:
    served = quiet.serve(hang)
    user = f"leaves {stream}"
    with requests.post(
        f"{quiet.base_url}/chat/completions",
        headers={"Authorization": f"Bearer {quiet.secret}"},
        json={"model": "acme-chat", "messages": HELLO, "stream": stream, "user": user},
        stream=True,
        timeout=90,
    ) as response:
        assert next(response.iter_content(1)) in (b":", b" ")
    (request,) = served()
    assert request.ended.wait(60)
    assert request.outcome == "gone"
    record = quiet.record_of(user)
    assert (record["status"], record["error_code"]) == ("interrupted", "client_disconnected")
    assert record["http_status"] == 499 and record["output_tokens"] == 0


@pytest.mark.parametrize(
    ("model", "script"),
    [("acme-first", Raw(headers=SSE, hang=True)), ("acme-total", Raw((b": x\n\n", 0.05) * 600, headers=SSE))],
)
def test_time_outs_before_the_answer(quiet: Shop, model: str, script: Script) -> None:
    served = quiet.serve(*[script] * 6)  # for whoever tries again
    response = ask(quiet, model=model, **{"X-Counterfoil-Keep-Alive": "off"})
    assert (response.status_code, response.json()["error"]["message"]) == (
        504,
        "The model's provider did not answer in time.",
    )
    assert quiet.record(response.headers["x-request-id"])["status"] == "failed"
    assert all(request.ended.wait(60) for request in served())


@pytest.mark.parametrize(
    ("model", "script"),
    [("acme-between", Stream(words(9), hang_after=3)), ("acme-total", Stream(words(500), interval=0.05))],
)
def test_time_outs_within_the_answer(quiet: Shop, model: str, script: Script) -> None:
    served = quiet.serve(script)
    response = ask(quiet, model=model)
    parts = []
    with pytest.raises(requests.exceptions.ChunkedEncodingError):
        for part in response.iter_content(None):
            parts.append(part)
    assert b'data: {"error":{"message":"The model\'s provider did not answer in time."' in b"".join(parts)
    record = quiet.record(response.headers["x-request-id"])
    assert record["status"] == "interrupted" and record["output_tokens"] > 0
    (request,) = served()
    assert request.ended.wait(60) and request.outcome == "gone"
