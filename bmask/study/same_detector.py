"""The same-detector protocol: what is left of a mask head's gain when its detector cannot learn from it.

In training no gradient of a mask head reaches the detector, which is all of a model but its mask head. So models that
differ in their mask heads alone have one detector, to the digit, and their heads can be trained on it at once. None of
them sees the others: trained at once or one by one, they come out the same.
"""

import hashlib
from pathlib import Path
from typing import Dict, List

import torch
from detectron2.structures import Instances
from torch import nn

from ..errors import InputError
from ..released import read_checkpoint
from .files import write_file

HEAD = "roi_heads.mask_head."  # before the names of a mask head's parameters


def detach(model: nn.Module) -> None:
    """Keep the gradients of a model's mask head, a module of detectron2's RoI heads, from the rest of it."""

    def without_gradients(_, inputs):
        features, instances = inputs
        if isinstance(features, dict):
            return {name: x.detach() for name, x in features.items()}, instances
        return features.detach(), instances

    model.roi_heads.mask_head.register_forward_pre_hook(without_gradients)


class MaskHeads(nn.Module):
    """The mask heads of several models in the place of one, for training."""

    def __init__(self, roi_heads: Dict[str, nn.Module]):
        """
        Args:
            roi_heads: detectron2's standard or cascade RoI heads of each model, by name.
        """
        super().__init__()
        self.names = list(roi_heads)
        self.heads = nn.ModuleList(x.mask_head for x in roi_heads.values())
        self.poolers = [x.mask_pooler for x in roi_heads.values()]  # without parameters; None where the head pools

    def forward(self, features: Dict[str, torch.Tensor], instances: List[Instances]) -> Dict[str, torch.Tensor]:
        """The losses of all heads, ``NAME/loss_mask`` and so on.

        Args:
            features: (N, C, H, W) each.
            instances: the N images' foreground proposals.
        """
        losses = {}
        maps = list(features.values())
        for name, head, pooler in zip(self.names, self.heads, self.poolers):
            own = [Instances(x.image_size, **x.get_fields()) for x in instances]
            pooled = features if pooler is None else pooler(maps, [x.proposal_boxes for x in own])
            # A head may draw random numbers: each finds the generators as the detector has left them.
            with torch.random.fork_rng([maps[0].device] if maps[0].is_cuda else []):
                losses.update({f"{name}/{term}": loss for term, loss in head(pooled, own).items()})
        return losses


def join(models: Dict[str, nn.Module]) -> nn.Module:
    """One model made from several, by name: the detector of the first, and the mask heads of all.

    Raises:
        InputError: their detectors have not started alike.
    """
    if len({fingerprint(model) for model in models.values()}) > 1:
        raise InputError(f"the detectors of {', '.join(models)} do not start alike; train each of these variants alone")
    model = next(iter(models.values()))
    model.roi_heads.mask_head = MaskHeads({name: x.roi_heads for name, x in models.items()})
    model.roi_heads.mask_pooler = None  # it hands over the feature maps
    return model


def learners(model: nn.Module) -> List[nn.Module]:
    """What learns by itself, with an optimizer of its own: a model's detector, and its mask head, or each of them."""
    rois, head = model.roi_heads, model.roi_heads.mask_head
    detector = [x for x in (*model.children(), *rois.children()) if x is not rois and x is not head]
    return [nn.ModuleList(detector), *(head.heads if isinstance(head, MaskHeads) else [head])]


def hand_out(checkpoint: Path, folders: Dict[str, Path]) -> None:
    """From the last checkpoint of a joined model write that of each model, which it would have left alone.

    Args:
        folders: the models' own, by name, in the order in which they were joined. Each iteration's seconds are shared
            out between them.
    """
    saved = read_checkpoint(checkpoint)
    for k, (name, folder) in enumerate(folders.items()):
        place, prefix = f"{HEAD}heads.{k}.", f"{name}/"
        model = {
            key.replace(place, HEAD): value
            for key, value in saved["model"].items()
            if key.startswith(place) or not key.startswith(HEAD)
        }
        losses = [
            {term.removeprefix(prefix): x for term, x in look.items() if term.startswith(prefix) or "/" not in term}
            for look in saved["losses"]
        ]
        seconds = [x / len(folders) for x in saved["seconds"]]
        state = {**saved, "model": model, "losses": losses, "seconds": seconds}
        write_file(folder / "checkpoint.pth", lambda path: torch.save(state, path))


def fingerprint(model: nn.Module) -> str:
    """Ten hexadecimal digits that stand for the weights of a model's detector."""
    digest = hashlib.sha256()
    for name, value in model.state_dict().items():
        if not name.startswith(HEAD):
            digest.update(name.encode() + value.cpu().numpy().tobytes())
    return digest.hexdigest()[:10]
