"""What the server costs a request, beside calling the provider, LiteLLM and LiteLLM's proxy.

    python benchmarks/serve.py                                # overhead at 50 requests/s
    python benchmarks/serve.py --sustain 10000                # and the highest rate without errors
    python benchmarks/serve.py --litellm-proxy VENV/bin/litellm

A stub provider in a process of its own answers at once, so that what is timed is what stands
between. Requests are sent at a fixed rate (open loop: a slow answer delays no other request), to
each way in turn, round after round, so that a busy moment of the machine falls on all of them:

    direct     the stub itself, the floor
    sdk        litellm.acompletion inside the load generator's process
    plain      thriftroute serve, a model named by the client: no routing
    routed     thriftroute serve, model "auto": the mf router decides
    messages   as plain, by the door of Anthropic's Messages (with --ways)
    responses  as plain, by the door of OpenAI's Responses (with --ways)
    fast       the same with the fast router
    portkey    Portkey's gateway (npm), where --portkey names its folder and node is there
    proxy      LiteLLM's own proxy, where --litellm-proxy names its command

Then each way is asked by 16 clients at once (closed loop) for its highest rate, one after the other
in 20 turns, so that the machine's pace, which may double within seconds, falls on all of them. A
ratio of rates is the geometric mean of the turns', with a 95% interval by Student's t.

Overhead is the difference of two percentiles of one run, in ms. All of it, load generator and stub
too, shares this machine's cores. CPU ms is what all these processes together took for a request:
what a busy machine does to percentiles, it does less to that.
"""

import argparse
import asyncio
import itertools
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import psutil
from rich.console import Console
from rich.progress import track
from rich.table import Table
from serve_parts import KEY, WORDS, free_port, servers, start, wait

SAMPLES = Path(__file__).resolve().parent.parent / "data" / "samples" / "prompts.jsonl"
ROUND_S = 4.0
WAYS = ("direct", "sdk", "plain", "routed", "fast", "portkey", "proxy")
TARGETS = {
    ("routed", "direct"): (15.0, 40.0),
    ("plain", "sdk"): (3.0, None),
    ("messages", "plain"): (1.0, None),
    ("responses", "plain"): (1.0, None),
}
CHATS = "chat/completions"
# way -> who answers it, at which path, for which model
PLACES = {
    "direct": ("stub", CHATS, "strong"),
    "plain": ("server", CHATS, "strong"),
    "routed": ("server", CHATS, "auto"),
    "fast": ("fast", CHATS, "auto"),
    "messages": ("server", "messages", "strong"),
    "responses": ("server", "responses", "strong"),
    "portkey": ("portkey", CHATS, "strong"),
    "proxy": ("proxy", CHATS, "strong"),
}
# (way, other way, least ratio of their rates)
BARS = (("fast", "portkey", 1.0), ("plain", "portkey", 1.2), ("routed", "proxy", 2.5))
TURNS = 20
T_975 = 2.093  # of Student's t with TURNS - 1 degrees of freedom
STREAMED = ("direct", "plain", "routed", "fast")
STUB = str(Path(__file__).with_name("serve_parts.py"))
_numbers = itertools.count()
_STUB = [""]  # where Portkey's gateway, which is told by each request, finds the stub


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--rate", type=float, default=50.0, help="requests a second")
    parser.add_argument("--rounds", type=int, default=8, help=f"of {ROUND_S:g} s each, a way")
    parser.add_argument("--ways", default=",".join(WAYS), help="which of them")
    parser.add_argument("--sustain", type=int, default=0, help="requests of the endurance run")
    parser.add_argument("--litellm-proxy", help="the command `litellm` of a venv that has it")
    parser.add_argument("--portkey", type=Path, help="folder with node_modules/@portkey-ai/gateway")
    parser.add_argument(
        "--burst", type=int, default=600, help="requests of the highest rate, a way"
    )
    parser.add_argument(
        "--streams", type=int, default=500, help="slow streams at once; 0: no streams at all"
    )
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    result = asyncio.run(_measure(options))
    if options.json:
        print(json.dumps(result, indent=2))
    else:
        _show(result, Console())


async def _measure(options: argparse.Namespace) -> dict[str, Any]:
    console = Console(stderr=True)
    rows = [json.loads(line) for line in SAMPLES.read_text("utf-8").splitlines()]
    prompts = [row["prompt"] for row in rows if isinstance(row.get("prompt"), str)]
    ports = {name: free_port() for name in ("stub", "server", "fast", "portkey", "proxy")}
    base = f"http://127.0.0.1:{ports['stub']}/v1"
    _STUB[0] = base
    result: dict[str, Any] = {"rate": options.rate, "prompts": len(prompts)}
    with tempfile.TemporaryDirectory() as folder:
        processes = {"stub": start([sys.executable, STUB, str(ports["stub"])])}
        try:
            wanted = options.ways.split(",")
            processes |= servers(Path(folder), base, ports, options, wanted)
            ways = {
                name: (f"http://127.0.0.1:{ports[at]}/v1/{path}", model)
                for name, (at, path, model) in PLACES.items()
                if name in wanted and at in processes
            }
            if "sdk" in wanted:
                ways["sdk"] = (base, "openai/strong")
            for name, port in ports.items():
                if name in processes:
                    await wait(port, processes[name], name)
            async with aiohttp.ClientSession() as session:
                everyone = [psutil.Process(), *(psutil.Process(p.pid) for p in processes.values())]
                result["load"] = os.getloadavg()[0]
                result["ways"] = await _rounds(session, ways, prompts, options, console, everyone)
                if options.streams:
                    result["streams"] = await _streams(session, ways, prompts, options)
                turns = await _turns(session, ways, prompts, options.burst)
                result["rates"] = {name: TURNS / sum(1 / r for r in each)
                                   for name, each in turns.items()}  # fmt: skip
                result["ratios"] = {
                    f"{name} over {other}": {**_ratio(turns[name], turns[other]), "goal": least}
                    for name, other, least in BARS
                    if name in turns and other in turns
                }
                result["rss_mb"] = {
                    name: psutil.Process(process.pid).memory_info().rss / 1e6
                    for name, process in processes.items()
                }
                if options.sustain:
                    server = psutil.Process(processes["server"].pid)
                    result["sustain"] = {
                        name: await _closed_loop(
                            session, name, ways[name], prompts, options.sustain, server
                        )
                        for name in ("plain", "routed")
                    }
        finally:
            for process in processes.values():
                process.send_signal(signal.SIGTERM)
            for process in processes.values():
                try:
                    process.wait(20)
                except subprocess.TimeoutExpired:
                    process.kill()
    return result


async def _rounds(
    session: aiohttp.ClientSession,
    ways: dict[str, tuple[str, str]],
    prompts: list[str],
    options: argparse.Namespace,
    console: Console,
    everyone: Sequence[psutil.Process],
) -> dict[str, Any]:
    taken: dict[str, list[float]] = {name: [] for name in ways}
    cpu: dict[str, list[float]] = {name: [] for name in ways}  # ms a request, of each round
    errors = dict.fromkeys(ways, 0)
    for name, way in ways.items():  # imports, connections, first pages: not what is asked here
        for prompt in prompts[:20]:
            await _ask(session, name, way, prompt)
    steps = [name for _ in range(options.rounds) for name in ways]
    for name in track(steps, "rounds", console=console):
        before = _cpu_s(everyone)
        seconds, failed = await _open_loop(session, name, ways[name], prompts, options.rate)
        cpu[name].append(1000 * (_cpu_s(everyone) - before) / (len(seconds) + failed))
        taken[name] += seconds
        errors[name] += failed
    rows = {}
    for name, seconds in taken.items():
        p50, p95, p99 = np.percentile(np.array(seconds) * 1000, [50, 95, 99])
        rows[name] = {
            "n": len(seconds),
            "errors": errors[name],
            "p50_ms": float(p50),
            "p95_ms": float(p95),
            "p99_ms": float(p99),
            "cpu_ms": float(np.median(cpu[name])),
        }
    return rows


def _cpu_s(everyone: Sequence[psutil.Process]) -> float:
    times = [process.cpu_times() for process in everyone]
    return sum(each.user + each.system for each in times)


async def _open_loop(
    session: aiohttp.ClientSession,
    name: str,
    way: tuple[str, str],
    prompts: list[str],
    rate: float,
) -> tuple[list[float], int]:
    """Seconds of each request, from the moment at which it was due; and how many failed."""
    n = int(ROUND_S * rate)
    start = time.perf_counter()
    tasks = []
    for index in range(n):
        due = start + index / rate
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        tasks.append(asyncio.create_task(_timed(session, name, way, prompts[index % len(prompts)])))
    found = await asyncio.gather(*tasks)
    good = [seconds for seconds in found if seconds is not None]
    return good, n - len(good)


async def _timed(
    session: aiohttp.ClientSession, name: str, way: tuple[str, str], prompt: str
) -> float | None:
    start = time.perf_counter()
    try:
        await _ask(session, name, way, prompt)
    except Exception:  # noqa: BLE001 - counted by who asked
        return None
    return time.perf_counter() - start


async def _ask(
    session: aiohttp.ClientSession, name: str, way: tuple[str, str], prompt: str
) -> None:
    if name == "sdk":
        url, model = way
        messages = [{"role": "user", "content": prompt}]
        from thriftroute.providers.completion import load_litellm

        answer = await load_litellm().acompletion(
            model=model, messages=messages, api_base=url, api_key="key"
        )
        assert answer.choices[0].message.content == "Yes."
        return
    async with _post(session, name, way, prompt) as response:
        found = await response.json()
        if response.status != 200 or "Yes." not in json.dumps(found):
            raise RuntimeError(f"{name}: {response.status} {str(found)[:300]}")


def _post(
    session: aiohttp.ClientSession, name: str, way: tuple[str, str], prompt: str, **more: Any
) -> Any:
    """A request that nobody has made before: scores and answers that are kept help no way."""
    url, model = way
    said = f"{prompt} ({next(_numbers)})"
    messages = [{"role": "user", "content": said}]
    body = {"model": model, "messages": messages, **more}
    if name == "messages":
        body["max_tokens"] = 100
    elif name == "responses":
        body = {"model": model, "input": messages}
    headers = {"authorization": f"Bearer {KEY}"}
    if name == "portkey":
        headers |= {"x-portkey-provider": "openai", "x-portkey-custom-host": _STUB[0]}
    return session.post(url, json=body, headers=headers)


async def _turns(
    session: aiohttp.ClientSession, ways: dict[str, tuple[str, str]], prompts: list[str], n: int
) -> dict[str, list[float]]:
    """Of each way the rates of its turns, of n requests in all."""
    found: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(TURNS):
        for name in [*ways][:: 1 if turn % 2 else -1]:
            told = await _closed_loop(session, name, ways[name], prompts, max(16, n // TURNS))
            if told["errors"]:
                raise RuntimeError(f"{name}: {told['errors']} of {told['n']} requests failed")
            found[name].append(told["per_s"])
    return found


def _ratio(rates: Sequence[float], others: Sequence[float]) -> dict[str, float]:
    logs = np.log(np.array(rates) / np.array(others))
    mean, off = logs.mean(), T_975 * logs.std(ddof=1) / np.sqrt(len(logs))
    low, ratio, high = (float(np.exp(mean + step)) for step in (-off, 0.0, off))
    return {"ratio": ratio, "low": low, "high": high}


async def _closed_loop(
    session: aiohttp.ClientSession,
    name: str,
    way: tuple[str, str],
    prompts: list[str],
    n: int,
    server: psutil.Process | None = None,
) -> dict[str, Any]:
    """n requests of 16 clients that ask one after the other: the rate, the errors, the memory."""
    left = iter(range(n))
    errors = 0
    memory = []

    async def client() -> None:
        nonlocal errors
        for index in left:
            if await _timed(session, name, way, prompts[index % len(prompts)]) is None:
                errors += 1
            if server is not None and index % max(1, n // 10) == 0:
                memory.append(server.memory_info().rss / 1e6)

    begun = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(16)))
    seconds = time.perf_counter() - begun
    return {"n": n, "errors": errors, "per_s": n / seconds, "rss_mb": memory}


async def _streams(
    session: aiohttp.ClientSession,
    ways: dict[str, tuple[str, str]],
    prompts: list[str],
    options: argparse.Namespace,
) -> dict[str, Any]:
    """Milliseconds to a stream's first word, at the rate of the rounds; and of many slow streams at
    once, how many came whole."""
    found: dict[str, Any] = {}
    for name in [each for each in STREAMED if each in ways]:
        tasks = []
        for index in range(int(ROUND_S * options.rate)):
            await asyncio.sleep(1 / options.rate)
            text = prompts[index % len(prompts)]
            tasks.append(asyncio.create_task(_streamed(session, name, ways[name], text)))
        told = await asyncio.gather(*tasks)
        p50, p99 = np.percentile([1000 * seconds for seconds, _ in told], [50, 99])
        lost = sum(words != list(WORDS) for _, words in told)
        found[name] = {"n": len(told), "p50_ms": float(p50), "p99_ms": float(p99), "lost": lost}
    if "plain" in ways:
        way = (ways["plain"][0], "slow")
        many = (_streamed(session, "plain", way, "hi") for _ in range(options.streams))
        told = await asyncio.gather(*many, return_exceptions=True)
        whole = sum(isinstance(t, tuple) and t[1] == list(WORDS) for t in told)
        found["slow"] = {"n": len(told), "whole": whole}
    return found


async def _streamed(
    session: aiohttp.ClientSession, name: str, way: tuple[str, str], prompt: str
) -> tuple[float, list[str]]:
    """(seconds to the first word, all words) of one stream."""
    begun, first, words = time.perf_counter(), 0.0, []
    async with _post(session, name, way, prompt, stream=True) as response:
        async for line in response.content:
            if line.startswith(b"data: {"):
                choices = json.loads(line[6:])["choices"]
                if choices and (word := choices[0]["delta"].get("content")):
                    first = first or time.perf_counter() - begun
                    words.append(word)
    return first, words


def _show(result: dict[str, Any], console: Console) -> None:
    ways = result["ways"]
    title = f"{result['rate']:g} requests/s, {result['prompts']} different prompts"
    table = Table(title=f"{title}, load average {result['load']:.1f} before")
    for column in ("way", "n", "errors", "p50 ms", "p95 ms", "p99 ms", "CPU ms"):
        table.add_column(column, justify="left" if column == "way" else "right")
    for name, row in ways.items():
        cells = [f"{row[key]:.1f}" for key in ("p50_ms", "p95_ms", "p99_ms", "cpu_ms")]
        table.add_row(name, str(row["n"]), str(row["errors"]), *cells)
    console.print(table)
    pairs = [*TARGETS, *((("proxy", "direct"),) if "proxy" in ways else ())]
    for above, below in pairs:
        if above not in ways or below not in ways:
            continue
        p50, p99 = (ways[above][f"p{q}_ms"] - ways[below][f"p{q}_ms"] for q in (50, 99))
        goals = TARGETS.get((above, below))
        goal = "" if goals is None else f"  (goal p50 <= {goals[0]:g}"
        if goals is not None:
            goal += f", p99 <= {goals[1]:g})" if goals[1] is not None else ")"
        cpu = ways[above]["cpu_ms"] - ways[below]["cpu_ms"]
        console.print(
            f"{above} above {below}: p50 {p50:+.1f} ms, p99 {p99:+.1f} ms, CPU {cpu:+.1f} ms{goal}"
        )
    for name, row in result.get("streams", {}).items():
        if name == "slow":
            console.print(f"{row['n']} slow streams at once: {row['whole']} came whole")
            continue
        above = row["p50_ms"] - result["streams"].get("direct", row)["p50_ms"]
        console.print(
            f"streams, {name}: first word at p50 {row['p50_ms']:.1f} ms ({above:+.1f} over the "
            f"stub's own), p99 {row['p99_ms']:.1f} ms; {row['lost']} of {row['n']} not whole"
        )
    rates = result["rates"]
    told = ", ".join(f"{name} {rate:.0f}/s" for name, rate in rates.items())
    console.print(f"highest rate, 16 at once: {told}")
    for pair, row in result["ratios"].items():
        between = f"95% interval {row['low']:.2f} to {row['high']:.2f}"
        console.print(f"{pair}: {row['ratio']:.2f} times the rate, {between} (goal {row['goal']})")
    memory = ", ".join(f"{name} {size:.0f} MB" for name, size in result["rss_mb"].items())
    console.print(f"memory after it: {memory}")
    for name, row in result.get("sustain", {}).items():
        memory = row["rss_mb"]
        console.print(
            f"{name}, {row['n']:,} requests, 16 at a time: {row['per_s']:.0f}/s, "
            f"{row['errors']} errors, MB of memory at each tenth: "
            + " ".join(f"{each:.0f}" for each in memory)
        )


if __name__ == "__main__":
    main()
