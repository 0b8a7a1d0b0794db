"""Bottom-up attention before a Transformer: what SOHO's section 4.5 is compared with, from torchvision's parts.

Faster R-CNN on ResNet-101-C4 as published with bottom-up attention (github.com/peteanderson80/bottom-up-attention,
1ba7086), the weights at random. From there:

- `models/vg/ResNet-101/faster_rcnn_end2end_final/test.prototxt`: features after res4 (stride 16, 1,024 channels); the
  proposal network's 3 x 3 convolution of 512 channels; anchors of scales 4, 8, 16, 32 (times 16 pixels) and three
  ratios; regions of 14 x 14; res5 on each region with stride 1 and dilation 2, so that it stays 14 x 14; mean; 1,600
  classes and background;
- `lib/fast_rcnn/config.py`: 6,000 proposals enter the NMS at 0.7 and the best 300 leave it, with sides of at least 16
  pixels; NMS of the classes at 0.3;
- `tools/generate_tsv.py`: that NMS runs over all proposals for each class in turn, whatever they score; a box counts by
  its best score in a class where it survived; boxes are the proposals themselves. 10 to 100 boxes, here 100, as in
  SOHO's comparison. The published threshold of a box's score is 0.2 (MILVLG/bottom-up-attention.pytorch and others).

In this pipeline's favour: BatchNorm is folded into the convolutions; attributes and the regression of boxes by class,
which no box that leaves depends on, are left out; torchvision's NMS is C++. Scores are spread (`calibrate`), so that
boxes beyond 100 reach the threshold; `boxes_seen` says how many entered and left each NMS.

B images, H x W pixels, C channels, h x w cells, A anchors of an image, N proposals of an image (300), K classes,
R boxes that leave (100), S words, D channels of the Transformer.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import fuse_conv_bn_eval
from torchvision.models import ResNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.rpn import RegionProposalNetwork
from torchvision.models.resnet import Bottleneck
from torchvision.ops import batched_nms, clip_boxes_to_image, nms, remove_small_boxes, roi_align
from transformers import BertConfig, BertModel

from benchmarks.inference.clock import Clock
from benchmarks.inference.random_inputs import taking_statistics, with_small_residuals

STRIDE = 16
RPN_NMS, RPN_MIN_SIDE = 0.7, 16
CLASS_NMS, MIN_SCORE = 0.3, 0.2
# Of logits over 1,600 classes: with it two thirds of the boxes have a class of 0.2 or more (seen with seeds 0 to 2).
_LOGIT_STD = 6.0
_BOXES_OF_AN_IMAGE = 20  # for statistics
NMS_NAMES = ("NMS by class", "batched NMS")


@dataclass(frozen=True)
class RegionSizes:
    """The published sizes; smaller ones are for tests. `halved`: res5 with stride 2 and without dilation, as in
    torchvision's ResNet and other C4 detectors, which is a quarter of the work."""

    layers: tuple[int, int, int, int] = (3, 4, 23, 3)
    scales: tuple[int, ...] = (4, 8, 16, 32)
    rpn_channels: int = 512
    pre_nms: int = 6000
    num_proposals: int = 300
    num_classes: int = 1600
    num_boxes: int = 100
    halved: bool = False
    num_layers: int = 12


class ProposalHead(nn.Module):
    """Objectness and shifts of each cell's anchors; the one logit is the published two's difference."""

    def __init__(self, num_channels: int, rpn_channels: int, num_anchors: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(num_channels, rpn_channels, 3, padding=1)
        self.objectness = nn.Conv2d(rpn_channels, num_anchors, 1)
        self.shifts = nn.Conv2d(rpn_channels, 4 * num_anchors, 1)
        for conv in self.children():
            nn.init.normal_(conv.weight, std=0.01)
            nn.init.zeros_(conv.bias)

    def forward(self, levels: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Of each level (B, C, h, w): float32 (B, A/hw, h, w) and (B, 4 A/hw, h, w)."""
        hidden = [F.relu(self.conv(x)) for x in levels]
        return [self.objectness(x).float() for x in hidden], [self.shifts(x).float() for x in hidden]


class Proposals(RegionProposalNetwork):
    """torchvision's proposal network, which takes the best after small ones are gone, as published.

    `seen` is how many boxes of the last image entered the NMS and left it.
    """

    seen = (0, 0)

    def filter_proposals(
        self,
        proposals: Tensor,
        objectness: Tensor,
        image_shapes: list[tuple[int, int]],
        num_anchors_per_level: list[int],
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Boxes (B, A, 4) and logits to the best of each image, (N, 4), and their logits."""
        found = []
        for boxes_A4, logit_A, shape in zip(proposals, objectness.view(len(proposals), -1), image_shapes, strict=True):
            boxes_A4 = clip_boxes_to_image(boxes_A4, shape)
            large = remove_small_boxes(boxes_A4, self.min_size)
            best = large[logit_A[large].topk(min(self.pre_nms_top_n(), len(large))).indices]
            boxes, logits = boxes_A4[best], logit_A[best]
            kept = nms(boxes, logits, self.nms_thresh)
            self.seen = len(boxes), len(kept)
            found.append((boxes[kept[: self.post_nms_top_n()]], logits[kept[: self.post_nms_top_n()]]))
        boxes, logits = zip(*found, strict=True)
        return list(boxes), list(logits)


def nms_by_class(boxes_N4: Tensor, score_NK: Tensor) -> tuple[Tensor, tuple[int, int]]:
    """As published: for each class an NMS over all proposals.

    Returns:
        (N,), each box's best score in a class where it survived, and how many boxes entered and left.
    """
    best_N, num_left = torch.zeros_like(score_NK[:, 0]), 0
    for score_N in score_NK.T.contiguous():
        kept = nms(boxes_N4, score_N, CLASS_NMS)
        best_N[kept] = torch.maximum(best_N[kept], score_N[kept])
        num_left += len(kept)
    return best_N, (score_NK.numel(), num_left)


def nms_batched(boxes_N4: Tensor, score_NK: Tensor) -> tuple[Tensor, tuple[int, int]]:
    """As torchvision does it (`RoIHeads.postprocess_detections`): what reaches the threshold, all classes in one call.

    NMS goes by falling score, so that boxes below the threshold take none above it away: the same as `nms_by_class`
    for all boxes that reach it, and 0 for the others.
    """
    box_M, class_M = (score_NK >= MIN_SCORE).nonzero(as_tuple=True)
    score_M = score_NK[box_M, class_M]
    kept = batched_nms(boxes_N4[box_M], score_M, class_M, CLASS_NMS)
    best_N = torch.zeros_like(score_NK[:, 0]).scatter_reduce(0, box_M[kept], score_M[kept], "amax")
    return best_N, (len(box_M), len(kept))


class RegionPipeline(nn.Module):
    """Image -> features -> proposals -> features of boxes -> the boxes that survive -> Transformer."""

    def __init__(self, sizes: RegionSizes = RegionSizes()) -> None:
        super().__init__()
        self.sizes = sizes
        net = ResNet(Bottleneck, list(sizes.layers))
        with_small_residuals(net)
        self.cnn = nn.Sequential(net.conv1, net.bn1, net.relu, net.maxpool, net.layer1, net.layer2, net.layer3)
        self.res5 = net.layer4
        if not sizes.halved:
            self.res5[0].conv2.stride = self.res5[0].downsample[0].stride = (1, 1)
            for block in self.res5:
                block.conv2.dilation = block.conv2.padding = (2, 2)
        anchors = AnchorGenerator(sizes=(tuple(STRIDE * scale for scale in sizes.scales),))
        num_anchors = anchors.num_anchors_per_location()[0]
        self.proposals = Proposals(
            anchors,
            ProposalHead(1024, sizes.rpn_channels, num_anchors),
            *(0.7, 0.3, 256, 0.5),  # of training
            pre_nms_top_n={"training": sizes.pre_nms, "testing": sizes.pre_nms},
            post_nms_top_n={"training": sizes.num_proposals, "testing": sizes.num_proposals},
            nms_thresh=RPN_NMS,
        )
        self.proposals.min_size = RPN_MIN_SIDE
        self.classifier = nn.Linear(2048, 1 + sizes.num_classes)
        self.project = nn.Linear(2048, 768)
        self.bert = BertModel(BertConfig(num_hidden_layers=sizes.num_layers), add_pooling_layer=False)
        self.head = nn.Linear(768, 2)
        self.boxes_seen: dict[str, tuple[int, int]] = {}
        self.eval().requires_grad_(False)

    @property
    def dtype(self) -> torch.dtype:
        return self.head.weight.dtype

    def forward(self, pixels_B3HW: Tensor, words_BS: Tensor, clock: Clock) -> Tensor:
        """Runs both kinds of NMS, each as a stage of its own; they have to choose the same boxes.

        Args:
            pixels_B3HW: normalised images.
            words_BS: int64.
            clock: is told when a stage ends.

        Returns:
            Logits of [CLS], (B, 2).

        Raises:
            RuntimeError: the two differ, or fewer boxes than are asked for survived.
        """
        feat_BChw = self.cnn(self._laid_out(pixels_B3HW))
        clock.ends("CNN")
        boxes = self.propose(pixels_B3HW, feat_BChw)
        clock.ends("proposals")
        # The published layers take one image at a time; the regions of one are a large batch already.
        regions = [self.regions(feat_BChw[number : number + 1], boxes[number]) for number in range(len(boxes))]
        clock.ends("features of boxes")
        chosen = []
        for name in NMS_NAMES:
            chosen.append(
                [self.survivors(*one, name) for one in zip(boxes, (score for _, score in regions), strict=True)]
            )
            clock.ends(name)
        if not all(torch.equal(*both) for both in zip(*chosen, strict=True)):
            raise RuntimeError(f"{NMS_NAMES[0]} and {NMS_NAMES[1]} choose different boxes: nothing is timed")
        kept = [feat_NC[number_R] for (feat_NC, _), number_R in zip(regions, chosen[0], strict=True)]
        logits_B2 = self.read(torch.stack(kept), words_BS)
        clock.ends("Transformer")
        return logits_B2

    def propose(self, pixels_B3HW: Tensor, feat_BChw: Tensor) -> list[Tensor]:
        """Boxes (N, 4) of each image, in pixels."""
        sizes = [tuple(pixels_B3HW.shape[-2:])] * len(pixels_B3HW)
        boxes, _ = self.proposals(ImageList(pixels_B3HW, sizes), {"res4": feat_BChw})
        self.boxes_seen["NMS of proposals"] = self.proposals.seen
        return boxes

    def regions(self, feat_1Chw: Tensor, boxes_N4: Tensor) -> tuple[Tensor, Tensor]:
        """Features (N, 2048) of an image's boxes, and float32 scores (N, K) of the classes."""
        feat_NC = self._box_features(feat_1Chw, [boxes_N4])
        return feat_NC, self.classifier(feat_NC).float().softmax(-1)[:, 1:]

    def survivors(self, boxes_N4: Tensor, score_NK: Tensor, nms_name: str) -> Tensor:
        """The numbers (R,) of the boxes that leave, the best first."""
        run = nms_by_class if nms_name == NMS_NAMES[0] else nms_batched
        best_N, self.boxes_seen[nms_name] = run(boxes_N4, score_NK)
        order_N = best_N.argsort(descending=True, stable=True)[: self.sizes.num_boxes]
        if len(order_N) < self.sizes.num_boxes or best_N[order_N[-1]] < MIN_SCORE:
            raise RuntimeError(f"{nms_name}: fewer than {self.sizes.num_boxes} boxes reach a score of {MIN_SCORE}")
        return order_N

    def read(self, feat_BRC: Tensor, words_BS: Tensor) -> Tensor:
        """Words, then boxes, through the Transformer: logits of the first word's place (B, 2)."""
        words_BSD = self.bert.get_input_embeddings()(words_BS)
        joint_BTD = torch.cat([words_BSD, self.project(feat_BRC)], dim=1)
        return self.head(self.bert(inputs_embeds=joint_BTD).last_hidden_state[:, 0])

    def _box_features(self, feat_BChw: Tensor, boxes: list[Tensor]) -> Tensor:
        regions_NC14 = roi_align(feat_BChw.float(), boxes, 14, 1 / STRIDE, sampling_ratio=2)
        return self.res5(self._laid_out(regions_NC14)).mean((2, 3))

    def _laid_out(self, x: Tensor) -> Tensor:
        """Channels last: convolutions in bfloat16 are faster, not in float32 (`model/fast/cpu/convolutions.py`)."""
        last = torch.channels_last if self.dtype == torch.bfloat16 else torch.contiguous_format
        return x.to(self.dtype, memory_format=last)

    def calibrate(self, pixels_B3HW: Tensor) -> "RegionPipeline":
        """Gives random weights the statistics of images, as training would, and folds BatchNorm into the convolutions.

        BatchNorm takes the images' and some boxes' mean and variance; the classifier is scaled so that logits have a
        standard deviation of `_LOGIT_STD` over boxes, and the scores are spread.
        """
        with taking_statistics(self.cnn):
            feat_BChw = self.cnn(pixels_B3HW)
        boxes = [
            boxes_N4[:: max(1, len(boxes_N4) // _BOXES_OF_AN_IMAGE)]
            for boxes_N4 in self.propose(pixels_B3HW, feat_BChw)
        ]
        with taking_statistics(self.res5):
            feat_NC = self._box_features(feat_BChw, boxes)
        for block in (*self.cnn.modules(), *self.res5.modules()):
            if isinstance(block, Bottleneck):
                _fold(block)
        self.cnn[0], self.cnn[1] = fuse_conv_bn_eval(self.cnn[0], self.cnn[1]), nn.Identity()
        std_C = feat_NC.std(0).clamp_min(1e-6)
        weight_KC = torch.randn_like(self.classifier.weight) * (_LOGIT_STD / feat_NC.shape[1] ** 0.5) / std_C
        self.classifier.weight.copy_(weight_KC)
        self.classifier.bias.copy_(-weight_KC @ feat_NC.mean(0))
        return self


def _fold(block: Bottleneck) -> None:
    for number in "123":
        conv, norm = getattr(block, f"conv{number}"), getattr(block, f"bn{number}")
        setattr(block, f"conv{number}", fuse_conv_bn_eval(conv, norm))
        setattr(block, f"bn{number}", nn.Identity())
    if block.downsample is not None:
        block.downsample = nn.Sequential(fuse_conv_bn_eval(*block.downsample))
