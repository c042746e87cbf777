"""Several processes of one program, on this machine: each with a part of the devices, all of them ended in the end.

A module that takes part calls `join` first, and is started by `run` or `run_until`; one that needs several devices in
a single process is run by `lines_of`.
"""

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import jax

__all__ = ["join", "lines_of", "run", "run_until"]

ROOT = Path(__file__).parents[1]
_ADDRESS, _COUNT, _NUMBER, _DEVICES = "JATTN_ADDRESS", "JATTN_PROCESSES", "JATTN_PROCESS", "JATTN_DEVICES"
_HEARTBEAT = 10  # seconds of silence after which a process counts as dead


def join() -> None:
    """Meet the other processes."""
    jax.config.update("jax_num_cpu_devices", int(os.environ[_DEVICES]))
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(
        os.environ[_ADDRESS],
        int(os.environ[_COUNT]),
        int(os.environ[_NUMBER]),
        initialization_timeout=60,
        heartbeat_timeout_seconds=_HEARTBEAT,
    )


def run(module: str, *arguments: str, processes: int, devices: int = 1, timeout: float = 300) -> list[str]:
    """What each of so many processes of a module printed, each with so many devices.

    Raises:
        RuntimeError: where one fails, or all together take too long, with what it printed. None is left running.
    """
    with _started(module, arguments, processes, devices) as started:
        said = _outputs(module, started, timeout)
    for i, (one, (out, err)) in enumerate(zip(started, said, strict=True)):
        if one.returncode:
            raise RuntimeError(f"{module} failed in process {i} of {processes}.\n{out}\n{err}")
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
    with _started(module, arguments, processes, devices=1) as started:
        while not happened():
            if time.monotonic() > end or any(one.poll() is not None for one in started):
                raise RuntimeError(f"{module} ended before it could be killed, or what was waited for did not happen.")
            time.sleep(0.01)
        started[dies].kill()
        said = _outputs(module, started, end - time.monotonic())
    assert all(one.returncode for one in started), "a process has not noticed that another one is dead"
    return [err for _, err in said]


@contextlib.contextmanager
def _started(
    module: str, arguments: tuple[str, ...], processes: int, devices: int
) -> Iterator[list[subprocess.Popen[str]]]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    shared = {_ADDRESS: address, _COUNT: str(processes), _DEVICES: str(devices), "JAX_PLATFORMS": "cpu"}

    def start(number: int) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            cwd=ROOT,
            env=os.environ | shared | {_NUMBER: str(number)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    started = [start(number) for number in range(processes)]
    try:
        yield started
    finally:
        for one in started:
            one.kill()
            one.wait()


def _outputs(module: str, started: list[subprocess.Popen[str]], timeout: float) -> list[tuple[str, str]]:
    end = time.monotonic() + timeout
    try:
        return [one.communicate(timeout=max(end - time.monotonic(), 0)) for one in started]
    except subprocess.TimeoutExpired as error:
        raise RuntimeError(f"{module} took more than {timeout:.0f} s in {len(started)} processes.") from error
