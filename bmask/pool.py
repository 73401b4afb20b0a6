"""Several runs at a time, with one progress bar: as processes of this machine, or as jobs of a Slurm cluster.

Either way a run is carried out by ``python -m bmask work`` and says how far it is in its folder.
"""

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

from tqdm.auto import tqdm

from . import runs
from .errors import InputError, stoppable
from .files import make_folder, write_bytes

SHOWN = 8  # runs beside the progress bar, of those at work or submitted
# Minutes of a job. It is requeued when they are over.
SLURM_TIME = 240
SLURM_OVER = {
    "BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "REVOKED", "TIMEOUT",
}  # fmt: skip


def ensure(wanted: List[runs.Run], options: runs.Options) -> bool:
    """Carry out those of the runs, all of one profile, that have not been, with one progress bar.

    Everything is checked before anything is trained or written. Runs that another process works on are
    waited for.

    Returns:
        Whether all runs have a record with metrics.

    Raises:
        InputError: wrong data or options.
    """
    wanted = list(dict.fromkeys(wanted))
    runs.check_device(options)
    for run in wanted:
        if run.own_record.exists():
            runs.publish(run)
    left = runs.unmade(wanted, options)
    if not left:
        return True
    with stoppable():
        starts = launcher(options, left)
        runs.checked_data(wanted, options, starts.processes)
        return carry_out(left, starts, jobs(options, left))


def jobs(options: runs.Options, wanted: List[runs.Run]) -> int:
    """Runs at a time: as many as asked for, or all (Slurm has a queue), or one on a GPU, or one for each core."""
    if options.launcher == "slurm":
        return options.jobs or len(wanted)
    if options.jobs or runs.check_device(options) == "cuda":
        return options.jobs or 1
    return max(1, (os.cpu_count() or 1) // wanted[0].cfg.STUDY.THREADS)


def launcher(options: runs.Options, wanted: List[runs.Run]) -> Union["Local", "Slurm"]:
    """What starts the runs, of one profile. Raises InputError if it cannot be used here."""
    return Slurm(options, wanted[0]) if options.launcher == "slurm" else Local(options)


def carry_out(wanted: List[runs.Run], launcher: Union["Local", "Slurm"], jobs: int) -> bool:
    """Start the runs, at most ``jobs`` at a time, show their progress and wait for them. Stopped, it stops them.

    Returns:
        Whether all runs ended well. Of others the reason is written to stderr.
    """
    # Rows add components, so the last cost most: started first, they leave the least to wait for at the end. What
    # takes another run's weights comes after it.
    waiting = sorted(wanted[::-1], key=lambda run: run.trained_as != run)
    workers = {}
    done = {run: runs.progress(run).get("iteration", 0) for run in wanted}
    failed = []
    # A kill of this process has to end as Ctrl-C does, with the workers stopped and their states kept.
    previous = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    bar = tqdm(
        total=sum(run.cfg.SOLVER.MAX_ITER for run in wanted),
        initial=sum(done.values()),
        unit="it",
        smoothing=0,
        miniters=0,
        # A log file needs no new line every second.
        mininterval=0.5 if sys.stderr.isatty() or "ipykernel" in sys.modules else 20,
        dynamic_ncols=True,
    )
    try:
        while waiting or workers:
            # A worker that only waits for another's weights would hold a place, or a node, for nothing.
            ready = [r for r in waiting if r.trained_as == r or r.trained_as not in (*waiting, *workers)]
            for run in ready[: jobs - len(workers)]:
                waiting.remove(run)
                workers[run] = launcher.start(run)
            time.sleep(launcher.pause)
            texts = []
            for run, worker in list(workers.items()):
                status = worker.poll()
                progress = runs.progress(run)
                done[run] = max(done[run], progress.get("iteration", 0))
                texts.append(
                    f"{wanted.index(run) + 1} {run.variant} seed {run.seed}: {worker.phase(progress)}"
                )
                if status is None:
                    continue
                del workers[run]
                if status != 0:
                    failed.append(run)
                    tqdm.write(_why(run, status), file=sys.stderr)
                else:
                    done[run] = run.cfg.SOLVER.MAX_ITER
            finished = len(wanted) - len(waiting) - len(workers)
            bar.set_description_str(f"{finished} of {len(wanted)} runs done", refresh=False)
            if len(texts) > SHOWN:  # most of them jobs that wait
                texts[SHOWN:] = [f"{len(texts) - SHOWN} more"]
            bar.set_postfix_str(", ".join(texts), refresh=False)
            bar.update(sum(done.values()) - bar.n)
    finally:
        bar.close()
        launcher.stop(list(workers.values()))
        signal.signal(signal.SIGTERM, previous)
    return not failed


def _why(run: runs.Run, status: Union[int, str]) -> str:
    log = run.folder / "log.txt"
    record = run.record()
    if status == runs.FAILED and record:
        return f"{run.name} failed: {record['failed']}"
    last = ((log.read_text() if log.exists() else "").strip().splitlines() or ["nothing"])[-1]
    return f"{run.name} stopped with status {status}; the last line of {log} is: {last}"


def _arguments(run: runs.Run, device: str, num_gpus: int, accumulate: int, data: Optional[str]) -> List[str]:
    """Of ``python -m bmask``."""
    arguments = ["work", run.variant, "--profile", run.profile, "--seed", str(run.seed)]
    arguments += ["--device", device, "--num-gpus", str(num_gpus), "--accumulate", str(accumulate)]
    return arguments + (["--data", data] if data else [])


def _environment(run: runs.Run) -> Dict[str, str]:
    return {
        "OMP_NUM_THREADS": str(run.cfg.STUDY.THREADS),
        "PYTHONPATH": os.pathsep.join([str(runs.REPOSITORY), os.environ.get("PYTHONPATH", "")]),
    }


class Local:
    """Starts runs as processes of this machine, which end with this one."""

    pause = 0.2  # seconds between two looks at the workers

    def __init__(self, options: runs.Options):
        self.options, self.processes = options, options.num_gpus

    def start(self, run: runs.Run) -> "_Process":
        make_folder(run.folder)
        o = self.options
        command = [
            sys.executable,
            "-m",
            "bmask",
            *_arguments(run, o.device, o.num_gpus, o.accumulate, o.data),
        ]
        environment = {**os.environ, **_environment(run), "BMASK_PARENT": str(os.getpid())}
        if o.device == "cpu":
            # detectron2's launcher would take NCCL if it saw a GPU.
            environment["CUDA_VISIBLE_DEVICES"] = ""
        with open(run.folder / "log.txt", "a") as log:
            process = subprocess.Popen(
                command, stdout=log, stderr=log, env=environment, start_new_session=True
            )
        return _Process(process)

    def stop(self, workers: List["_Process"]) -> None:
        for worker in workers:
            os.killpg(worker.process.pid, signal.SIGTERM)  # its children on other GPUs as well
        for worker in workers:
            worker.process.wait()


class _Process:
    def __init__(self, process: subprocess.Popen):
        self.process = process

    def poll(self) -> Optional[int]:
        return self.process.poll()

    def phase(self, progress: Dict) -> str:
        text = progress.get("phase", "starting")
        if self.process.pid != progress.get("pid", self.process.pid) and runs.alive(progress["pid"]):
            text += f" by process {progress['pid']} on {progress['host']}"
        return text


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
            raise InputError(
                "LAUNCHER=slurm needs the package submitit, which is not installed: run `make setup`"
            )
        missing = [
            command
            for command in ("sbatch", "srun", "sinfo", "squeue", "scancel")
            if not shutil.which(command)
        ]
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
        if noted.exists() and self.state(noted.read_text()) in (
            "CONFIGURING",
            "PENDING",
            "RUNNING",
            "SUSPENDED",
        ):
            return _Job(noted.read_text(), run, self)
        import submitit
        from submitit.core.utils import FailedJobError

        given = dict(self.parameters)
        variables = {**_environment(run), "BMASK_OUTPUT": str(Path(runs.OUTPUT).absolute())}
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
        known = executor._valid_parameters() - {
            "additional_parameters",
            "srun_args",
            "stderr_to_stdout",
            "use_srun",
        }
        others = {key: given.pop(key) for key in set(given) - known}
        executor.update_parameters(
            **{"job_name": run.name, **given},
            setup=setup,
            srun_args=[f"--{key}={value}" for key, value in srun.items()],
            stderr_to_stdout=True,
            additional_parameters={"requeue": True, **others},
        )
        try:
            with contextlib.redirect_stderr(io.StringIO()):  # said again by the exception
                job = executor.submit(_Work(_arguments(run, self.device, 1, self.accumulate, self.data)))
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
            if (
                answer.returncode == 0
            ):  # else the controller is busy or restarts: what it said last still holds
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
        if self.run.own_record.exists():
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
        "gpu" in gres
        for name, gres, *_ in rows
        if (name.rstrip("*") in wanted if wanted else name.endswith("*"))
    )
