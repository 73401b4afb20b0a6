"""A Slurm cluster of one node, this machine, for as long as a test takes. Needs root, slurm-wlm and munge."""

import os
import shutil
import signal
import socket
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path

CONFIG = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket,cred_expire=5
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SchedulerType=sched/builtin
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
MpiDefault=none
ReturnToService=2
KillWait=2
SchedulerParameters=sched_interval=1,batch_sched_delay=0
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""
COMMANDS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "scontrol")


def lacking() -> str:
    """Why a cluster cannot be started here, or nothing."""
    if os.geteuid():
        return "a Slurm cluster is started by root alone"
    missing = [command for command in COMMANDS if not shutil.which(command)]
    return f"there is no {missing[0]}: install slurm-wlm and munge" if missing else ""


@contextmanager
def cluster(folder: Path, cpus: int = 2):
    """Yield the environment of its commands, once it takes jobs. Raises RuntimeError if it cannot be started."""
    for name in ("munge", "state", "spool"):
        (folder / name).mkdir(parents=True)
    host = socket.gethostname().split(".")[0]
    with socket.socket() as one, socket.socket() as other:
        one.bind(("127.0.0.1", 0))
        other.bind(("127.0.0.1", 0))
        ports = one.getsockname()[1], other.getsockname()[1]
    config = folder / "slurm.conf"
    config.write_text(CONFIG.format(folder=folder, host=host, ports=ports, cpus=cpus))
    key = folder / "munge" / "key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o400)
    munge = folder / "munge"
    environment = {**os.environ, "SLURM_CONF": str(config)}
    start = [
        ["munged", "--force", "--foreground", f"--key-file={key}", f"--socket={munge}/socket"]
        + [f"--pid-file={munge}/pid", f"--seed-file={munge}/seed", f"--log-file={munge}/log"],
        ["slurmctld", "-D", "-f", str(config)],
        ["slurmd", "-D", "-f", str(config), "-N", host],
    ]
    daemons = []
    try:
        for command in start:
            with open(folder / f"{command[0]}.out", "w") as out:
                daemons.append(subprocess.Popen(command, stdout=out, stderr=out, env=environment))
            time.sleep(0.5)
        deadline = time.monotonic() + 30
        while "idle" not in _out(["sinfo", "--noheader", "--format=%T"], environment):
            if time.monotonic() > deadline or any(daemon.poll() is not None for daemon in daemons):
                said = [(folder / f"{command[0]}.out").read_text()[-300:] for command in start]
                raise RuntimeError(f"Slurm does not start on this machine: {said}")
            time.sleep(0.2)
        yield environment
    finally:
        _out(["scancel", "--user=root"], environment)
        deadline = time.monotonic() + 10
        while _out(["squeue", "--noheader"], environment) and time.monotonic() < deadline:
            time.sleep(0.2)
        for daemon in reversed(daemons):
            daemon.send_signal(signal.SIGTERM)
            try:
                daemon.wait(10)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()


def _out(command, environment) -> str:
    try:
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=20).stdout
    except subprocess.TimeoutExpired:
        return ""
