"""Peak memory of reading a million rows into a table. Run: python benchmarks/memory.py

Writes 1,000,000 JSONL score rows (200,000 prompts of about 300 characters, 5 models) to a
temporary folder, reads them into a PairTable in a fresh process, and prints the peak resident
memory, with what the process held before the reading, and the seconds that it took.
"""

import argparse
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

MODELS = tuple(f"model-{i}" for i in range(5))


def write_rows(path: Path, rows: int, seed: int) -> None:
    """Write `rows` score rows, one prompt for every five of them."""
    rng = random.Random(seed)
    words = ["".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=6)) for _ in range(5000)]
    prompt = ""
    with path.open("w", encoding="utf-8") as file:
        for i in range(rows):
            if i % len(MODELS) == 0:
                prompt = f"{i} " + " ".join(rng.choices(words, k=42))
            row = {
                "prompt": prompt,
                "model": MODELS[i % len(MODELS)],
                "score": rng.randint(0, 1),
                "task": f"task-{i % 7}",
                "output_tokens": rng.randint(1, 900),
            }
            file.write(json.dumps(row) + "\n")


def peak_mb() -> float:
    """Peak resident memory of this process in megabytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Linux counts kilobytes, macOS bytes.
    return peak / 1e6 if sys.platform == "darwin" else peak / 1e3


def read(path: Path) -> None:
    """Read the rows into both tables' worth of columns and print what it took."""
    from thriftroute.data.readers import read_rows
    from thriftroute.data.tables import pair_table

    before, start = peak_mb(), time.perf_counter()
    table = pair_table(read_rows(path), MODELS[:2], MODELS[2:])
    seconds = time.perf_counter() - start
    print(f"{table.usage}")
    print(
        f"{table.n:,} prompts in {seconds:.1f} s; peak {peak_mb():,.0f} MB ({before:,.0f} before)"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--read", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.read:
        read(options.read)
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.jsonl"
        write_rows(path, options.rows, options.seed)
        print(f"{options.rows:,} rows, {path.stat().st_size / 1e6:,.0f} MB of JSONL", flush=True)
        # A fresh process: the writer's memory must not count.
        subprocess.run([sys.executable, __file__, "--read", str(path)], check=True)


if __name__ == "__main__":
    main()
