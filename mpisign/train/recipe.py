"""What is asked of a training: the options of mpisign.train."""

from __future__ import annotations

from dataclasses import dataclass

from ..coding.ties import TIES
from ..methods.table import METHODS
from ..ranks.options import above_0, fraction, natural, not_negative, option, positive
from ..voting.adversary import ADVERSARIES
from ..voting.schedule import SCHEDULES

# Without the ceiling, which lets the replicas drift apart, and without what a checkpoint would lack the state of.
TRAINABLE = tuple(name for name, method in METHODS.items() if method.kind != "ceiling" and not method.keeps_state)
DEFAULT = "vote-alltoall"


@dataclass(frozen=True)
class Recipe:
    """What is asked of a training. The defaults are the paper's (arXiv 1810.05291, section 4)."""

    data: str = option("", "a folder with train/<class>/ and val/<class>/, as ImageNet's", metavar="PATH")
    model: str = option(
        "resnet50", "torchvision's name of a classifier, tiny, or package.module:function of yours", metavar="NAME"
    )
    method: str = option(
        "",
        f"how gradients are exchanged (default: {DEFAULT}, without MPI -nccl or -gloo): {', '.join(TRAINABLE)}",
        choices=TRAINABLE,
        metavar="NAME",
    )
    schedule: str = option("overlap", "when votes are taken: during backward, or after it", choices=SCHEDULES)
    optimizer: str = option("sgd", "a dense method's; a vote is applied by sgd", choices=("sgd", "adamw"))
    epochs: int = option(80, "how often all pictures are seen", type=positive, metavar="N")
    batch_size: int = option(128, "pictures a rank and step", type=positive, metavar="N")
    lr: float | None = option(
        None,
        "learning rate (default: 1e-4 for votes, 1e-3 for adamw; for dense sgd 0.1 * the pictures of all ranks in a "
        "step / 256)",
        type=not_negative,
        metavar="RATE",
    )
    warmup_epochs: float = option(5.0, "epochs over which the rate rises from 0", type=not_negative, metavar="N")
    lr_schedule: str = option(
        "step", "how the rate falls after warm-up; cosine: to 0 at the end", choices=("step", "cosine")
    )
    lr_step: float = option(30.0, "epochs until the rate is divided by 10, and again", type=not_negative, metavar="N")
    momentum: float = option(
        0.9, "each worker's own, before the sign (0: signSGD); a dense optimizer's", type=fraction, metavar="BETA"
    )
    weight_decay: float = option(
        1e-4,
        "a step takes rate * this of each weight, decoupled from the sign, and from adamw's gradient; dense sgd adds "
        "this * weight to the gradient, before the momentum",
        type=not_negative,
        metavar="RATE",
    )
    tie: str = option("positive", "who wins where the votes are even: +1, a seeded coin, or nobody", choices=TIES)
    precision: str = option("fp32", "of forward and backward; bf16 is torch's autocast", choices=("fp32", "bf16"))
    image_size: int = option(224, "height and width of the pictures", type=positive, metavar="N")
    workers: int = option(4, "processes a rank that load pictures; 0: none", type=natural, metavar="N")
    broken: str = option("stop", "what to do about a picture that can't be decoded", choices=("stop", "skip"))
    bucket_mb: float | None = option(
        None, "DistributedDataParallel's bucket size (default: its own sizes)", type=above_0, metavar="MB"
    )
    adversaries: int = option(0, "how many ranks are traitors", type=natural, metavar="N")
    adversary: str = option("invert", "what a traitor sends", choices=tuple(ADVERSARIES))
    share_gpus: bool = option(False, "let ranks share CUDA devices, to try it out")
    seed: int = option(0, "of weights, order, augmentation, coins and traitors", type=natural, metavar="N")
    output: str = option("", "the folder of log and checkpoints (default: a new one in runs/)", metavar="FOLDER")
    quiet: bool = option(False, "say nothing on stderr but warnings and errors")
    tensorboard: bool = option(False, "write TensorBoard's events into that folder, too")
    checkpoint_every: int = option(1, "epochs between checkpoints", type=positive, metavar="N")
    keep: int = option(3, "how many checkpoints are kept", type=positive, metavar="N")
    weights: str = option(
        "",
        "begin with these: a state_dict as torchvision's, best.pt, or a checkpoint's model.pt",
        metavar="FILE",
    )
    evaluate: bool = option(False, "only evaluate --weights, or what --resume would go on from, on val/")
    resume: bool = option(False, "go on from the newest checkpoint in --output, or begin if there is none")

    @property
    def votes(self) -> bool:
        """Whether gradients are exchanged by a vote."""
        return METHODS[self.method or DEFAULT].kind == "vote"
