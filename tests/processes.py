"""Several processes of one program, on this machine: each with a part of the devices, all of them ended in the end.

A module that takes part calls `join` first, and is started by `run` or `run_until`; one that needs several devices in
a single process is run by `lines_of`.
"""

import contextlib
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, NamedTuple

import jax

__all__ = ["join", "lines_of", "run", "run_until"]

ROOT = Path(__file__).parents[1]
_ADDRESS, _COUNT, _NUMBER, _DEVICES = "JATTN_ADDRESS", "JATTN_PROCESSES", "JATTN_PROCESS", "JATTN_DEVICES"
_SILENCE = "JATTN_SILENCE"  # the seconds of it after which a process counts as dead


def join() -> None:
    """Meet the other processes."""
    jax.config.update("jax_num_cpu_devices", int(os.environ[_DEVICES]))
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(
        os.environ[_ADDRESS],
        int(os.environ[_COUNT]),
        int(os.environ[_NUMBER]),
        initialization_timeout=60,
        heartbeat_timeout_seconds=int(os.environ[_SILENCE]),
    )


def run(module: str, *arguments: str, processes: int, devices: int = 1, timeout: float = 300) -> list[str]:
    """What each of so many processes of a module printed, each with so many devices.

    Raises:
        RuntimeError: where one fails, or all together take too long, with what it printed. None is left running.
    """
    with _started(module, arguments, processes, devices) as started:
        late = not _ended(started, timeout)
        said = [one.said() for one in started]
    for i, (one, (out, err)) in enumerate(zip(started, said, strict=True)):
        if late or one.process.returncode:
            what = f"took more than {timeout:.0f} s" if late else f"failed in process {i}"
            raise RuntimeError(f"{module} {what} of {processes}.\n{out}\n{err}")
    return [out for out, _ in said]


def lines_of(module: str, *arguments: str) -> list[str]:
    """What one process of a module printed, which makes up devices of its own; raises as `run`."""
    [said] = run(module, *arguments, processes=1, timeout=1800)
    return said.splitlines()


def run_until(
    happened: Callable[[], bool], module: str, *arguments: str, processes: int, dies: int, timeout: float = 300
) -> list[str]:
    """Kill one of the processes once something has happened; the errors of all, which must have ended by themselves."""
    end = time.monotonic() + timeout
    with _started(module, arguments, processes, devices=1, silence=10) as started:
        while not happened():
            if time.monotonic() > end or any(one.process.poll() is not None for one in started):
                raise RuntimeError(f"{module} ended before it could be killed, or what was waited for did not happen.")
            time.sleep(0.01)
        started[dies].process.kill()
        assert _ended(started, end - time.monotonic()), f"{module} took more than {timeout:.0f} s."
        said = [one.said() for one in started]
    assert all(one.process.returncode for one in started), "a process has not noticed that another one is dead"
    return [err for _, err in said]


class _Started(NamedTuple):
    """A process, and the files that it writes to, as a pipe would hold it up when it is full."""

    process: subprocess.Popen[str]
    out: IO[str]
    err: IO[str]

    def said(self) -> tuple[str, str]:
        """What it has printed so far."""
        out, err = (file.seek(0) or file.read() for file in (self.out, self.err))
        return out, err


@contextlib.contextmanager
def _started(
    module: str, arguments: tuple[str, ...], processes: int, devices: int, silence: int = 200
) -> Iterator[list[_Started]]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    shared = {_ADDRESS: address, _COUNT: str(processes), _DEVICES: str(devices), _SILENCE: str(silence)}
    shared["JAX_PLATFORMS"] = "cpu"

    def start(number: int, out: IO[str], err: IO[str]) -> _Started:
        command = [sys.executable, "-m", module, *arguments]
        environment = os.environ | shared | {_NUMBER: str(number)}
        return _Started(
            subprocess.Popen(command, cwd=ROOT, env=environment, stdout=out, stderr=err, text=True), out, err
        )

    with contextlib.ExitStack() as files:
        outs = [files.enter_context(tempfile.TemporaryFile("w+")) for _ in range(2 * processes)]
        started = [start(number, outs[2 * number], outs[2 * number + 1]) for number in range(processes)]
        try:
            yield started
        finally:
            for one in started:
                one.process.kill()
                one.process.wait()


def _ended(started: list[_Started], timeout: float) -> bool:
    """Whether all of them do within so many seconds."""
    end = time.monotonic() + timeout
    try:
        for one in started:
            one.process.wait(max(end - time.monotonic(), 0))
    except subprocess.TimeoutExpired:
        return False
    return True
