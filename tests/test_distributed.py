"""Two real processes under torchrun: every rank draws the same line, and DDP trains a pruned model."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

SCRIPT = """
import os
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

import prunus
from tests.conftest import small_net

dist.init_process_group("gloo")
rank = dist.get_rank()
torch.manual_seed(rank)  # the ranks differ in everything that does not matter
torch.set_num_threads(1 + rank)

for passes in ("both", "backward", "forward"):
    model = small_net()
    parallel = DistributedDataParallel(model)
    generator = torch.Generator().manual_seed(0)
    pruning = prunus.prune(model, 0.5, p_bern=0.5, passes=passes, granularity="kernel", generator=generator)
    optimizer = torch.optim.SGD(parallel.parameters(), lr=0.1, momentum=0.9)
    for _ in range(3):
        optimizer.zero_grad()
        parallel(torch.randn(4, 3, 8, 8)).square().mean().backward()
        optimizer.step()
        pruning.redraw()
    flat = torch.cat([mask.flatten().float() for mask in pruning.masks.values()])
    flat = torch.cat([flat, *(p.detach().flatten() for p in model.parameters())])
    everyone = [torch.empty_like(flat) for _ in range(2)]
    dist.all_gather(everyone, flat)
    assert torch.equal(everyone[0], everyone[1]), passes
    if passes == "both":
        assert all((model.get_parameter(name)[~mask] == 0).all() for name, mask in pruning.masks.items())
    prunus.restore(model)
    assert all(parameter.all() for name, parameter in model.named_parameters() if "weight" in name)
print("done", rank, flush=True)
dist.barrier()
os._exit(0)  # all is said; gloo's threads now and then abort an interpreter that winds down
"""


def test_two_ranks_draw_the_same_line_and_train_together(tmp_path: Path) -> None:
    script = tmp_path / "ranks.py"
    script.write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script)],
        cwd=Path(__file__).parents[1],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("done") == 2
