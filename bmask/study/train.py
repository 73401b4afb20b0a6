"""One training: build, train, checkpoint, resume.

Everything random in an iteration is a function of the seed and of the iteration's number, never of what ran
before. So a run that was killed and resumed computes what an uninterrupted one computes.
"""

import itertools
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Callable, Dict, List, Optional

import numpy as np
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode
from detectron2.engine.defaults import create_ddp_model
from detectron2.modeling import build_model
from detectron2.solver import build_lr_scheduler
from detectron2.solver import build_optimizer as build_sgd
from detectron2.solver.build import get_default_optimizer_params, maybe_add_gradient_clipping
from detectron2.utils import comm
from detectron2.utils.env import seed_all_rng
from detectron2.utils.events import EventStorage
from torch.utils.data import DataLoader, Dataset

from .. import released
from ..errors import InputError, one_line
from . import runs, same_detector
from .datasets.mapper import ImageMapper
from .files import write_file


class NonFiniteLoss(FloatingPointError):
    """A loss became infinite or not a number. The message names the iteration and the loss terms."""


def train(
    cfg: CfgNode,
    dataset: List[Dict],
    folder: Path,
    report: Callable[[int, float], None],
    validate: Callable[[torch.nn.Module, int], Dict],
    accumulate: int = 1,
    heads: Optional[Dict[str, CfgNode]] = None,
) -> Dict:
    """Train one run, or what is left of it, or the mask heads of several on one detector.

    Args:
        cfg: the resolved configuration.
        dataset: training images in detectron2's dataset format.
        folder: where ``checkpoint.pth`` is, and is written every ``SOLVER.CHECKPOINT_PERIOD`` iterations.
        report: called with the number of iterations done and the seconds of one, every ``STUDY.LOG_PERIOD``
            iterations. What it raises ends the training.
        validate: called with the model, in evaluation mode, and the number of iterations done, every
            ``TEST.EVAL_PERIOD`` iterations but the last; returns metrics.
        accumulate: parts that each rank takes its images in, one after the other, for less memory. Losses and
            gradients are, up to rounding, those of as many times more ranks, whose images and random numbers the parts
            have: losses are averaged over parts as over ranks.
        heads: in the same-detector protocol, configurations that differ from ``cfg`` in their mask heads alone, by
            name; all these heads are trained at once.

    Returns:
        ``losses``, by name of the term the mean over every ``STUDY.LOG_PERIOD`` iterations, and ``iteration``, the last
        of these; ``validation``, the metrics with their ``iteration``;
        ``seconds_per_iteration``, the median; ``gpu_memory_mib``, the peak, on a GPU.

    Raises:
        NonFiniteLoss: naming the first iteration with such a loss. The last checkpoint is from before it.
        InputError: the batch does not fit the memory of the GPU, or the checkpoint is damaged or of another model.
    """
    checkpoint = folder / "checkpoint.pth"
    if heads:
        model = same_detector.join({name: _started(own, checkpoint) for name, own in heads.items()})
    else:
        model = _started(cfg, checkpoint)
    model.train()
    learners = same_detector.learners(model) if cfg.STUDY.SAME_DETECTOR else [model]
    optimizers = [build_optimizer(cfg, learner) for learner in learners]
    schedulers = [build_lr_scheduler(cfg, optimizer) for optimizer in optimizers]
    scaler = torch.amp.GradScaler(cfg.MODEL.DEVICE, enabled=cfg.SOLVER.AMP.ENABLED)
    parts = {"model": model, "scaler": scaler}
    for k, (optimizer, scheduler) in enumerate(zip(optimizers, schedulers)):
        parts |= {f"optimizer{k or ''}": optimizer, f"scheduler{k or ''}": scheduler}

    def needed(iteration: int) -> List[str]:
        """Of a finished training only the model is of use: a third of the file with AdamW."""
        return list(parts) if iteration < cfg.SOLVER.MAX_ITER else ["model"]

    start, history, validation, seconds = 0, [], [], []
    if checkpoint.exists():
        try:
            saved = released.read_checkpoint(checkpoint)
            for name in needed(saved["iteration"]):
                parts[name].load_state_dict(saved[name])
            start, history, seconds = saved["iteration"], saved["losses"], saved["seconds"]
        except torch.cuda.OutOfMemoryError:
            raise
        except (InputError, AttributeError, KeyError, IndexError, RuntimeError, TypeError, ValueError) as error:
            raise InputError(
                f"{checkpoint} is no checkpoint of this training ({one_line(error)}); remove it to train the run anew"
            ) from error
        validation = saved.get("validation", [])
    # Batch statistics differ between ranks: rank 0's are everyone's, so that any rank can save or evaluate.
    device_ids = [comm.get_local_rank()] if cfg.MODEL.DEVICE == "cuda" else None
    model_or_ddp = create_ddp_model(model, broadcast_buffers=True, device_ids=device_ids)

    names, recent = [], []

    def look_at_losses(iteration: int, reduce: bool = True) -> None:
        """The one copy to the host: averages, and stops at, the losses since the last look."""
        if not recent:
            return
        losses = torch.stack(recent)
        if reduce and comm.get_world_size() > 1:
            torch.distributed.all_reduce(losses)
            losses /= comm.get_world_size()
        losses = losses.cpu()
        finite = losses.isfinite()
        if not finite.all():
            first = int((~finite.all(dim=1)).nonzero()[0])
            terms = ", ".join(n for n, ok in zip(names, finite[first]) if not ok)
            raise NonFiniteLoss(f"iteration {iteration - len(recent) + first + 1}: {terms} not finite")
        history.append({"iteration": iteration, **dict(zip(names, losses.mean(dim=0).tolist()))})
        recent.clear()
        if board:
            for name, value in history[-1].items():
                board.add_scalar(f"train/{name}", value, iteration)
            board.add_scalar("train/lr", optimizers[0].param_groups[0]["lr"], iteration)

    board = _tensorboard(folder, start) if comm.is_main_process() else None
    parts_here = range(comm.get_rank() * accumulate, (comm.get_rank() + 1) * accumulate)
    num_parts = comm.get_world_size() * accumulate
    with EventStorage(start) as storage:
        loaders = [iter(train_loader(cfg, dataset, start, part, num_parts)) for part in parts_here]
        clock = time.perf_counter()
        for iteration in range(start + 1, cfg.SOLVER.MAX_ITER + 1):
            for optimizer in optimizers:
                optimizer.zero_grad()
            terms = 0
            for part, loader in zip(parts_here, loaders):
                batch = next(loader)
                # Proposals are sampled at random inside the model.
                torch.manual_seed(np.random.SeedSequence([cfg.SEED, iteration, part]).generate_state(1)[0])
                # Ranks exchange their gradients once an iteration.
                alone = num_parts == accumulate or part == parts_here[-1]
                try:
                    with nullcontext() if alone else model_or_ddp.no_sync():
                        with torch.autocast(cfg.MODEL.DEVICE, enabled=cfg.SOLVER.AMP.ENABLED):
                            losses = model_or_ddp(batch)
                        scaler.scale(sum(losses.values()) / accumulate).backward()
                except FloatingPointError as error:
                    # detectron2 stops at proposals that are not finite: tell which loss went first, if one did.
                    look_at_losses(iteration - 1, reduce=False)
                    raise NonFiniteLoss(f"iteration {iteration}: {error}") from error
                except torch.cuda.OutOfMemoryError as error:
                    raise InputError(
                        f"{len(batch)} images at a time do not fit the memory of the GPU; take the batch in more parts "
                        f"with ACCUMULATE={2 * accumulate}, or on more GPUs, or lower the profile's input size"
                    ) from error
                names = list(losses)
                terms = terms + torch.stack([losses[name].detach().float() for name in names]) / accumulate
            recent.append(terms)
            for optimizer in optimizers:
                scaler.step(optimizer)
            scaler.update()
            for scheduler in schedulers:
                scheduler.step()
            storage.step()

            last = iteration == cfg.SOLVER.MAX_ITER
            save = last or iteration % cfg.SOLVER.CHECKPOINT_PERIOD == 0
            look = not last and cfg.TEST.EVAL_PERIOD and iteration % cfg.TEST.EVAL_PERIOD == 0
            if save or look or iteration % cfg.STUDY.LOG_PERIOD == 0:
                steps = len(recent)
                look_at_losses(iteration)
                seconds.append((time.perf_counter() - clock) / steps)
                if look:
                    model.eval()
                    validation.append({"iteration": iteration, **validate(model, iteration)})
                    model.train()
                    if board:
                        for kind in ("segm", "bbox"):
                            board.add_scalar(f"validation/{kind} AP", validation[-1][kind]["AP"] or 0, iteration)
                if save and comm.is_main_process():
                    state = {name: parts[name].state_dict() for name in needed(iteration)}
                    state |= {"iteration": iteration, "losses": history, "seconds": seconds}
                    state["validation"] = validation
                    write_file(checkpoint, lambda path: torch.save(state, path))
                report(iteration, float(np.median(seconds)))
                clock = time.perf_counter()
    comm.synchronize()
    if board:
        board.close()
    result = {"losses": runs.by_term(history), "validation": validation}
    result["seconds_per_iteration"] = float(np.median(seconds))
    if cfg.MODEL.DEVICE == "cuda":
        result["gpu_memory_mib"] = torch.cuda.max_memory_allocated() / 2**20
    return result


def _started(cfg: CfgNode, checkpoint: Path) -> torch.nn.Module:
    """The model of a configuration at its start, with its weights unless a checkpoint has them."""
    seed_all_rng(cfg.SEED)
    model = build_model(cfg).to(memory_format=torch.channels_last)  # a tenth faster: see docs/performance.md
    if cfg.MODEL.WEIGHTS and not checkpoint.exists():
        DetectionCheckpointer(model).load(cfg.MODEL.WEIGHTS)
    if cfg.STUDY.SAME_DETECTOR:
        same_detector.detach(model)
    return model


def _tensorboard(folder: Path, start: int):
    """Where TensorBoard finds the run; None where it is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(folder / "tensorboard", purge_step=start + 1)


def build_optimizer(cfg: CfgNode, model: torch.nn.Module) -> torch.optim.Optimizer:
    """detectron2's SGD, or AdamW with the same learning rates, weight decays and clipping."""
    if cfg.STUDY.OPTIMIZER == "sgd":
        return build_sgd(cfg, model)
    if cfg.STUDY.OPTIMIZER != "adamw":
        raise ValueError(f"unknown STUDY.OPTIMIZER {cfg.STUDY.OPTIMIZER!r}: choose sgd or adamw")
    solver = cfg.SOLVER
    parameters = get_default_optimizer_params(
        model, base_lr=solver.BASE_LR, weight_decay=solver.WEIGHT_DECAY, weight_decay_norm=solver.WEIGHT_DECAY_NORM
    )
    return maybe_add_gradient_clipping(cfg, torch.optim.AdamW(parameters, solver.BASE_LR))


def train_loader(cfg: CfgNode, dataset: List[Dict], start: int, part: int, num_parts: int) -> DataLoader:
    """A part of each batch, from iteration ``start`` on; each a function of the seed and its position alone."""
    per_part, rest = divmod(cfg.SOLVER.IMS_PER_BATCH, num_parts)
    if rest:
        raise ValueError(f"{cfg.SOLVER.IMS_PER_BATCH} images a batch do not split into {num_parts} parts")
    if cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS:
        dataset = [x for x in dataset if any(not a.get("iscrowd", 0) for a in x["annotations"])]

    def shuffled():
        """The stream of detectron2's TrainingSampler, which a part of a rank cannot be given its share of."""
        generator = torch.Generator().manual_seed(cfg.SEED)
        while True:
            yield from torch.randperm(len(dataset), generator=generator).tolist()

    def batches():
        buckets = ([], [])
        for position, index in enumerate(itertools.islice(shuffled(), part, None, num_parts)):
            # Wide and tall images are not batched together: that would be padding for the most part.
            wide = cfg.DATALOADER.ASPECT_RATIO_GROUPING and dataset[index]["width"] > dataset[index]["height"]
            bucket = buckets[wide]
            bucket.append((position, index))
            if len(bucket) == per_part:
                yield list(bucket)
                bucket.clear()

    mapped = _SeededImages(dataset, ImageMapper(cfg, is_train=True), cfg.SEED, part)
    return DataLoader(
        mapped,
        batch_sampler=itertools.islice(batches(), start, None),
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        prefetch_factor=4 if cfg.DATALOADER.NUM_WORKERS else None,
        pin_memory=cfg.MODEL.DEVICE == "cuda",
        collate_fn=list,
    )


class _SeededImages(Dataset):
    """Images by (position in the stream, index): augmented by random numbers of the position alone."""

    def __init__(self, dataset, mapper, seed, part):
        self.dataset, self.mapper, self.seed, self.part = dataset, mapper, seed, part

    def __getitem__(self, key):
        position, index = key
        np.random.seed(np.random.SeedSequence([self.seed, position, self.part]).generate_state(1)[0])
        return self.mapper(self.dataset[index])
