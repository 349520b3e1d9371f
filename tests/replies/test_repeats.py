"""The same key, tenant and body: the first answer again, without a second call of the provider or a second charge."""

from __future__ import annotations

import json
import uuid
from http.client import HTTPConnection
from typing import Any

import openai
import pytest
import requests

from tests.replies.conftest import Shop
from tests.upstream_scripts import Answer, Stream, error, words

RULE = """
INSERT INTO limits_limitrule (key_id, metric, per, tokens, amount, currency, mode, hold, on_shortage, floor,
    fiscal_day, thresholds, enabled, created_at)
SELECT id, 'requests', 'minute', 'both', 3, '', 'enforce', 'expected', 'refuse', 16, 1, '{}', true, now()
FROM tenants_apikey WHERE public_id = %s RETURNING id
"""


def code(response: requests.Response) -> tuple[int, Any]:
    return response.status_code, response.json()["error"]["code"]


@pytest.mark.parametrize("server", ["server", "second"])
def test_it_answers_again(shop: Shop, server: str) -> None:
    served = shop.serve(Answer("In the parcel is a fox."))
    first = shop.ask()
    again = shop.ask(server=getattr(shop, server))
    assert (first.status_code, again.status_code) == (200, 200)
    assert first.content == again.content
    assert "fox" in again.text
    assert again.headers["content-type"] == first.headers["content-type"]
    assert "idempotent-replayed" not in first.headers
    assert again.headers["idempotent-replayed"] == "true"
    assert again.headers["x-counterfoil-original-request-id"] == first.headers["x-request-id"]
    assert again.headers["x-request-id"] != first.headers["x-request-id"]
    assert len(served()) == 1
    (record,) = shop.records()
    assert (record["status"], first.headers["x-request-id"]) == ("completed", f"req_{record['request_id'].hex}")


def test_it_streams_again_byte_for_byte(shop: Shop) -> None:
    served = shop.serve(Stream(words(200)))
    options = {"stream": True, "stream_options": {"include_usage": True}}
    first, again = (shop.ask(**options).content for _ in range(2))
    assert first == again
    assert again.endswith(b"data: [DONE]\n\n")
    assert len(served()) == 1
    shop.records()


@pytest.mark.parametrize("stream", [False, True])
def test_the_official_client_reads_it(shop: Shop, stream: bool) -> None:
    served = shop.serve(Stream(("In ", "the ", "parcel.")) if stream else Answer("In the parcel."))

    def ask() -> tuple[str, str | None]:
        raw = client.chat.completions.with_raw_response.create(
            **shop.body(stream=stream), extra_headers={"Idempotency-Key": shop.key}
        )
        found = raw.parse()
        if not stream:
            return found.choices[0].message.content, raw.headers.get("idempotent-replayed")
        text = "".join(chunk.choices[0].delta.content or "" for chunk in found if chunk.choices)
        return text, raw.headers.get("idempotent-replayed")

    with openai.OpenAI(base_url=f"{shop.server}/v1", api_key=shop.secret, max_retries=0, timeout=30) as client:
        assert ask() == ("In the parcel.", None)
        assert ask() == ("In the parcel.", "true")
    assert len(served()) == 1
    shop.records()


def test_the_same_parameters_written_otherwise_are_the_same_body(shop: Shop) -> None:
    served = shop.serve(Answer())
    body = shop.body(temperature=1, seed=None)
    shop.ask(raw=json.dumps(body).encode())
    again = shop.ask(raw=json.dumps(dict(reversed(body.items())), indent=4).encode())
    assert again.headers["idempotent-replayed"] == "true"
    assert len(served()) == 1


@pytest.mark.parametrize("change", [{"temperature": 0.5}, {"stream": True}, {"model": "acme-other"}])
def test_another_body_is_refused(shop: Shop, change: dict[str, Any]) -> None:
    served = shop.serve(Answer())
    first = shop.ask()
    other = shop.ask(**change)
    assert code(other) == (400, "idempotency_key_reused")
    assert other.json()["error"]["type"] == "invalid_request_error"
    assert shop.ask().content == first.content  # the kept answer is untouched
    assert len(served()) == 1
    shop.records()


@pytest.mark.parametrize("key", ["", "a b", "ü", "x" * 256, "a\tb"])
def test_a_malformed_key_is_refused(shop: Shop, key: str) -> None:
    served = shop.serve()
    response = shop.ask(key="", headers={"Idempotency-Key": key.encode()})  # type: ignore[dict-item]
    assert code(response) == (400, "invalid_idempotency_key")
    assert response.json()["error"]["param"] == "Idempotency-Key"
    assert served() == []


@pytest.mark.parametrize("keys", [("one", "two"), ("same", "same")])
def test_two_headers_are_refused(shop: Shop, keys: tuple[str, str]) -> None:
    """Joined by a comma, as a proxy or Django does it, they would be a third key."""
    served = shop.serve()
    connection = HTTPConnection("127.0.0.1", shop.server.port, timeout=20)
    connection.putrequest("POST", "/v1/chat/completions")
    body = json.dumps(shop.body()).encode()
    fields = [("Authorization", f"Bearer {shop.secret}"), ("Content-Type", "application/json")]
    for name, value in (*fields, ("Content-Length", str(len(body))), *(("Idempotency-Key", key) for key in keys)):
        connection.putheader(name, value)
    connection.endheaders(body)
    response = connection.getresponse()
    said = json.loads(response.read())["error"]
    connection.close()
    assert (response.status, said["code"], said["param"]) == (400, "invalid_idempotency_key", "Idempotency-Key")
    assert served() == []


def test_the_longest_key_is_taken(shop: Shop) -> None:
    key = shop.key + "~" * (255 - len(shop.key))
    assert [shop.ask(key=key).headers.get("idempotent-replayed") for _ in range(2)] == [None, "true"]


def test_without_the_header_nothing_is_kept(shop: Shop) -> None:
    before = shop.house.query("SELECT count(*) FROM replies_keptreply")
    served = shop.serve(Answer(), Answer())
    assert [shop.ask(key="-").status_code for _ in range(2)] == [200, 200]
    assert len(served()) == 2
    assert shop.house.query("SELECT count(*) FROM replies_keptreply") == before


def test_a_neighbours_key_is_another_key(shop: Shop) -> None:
    served = shop.serve(Answer("acme's fox"), Answer("globex's owl"))
    ours = shop.ask()
    theirs = shop.ask(secret=shop.neighbour)
    assert ("fox" in ours.text, "owl" in theirs.text) == (True, True)
    assert shop.ask(secret=shop.neighbour).content == theirs.content
    other = shop.ask(secret=shop.neighbour, temperature=0.1)
    assert code(other) == (400, "idempotency_key_reused")
    assert shop.ask().content == ours.content
    assert len(served()) == 2


def test_another_api_key_of_the_tenant_gets_it_if_it_may_call_the_model(shop: Shop) -> None:
    first = shop.ask()
    secret = shop.house.manage("issue_key", "--tenant", "acme", "--name", f"phone-{shop.user}").strip()
    assert shop.ask(secret=secret).content == first.content
    narrowed = "UPDATE tenants_apikey SET allowed_models = %s WHERE public_id = %s RETURNING id"
    shop.house.query(narrowed, ['["acme-other"]', secret.split("-")[2]])
    assert code(shop.ask(secret=secret)) == (404, "model_not_found")
    assert code(shop.ask(secret=secret, temperature=0.3)) == (404, "model_not_found")
    revoked = "UPDATE tenants_apikey SET status = 'revoked' WHERE public_id = %s RETURNING id"
    shop.house.query(revoked, [secret.split("-")[2]])
    assert code(shop.ask(secret=secret)) == (401, "invalid_api_key")
    shop.records()


def test_a_refusal_by_a_limit_is_not_kept(shop: Shop) -> None:
    secret = shop.house.manage("issue_key", "--tenant", "acme", "--name", f"limited-{shop.user}").strip()
    ((rule),) = shop.house.query(RULE, [secret.split("-")[2]])
    for _ in range(3):
        assert shop.ask(secret=secret, key=uuid.uuid4().hex).status_code == 200
    assert code(shop.ask(secret=secret)) == (429, "rate_limit_exceeded")
    shop.house.query("UPDATE limits_limitrule SET enabled = false WHERE id = %s RETURNING id", [rule["id"]])
    answered = shop.ask(secret=secret)
    assert (answered.status_code, "idempotent-replayed" in answered.headers) == (200, False)
    assert shop.ask(secret=secret).headers["idempotent-replayed"] == "true"


def test_a_repeat_takes_nothing_of_a_limit_and_shows_it(shop: Shop) -> None:
    secret = shop.house.manage("issue_key", "--tenant", "acme", "--name", f"counted-{shop.user}").strip()
    shop.house.query(RULE, [secret.split("-")[2]])
    left = [shop.ask(secret=secret).headers["x-ratelimit-remaining-requests"] for _ in range(6)]
    assert left == ["2"] * 6


@pytest.mark.parametrize("stream", [False, True])
def test_what_the_provider_refused_is_not_kept(shop: Shop, stream: bool) -> None:
    served = shop.serve(error(400), Stream() if stream else Answer())
    assert shop.ask(stream=stream).status_code == 400
    shop.until_gone()
    answered = shop.ask(stream=stream)
    assert (answered.status_code, "idempotent-replayed" in answered.headers) == (200, False)
    assert shop.ask(stream=stream).content == answered.content
    assert len(served()) == 2


def test_what_broke_off_is_not_kept(shop: Shop) -> None:
    served = shop.serve(Stream(words(20), cut_after=5), Stream(words(20)))
    with pytest.raises(requests.exceptions.ChunkedEncodingError):
        _ = shop.ask(stream=True).content
    whole = shop.ask(stream=True)
    assert b"w19" in whole.content
    assert "idempotent-replayed" not in whole.headers
    assert len(served()) == 2
    assert [row["status"] for row in shop.records(2)] == ["interrupted", "completed"]


def test_nothing_readable_is_stored(shop: Shop) -> None:
    """Neither the key nor the question nor the answer, in any column."""
    shop.serve(Answer("In the parcel is a fox."))
    shop.ask()
    row = shop.kept()
    stored = b" ".join(value if isinstance(value, bytes) else str(value).encode() for value in row.values())
    for text in (shop.key, "parcel", "fox", "acme-chat", "What is"):
        assert text.encode() not in stored
    assert row["content"].startswith(b"gAAAA")  # Fernet
    assert row["size"] > 100


def test_browsers_may_send_the_header_and_read_ours(shop: Shop) -> None:
    origin = {"Origin": "https://app.example.com"}
    asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "idempotency-key"}
    url = f"{shop.server}/v1/chat/completions"
    assert (
        "idempotency-key"
        in requests.options(url, headers=origin | asked, timeout=20).headers["access-control-allow-headers"]
    )
    exposed = shop.ask(headers=origin).headers["access-control-expose-headers"]
    assert {"idempotent-replayed", "x-counterfoil-original-request-id"} <= set(exposed.split(", "))
