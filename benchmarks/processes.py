"""Tools that may run out of memory or time, each asked in a process of its own."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from collections.abc import Callable, Mapping
from typing import Any

MEMORY, SECONDS = 16 << 30, 120


def ask(module: str, tool: str, arch: str) -> dict[str, Any]:
    """What a tool tells of a network; an `error` where it does not."""
    command = [sys.executable, "-W", "ignore", "-m", module, tool, arch]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return {"error": f"not in {SECONDS} s"}
    if done.returncode:
        return {"error": (done.stderr.strip().splitlines() or ["killed"])[-1][:80]}
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def answered(tools: Mapping[str, Callable[[str], dict[str, Any]]]) -> bool:
    """Whether this process is one that was asked; it has answered then."""
    if len(sys.argv) != 3:
        return False
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    print(json.dumps(tools[sys.argv[1]](sys.argv[2])))
    return True
