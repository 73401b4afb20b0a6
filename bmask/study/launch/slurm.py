"""Runs as jobs of a Slurm cluster."""

import contextlib
import importlib.util
import io
import os
import runpy
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Dict, List, Optional, Tuple, Union

from ...errors import InputError
from .. import runs
from ..files import write_bytes
from .local import arguments_of, environment_of

# Minutes of a job. It is requeued when they are over.
SLURM_TIME = 240
SLURM_OVER = {
    "BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "REVOKED", "TIMEOUT",
}  # fmt: skip


class Slurm:
    """Starts runs as jobs of a Slurm cluster that shares this file system.

    A job has one task for each process of the run. Slurm starts it anew when it was preempted or its time is over, and
    it continues from its checkpoint. A job that outlives this process is taken up by the next.

    Raises:
        InputError: no Slurm or submitit here, or options that they do not know.
    """

    pause = 1.0
    interval = 5.0  # seconds between two questions to Slurm
    patience = 60.0  # seconds for a record to be seen

    def __init__(self, options: runs.Options, run: runs.Run):
        if not importlib.util.find_spec("submitit"):
            raise InputError("LAUNCHER=slurm needs the package submitit, which is not installed: run `make setup`")
        missing = [command for command in ("sbatch", "srun", "sinfo", "squeue", "scancel") if not shutil.which(command)]
        if missing:
            raise InputError(
                f"LAUNCHER=slurm needs Slurm's {missing[0]}, which is not on the PATH: start this on a node of a "
                "cluster, or use LAUNCHER=local"
            )
        given = _parsed(options.slurm)
        device = options.device
        if device == "auto":
            asked = [value for key, value in given.items() if key.startswith(("gpus", "gres"))]
            wants = any(asked) if asked else _has_gpus(given.get("partition"))
            device = "cuda" if wants else "cpu"
        self.data = options.data and str(Path(options.data).absolute())
        self.device, self.accumulate = device, options.accumulate
        self.parameters = {
            "time": SLURM_TIME,
            "nodes": 1,
            "ntasks_per_node": options.num_gpus,
            "cpus_per_task": run.cfg.STUDY.THREADS,
        }
        if device == "cuda" and not any(key.startswith(("gpus", "gres")) for key in given):
            self.parameters["gpus_per_node"] = options.num_gpus
        self.parameters.update(given)
        self.processes = self.parameters["nodes"] * self.parameters["ntasks_per_node"]
        self._states, self._codes, self._asked = {}, {}, float("-inf")

    def start(self, run: runs.Run) -> "_Job":
        folder = run.folder.absolute() / "slurm"
        noted = folder / "job"
        if noted.exists() and self.state(noted.read_text()) in ("CONFIGURING", "PENDING", "RUNNING", "SUSPENDED"):
            return _Job(noted.read_text(), run, self)
        import submitit
        from submitit.core.utils import FailedJobError

        given = dict(self.parameters)
        variables = {**environment_of(run), "BMASK_OUTPUT": str(Path(runs.OUTPUT).absolute())}
        variables |= {"BMASK_PUBLISH": "1"} if runs.PUBLISH else {}
        setup = [f"export {key}={shlex.quote(value)}" for key, value in variables.items()]
        setup += ["unset BMASK_PARENT", *filter(None, [given.pop("setup", None)])]
        srun = {
            # srun does not take this number from sbatch.
            "cpus-per-task": given["cpus_per_task"],
            "kill-on-bad-exit": 1,
            "wait": 0,  # the first rank evaluates when the others are done
            "output": run.folder.absolute() / "log.txt",
            "open-mode": "append",
        }
        executor = submitit.SlurmExecutor(folder, max_num_timeout=1000)
        # What submitit itself reads; it hands all others to sbatch as they are.
        own = ("time", "nodes", "ntasks_per_node", "cpus_per_task", "signal_delay_s")
        executor.update_parameters(
            **{key: given.pop(key) for key in own if key in given},
            setup=setup,
            srun_args=[f"--{key}={value}" for key, value in srun.items()],
            stderr_to_stdout=True,
            additional_parameters={"job_name": run.name, "requeue": True, **given},
        )
        try:
            with contextlib.redirect_stderr(io.StringIO()):  # said again by the exception
                job = executor.submit(_Work(arguments_of(run, self.device, 1, self.accumulate, self.data)))
        except FailedJobError as error:
            reason = (str(error).strip().splitlines() or ["nothing"])[-1]
            raise InputError(f"Slurm does not take the job of {run.name}, correct SLURM: {reason}") from None
        write_bytes(noted, job.job_id.encode())
        self._states[job.job_id] = "PENDING"
        return _Job(job.job_id, run, self)

    def state(self, job: str) -> str:
        """Slurm's name of a job's state, not older than ``interval``; COMPLETED for a job that it knows no more."""
        if time.monotonic() - self._asked > self.interval:
            command = ["squeue", "--me", "--noheader", "--states=all", "--Format=JobID,State,exit_code"]
            answer = subprocess.run(command, capture_output=True, text=True)
            if answer.returncode == 0:  # else the controller is busy or restarts: what it said last still holds
                rows = [line.split() for line in answer.stdout.splitlines()]
                self._states = {job: state for job, state, *_ in rows}
                self._codes = {job: code for job, _, code in rows}
            self._asked = time.monotonic()
        return self._states.get(job, "COMPLETED")

    def exit_status(self, job: str) -> Union[int, str]:
        """Of a job that is over: its state where it has not ended by itself."""
        code = self._codes.get(job, "")
        state = self.state(job)
        return os.waitstatus_to_exitcode(int(code)) if state == "FAILED" and code.isdigit() else state

    def stop(self, workers: List["_Job"]) -> None:
        if not workers:
            return
        ids = [worker.id for worker in workers]
        # As Ctrl-C, so that the run lets go of its folder at once; submitit takes SIGTERM for a preemption to come.
        subprocess.run(["scancel", "--signal=INT", *ids], stderr=subprocess.DEVNULL)
        subprocess.run(["scancel", *ids], stderr=subprocess.DEVNULL)
        for worker in workers:
            (worker.run.folder / "slurm" / "job").unlink(missing_ok=True)


class _Job:
    def __init__(self, id: str, run: runs.Run, slurm: Slurm):
        self.id, self.run, self.slurm = id, run, slurm
        self.completed = None  # seconds of a clock

    def poll(self) -> Union[int, str, None]:
        if self.run.done:
            runs.publish(self.run)  # if this process sees the record before the job has done it
            return 0
        state = self.slurm.state(self.id)
        if state == "COMPLETED":
            # A file of another machine may be seen some time after it was written.
            self.completed = self.completed or time.monotonic()
            return None if time.monotonic() < self.completed + self.slurm.patience else state
        return self.slurm.exit_status(self.id) if state in SLURM_OVER else None

    def phase(self, progress: Dict) -> str:
        state = self.slurm.state(self.id)
        if state == "RUNNING":
            return progress.get("phase", "starting")
        return f"job {self.id} {state.lower()}"


class _Work:
    """What each task of a job does. submitit finds ``checkpoint`` when Slurm says that the job has to go."""

    def __init__(self, arguments: List[str]):
        self.arguments = arguments

    def __call__(self) -> None:
        import submitit
        from submitit.helpers import TorchDistributedEnvironment

        # Those who load images are none of those that ask for the job to be requeued.
        os.register_at_fork(after_in_child=_leave_signals)
        if submitit.JobEnvironment().num_tasks > 1:
            TorchDistributedEnvironment().export(set_cuda_visible_devices=False, overwrite=True)
        sys.argv = ["bmask", *self.arguments]
        runpy.run_module("bmask", run_name="__main__", alter_sys=True)  # ends with its exit status

    def checkpoint(self):
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def _leave_signals() -> None:
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _parsed(slurm: Tuple[str, ...]) -> Dict[str, Union[int, str]]:
    """KEY=VALUE by KEY, as submitit spells it. Raises InputError."""
    found = {}
    for text in slurm:
        key, equals, value = text.partition("=")
        if not (key and equals):
            raise InputError(f"SLURM has {text!r}: give KEY=VALUE, such as partition=gpu")
        found[key.strip("-").replace("-", "_")] = int(value) if value.isdigit() else value
    for key in ("time", "nodes", "ntasks_per_node", "cpus_per_task"):
        if not isinstance(found.get(key, 1), int):
            unit = " of minutes" if key == "time" else ""
            raise InputError(f"SLURM has {key}={found[key]}: give a number{unit}")
    return found


def _has_gpus(partition: Optional[str]) -> bool:
    """Whether the partition, or without a name the one that Slurm takes, has nodes with GPUs."""
    answer = subprocess.run(["sinfo", "--noheader", "--format=%P %G"], capture_output=True, text=True)
    rows = [line.split() for line in answer.stdout.splitlines() if " " in line]
    wanted = str(partition).split(",") if partition else None
    return any(
        "gpu" in gres for name, gres, *_ in rows if (name.rstrip("*") in wanted if wanted else name.endswith("*"))
    )
