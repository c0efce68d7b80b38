"""What `import cosmos_ref` costs on top of `import torch`: the best of several fresh processes each."""

import subprocess
import sys

LIMIT = 0.3
"""Seconds."""
REPEATS = 7


def seconds(statement: str) -> float:
    """Time of an import in a fresh process, without the interpreter's own start."""
    code = f"import time; start = time.perf_counter(); {statement}; print(time.perf_counter() - start)"
    runs = [subprocess.run([sys.executable, "-c", code], capture_output=True, check=True) for _ in range(REPEATS)]
    return min(float(run.stdout) for run in runs)


def main() -> int:
    torch, both = seconds("import torch"), seconds("import torch, cosmos_ref")
    print(f"import torch              {torch:6.3f} s")
    print(f"import torch, cosmos_ref  {both:6.3f} s")
    print(f"difference                {both - torch:6.3f} s (limit {LIMIT} s)")
    return int(both - torch > LIMIT)


if __name__ == "__main__":
    sys.exit(main())
