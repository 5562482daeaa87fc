"""Lines and their file, which is moved aside when it is long; none is torn, nor lost while there is room."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import sys
import threading
from pathlib import Path
from chassis.output import Output

output = Output(Path(sys.argv[1]) if sys.argv[1] else None, bytes_max=20_000, kept=int(sys.argv[2]))

def say(name):
    for number in range(500):
        output.line(f"{name} {number} ".encode() + b"x" * 40)

threads = [threading.Thread(target=say, args=(name,)) for name in ("a", "b")]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
sys.stderr.write("the end\\n")
"""


def run(log: Path, told: Path | str, *, kept: int = 1) -> None:
    with log.open("ab") as out:
        subprocess.run(
            [sys.executable, "-c", PROGRAM, str(told), str(kept)],
            stdout=out,
            stderr=out,
            timeout=60,
            check=True,
        )


def test_a_long_file_is_moved_aside_and_every_line_is_whole_and_in_order(tmp_path: Path) -> None:
    log = tmp_path / "gateway.log"
    run(log, log)
    aside = tmp_path / "gateway.log.1"
    assert 20_000 <= aside.stat().st_size < 20_100
    lines = (aside.read_text() + log.read_text()).splitlines()
    assert lines.pop() == "the end", "what is said beside goes on in the new file"
    last = {name: [int(line.split()[1]) for line in lines if line.startswith(name)] for name in ("a", "b")}
    for numbers in last.values():
        assert numbers == list(range(numbers[0], 500)), "the newest lines are there, older ones are bounded"
    assert all(line.endswith("x" * 40) for line in lines)
    assert sorted(tmp_path.iterdir()) == [log, aside]


def test_older_files_are_kept_for_who_ships_them_later(tmp_path: Path) -> None:
    log = tmp_path / "gateway.log"
    run(log, log, kept=3)
    files = [tmp_path / "gateway.log.2", tmp_path / "gateway.log.1", log]
    assert sorted(tmp_path.iterdir()) == sorted(files)
    lines = "".join(file.read_text() for file in files).splitlines()
    for name in ("a", "b"):
        numbers = [int(line.split()[1]) for line in lines if line.startswith(name)]
        assert numbers == list(range(500)), "none is missing"


@pytest.mark.parametrize("told", ["", "elsewhere.log"])
def test_a_file_that_is_not_ours_to_move_stays_where_it_is(tmp_path: Path, told: str) -> None:
    log = tmp_path / "gateway.log"
    (tmp_path / "elsewhere.log").write_text("another's\n")
    run(log, tmp_path / told if told else "")
    assert len(log.read_text().splitlines()) == 1001
    assert (tmp_path / "elsewhere.log").read_text() == "another's\n"


LIMITED = """
import resource
import sys
from chassis import metrics
from chassis.output import Output

output = Output()
hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
for name in (b"first ", b"second ", b"third "):
    output.line(name + b"x" * 60)
sys.stderr.write(f"{metrics.LINES_LOST._value.get():g} lost\\n")
resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
output.line(b"fourth")
output.line(b"fifth")
"""


def test_without_room_lines_are_lost_and_counted_and_come_again_whole(tmp_path: Path) -> None:
    log = tmp_path / "gateway.log"
    with log.open("ab") as out:
        ended = subprocess.run(
            [sys.executable, "-c", LIMITED],
            stdout=out,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
            check=True,
        )
    assert ended.stderr == "2 lost\n"
    first, torn, *last = log.read_text().splitlines()
    assert first == "first " + "x" * 60
    assert ("second " + "x" * 60).startswith(torn)
    assert last == ["fourth", "fifth"], "not glued to what was torn"


CLOSED = """
import os
import sys
from chassis import logs, metrics

logs.configure("gateway")
os.close(1)
import structlog
structlog.get_logger("it").info("nobody_hears_this")
sys.stderr.write(f"{metrics.LINES_LOST._value.get():g} lost\\n")
"""


def test_a_process_without_an_output_says_nothing_and_lives() -> None:
    ended = subprocess.run(
        [sys.executable, "-c", CLOSED],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        timeout=60,
        check=True,
    )
    assert ended.stderr == "1 lost\n"
