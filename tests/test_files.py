"""A file is the old one or the new one, whoever is killed, however many write, and whatever the disk says."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import prunus
from prunus.cli.main import main
from tests.conftest import small_net

posix = pytest.mark.skipif(os.name != "posix", reason="signals and limits of POSIX")


def run_script(script: str, *arguments: object, before: tuple[str, ...] = ()) -> str:
    """What a script prints, in a process of its own, perhaps behind another command."""
    command = [*before, sys.executable, "-c", script, *map(str, arguments)]
    # A thread each, since threads of OpenMP do not survive a fork
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


# A process that writes without end is killed after a moment that is random, many times; whoever does that
# has all modules loaded, and waits until something was written, so that the moment is one of writing.
KILLING = """
import os, random, signal, sys, time
from pathlib import Path

def killed(start, kills, longest):
    chance = random.Random(0)
    for _ in range(kills):
        ready, told = os.pipe()
        child = os.fork()
        if not child:
            try:
                write = start()
                write()
                os.write(told, b"!")
                while True:
                    write()
            finally:
                os._exit(1)
        os.close(told)
        assert os.read(ready, 1), "writing failed"
        os.close(ready)
        time.sleep(chance.uniform(0, longest))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        yield

folder = Path(sys.argv[1])
"""

MASKS = """
import torch, prunus
path = folder / "masks.safetensors"
weights = {name: torch.arange(2**21) % number > 0 for name, number in (("odd", 2), ("third", 3))}
both = [prunus.Masks({"weight": mask}) for mask in weights.values()]
contents = []
for masks in both:
    masks.save(path)
    contents.append(path.read_bytes())

def write():
    for masks in both:
        masks.save(path)
"""

KILLED_MASKS = (
    KILLING
    + MASKS
    + """
left = 0
for _ in killed(lambda: write, 40, 0.03):
    assert path.read_bytes() in contents, "neither the old file nor the new one"
    left += len(list(folder.iterdir())) > 1
assert left, "no process was killed while it wrote"
write()
print(os.listdir(folder))
"""
)

RESULTS = """
import csv, json
from prunus.evaluation.evaluate import Result
from prunus.evaluation.rows import SweepRow
from prunus.evaluation.points import Point, Setting
from prunus.results.curves import SWEEP
from prunus.results.folder import ResultsFolder

def row(seed):
    point = Point(Setting(0.5, seed=seed), Result(90, 99, 100, 0.1), {"weight": (5, 10)})
    return SweepRow("network", point)

def opened():
    return ResultsFolder(folder, {"a": 1}, SWEEP)

opened().add(*map(row, range(300)))

def start():
    held = opened()
    return lambda: held.add(row(len(held.rows)))
"""

KILLED_RESULTS = (
    KILLING
    + RESULTS
    + """
known, before = 300, 300
for _ in killed(start, 20, 0.05):
    seeds = [row.point.setting.seed for row in opened().rows]
    assert seeds == list(range(len(seeds)))
    assert len(seeds) > known
    known = len(seeds)
    with (folder / "results.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert before <= len(lines) <= known  # fewer after a process that ended between the one and the other
    before = len(lines)
    assert all(None not in line.values() for line in lines)
opened().add(row(known))
print(sorted(os.listdir(folder)))
"""
)


@posix
def test_masks_of_a_killed_process_are_the_old_or_the_new_ones(tmp_path: Path) -> None:
    assert run_script(KILLED_MASKS, tmp_path) == "['masks.safetensors']\n"


@posix
def test_results_of_a_killed_process_are_whole(tmp_path: Path) -> None:
    assert run_script(KILLED_RESULTS, tmp_path) == "['results.csv', 'results.json']\n"


TOGETHER = (
    KILLING
    + MASKS
    + """
children = []
for masks in both:
    child = os.fork()
    if not child:
        try:
            for _ in range(50):
                masks.save(path)
        except BaseException as error:
            print("failed:", repr(error), flush=True)
            os._exit(1)
        os._exit(0)
    children.append(child)
while children:
    assert path.read_bytes() in contents, "two files in one"
    children = [child for child in children if os.waitpid(child, os.WNOHANG) == (0, 0)]
print(os.listdir(folder))
"""
)


@posix
def test_two_processes_that_write_one_file_never_mix(tmp_path: Path) -> None:
    assert run_script(TOGETHER, tmp_path) == "['masks.safetensors']\n"


@posix
def test_who_has_the_old_file_open_or_linked_keeps_it(tmp_path: Path) -> None:
    path, link = tmp_path / "masks.safetensors", tmp_path / "link.safetensors"
    old, new = prunus.make_masks(small_net(), 0.5), prunus.make_masks(small_net(), 0.2)
    old.save(path)
    link.hardlink_to(path)
    with path.open("rb") as file:
        before = path.read_bytes()
        new.save(path)
        assert file.read() == before
    assert prunus.Masks.load(link) == old
    assert prunus.Masks.load(path) == new


# Windows has no fcntl, and renames no file that anyone has open
WITHOUT_LOCKS = """
import os, sys
sys.modules["fcntl"] = None
from pathlib import Path
from prunus.files import whole_file

def opened():
    return [path for path in Path("/proc/self/fd").iterdir() if ".partial-" in os.path.realpath(path)]

path = Path(sys.argv[1], "file")
other = path.with_name(".partial-00000000-file")
other.write_text("of a process that still writes, or was killed")
with whole_file(path) as partial:
    partial.write_text("new")
    assert not opened(), "what is to be renamed is open"
assert path.read_text() == "new"
try:
    with whole_file(path) as partial:
        partial.write_text("newer")
        raise KeyboardInterrupt
except KeyboardInterrupt:
    assert not partial.exists()
assert path.read_text() == "new" and other.exists()
"""


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="looks at what is open in /proc")
def test_nothing_that_is_renamed_is_open_where_there_are_no_locks(tmp_path: Path) -> None:
    run_script(WITHOUT_LOCKS, tmp_path)


@posix
def test_results_and_pictures_are_never_written_over(tmp_path: Path) -> None:
    results = tmp_path / "results"
    command = [
        "sweep",
        "-a",
        "digits:plain",
        "--granularity",
        "weight",
        "-o",
        str(results),
        "--p-prune",
        "0,0.5",
    ]
    assert main(command) == 0
    old = {path.name: path.read_bytes() for path in results.iterdir()}
    for name in old:
        (tmp_path / name).hardlink_to(results / name)
    stored = json.loads(old["results.json"])
    stored["points"].pop()
    whole = results / "results.json"
    whole.unlink()
    whole.write_text(json.dumps(stored))
    assert main(command) == 0  # measures one point again, and writes all
    for name, content in old.items():
        assert (tmp_path / name).read_bytes() == content
        assert not (tmp_path / name).samefile(results / name)


def test_a_new_file_may_be_read_by_whom_any_other_may(tmp_path: Path) -> None:
    (tmp_path / "other").touch()
    prunus.make_masks(small_net(), 0.5).save(tmp_path / "masks.safetensors")
    assert (tmp_path / "masks.safetensors").stat().st_mode == (tmp_path / "other").stat().st_mode


def test_what_is_no_file_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "folder", Path(os.devnull)):
        with pytest.raises(FileExistsError, match=f"not a regular file: '{path}'"):
            prunus.make_masks(small_net(), 0.5).save(path)
    assert not Path(os.devnull).is_file()
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


# Every command that writes, and masks, on a disk that will not take it; prints what they say and leave
COMMANDS = """
import contextlib, io, sys
from pathlib import Path
import prunus
from prunus.cli.main import main
from tests.conftest import small_net

folder, reason = Path(sys.argv[1]), sys.argv[2]
model, old = small_net(), {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
try:
    prunus.make_masks(prunus.digits.load_network("residual"), 0.5).save(folder / "masks")
except OSError as error:
    assert reason in str(error) and str(folder / "masks") in str(error), error
else:
    raise AssertionError("masks were saved")

options = ("--p-prune", "0,0.5", "-a", "digits:plain", "-o")
attack = ("-s", "digits:plain", "--methods", "plain", "--steps", "1", "--images", "20", "--seed", "0", "-o")
for name, arguments in (("sweep", options), ("eval", options[2:]), ("transfer", attack)):
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        code = main([name, *arguments, str(folder / name)])
    lines = [line for line in said.getvalue().splitlines() if not line.startswith("digits:plain")]
    assert code == 1, (name, code)
    assert len(lines) == 1 and lines[0].startswith("Error: "), lines
    assert reason in lines[0] and str(folder / name) in lines[0] and ".partial" not in lines[0], lines
    print(name, lines[0])
assert not [path for path in folder.rglob("*") if path.name.startswith((".partial", ".tmp"))]
assert all(path.read_bytes() == content for path, content in old.items())
"""

UNSHARE = ("unshare", "--map-root-user", "--mount")  # a disk of one's own needs no root


def on_a_disk(folder: Path, *shell: str) -> tuple[str, ...]:
    """The command before another one that sees at `folder` a small disk on which these commands were run."""
    if not shutil.which("unshare") or subprocess.run([*UNSHARE, "true"], capture_output=True).returncode:
        pytest.skip("nothing can be mounted here")
    steps = " && ".join((f"mount -t tmpfs -o size=1m tmpfs {folder}", *shell, 'exec "$@"'))
    return (*UNSHARE, "sh", "-ec", steps, "sh")


@pytest.mark.parametrize("left", [0, 24])
def test_a_full_disk_is_one_clear_line(left: int, tmp_path: Path) -> None:
    """At once, or only when the results are written and pictures are to be drawn."""
    filling = f"head -c {(1020 - left) * 1024} /dev/zero > {tmp_path}/filled"
    fill = f"echo old > {tmp_path}/masks && ({filling} || true)"
    said = run_script(COMMANDS, tmp_path, "No space left on device", before=on_a_disk(tmp_path, fill))
    assert ("curve.png" in said) == (left > 0)


def test_a_read_only_disk_is_one_clear_line(tmp_path: Path) -> None:
    steps = (f"echo old > {tmp_path}/masks", f"mount -o remount,ro {tmp_path}")
    run_script(COMMANDS, tmp_path, "Read-only file system", before=on_a_disk(tmp_path, *steps))


@posix
def test_a_file_that_may_not_grow_is_one_clear_line(tmp_path: Path) -> None:
    """As a disk quota has it; without anything mounted."""
    (tmp_path / "masks").write_text("old")
    limit = "import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, (64, 64))\n"
    run_script(limit + COMMANDS, tmp_path, "File too large")


@posix
def test_a_folder_without_permission_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "masks").write_text("old")
    tmp_path.chmod(0o555)
    if os.access(tmp_path, os.W_OK):
        pytest.skip("may write everywhere")
    run_script(COMMANDS, tmp_path, "Permission denied")
