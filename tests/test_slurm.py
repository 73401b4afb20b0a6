"""Runs that something else starts: torchrun, and jobs of a Slurm cluster."""

import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from cluster import cluster, lacking
from conftest import PATIENCE

from bmask.errors import InputError
from bmask.study import cli, launch, runs, tables
from bmask.study.launch import ranks

RUN = runs.Run("bmask_rcnn", "smoke", 0)
WORK = ("work", "bmask_rcnn", "--profile", "smoke", "--device", "cpu")
ONE = ("run", "--variant", "bmask_rcnn", "--profile", "smoke", "--device", "cpu")


def finished(process):
    out, err = process.communicate(timeout=PATIENCE)
    return process.returncode, out, err


def wait_for(condition, process):
    """The first true value of ``condition()``, while the process runs."""
    deadline = time.monotonic() + PATIENCE
    while not (value := condition()):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return value


def environment(output):
    return {**os.environ, "BMASK_OUTPUT": str(output), "OMP_NUM_THREADS": "1"}


def torchrun(output, *arguments):
    return subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "bmask"]
        + list(arguments),
        env=environment(output),
        cwd=runs.REPOSITORY,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    """The record of a run by two processes of detectron2's launcher."""
    folder = tmp_path_factory.mktemp("launcher")
    command = [sys.executable, "-m", "bmask", *WORK, "--num-gpus", "2"]
    subprocess.run(command, env=environment(folder), cwd=runs.REPOSITORY, check=True, timeout=PATIENCE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs, "OUTPUT", folder)
        return RUN.record()


def test_torchrun_gives_the_numbers_of_two_processes(output, two_processes):
    made = torchrun(output, *WORK)
    assert made.returncode == 0, made.stderr
    record = RUN.record()
    for key in ("losses", "validation", "metrics", "num_gpus", "data_fingerprint", "config"):
        assert record[key] == two_processes[key]
    before = RUN.published.stat().st_mtime
    assert torchrun(output, *WORK).returncode == 0
    assert RUN.published.stat().st_mtime == before


def test_what_torchrun_cannot_split_or_start_is_one_sentence(output, monkeypatch, capsys):
    described = {"RANK": 0, "WORLD_SIZE": 3, "LOCAL_RANK": 0, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": 1}
    for name, value in described.items():
        monkeypatch.setenv(name, str(value))
    assert cli.main(["run", "--variant", "bmask_rcnn", "--profile", "smoke"]) == 2
    assert "give it `-m bmask work VARIANT`" in capsys.readouterr().err
    monkeypatch.setattr(ranks, "meet", dict)
    assert cli.main(["work", "bmask_rcnn", "--profile", "smoke", "--device", "cpu"]) == 2
    assert capsys.readouterr().err == "bmask: 2 images a batch do not split over 3 processes: use a divisor\n"
    assert cli.main(["work", "bmask_rcnn", "--profile", "smoke", "--num-gpus", "3"]) == 2
    assert "leave NUM_GPUS out" in capsys.readouterr().err


def test_without_slurm_there_is_one_sentence(output, monkeypatch, capsys):
    monkeypatch.setenv("PATH", str(output))
    assert cli.main([*ONE, "--launcher", "slurm"]) == 2
    message = capsys.readouterr().err
    assert message.startswith("bmask: LAUNCHER=slurm needs Slurm's sbatch, which is not on the PATH")
    assert message.count("\n") == 1 and os.listdir(output) == []
    assert cli.main([*ONE, "--launcher", "kubernetes"]) == 2
    assert capsys.readouterr().err == "bmask: LAUNCHER is 'kubernetes': choose local or slurm\n"
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert cli.main([*ONE, "--launcher", "slurm"]) == 2
    assert "needs the package submitit" in capsys.readouterr().err


@pytest.fixture
def commands(tmp_path, monkeypatch):
    """Commands of Slurm that do nothing, but for sinfo, which knows two partitions."""
    for name in ("sbatch", "srun", "squeue", "scancel", "sinfo"):
        path = tmp_path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("#!/bin/sh\n" + ("echo 'main* (null)'; echo 'gpu gpu:a100:4'\n" if name == "sinfo" else ""))
        path.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=os.pathsep)


@pytest.mark.parametrize(
    "device,given,gpus",
    [
        ("auto", (), None),
        ("auto", ("partition=gpu",), 2),
        ("auto", ("gpus_per_node=1",), 1),
        ("auto", ("partition=gpu", "gpus-per-node=0"), 0),
        ("cpu", ("partition=gpu",), None),
        ("cuda", ("nodes=3",), 2),
    ],
)
def test_jobs_ask_for_gpus_where_they_use_them(commands, device, given, gpus):
    options = runs.Options(device=device, num_gpus=2, launcher="slurm", slurm=given)
    slurm = launch.launcher(options, [RUN])
    assert slurm.parameters.get("gpus_per_node") == gpus and slurm.device == ("cuda" if gpus else "cpu")
    assert slurm.parameters["ntasks_per_node"] == 2 and slurm.parameters["cpus_per_task"] == RUN.cfg.STUDY.THREADS
    assert slurm.processes == (6 if "nodes=3" in given else 2)
    assert launch.jobs(options, [RUN] * 9) == 9


@pytest.mark.parametrize("given,message", [("gpu", "give KEY=VALUE"), ("time=1:00:00", "a number of minutes")])
def test_wrong_options_of_slurm_are_one_sentence(commands, given, message):
    with pytest.raises(InputError, match=message):
        launch.launcher(runs.Options(launcher="slurm", slurm=(given,)), [RUN])


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    """A cluster of one node. The value runs one of its commands and returns what it says."""
    if reason := lacking():
        pytest.skip(reason)
    with pytest.MonkeyPatch.context() as patch:
        starting = cluster(tmp_path_factory.mktemp("slurm"))
        try:
            variables = starting.__enter__()
        except RuntimeError as error:
            pytest.skip(str(error))
        try:
            patch.setenv("SLURM_CONF", variables["SLURM_CONF"])
            yield lambda *command: subprocess.run(command, capture_output=True, text=True, check=True).stdout
        finally:
            starting.__exit__(None, None, None)


def job_of(run):
    return (run.folder / "slurm" / "job").read_text()


def seconds_in_checkpoint(run):
    """Of the iterations up to the checkpoint: no two trainings have the same."""
    return torch.load(run.folder / "checkpoint.pth", weights_only=True)["seconds"]


def test_table_3_survives_a_preemption_and_the_end_of_who_waits_for_it(slurm, output, bmask):
    command = ("run", "--table", "3", *ONE[3:], "--launcher", "slurm", "--slurm", "time=30")
    wanted = tables.named("3").runs("smoke", [0])
    first = bmask(*command)
    preempted = wait_for(
        lambda: next((r for r in wanted if (r.folder / "checkpoint.pth").exists() and not r.own_record.exists()), None),
        first,
    )
    slurm("scancel", "--signal=USR2", job_of(preempted))  # as Slurm does before it takes the node away
    first.kill()
    finished(first)
    assert not preempted.own_record.exists(), "the run was over before it could be preempted"
    kept = seconds_in_checkpoint(preempted)
    # On a busy machine all jobs could be over before the next command has started: none starts until it waits for them.
    slurm("scontrol", "update", "PartitionName=main", "State=DOWN")
    second = bmask(*command)
    second.stderr.read(1)  # of its progress bar
    slurm("scontrol", "update", "PartitionName=main", "State=UP")
    status, _, err = finished(second)
    assert status == 0, err
    assert "runs done: 100%" in err and len(wanted) == 5
    for run in wanted:
        assert run.record()["metrics"]["segm"]["AP"] >= 0 and len(run.record()["losses"]["iteration"]) == 6
        # No run was submitted twice: the second command took up the jobs of the first.
        assert len(list((run.folder / "slurm").glob("[0-9]*_submission.sh"))) == 1
    log = (preempted.folder / "log.txt").read_text()
    assert "this job is preempted" in log
    assert log.count("Starting with JobEnvironment") == 2
    assert seconds_in_checkpoint(preempted)[: len(kept)] == kept


def test_stopped_it_cancels_its_jobs_and_started_again_it_continues(slurm, output, bmask, two_processes):
    command = (*ONE, "--num-gpus", "2", "--launcher", "slurm")
    first = bmask(*command)
    wait_for((RUN.folder / "checkpoint.pth").exists, first)
    first.send_signal(signal.SIGINT)
    status, _, err = finished(first)
    assert status == 130 and "goes on from the checkpoints" in err
    assert not RUN.own_record.exists(), "the run was over before it could be stopped"
    kept = seconds_in_checkpoint(RUN)
    deadline = time.monotonic() + 60
    while slurm("squeue", "--noheader"):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    status, _, err = finished(bmask(*command))
    assert status == 0, err
    assert seconds_in_checkpoint(RUN)[: len(kept)] == kept
    record = RUN.record()
    assert record["num_gpus"] == 2 and record["losses"] == two_processes["losses"]


def test_of_a_failed_job_the_last_line_is_shown(slurm, output, bmask):
    RUN.folder.mkdir(parents=True)
    (RUN.folder / "checkpoint.pth").write_text("no checkpoint")
    status, _, err = finished(bmask(*ONE, "--launcher", "slurm"))
    assert status == 1
    last = (RUN.folder / "log.txt").read_text().strip().splitlines()[-1]
    assert f"{RUN.name} stopped with status 2; the last line of {RUN.folder / 'log.txt'} is: {last}" in err
    status, _, err = finished(bmask(*ONE, "--launcher", "slurm", "--slurm", "partition=none"))
    assert status == 2 and "Invalid partition" in err and "Traceback" not in err
