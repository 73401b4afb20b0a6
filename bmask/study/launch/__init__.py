"""Several runs at a time, with one progress bar: as processes of this machine, or as jobs of a Slurm cluster.

Either way a run is carried out by ``python -m bmask work`` and says how far it is in its folder.
"""

import os
import signal
import sys
import time
from typing import List, Union

from tqdm.auto import tqdm

from ...errors import stoppable
from .. import runs
from . import work
from .local import Local
from .slurm import Slurm

SHOWN = 8  # runs beside the progress bar, of those at work or submitted


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
        at_once = runs.together(left)
        work.checked_data([*at_once, *wanted], options, starts.processes)
        return carry_out([*left, *at_once], starts, jobs(options, left))


def jobs(options: runs.Options, wanted: List[runs.Run]) -> int:
    """Runs at a time: as many as asked for, or all (Slurm has a queue), or one on a GPU, or one for each core."""
    if options.launcher == "slurm":
        return options.jobs or len(wanted)
    if options.jobs or runs.check_device(options) == "cuda":
        return options.jobs or 1
    # Of a cluster's node those that are allotted, where the system can say it.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // wanted[0].cfg.STUDY.THREADS)


def launcher(options: runs.Options, wanted: List[runs.Run]) -> Union[Local, Slurm]:
    """What starts the runs, of one profile. Raises InputError if it cannot be used here."""
    return Slurm(options, wanted[0]) if options.launcher == "slurm" else Local(options)


def carry_out(wanted: List[runs.Run], launcher: Union[Local, Slurm], jobs: int) -> bool:
    """Start the runs, at most ``jobs`` at a time, show their progress and wait for them. Stopped, it stops them.

    Those of the same-detector protocol come after the training of their heads at once; if it fails they are trained by
    themselves.

    Returns:
        Whether all runs ended well. Of others the reason is written to stderr.
    """
    own = [run for run in wanted if not isinstance(run, runs.Together)]
    together = {part: run for run in wanted if run not in own for part in run.others}
    # What takes weights that others train comes after them.
    before = {run: {run.trained_as, together.get(run.trained_as, run)} - {run} for run in wanted}
    # Rows add components, so the last cost most: started first, they leave the least to wait for at the end.
    waiting = sorted(wanted[::-1], key=lambda run: len(before[run]))
    workers = {}
    iterations = {run: 0 if run in together else run.cfg.SOLVER.MAX_ITER for run in wanted}
    done = {run: min(runs.progress(run).get("iteration", 0), iterations[run]) for run in wanted}
    failed = []
    # A kill of this process has to end as Ctrl-C does, with the workers stopped and their states kept.
    previous = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    bar = tqdm(
        total=sum(iterations.values()),
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
            ready = [run for run in waiting if before[run].isdisjoint([*waiting, *workers])]
            for run in ready[: jobs - len(workers)]:
                waiting.remove(run)
                workers[run] = launcher.start(run)
            time.sleep(launcher.pause)
            texts = []
            for run, worker in list(workers.items()):
                status = worker.poll()
                progress = runs.progress(run)
                done[run] = max(done[run], min(progress.get("iteration", 0), iterations[run]))
                texts.append(f"{run.title} seed {run.seed}: {worker.phase(progress)}")
                if status is None:
                    continue
                del workers[run]
                if status != 0:
                    failed.append(run)
                    tqdm.write(_why(run, status), file=sys.stderr)
                else:
                    done[run] = iterations[run]
            finished = len(own) - len({*waiting, *workers}.intersection(own))
            bar.set_description_str(f"{finished} of {len(own)} runs done", refresh=False)
            if len(texts) > SHOWN:  # most of them jobs that wait
                texts[SHOWN:] = [f"{len(texts) - SHOWN} more"]
            bar.set_postfix_str(", ".join(texts), refresh=False)
            bar.update(sum(done.values()) - bar.n)
    finally:
        bar.close()
        launcher.stop(list(workers.values()))
        signal.signal(signal.SIGTERM, previous)
    return not set(failed).intersection(own)


def _why(run: runs.Run, status: Union[int, str]) -> str:
    log = run.folder / "log.txt"
    record = run.record()
    if status == work.FAILED and record:
        return f"{run.name} failed: {record['failed']}"
    last = ((log.read_text() if log.exists() else "").strip().splitlines() or ["nothing"])[-1]
    then = "; each head is trained alone" if isinstance(run, runs.Together) else ""
    return f"{run.name} stopped with status {status}; the last line of {log} is: {last}{then}"
