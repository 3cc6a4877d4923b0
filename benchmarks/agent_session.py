"""What the server's own work costs each step of a long session of an agent, by part.

    python benchmarks/agent_session.py

A session of 200 steps grows to 160,000 tokens, as a coding agent sends it to `/v1/messages`: system
text, tools, and a tool's call and result more with each step. Random words, seed 0. The parts, in
one process, no provider, as ms of CPU, which a busy machine changes less than it does time:

    read    the body's JSON, its checks, its translation, the count of its tokens
    route   the session found by header or by its messages, and the model chosen
    keep    after the answer: what the session's caches hold now, and the notes in the store

The bar is that `route` takes at most 3 ms at p50, and that nothing is scored but natural points.

Then, of a request of 100 words with a tool, what the doors of Anthropic's Messages and of OpenAI's
Responses take beside chat completions: to read it as theirs, and to write the answer as theirs. The
bar is 1 ms at p50. `serve.py --ways plain,messages,responses` times whole requests.
"""

import asyncio
import json
import os
import random
import time
from typing import Any

import numpy as np
from thriftroute.serve.api.doors import _messages
from thriftroute.serve.api.openai_chat import parse
from thriftroute.serve.config.settings import Config
from thriftroute.serve.dialects import messages_answer, responses_answer, responses_request
from thriftroute.serve.spend.cost import Usage
from thriftroute.serve.state import ServerState

STEPS, RESULT, BAR_MS = 200, 3000, 3.0
WORDS = "the file result error test import self value none list def class for in if path open"


def main() -> None:
    """Measure and print."""
    prices = {"strong": 10.0, "weak": 1.0}
    models = [
        {
            "name": name,
            "model": f"openai/{name}",
            "api_base": "http://127.0.0.1:9/v1",
            "price": {"input": price, "output": price, "cached_input": price / 10},
        }
        for name, price in prices.items()
    ]
    config = {"models": models, "strong": "strong", "weak": "weak", "records": {"url": None}}
    state = ServerState(Config.model_validate(config))
    scored = 0
    scores = state.router.scores

    def counted(*conversations: Any) -> Any:
        nonlocal scored
        scored += 1
        return scores(*conversations)

    state.router.scores = counted  # type: ignore[method-assign]
    print(f"load average {os.getloadavg()[0]:.1f}, {os.cpu_count()} processors; ms of CPU a step")
    for named in (True, False):
        scored = 0
        times = asyncio.run(_session(state, named))
        told = "its tool names the session" if named else "known by its messages"
        print(f"\n{told}: {scored} of {STEPS} steps scored")
        print("part      p50     p95   p50 of the last 20")
        for name, taken in times.items():
            p50, p95 = np.percentile(taken, [50, 95])
            bar = f"   (bar {BAR_MS:g})" if name == "route" else ""
            print(f"{name:6}{p50:7.2f} {p95:7.2f} {np.median(taken[-20:]):12.2f}{bar}")
    asyncio.run(_doors(state))


async def _doors(state: ServerState) -> None:
    text = " ".join(random.Random(0).choices(WORDS.split(), k=100))
    schema = {"type": "object", "properties": {"a": {"type": "string"}}}
    about = {"name": "run", "description": "Runs it.", "parameters": schema}
    said = [{"role": "user", "content": text}]
    one = {"model": "strong", "max_tokens": 100, "messages": said}
    bodies = {
        "chat": {**one, "tools": [{"type": "function", "function": about}]},
        "messages": {**one, "tools": [{"name": "run", "input_schema": schema}]},
        "responses": {"model": "strong", "input": said, "tools": [{"type": "function", **about}]},
    }
    answer: dict[str, Any] = {"id": "c", "created": 1, "model": "strong", "usage": {}}
    answer["choices"] = [{"index": 0, "message": {"content": text}, "finish_reason": "stop"}]

    def responses(body: Any, _: Any) -> Any:
        chat, native = responses_request.chat_of(body), responses_request.native_of(body)
        return chat, {"protocol": "responses", "body": native, "headers": {}}

    translate: Any = {"messages": _messages, "responses": responses}
    write: Any = {
        "chat": lambda found: found,
        "messages": messages_answer.message_of,
        "responses": lambda found: responses_answer.response_of(found, bodies["responses"], set()),
    }
    taken: dict[str, list[float]] = {door: [] for door in bodies}
    for number in range(3 * 1000):
        door = list(bodies)[number % 3]
        raw = json.dumps(bodies[door]).encode()
        start = time.process_time()
        await parse(state, raw, {}, translate.get(door))
        write[door](answer)
        taken[door].append(1000 * (time.process_time() - start))
    p50 = {door: float(np.median(each)) for door, each in taken.items()}
    print("\n\ndoor        p50   above chat (bar 1)")
    for door, each in p50.items():
        print(f"{door:10}{each:5.2f} {each - p50['chat']:8.2f}")


async def _session(state: ServerState, named: bool) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {"read": [], "route": [], "keep": []}
    headers = {"x-claude-code-session-id": "one"} if named else {}
    for number, raw in enumerate(_bodies("named" if named else "found")):
        start = time.process_time()
        stage = await parse(state, raw, headers, _messages)
        read = time.process_time()
        held = await state.sessions.held(stage.request)
        plan = state.pipeline.plan(stage.request, held=held)
        routed = time.process_time()
        usage = Usage(stage.request.prompt_tokens, 100)
        done = (held, stage.request, plan.models[0], usage, time.time())
        course = state.pipeline.switching.after(*done)
        await state.sessions.remember(stage.request, course, _answer(number))
        kept = time.process_time()
        for name, seconds in zip(times, (read - start, routed - read, kept - routed), strict=True):
            times[name].append(1000 * seconds)
    assert course.steps == STEPS, "the session was lost on its way"
    print(
        f"\nthe last prompt: {usage.prompt_tokens:,} tokens by its length, {len(raw):,} bytes",
        end="",
    )
    return times


def _bodies(first: str) -> list[bytes]:
    words, known = random.Random(0), WORDS.split()

    def text(characters: int) -> str:
        return " ".join(words.choices(known, k=characters // 5))

    schema = {"type": "object", "properties": {"a": {"type": "string"}}}
    tools = [
        {"name": f"tool{i}", "description": text(400), "input_schema": schema} for i in range(16)
    ]
    system = [{"type": "text", "text": text(12_000), "cache_control": {"type": "ephemeral"}}]
    messages: list[Any] = [{"role": "user", "content": f"{first}: {text(3000)}"}]
    bodies = []
    for number in range(STEPS):
        body = {"model": "auto", "max_tokens": 8000, "system": system, "tools": tools}
        bodies.append(json.dumps({**body, "messages": messages}).encode())
        call = {
            "type": "tool_use",
            "id": f"t{number}",
            "name": "tool1",
            "input": {"a": str(number)},
        }
        result = {"type": "tool_result", "tool_use_id": f"t{number}", "content": text(RESULT)}
        messages += [
            {"role": "assistant", "content": [{"type": "text", "text": "I look."}, call]},
            {"role": "user", "content": [result]},
        ]
    return bodies


def _answer(number: int) -> dict[str, Any]:
    function = {"name": "tool1", "arguments": json.dumps({"a": str(number)})}
    call = {"id": f"t{number}", "type": "function", "function": function}
    return {"choices": [{"message": {"role": "assistant", "tool_calls": [call]}}]}


if __name__ == "__main__":
    main()
