"""The processes of one run where something else has started them: torchrun, or Slurm on several GPUs or machines.

They find each other by the environment variables of torch.distributed.
"""

import os
import pickle
from datetime import timedelta
from typing import Any

import torch
from detectron2.engine.launch import DEFAULT_TIMEOUT
from detectron2.utils import comm
from torch import distributed

from ...errors import InputError

VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
# Rank 0 may have to wait for a process that works on the same run: longer than any collective operation may take.
LONG = timedelta(days=365)


def world_size() -> int:
    """The number of processes that the environment describes; 1 where it describes none."""
    return int(os.environ["WORLD_SIZE"]) if all(name in os.environ for name in VARIABLES) else 1


def is_first() -> bool:
    """Whether this process is rank 0 of all. For use before :func:`join`."""
    return os.environ["RANK"] == "0"


def meet() -> distributed.Store:
    """What the ranks tell each other by, before they :func:`join`. Returns once rank 0 is there."""
    store, _, _ = next(distributed.rendezvous("env://"))
    # torchrun keeps the store when it starts its processes anew.
    return distributed.PrefixStore(f"bmask{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)


def tell(store: distributed.Store, what: Any) -> None:
    """As rank 0, tell the others what to do."""
    store.set("told", pickle.dumps(what))


def told(store: distributed.Store) -> Any:
    """What rank 0 tells, waited for."""
    store.wait(["told"], LONG)
    return pickle.loads(store.get("told"))


def join(store: distributed.Store, device: str) -> None:
    """Become one process group, as detectron2's launcher makes it: NCCL on "cuda", a GPU each, and gloo on "cpu".

    Raises:
        InputError: the machines do not have the same number of processes.
    """
    rank, local_rank = int(os.environ["RANK"]), int(os.environ["LOCAL_RANK"])
    if device == "cuda":
        torch.cuda.set_device(local_rank)
    distributed.init_process_group(
        "nccl" if device == "cuda" else "gloo",
        store=distributed.PrefixStore("group", store),
        rank=rank,
        world_size=world_size(),
        timeout=DEFAULT_TIMEOUT,
    )
    local_ranks = comm.all_gather(local_rank)
    per_machine = max(local_ranks) + 1
    if local_ranks != [r % per_machine for r in range(world_size())]:
        raise InputError("the machines of this run have different numbers of processes: start as many on each")
    comm.create_local_process_group(per_machine)
    comm.synchronize()


def leave() -> bool:
    """Once the ranks have nothing more to tell each other: give the process group up. Returns whether this was rank 0.

    A process that ends with its group may be aborted: gloo's threads outlive the interpreter.
    """
    is_main = comm.is_main_process()
    if distributed.is_initialized():
        distributed.destroy_process_group()
    return is_main
