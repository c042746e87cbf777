"""Several processes of one program, on this machine: each with a part of the devices, all of them ended in the end.

A module that takes part calls `join` first, and is started by `run`.
"""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax

__all__ = ["join", "run"]

ROOT = Path(__file__).parents[1]
_ADDRESS, _COUNT, _NUMBER, _DEVICES = "JATTN_ADDRESS", "JATTN_PROCESSES", "JATTN_PROCESS", "JATTN_DEVICES"


def join() -> None:
    """Meet the other processes."""
    jax.config.update("jax_num_cpu_devices", int(os.environ[_DEVICES]))
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(
        os.environ[_ADDRESS], int(os.environ[_COUNT]), int(os.environ[_NUMBER]), initialization_timeout=60
    )


def run(module: str, *arguments: str, processes: int, devices: int = 1, timeout: float = 300) -> list[str]:
    """What each of so many processes of a module printed, each with so many devices.

    Raises:
        RuntimeError: where one fails, or all together take too long, with what it printed. None is left running.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    shared = {_ADDRESS: address, _COUNT: str(processes), _DEVICES: str(devices), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-m", module, *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    started = [
        subprocess.Popen(command, cwd=ROOT, env=os.environ | shared | {_NUMBER: str(i)}, **pipes)  # type: ignore[call-overload]
        for i in range(processes)
    ]
    end = time.monotonic() + timeout
    try:
        said = [one.communicate(timeout=max(end - time.monotonic(), 0)) for one in started]
    except subprocess.TimeoutExpired as error:
        raise RuntimeError(f"{module} took more than {timeout} s in {processes} processes.") from error
    finally:
        for one in started:
            one.kill()
            one.wait()
    for i, (one, (out, err)) in enumerate(zip(started, said, strict=True)):
        if one.returncode:
            raise RuntimeError(f"{module} failed in process {i} of {processes}.\n{out}\n{err}")
    return [out for out, _ in said]
