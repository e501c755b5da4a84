"""Section `student` of params.yaml. Light to import: no torch."""

from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt

from stages.base import MaxTokens, Params, ScratchParams, Seed, Share, TrainingParams

Variant = Literal["finetune", "distill", "branches", "mblm"]


class PretrainParams(Params):
    """Section `student.pretrain`: the multilingual model (MPLM) that the student starts from."""

    base: str
    """Hub id or local folder of an encoder, or ``scratch`` for a small one pre-trained here."""
    revision: str | None
    """Branch, tag or commit of a Hub id; null takes the newest, whose commit is then pinned."""
    seed: Seed
    max_tokens: MaxTokens
    subword_dropout: Share
    pair_share: Annotated[float, Field(ge=0, le=1)]
    """Share of the inputs that hold a text and its translation, so that scripts are aligned."""
    scratch: ScratchParams | None
    """The encoder where base is ``scratch``."""


class MixtureParams(Params):
    """Section `student.distill.mixture`: how other branches' views of a text are mixed in training."""

    loss_weight: Annotated[float, Field(ge=0, le=1)]
    """λ: share of the mixture's loss in the loss."""
    weights: Literal["uniform", "dirichlet"]
    """``uniform`` gives every branch the same weight, ``dirichlet`` draws the weights anew for each text."""
    own_branch: bool
    """Whether the text's own branch is in the mixture (w_s > 0)."""
    of: Literal["representations", "logits"]
    """What is mixed: the branches' representations, before the classifier, or their logits."""


class DistillParams(TrainingParams):
    """Section `student.distill`."""

    variant: Variant
    """``finetune``: hard labels, no branches. ``distill``: soft labels. ``branches``: soft labels, one branch
    per supervised language. ``mblm``: branches, and the mixture must reach the soft label as well."""
    epochs: PositiveInt
    """Passes over the training splits of all supervised languages."""
    branch_layers: PositiveInt
    """Depth of a branch: how many of the MPLM's top layers each language has for itself."""
    temperature: PositiveFloat
    """τ: divides teacher and student logits; 1 leaves them unchanged, larger is softer."""
    hard_label_weight: NonNegativeFloat
    """α: weight of the cross-entropy with the hard label, added to the loss of soft labels."""
    mixture: MixtureParams
    save_steps: PositiveInt
    """Optimizer steps between checkpoints, from which a killed run goes on."""


class EvaluateParams(Params):
    """Section `student.evaluate`."""

    batch_size: PositiveInt
    """Examples per forward pass; changes speed and memory only."""


class StudentSection(Params):
    """Section `student`."""

    pretrain: PretrainParams
    distill: DistillParams
    evaluate: EvaluateParams
