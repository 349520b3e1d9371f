"""OpenAI's official Python package: whole answers, streams, errors, retries, models."""

from __future__ import annotations

import re

import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam

from tests.clients.conftest import PROVIDER_KEY, Shop
from tests.upstream_scripts import UPSTREAM_ID, Answer, Stream, error, hang, usage_of, words

HELLO: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Hello there"}]


def test_it_answers_whole(shop: Shop, client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="acme-chat", messages=HELLO)
    assert answer.choices[0].message.content == "Hello there."
    assert answer.choices[0].message.refusal is None
    assert answer.choices[0].finish_reason == "stop"
    assert (answer.object, answer.model) == ("chat.completion", "acme-chat")
    assert re.fullmatch(r"chatcmpl-[0-9a-f]{32}", answer.id)
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (5, 2, 7)

    record = shop.record(answer._request_id)
    assert (record["status"], record["estimated"], record["http_status"]) == ("completed", False, 200)
    assert (record["input_tokens"], record["output_tokens"]) == (5, 2)
    assert record["charge"] == 5 * 1000 + 2 * 2000  # nano-dollars: 1 and 2 dollars a million


def test_it_hides_the_provider(shop: Shop, client: openai.OpenAI) -> None:
    served = shop.serve()
    raw = client.chat.completions.with_raw_response.create(model="acme-chat", messages=HELLO)
    assert served()[0].headers["authorization"] == f"Bearer {PROVIDER_KEY}"
    assert served()[0].body["model"] == "chat-v1"
    assert shop.secret.encode() not in served()[0].raw
    for hidden in (UPSTREAM_ID, "chat-v1", "upstream-model", PROVIDER_KEY):
        assert hidden not in raw.text


def test_it_sends_openais_headers(client: openai.OpenAI) -> None:
    raw = client.chat.completions.with_raw_response.create(model="acme-chat", messages=HELLO)
    assert re.fullmatch(r"req_[0-9a-f]{32}", raw.headers["x-request-id"])
    assert raw.headers["openai-processing-ms"].isdigit()
    assert raw.headers["openai-version"] == "2020-10-01"
    assert raw.headers["content-type"] == "application/json"
    assert raw.parse().choices[0].message.content == "Hello there."
    again = client.chat.completions.with_raw_response.create(model="acme-chat", messages=HELLO)
    assert again.headers["x-request-id"] != raw.headers["x-request-id"]


def test_it_streams(shop: Shop, client: openai.OpenAI) -> None:
    served = shop.serve(Stream(words(30), interval=0.001))
    chunks = list(client.chat.completions.create(model="acme-chat", messages=HELLO, stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "".join(words(30))
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [chunk.choices[0].finish_reason for chunk in chunks] == [None] * (len(chunks) - 1) + ["stop"]
    assert {chunk.model for chunk in chunks} == {"acme-chat"}
    assert len({(chunk.id, chunk.created) for chunk in chunks}) == 1
    assert not any(chunk.usage for chunk in chunks)  # asked of the provider for the books, and hidden
    assert served()[0].body["stream_options"] == {"include_usage": True}


def test_it_streams_usage_to_those_who_ask(shop: Shop, client: openai.OpenAI) -> None:
    shop.serve(Stream(words(30)))
    with client.chat.completions.with_streaming_response.create(
        model="acme-chat", messages=HELLO, stream=True, stream_options={"include_usage": True}
    ) as response:
        chunks = list(response.parse())
        request_id = response.headers["x-request-id"]
        assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert response.headers["cache-control"] == "no-cache"
        assert "content-encoding" not in response.headers
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert (chunks[-1].usage.prompt_tokens, chunks[-1].usage.completion_tokens) == (5, 30)
    assert all(chunk.usage is None for chunk in chunks[:-1])
    record = shop.record(request_id)
    assert (record["status"], record["stream"], record["output_tokens"]) == ("completed", True, 30)


def test_it_gives_several_choices(shop: Shop, client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="acme-chat", messages=HELLO, n=3)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 6
    texts = ["", ""]
    finished = []
    for chunk in client.chat.completions.create(model="acme-chat", messages=HELLO, n=2, stream=True):
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            finished += [choice.index] * (choice.finish_reason is not None)
    assert texts == ["Hello there."] * 2
    assert sorted(finished) == [0, 1]


def test_it_forwards_every_parameter_as_it_came(shop: Shop, client: openai.OpenAI) -> None:
    given = {
        "temperature": 0.5, "top_p": 0.9, "n": 1, "stop": ["\n", "END"], "max_completion_tokens": 64,
        "presence_penalty": -1.5, "frequency_penalty": 1, "logit_bias": {"50256": -100}, "seed": 7,
        "logprobs": True, "top_logprobs": 2, "reasoning_effort": "low", "verbosity": "low",
        "parallel_tool_calls": False, "metadata": {"trace": "t-1"}, "user": "ann", "service_tier": "flex",
        "response_format": {"type": "json_object"}, "prediction": {"type": "content", "content": "x"},
        "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}],
        "tool_choice": "auto",
    }  # fmt: skip
    messages = [
        {"role": "developer", "content": "Be brief.", "x_vendor": {"kept": True}},
        {"role": "user", "content": [
            {"type": "text", "text": "What is this? Ω 🦜", "cache_control": {"type": "ephemeral"}},
            {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA", "detail": "low"}},
        ]},
    ]  # fmt: skip
    served = shop.serve()
    client.chat.completions.create(model="acme-chat", messages=messages, **given)  # type: ignore[call-overload]
    body = served()[0].body
    assert body["messages"] == messages
    assert {name: body[name] for name in given} == given


def test_it_passes_logprobs(shop: Shop, client: openai.OpenAI) -> None:
    token = {"token": "Hi", "logprob": -0.1, "bytes": [72, 105], "top_logprobs": []}
    shop.serve(Answer("Hi", choice={"logprobs": {"content": [token], "refusal": None}}))
    answer = client.chat.completions.create(model="acme-chat", messages=HELLO, logprobs=True)
    assert answer.choices[0].logprobs is not None
    assert answer.choices[0].logprobs.content is not None
    assert answer.choices[0].logprobs.content[0].logprob == -0.1


def test_it_shows_reasoning_before_the_content(shop: Shop, client: openai.OpenAI) -> None:
    """`reasoning_content` of an upstream reaches the client as `reasoning`."""
    details = {"usage": {"prompt_tokens": 5, "completion_tokens": 9, "total_tokens": 14,
                         "completion_tokens_details": {"reasoning_tokens": 7}}}  # fmt: skip
    shop.serve(Answer("42", message={"reasoning_content": "Six times seven."}, top=details))
    answer = client.chat.completions.create(model="acme-chat", messages=HELLO)
    assert answer.choices[0].message.model_extra == {"reasoning": "Six times seven."}
    assert answer.usage is not None
    assert answer.usage.completion_tokens_details is not None
    assert answer.usage.completion_tokens_details.reasoning_tokens == 7
    record = shop.record(answer._request_id)
    assert (record["output_tokens"], record["reasoning_tokens"]) == (2, 7)

    shop.serve(Stream([{"reasoning_content": "Six "}, {"reasoning_content": "times seven."}, "4", "2"]))
    kinds = ""
    reasoning = ""
    for chunk in client.chat.completions.create(model="acme-chat", messages=HELLO, stream=True):
        delta = chunk.choices[0].delta
        said = (delta.model_extra or {}).get("reasoning")
        reasoning += said or ""
        kinds += "r" * bool(said) + "c" * bool(delta.content)
        assert "reasoning_content" not in (delta.model_extra or {})
    assert reasoning == "Six times seven."
    assert re.fullmatch(r"r+c+", kinds)


def test_it_raises_the_packages_errors(shop: Shop, client: openai.OpenAI) -> None:
    with pytest.raises(openai.AuthenticationError) as key:
        client.with_options(api_key="sk-wrong").chat.completions.create(model="acme-chat", messages=HELLO)
    assert (key.value.status_code, key.value.code) == (401, "invalid_api_key")
    assert key.value.request_id is not None
    for model in ("nobody", "globex-secret"):
        with pytest.raises(openai.NotFoundError) as lost:
            client.chat.completions.create(model=model, messages=HELLO)
        assert (lost.value.code, lost.value.param) == ("model_not_found", None)
    with pytest.raises(openai.BadRequestError) as bad:
        client.chat.completions.create(model="acme-chat", messages=HELLO, temperature=3)
    assert (bad.value.code, bad.value.param) == ("decimal_above_max_value", "temperature")
    with pytest.raises(openai.BadRequestError) as unknown:
        client.chat.completions.create(model="acme-chat", messages=HELLO, extra_body={"nonsense": 1})
    assert (unknown.value.code, unknown.value.param) == ("unknown_parameter", "nonsense")
    with pytest.raises(openai.BadRequestError) as empty:
        client.chat.completions.create(model="acme-chat", messages=[], stream=True)
    assert empty.value.param == "messages"


def test_it_passes_on_what_the_provider_refuses(shop: Shop, client: openai.OpenAI) -> None:
    text = "This model's maximum context length is 8 tokens. However, your messages resulted in 9 tokens."
    shop.serve(error(400, text, type="invalid_request_error", param="messages", code="context_length_exceeded"))
    with pytest.raises(openai.BadRequestError) as long:
        client.chat.completions.create(model="acme-chat", messages=HELLO)
    assert (long.value.code, long.value.param) == ("context_length_exceeded", "messages")
    shop.serve(error(429, headers={"retry-after": "17"}))
    with pytest.raises(openai.RateLimitError) as limited:
        client.chat.completions.create(model="acme-chat", messages=HELLO)
    assert limited.value.response.headers["retry-after"] == "17"
    assert shop.record(limited.value.request_id)["status"] == "failed"


def test_it_does_not_blame_the_client_for_the_provider(shop: Shop, client: openai.OpenAI) -> None:
    for status in (401, 403, 404, 500):
        # A 500 is tried again, and again; a refusal of our credential is not.
        shop.serve(*[error(status, "acme-llm.example.com: bad key sk-of-the-provider")] * (3 if status == 500 else 1))
        with pytest.raises(openai.InternalServerError) as failed:
            client.chat.completions.create(model="acme-chat", messages=HELLO, stream=status == 500)
        assert failed.value.status_code == 502
        assert "example.com" not in failed.value.response.text
        assert PROVIDER_KEY not in failed.value.response.text
        record = shop.record(failed.value.request_id)
        assert (record["status"], record["charge"], record["input_tokens"]) == ("failed", 0, 0)


def test_it_can_be_retried(shop: Shop, client: openai.OpenAI) -> None:
    served = shop.serve(error(429, headers={"retry-after-ms": "10"}), error(503, headers={"retry-after-ms": "10"}))
    answer = client.with_options(max_retries=2).chat.completions.create(model="acme-chat", messages=HELLO)
    assert answer.choices[0].message.content == "Hello there."
    assert [request.status for request in served()] == [429, 503, 200]


def test_it_never_ends_a_broken_stream_as_if_it_were_whole(shop: Shop, client: openai.OpenAI) -> None:
    for script in (Stream(words(9), cut_after=4), Stream(words(9), error_after=4)):
        shop.serve(script)
        stream = client.chat.completions.create(model="acme-chat", messages=HELLO, stream=True)
        text = ""
        with pytest.raises(openai.APIError) as broken:
            for chunk in stream:
                text += chunk.choices[0].delta.content or ""
        assert text == "".join(words(3))
        assert "acme-llm" not in str(broken.value)
        record = shop.record(stream.response.headers["x-request-id"])
        assert (record["status"], record["estimated"]) == ("interrupted", True)
        assert record["output_tokens"] > 0


def test_a_client_that_loses_patience_is_noticed(shop: Shop, client: openai.OpenAI) -> None:
    served = shop.serve(hang)
    for seconds in (0.5, 2, 8, 32):  # so short a patience may end before the provider has heard of it
        with pytest.raises(openai.APITimeoutError):
            client.chat.completions.create(
                model="acme-chat", messages=HELLO, timeout=seconds, user=f"impatient for {seconds}"
            )
        if served():
            break
    assert served()[0].ended.wait(60)
    assert served()[0].outcome == "gone"
    assert shop.record_of(served()[0].marker)["status"] == "interrupted"


def test_a_stream_that_is_closed_early_stops_the_provider(shop: Shop, client: openai.OpenAI) -> None:
    served = shop.serve(Stream(words(3), hang_after=3))
    with client.chat.completions.create(model="acme-chat", messages=HELLO, stream=True) as stream:
        for chunk in stream:
            if chunk.choices[0].delta.content:
                break
        request_id = stream.response.headers["x-request-id"]
    assert served()[0].ended.wait(60)
    assert served()[0].outcome == "gone"
    record = shop.record(request_id)
    assert (record["status"], record["estimated"]) == ("interrupted", True)
    assert record["error_code"] == "client_disconnected"
    assert 0 < record["output_tokens"] <= usage_of({}, 10)["completion_tokens"]


def test_it_lists_and_retrieves_models(client: openai.OpenAI) -> None:
    ids = [model.id for model in client.models.list()]
    assert {"acme-chat", "acme-echo", "acme/chat:7b"} <= set(ids)
    assert "globex-secret" not in ids
    for name in ids:
        assert client.models.retrieve(name).id == name
    with pytest.raises(openai.NotFoundError) as lost:
        client.models.retrieve("globex-secret")
    assert (lost.value.code, lost.value.param) == ("model_not_found", "model")
    assert client.chat.completions.create(model="acme/chat:7b", messages=HELLO).model == "acme/chat:7b"


def test_it_takes_openais_other_headers(shop: Shop) -> None:
    """Organization and project are the SDK's habit; they decide nothing here."""
    with openai.OpenAI(
        base_url=f"{shop.base_url}/", api_key=shop.secret, organization="org-1", project="p-1"
    ) as client:
        answer = client.chat.completions.create(
            model="acme-echo", messages=HELLO, extra_headers={"X-Client-Request-Id": "mine-7"}
        )
    assert shop.record(answer._request_id)["client_request_id"] == "mine-7"
