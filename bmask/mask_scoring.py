"""The MaskIoU head of Mask Scoring R-CNN (Huang et al., CVPR 2019), for any :class:`bmask.joint.JointHead` (Table 2).

The score of a detection says how sure its class is, not how good its mask is. This head predicts the IoU of a mask
with the truth; at inference the product of both, ``mask_scores``, ranks the masks.
"""

from typing import List, Optional

import fvcore.nn.weight_init as weight_init
import torch
from detectron2.layers import Conv2d
from detectron2.structures import BitMasks, Instances
from torch import nn
from torch.nn import functional as F


class MaskIoUHead(nn.Module):
    """Four 3x3 convolutions, the last of stride 2, and three linear layers, on RoI features beside the mask."""

    def __init__(self, in_channels: int, resolution: int, num_classes: int, conv_dim: int, fc_dim: int):
        """
        Args:
            in_channels, resolution: channels C and side M of the RoI features.
            num_classes: an IoU is predicted for each.
            conv_dim, fc_dim: width of the convolutions and of the linear layers (256 and 1024 in that paper).
        """
        super().__init__()
        widths = [in_channels + 1, *[conv_dim] * 4]
        self.convs = nn.Sequential(
            *(
                Conv2d(a, b, kernel_size=3, stride=stride, padding=1, activation=F.relu)
                for a, b, stride in zip(widths, widths[1:], (1, 1, 1, 2))
            )
        )
        self.fcs = nn.Sequential(
            nn.Linear(conv_dim * ((resolution + 1) // 2) ** 2, fc_dim), nn.ReLU(), nn.Linear(fc_dim, fc_dim), nn.ReLU()
        )
        self.predictor = nn.Linear(fc_dim, num_classes)
        for layer in self.convs:
            weight_init.c2_msra_fill(layer)
        for layer in (self.fcs[0], self.fcs[2]):
            weight_init.c2_xavier_fill(layer)
        nn.init.normal_(self.predictor.weight, std=0.01)
        nn.init.zeros_(self.predictor.bias)

    def forward(self, roi_features: torch.Tensor, mask_logits: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
        """The predicted IoU (R,) of each mask.

        Args:
            roi_features: (R, C, M, M).
            mask_logits: (R, 2M, 2M), of the class of each RoI.
            classes: (R,), that class.
        """
        masks = F.max_pool2d(mask_logits[:, None].sigmoid(), kernel_size=2)
        x = self.convs(torch.cat([roi_features, masks.to(roi_features.dtype)], dim=1))
        return self.predictor(self.fcs(x.flatten(1))).gather(1, classes[:, None])[:, 0]


def build_mask_iou_head(cfg, in_channels: int) -> Optional[MaskIoUHead]:
    """The head of a configuration, as wide as its mask and box heads; None unless ``MODEL.MASK_SCORING`` is on."""
    if not cfg.MODEL.MASK_SCORING:
        return None
    heads = cfg.MODEL
    return MaskIoUHead(
        in_channels,
        heads.ROI_MASK_HEAD.POOLER_RESOLUTION,
        heads.ROI_HEADS.NUM_CLASSES,
        heads.ROI_MASK_HEAD.CONV_DIM,
        heads.ROI_BOX_HEAD.FC_DIM,
    )


def instance_areas(instances: List[Instances], side: int) -> torch.Tensor:
    """Area (R,) of the whole ground truth mask of each proposal, in cells of a ``side`` x ``side`` grid on the RoI.

    What lies outside the RoI counts as well.
    """
    areas = []
    for x in instances:
        boxes = x.proposal_boxes.area()
        if len(x) == 0:  # without gt_masks where the image has no object
            areas.append(boxes)
            continue
        masks = x.gt_masks
        pixels = masks.tensor.flatten(1).sum(1) if isinstance(masks, BitMasks) else masks.area()
        areas.append(pixels.to(boxes) * side**2 / boxes.clamp(min=1e-6))
    return torch.cat(areas)


def mask_iou_targets(mask_logits: torch.Tensor, targets: torch.Tensor, areas: torch.Tensor) -> torch.Tensor:
    """The IoU (R,) of each predicted mask with the ground truth, measured on the mask that is given.

    Args:
        mask_logits: (R, H, W); above 0 is mask.
        targets: (R, H, W), in {0, 1}: the part of the ground truth that lies in the RoI.
        areas: (R,), of the whole ground truth in the same cells, from :func:`instance_areas`. A mask that is cut
            off by its RoI misses what lies outside.
    """
    predicted, targets = mask_logits > 0, targets > 0.5
    overlap = (predicted & targets).sum((1, 2))
    union = predicted.sum((1, 2)) + torch.maximum(areas, targets.sum((1, 2)).to(areas)) - overlap
    return overlap / union.clamp(min=1)


def mask_iou_loss(predicted: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Half the squared error, averaged over the masks that overlap their truth at all; (R,) each."""
    overlapping = targets > 0
    return (0.5 * (predicted - targets).square() * overlapping).sum() / overlapping.sum().clamp(min=1)
