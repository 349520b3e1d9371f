"""Every fault of a provider under load, in two workers of `manage.py serve`: what clients see, what is booked.

Each row of `rows.ROWS` is a deployment that fails, alone and with a healthy one behind it, while healthy models are
asked beside it. A client gets a whole right answer of one provider, an error in OpenAI's form, or an error event and
a broken end; never a clean end of half an answer.
"""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Iterator

import pytest

from tests.faults import limits
from tests.faults.audit import STATUSES, Audit, Case
from tests.faults.clients import Clients, all_of
from tests.faults.conftest import Ground, settled
from tests.faults.fleet import Service
from tests.faults.load import PRICE, Sent
from tests.faults.rows import BROKEN, ERROR, ROWS, WHOLE, Fault, Row
from tests.faults.tally import Tally
from tests.faults.wire import Wire
from tests.upstream_scripts import Exchange, Script

HEALTHY = "words-9"  # the deployment behind the one that fails
MOST_MEGABYTES = 900  # of a worker, with eight answers of 10 MB at once: a few copies of each, and fragments
PROMPT_BYTES, PROMPTS = 4 * 2**20, 60
WORDS_OF_ONE = re.compile(r"(?:w\d+ )*|(?:x\d+ )*|x*")


@pytest.fixture(scope="module", autouse=True)
def catalogue(whole_ground: Ground, service: Service) -> Iterator[None]:
    """Two models a row: one whose only deployment fails, one with a healthy deployment behind it."""
    with socket.create_server(("127.0.0.1", 0)) as closed:
        nobody = f"http://127.0.0.1:{closed.getsockname()[1]}/v1"
    url = whole_ground.upstream.url
    lines = [
        "providers:",
        f'  - {{name: failing, protocol: openai, base_url: "{url}"}}',
        f'  - {{name: hanging, protocol: openai, base_url: "{url}", first_byte_timeout_s: 3, read_timeout_s: 3}}',
        f'  - {{name: nobody, protocol: openai, base_url: "{nobody}"}}',
        "models:",
    ]
    for row in ROWS:
        provider = "hanging" if row.name.startswith("hangs") else "failing"  # 10 MB may take their time
        provider = "nobody" if row.stream.script is None else provider
        bad = f"{{provider: {provider}, upstream_model: {model(row, 'bad')}, priority: 1}}"
        good = f"{{provider: scripted, upstream_model: {HEALTHY}, priority: 2}}"
        for kind, deployments in (("alone", bad), ("pair", f"{bad}, {good}")):
            lines.append(
                f"  - {{id: {model(row, kind)}, deployments: [{deployments}], prices: {PRICE}, max_attempts: 2}}"
            )
    whole_ground.house.apply("\n".join([*lines, ""]))
    yield
    verified = whole_ground.house.command("manage.py", "verify_ledger")
    assert verified.returncode == 0, verified.stdout + verified.stderr


def model(row: Row, kind: str) -> str:
    return "-".join([*re.findall("[a-z0-9]+", row.name.lower()), kind])


def either(row: Row) -> Script:
    async def script(exchange: Exchange) -> None:
        found = (row.stream if exchange.body.get("stream") else row.whole).script
        assert found is not None
        await found(exchange)

    return script


@pytest.mark.parametrize("row", ROWS, ids=[row.id for row in ROWS])
async def test_a_fault_of_a_provider(row: Row, ground: Ground, service: Service, tally: Tally) -> None:
    since = ground.now()
    ground.upstream.script(model(row, "bad"), either(row))
    clients = Clients(service.port, ground.key)
    service.forget_memory()
    async with clients.traffic() as healthy:
        failing = await all_of(
            [
                clients.ask(model(row, kind), stream=stream)
                for kind in ("alone", "pair")
                for stream in (True, False)
                for _ in range(row.count)
            ]
        )
        await all_of([clients.ask("words-12") for _ in range(4)])
    megabytes = service.megabytes()
    await settled(ground)
    audit = Audit(ground.house, clients.sent, ground.upstream.served, since, STATUSES | {400})
    drift = limits.drift(ground.house)
    tally.add(row.name, audit, len(drift), f"{megabytes} MB")

    found = drift + audit.faults()
    found += [f"healthy traffic: {sent.reply.describe()}" for sent in healthy if not sent.reply.whole]
    for sent in failing:
        case = audit.cases[sent.marker]
        found += [f"{fault}\n    {case.describe()}" for fault in (*faults_of_text(sent), *faults_of_row(row, case))]
    assert not found, f"{len(found)}:\n" + "\n".join(found[:8])
    assert megabytes < MOST_MEGABYTES
    seen = [request for request in ground.upstream.served if request.model == model(row, "bad")]
    assert len(seen) >= 2 * row.count or row.stream.script is None, "the fault was hardly seen"


async def test_failed_requests_leave_nothing_behind(ground: Ground, service: Service, tally: Tally) -> None:
    """Their prompts are freed when they end, not when the garbage collector comes to them."""
    (row,) = [row for row in ROWS if row.name == "400"]
    ground.upstream.script(model(row, "bad"), either(row))
    prompt = {"role": "user", "content": "x" * PROMPT_BYTES}
    body = json.dumps({"model": model(row, "alone"), "messages": [prompt]}).encode()
    headers = {"authorization": f"Bearer {ground.key}", "content-type": "application/json"}
    service.forget_memory()
    before = service.megabytes()
    replies = [await Wire(service.port, keep=False).post(body, headers) for _ in range(PROMPTS)]
    grown = service.megabytes() - before
    count = len(ground.upstream.served)
    tally.note("4 MB prompts that fail", requests=PROMPTS, errors=PROMPTS, seen=count, said=f"+{grown} MB")
    assert {reply.status for reply in replies} == {400}
    assert grown < PROMPTS * PROMPT_BYTES / 2**20 / 2


def faults_of_text(sent: Sent) -> Iterator[str]:
    """One provider's words, from the first to the last."""
    reply = sent.reply
    if reply.status != 200 or not (reply.streamed or reply.whole):
        return
    if reply.streamed:
        deltas = [event["choices"][0]["delta"] for event in reply.events() if event.get("choices")]
        text = "".join(delta.get("content") or "" for delta in deltas)
    else:
        text = json.loads(reply.body)["choices"][0]["message"]["content"]
    words = text.split()
    if not WORDS_OF_ONE.fullmatch(text):
        yield f"the words of two providers, or none's: {text[:200]}"
    elif not text.startswith("xx") and [int(word[1:]) for word in words] != list(range(len(words))):
        yield f"not the words that were said: {text[:200]}"
    elif reply.whole and len(words) not in (1, 3, 9):
        yield f"not all of the words: {text[:200]}"


def faults_of_row(row: Row, case: Case) -> Iterator[str]:
    sent, reply = case.sent, case.sent.reply
    fault = row.stream if sent.stream else row.whole
    saw = WHOLE if reply.whole else BROKEN if reply.status == 200 else ERROR
    if saw not in expected(row, fault, paired=sent.model.endswith("-pair")):
        yield f"the client saw {saw}"
    # What no byte of an answer could be read of is "broken", and may be tried again.
    given_up = [row["outcome"] for row in case.attempts[:-1]]
    if fault.sees != WHOLE and not fault.hidden and set(given_up) - {"broken", "connect"}:
        yield "asked again, though an answer had begun or the client was to blame"
    if saw == BROKEN and (reply.end != "cut" or b'data: {"error":{' not in reply.body):
        yield "broken off without an error event and a broken end"
    if saw == ERROR and row.status and reply.status not in (row.status, 503):
        yield f"status {reply.status} instead of {row.status}"
    if reply.status == 429 and reply.headers.get("retry-after") != "7":
        yield "the provider's retry-after has not come through"
    wanted = {WHOLE: "completed", BROKEN: "interrupted", ERROR: "failed"}[saw]
    # A breaker that is open refuses before there is anything to book.
    if case.status != wanted and not (case.status == "none" and reply.status == 503 and not case.served):
        yield f"the record says {case.status}, not {wanted}"


def expected(row: Row, fault: Fault, *, paired: bool) -> set[str]:
    if fault.sees == WHOLE:
        return {WHOLE}
    if paired and fault.hidden:
        return {WHOLE}
    if paired or row.name.startswith("a burst"):  # the healthy one may have been asked first: a breaker was open
        return {fault.sees, WHOLE}
    return {fault.sees, ERROR}
