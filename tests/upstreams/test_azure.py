"""gateway.upstreams.azure: paths, versions, the key's header, and the content filter's annotations."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from gateway.errors import InvalidRequest, UpstreamError
from gateway.upstreams.listing import list_models
from tests.upstream_scripts import body
from tests.upstreams.conftest import text_in
from tests.upstreams.fakes import azure
from tests.upstreams.fakes.fake import events
from tests.upstreams.fakes.spoken import GREETING, Spoken

CLASSIC = "/openai/deployments/chat-prod/chat/completions?api-version="


@pytest.fixture
def spoken(speak: Callable[[str], Spoken]) -> Spoken:
    return speak("azure")


@pytest.mark.parametrize(
    ("end_of_url", "version", "path"),
    [
        ("", "", CLASSIC + "2024-10-21"),
        ("/", "", CLASSIC + "2024-10-21"),
        ("/openai", "2024-06-01", CLASSIC + "2024-06-01"),
        ("/openai/", "2025-04-01-preview", CLASSIC + "2025-04-01-preview"),
        ("/openai/v1", "", "/openai/v1/chat/completions"),
        ("/openai/v1/", "", "/openai/v1/chat/completions"),
    ],
)
async def test_where_it_is_called(spoken: Spoken, end_of_url: str, version: str, path: str) -> None:
    spoken.at(base_url=spoken.fake.url + end_of_url, api_version=version)
    sent = await spoken.sends(max_completion_tokens=9, seed=7)
    served = spoken.fake.served[-1]
    assert served.target == f"POST {path}"
    assert served.headers["api-key"] == spoken.fake.key and "authorization" not in served.headers
    assert sent == {"model": "chat-prod", "messages": [GREETING], "max_completion_tokens": 9, "seed": 7}
    assert (await list_models(spoken.target)).models == ("gpt-4o-2024-11-20",) or "preview" in version


async def test_the_v1_api_takes_a_version_too(spoken: Spoken) -> None:
    with pytest.raises(UpstreamError):
        await spoken.at(base_url=spoken.fake.url + "/openai/v1", api_version="preview").complete()
    assert spoken.fake.served[-1].target == "POST /openai/v1/chat/completions?api-version=preview"


async def test_a_deployment_that_is_not_there_is_our_fault(spoken: Spoken) -> None:
    with pytest.raises(UpstreamError) as failed:
        await spoken.at(upstream_model="a b/c?d").complete()
    assert failed.value.status == 502
    assert spoken.fake.served[-1].target.startswith("POST /openai/deployments/a%20b%2Fc%3Fd/chat/completions?")


@pytest.mark.parametrize("streams", [False, True])
async def test_a_cap_gets_the_name_that_the_model_knows(spoken: Spoken, streams: bool) -> None:
    """Reasoning models refuse `max_tokens`, which the catalogue sets where the client sets no cap."""
    spoken.at(upstream_model="gpt-5", deployment_id=7 + streams)
    for calls in (2, 3):  # asked again once, and right from then on
        await (spoken.stream(max_tokens=9) if streams else spoken.complete(max_tokens=9))
        assert len(spoken.fake.served) == calls
        sent = spoken.fake.served[-1].body
        assert sent["max_completion_tokens"] == 9 and "max_tokens" not in sent
    sent = await spoken.at(upstream_model="chat-prod").sends(max_tokens=9)
    assert sent["max_tokens"] == 9 and "max_completion_tokens" not in sent


async def test_no_client_can_write_that_name_into_a_refusal(spoken: Spoken) -> None:
    text = "Unsupported parameter: 'max_tokens' is not supported. Use 'max_completion_tokens' instead."
    spoken.fake.queue(body(azure.error("invalid_value", f"Invalid value: {text}", param="messages"), 400))
    with pytest.raises(InvalidRequest):
        await spoken.complete(max_tokens=9)
    assert (await spoken.sends(max_tokens=9))["max_tokens"] == 9
    assert len(spoken.fake.served) == 2


async def test_what_the_filter_writes_beside_reaches_nobody(spoken: Spoken) -> None:
    chunks, _ = await spoken.stream()
    said, _ = await spoken.complete()
    assert "filter" not in str(chunks) + str(said)
    assert all(chunk["id"] == "chatcmpl-ours" and chunk["created"] == 1_800_000_000 for chunk in chunks)


async def test_an_answer_that_the_filter_stops(spoken: Spoken) -> None:
    sent = azure.stream({"content": "Hello there."}, "content_filter", usage=True)
    spoken.fake.queue(events(*sent))
    chunks, _ = await spoken.stream()
    assert text_in(chunks) == "Hello there." and chunks[-2]["choices"][0]["finish_reason"] == "content_filter"


async def test_a_prompt_that_the_filter_refuses_is_the_clients(spoken: Spoken) -> None:
    text = (
        "The response was filtered due to the prompt triggering Azure OpenAI's content management policy. "
        "See https://go.microsoft.com/fwlink/?linkid=2198766"
    )
    refusal = azure.error("content_filter", text, param="prompt", type=None, innererror={"code": "x"})
    spoken.fake.queue(body(refusal, 400))
    with pytest.raises(InvalidRequest) as refused:
        await spoken.complete()
    assert (refused.value.code, refused.value.param) == ("content_filter", "prompt")
    assert not any(word in refused.value.message for word in ("Azure", "OpenAI", "microsoft"))
