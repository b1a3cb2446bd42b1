"""The benchmark's end of a candidate's process: its memory is its own, and when it dies the others go on."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import IO, Any

from bertfast.errors import BackendError

CHILD = Path(__file__).with_name("child.py")
_THREAD_SETTINGS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS")
_OF_THIS_ENVIRONMENT = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
_PATIENCE_S = 10


class RefusedError(BackendError):
    """A candidate did not do what it was asked for."""


class Worker:
    """A process that answers requests about one candidate (child.py says which there are).

    Args:
        candidate: the candidate's module.
        python: the interpreter of its environment.
        threads: for what is not set through the candidate's job, such as the tokenizer.
    """

    def __init__(self, candidate: Path, python: Path | None = None, threads: int | None = None) -> None:
        environment = {name: value for name, value in os.environ.items() if name not in _OF_THIS_ENVIRONMENT}
        if python is None:
            environment["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
        if threads is not None:
            environment |= dict.fromkeys(_THREAD_SETTINGS, str(threads))
        self._noise = tempfile.TemporaryFile()  # noqa: SIM115 (stop closes it)
        self._process = subprocess.Popen(
            [python or sys.executable, "-P", CHILD, candidate],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._noise,
            env=environment,
            text=True,
            encoding="utf-8",
        )
        self._answers: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        threading.Thread(target=_read, args=(self._process.stdout, self._answers), daemon=True).start()

    def ask(self, do: str, timeout_s: float, **arguments: Any) -> Any:
        """Send a request and return its answer.

        Raises:
            RefusedError: the candidate reports an error, and can be asked for something else.
            BackendError: it has died, or does not answer in time, whereupon it is killed.
        """
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
            self._process.stdin.flush()
            line = self._answers.get(timeout=timeout_s)
        except BrokenPipeError:
            line = None
        except queue.Empty:
            self._process.kill()
            raise BackendError(
                f"no answer to '{do}' within {timeout_s:g} s, so the process was killed. "
                "Measure fewer rows, or allow it more time."
            ) from None
        if line is None:
            raise BackendError(self._death(do))
        answer = json.loads(line)
        if answer["ok"]:
            return answer["answer"]
        if answer["kind"] == "memory":
            raise RefusedError(f"out of memory during '{do}': {answer['error']}")
        raise RefusedError(f"'{do}' failed: {answer['error']}")

    def stop(self) -> None:
        """End the process: politely, and by force where it does not listen."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(_PATIENCE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._noise.close()

    def _death(self, do: str) -> str:
        status = self._process.wait(_PATIENCE_S)
        if status == -9:
            return f"the process was killed during '{do}' (signal 9), probably because memory ran out."
        self._noise.seek(0)
        last = self._noise.read().decode("utf-8", "replace").rstrip().rpartition("\n")[2]
        return f"the process died during '{do}' (exit status {status}){': ' + last if last else '.'}"


def _read(lines: IO[str], answers: queue.SimpleQueue[str | None]) -> None:
    with lines:
        for line in lines:
            answers.put(line)
    answers.put(None)
