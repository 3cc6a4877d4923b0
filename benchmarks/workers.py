"""The highest rate of `serve --workers N`, for one worker and two, in turn.

    python benchmarks/workers.py [--requests 3000] [--rounds 3] [--router fast]

Load generator and stub provider share one core, to which they are pinned; workers may use every
core. 32 clients ask at once, each prompt once. What is printed: requests a second, the best of the
rounds, and the ratio; where there are two cores the second worker shares the generator's.
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
from collections.abc import Iterator
from pathlib import Path

from serve_parts import free_port, server, start, wait

SAMPLES = Path(__file__).resolve().parent.parent / "data" / "samples" / "prompts.jsonl"
CLIENTS = 32
WARM_UP = 300
LOAD_S = 20.0  # for all workers to begin


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--requests", type=int, default=3000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--router", default="fast")
    options = parser.parse_args()
    core = min(os.sched_getaffinity(0))
    cores = os.sched_getaffinity(0)
    rates: dict[int, list[float]] = {1: [], 2: []}
    with tempfile.TemporaryDirectory() as folder:
        stub = free_port()
        os.sched_setaffinity(0, {core})  # the stub has it from here
        provider = start(
            [sys.executable, str(Path(__file__).with_name("serve_parts.py")), str(stub)]
        )
        try:
            for _, workers in itertools.product(range(options.rounds), rates):
                port, base = free_port(), f"http://127.0.0.1:{stub}/v1"
                command = server(Path(folder), base, port, options.router)
                os.sched_setaffinity(0, cores)
                process = start([*command, "--workers", str(workers)])
                os.sched_setaffinity(0, {core})
                try:
                    rate = asyncio.run(_rate(port, options.requests, process))
                finally:
                    process.send_signal(signal.SIGINT)
                    process.wait()
                rates[workers].append(rate)
                print(f"{workers} workers: {rate:.0f}/s", flush=True)
        finally:
            provider.terminate()
    one, two = (max(rates[workers]) for workers in (1, 2))
    print(
        f"{options.router}, {len(cores)} cores, {options.requests} requests, best of "
        f"{options.rounds}: 1 worker {one:.0f}/s, 2 workers {two:.0f}/s, {two / one:.2f} times"
    )


async def _rate(port: int, count: int, process: subprocess.Popen[bytes]) -> float:
    await wait(port, process, "the server")  # which gives the port to its workers once it is read
    await asyncio.sleep(LOAD_S)
    await wait(port, process, "the server")
    prompts = _requests(port)
    await _ask(port, list(itertools.islice(prompts, WARM_UP)))
    asked = list(itertools.islice(prompts, count))
    begun = time.perf_counter()
    await _ask(port, asked)
    return count / (time.perf_counter() - begun)


async def _ask(port: int, requests: list[bytes]) -> None:
    """All of them over `CLIENTS` connections; as little Python as there can be."""
    waiting = iter(requests)

    async def client() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for request in waiting:
            writer.write(request)
            head = await reader.readuntil(b"\r\n\r\n")
            if b" 200 " not in head[:16]:
                sys.exit(f"the server said {head[:60]!r}")
            await reader.readexactly(int(head.lower().split(b"content-length:")[1].split()[0]))
        writer.close()

    await asyncio.gather(*(client() for _ in range(CLIENTS)))


def _requests(port: int) -> Iterator[bytes]:
    rows = [json.loads(line) for line in SAMPLES.read_text("utf-8").splitlines()]
    prompts = itertools.cycle(row["prompt"] for row in rows if isinstance(row.get("prompt"), str))
    for number, prompt in enumerate(prompts):
        messages = [{"role": "user", "content": f"{prompt} ({number})"}]
        body = json.dumps({"model": "auto", "messages": messages}).encode()
        head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\n"
        head += f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        yield head.encode() + body


if __name__ == "__main__":
    main()
