"""What each stage of a request costs the server, in CPU and on the clock.

    python benchmarks/stages.py [--n 300] [--router fast]

One server in this process, one request after the other through its stages, no prompt twice; the
stub provider is a process of its own. Medians: what a busy machine does to the clock, it does less
to the CPU time of this process.
"""

import argparse
import asyncio
import itertools
import json
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Awaitable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import uvloop
from rich.console import Console
from rich.table import Table
from serve_parts import free_port
from thriftroute.providers import json_bytes
from thriftroute.serve.api.flow import RequestFlow, _answered
from thriftroute.serve.api.openai_chat import parse
from thriftroute.serve.api.request_state import Pending, headers_of
from thriftroute.serve.api.settlement import record, settle
from thriftroute.serve.config.settings import Config
from thriftroute.serve.state import ServerState

SAMPLES = Path(__file__).resolve().parent.parent / "data" / "samples" / "prompts.jsonl"
STUB = str(Path(__file__).with_name("serve_parts.py"))
WARM_UP = 30
T = TypeVar("T")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--n", type=int, default=300, help="requests")
    parser.add_argument("--router", default="fast")
    options = parser.parse_args()
    port = free_port()
    stub = subprocess.Popen([sys.executable, STUB, str(port)])
    try:
        with (
            tempfile.TemporaryDirectory() as folder,
            asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
        ):
            taken = runner.run(_measure(f"http://127.0.0.1:{port}/v1", folder, options))
    finally:
        stub.terminate()
    table = Table(title=f"router {options.router}, n = {options.n}: medians")
    for column in ("stage", "CPU ms", "clock ms"):
        table.add_column(column, justify="left" if column == "stage" else "right")
    sums = np.zeros(2)
    for stage, each in taken.items():
        found = np.median(np.array(each[WARM_UP:]) * 1000, axis=0)
        sums += found
        table.add_row(stage, *(f"{value:.3f}" for value in found))
    table.add_row("all of these", *(f"{value:.3f}" for value in sums))
    Console().print(table)


async def _measure(url: str, folder: str, options: argparse.Namespace) -> dict[str, Any]:
    common = {"api_base": url, "api_key": "key", "price": {"input": 1, "output": 2}}
    models = [{"name": n, "model": f"openai/{n}", **common} for n in ("strong", "weak")]
    records = {"url": f"sqlite:///{folder}/records.db"}
    settings = {"models": models, "strong": "strong", "weak": "weak", "records": records}
    state = ServerState(Config.model_validate({**settings, "router": {"name": options.router}}))
    flow, taken = RequestFlow(state), defaultdict[str, list[tuple[float, float]]](list)
    await state.start()

    async def timed(stage: str, work: Awaitable[T]) -> T:
        cpu, clock = time.process_time(), time.perf_counter()
        found = await work
        taken[stage].append((time.process_time() - cpu, time.perf_counter() - clock))
        return found

    async def written(stage: Pending, body: Any) -> bytes:
        headers_of(stage.ended(model="weak"))
        return json_bytes.write(body)

    try:
        for prompt in itertools.islice(_prompts(), options.n + WARM_UP):
            raw = json.dumps({"model": "auto", "messages": [{"role": "user", "content": prompt}]})
            stage = await timed("parse, count", parse(state, raw.encode(), {}))
            planned = await timed("plan, score", flow._planned(stage))
            reserved = await timed("reserve", flow._reserved(planned))
            plan = planned.decided
            how = {"stream": False, "look": False, "score": plan.score}
            call = state.caller.call(plan.models, stage.request.body, **how)
            answer = await timed("call", call)
            ended = _answered(replace(reserved, called=time.perf_counter()), answer)
            settled = await timed("settle", settle(state, ended))
            await timed("write", written(stage, settled.completion))
            await timed("record", record(state, settled))
    finally:
        await state.close()
    return taken


def _prompts() -> Iterator[str]:
    rows = [json.loads(line) for line in SAMPLES.read_text("utf-8").splitlines()]
    prompts = itertools.cycle(row["prompt"] for row in rows if isinstance(row.get("prompt"), str))
    return (f"{prompt} ({number})" for number, prompt in enumerate(prompts))


if __name__ == "__main__":
    main()
