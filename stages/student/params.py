"""Section `student` of params.yaml. Light to import: no torch."""

import math
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BeforeValidator,
    Field,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from stages.params import (
    Keep,
    MaxTokens,
    Params,
    Pooling,
    ScratchParams,
    Seed,
    Share,
    TrainingParams,
    WatchedPath,
)

Variant = Literal["linear", "finetune", "pseudo", "distill", "branches", "mblm"]
Trust = Literal["always", "corrected", "right", "probability"]
ZeroShotTexts = Literal["all", "translations", "none"]


def _numbers_by_name(value: Any) -> dict[str, float] | None:
    """Give a mapping from names to finite numbers; None of anything else."""
    if not isinstance(value, dict) or not value:
        return None
    for name, number in value.items():
        plain = isinstance(number, int | float) and not isinstance(number, bool)
        if not (isinstance(name, str) and plain and math.isfinite(number)):
            return None
    return value


def _mixture_weights(value: Any) -> Any:
    numbers = _numbers_by_name(value)
    if value in ("uniform", "dirichlet") or (numbers and min(numbers.values()) >= 0):
        return value
    raise ValueError(
        f"{value!r} is none of uniform, dirichlet, or a mapping from languages to weights of at least 0, "
        "such as {de: 0.5, en: 0.5}"
    )


def _class_weights(value: Any) -> Any:
    numbers = _numbers_by_name(value)
    if value in (None, "balanced") or (numbers and min(numbers.values()) > 0):
        return value
    raise ValueError(
        f"{value!r} is none of null, balanced, or a mapping from classes to weights above 0, "
        "such as {negative: 1, positive: 2.5}"
    )


class VocabularyParams(Params):
    """Section `student.pretrain.vocabulary`: texts that say which pieces of a vocabulary are kept."""

    texts: WatchedPath
    """Glob of files below ``data/``, which DVC watches: a text per line, or tables."""
    columns: Annotated[list[str], Field(min_length=1)] = ["text"]
    """Of tables, those with texts."""


class PretrainParams(Params):
    """Section `student.pretrain`: the multilingual model (MPLM) that the student starts from."""

    base: str
    """Hub id or local folder of an encoder, or ``scratch`` for a small one pre-trained here."""
    revision: str | None = None
    """Branch, tag or commit of a Hub id; null takes the newest, whose commit is then pinned."""
    seed: Seed = 0
    """Of a ``scratch`` encoder, as are the next three: decides its weights and the order of texts."""
    max_tokens: MaxTokens = 128
    """Longer inputs are truncated to this many tokens while it is pre-trained."""
    subword_dropout: Share = 0.0
    """Chance of a split at each character boundary, so that words are seen in varying pieces."""
    pair_share: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Share of the inputs that hold a text and its translation, so that scripts are aligned."""
    pooling: Pooling | None = None
    """What represents a text: the state of its ``first`` token or its ``last``, or the ``mean`` of all, which
    most sentence encoders want; null: as the encoder's family does."""
    layers: PositiveInt | None = None
    """Keep this many layers, the lowest, for a smaller student; null: all."""
    vocabulary: VocabularyParams | None = None
    """Keep only those pieces of the vocabulary that these texts and the task's own use, which makes most
    multilingual encoders several times smaller; null: all. Validation and test texts are not counted."""
    scratch: ScratchParams | None = None
    """The encoder where base is ``scratch``."""

    @model_validator(mode="after")
    def _layers_are_of_what_exists(self) -> Self:
        if self.layers is not None and self.base == "scratch":
            raise ValueError(f"layers is {self.layers}, but base is scratch: set scratch.layers instead")
        if self.vocabulary is not None and self.base == "scratch":
            raise ValueError("base is scratch, whose vocabulary is that of its texts: set vocabulary: null")
        return self


class MixtureParams(Params):
    """Section `student.distill.mixture`: how other branches' views of a text are mixed in training."""

    loss_weight: Annotated[float, Field(ge=0, le=1)] = 0.3
    """λ: share of the mixture's loss in the loss."""
    ramp_share: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Share of the steps in which λ rises, linearly, from 0 to its value; 0: it never is less."""
    weights: Annotated[
        Literal["uniform", "dirichlet"] | dict[str, float], BeforeValidator(_mixture_weights)
    ] = "dirichlet"
    """``uniform`` gives every branch the same weight, ``dirichlet`` draws the weights anew for each text, and
    a mapping fixes them, one per supervised language; they are divided by the sum of those that take part."""
    own_branch: bool = False
    """Whether the text's own branch is in the mixture (w_s > 0)."""
    of: Literal["representations", "logits"] = "representations"
    """What is mixed: the branches' representations, before the classifier, or their logits."""

    @model_validator(mode="after")
    def _something_is_left_to_mix(self) -> Self:
        least = 1 if self.own_branch else 2  # without its own branch, each text needs another one
        if isinstance(self.weights, dict) and sum(w > 0 for w in self.weights.values()) < least:
            raise ValueError(
                f"weights is {self.weights}, but at least {least} of them must be above 0 where own_branch "
                f"is {str(self.own_branch).lower()}"
            )
        return self


class SilverParams(Params):
    """Section `student.distill.silver`: which texts of zero-shot languages teach what their teachers say."""

    least_confidence: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Those teach whose most probable class has at least this probability."""
    most_per_class: PositiveInt | None = None
    """At most this many texts of each language and class teach, the surest first; null: all."""


class DistillParams(TrainingParams):
    """Section `student.distill`."""

    variant: Variant = "mblm"
    """``linear``: hard labels, and only the encoder family's classification head learns. ``finetune``: hard
    labels, no branches. ``pseudo``: the class that the teachers find most probable takes the place of soft
    labels. ``distill``: soft labels. ``branches``: soft labels, one branch per supervised language. ``mblm``:
    branches, and the mixture must reach the soft label as well."""
    epochs: PositiveInt = 3
    """Passes over all texts that teach the student. Variants that learn from labelled ones alone take as many
    steps, so that no variant is trained for longer than another."""
    keep: Keep = "last"
    """Whose weights are kept: the ``last``, or those of the epoch with the ``best`` validation accuracy, on
    average over the supervised languages."""
    init_seed: Seed | None = None
    """Draws the weights of a new classifier, and trains the baseline that a student may `start` as; null:
    `seed` does. Students that are to be averaged begin with the same."""
    runs: PositiveInt = 1
    """How many trainings the student is the mean of. They begin with the same weights and see the examples in
    another order; their seeds run from `seed` times `runs` upwards."""
    average: Annotated[int, Field(ge=1, le=10)] = 1
    """How many of the training's last checkpoints the student is the mean of, of ten, one after each tenth of
    the steps; 1: it is what the last step made."""
    start: Literal["encoder", "baseline"] = "encoder"
    """What the student starts as: the ``encoder``, or the ``baseline``, which is the encoder fine-tuned on
    the hard labels; that is then done first, for as many steps."""
    branch_layers: PositiveInt = 2
    """Depth of a branch: how many of the encoder's top layers each language has for itself."""
    temperature: PositiveFloat = 2.0
    """τ: divides teacher and student logits; 1 leaves them unchanged, larger is softer."""
    hard_label_weight: NonNegativeFloat = 0.0
    """α: weight of the cross-entropy with the hard label, added to the loss of soft labels."""
    trust: Trust = "always"
    """How far soft labels are believed where the hard label is known. ``always``: as they are. ``corrected``:
    a wrong one is, by exchanging the logits of its class and of the right one. ``right``: a wrong one is left
    out, and the hard label takes its place. ``probability``: as far as it believes the hard label, which has
    the rest of the weight."""
    hidden_weight: NonNegativeFloat = 0.0
    """β: weight of the similarity-preserving loss between the hidden states of student and teachers, which
    `teacher.label.hidden` keeps. That loss is small, and smaller in larger batches: its paper takes 3000."""
    average_translations: bool = False
    """Whether training texts that are translations of each other, with the same ``entity``, all have the
    average of the soft labels that the teachers of their languages gave them."""
    sampling_temperature: Annotated[float, Field(ge=1)] = 1.0
    """T: of an epoch's examples, a language with n has a share in proportion to n^(1/T). 1 takes each example
    once; the larger, the more small languages count."""
    class_weights: Annotated[
        Literal["balanced"] | dict[str, float] | None, BeforeValidator(_class_weights)
    ] = None
    """How much an example counts, by its hard label, in every part of the loss. ``balanced`` gives class c of
    C the weight N / (C · n_c), where n_c of the N training examples are of it; null gives all the same."""
    mixture: MixtureParams = MixtureParams()
    zero_shot_texts: ZeroShotTexts = "all"
    """Of the texts of zero-shot languages that `task.zero_shot_texts` admits, ``all`` teach: what a teacher
    says of them or, in languages without one, what their originals say. ``translations``: their originals
    alone, in all these languages. ``none``: of supervised languages alone."""
    silver: SilverParams = SilverParams()
    allow_top_k_error: bool = False
    """Whether soft labels that were cut to `teacher.label.top_k` may be used where that changes the gradient
    or the divergence, at a temperature at which soft labels are averaged, by more than 1 % of what a student
    that knows nothing has to learn."""
    save_steps: PositiveInt = 1000
    """Optimizer steps between checkpoints, from which a killed run goes on; there is one every five minutes
    besides."""

    @model_validator(mode="after")
    def _checkpoints_are_the_last_ones(self) -> Self:
        if self.average > 1 and (self.keep == "best" or self.patience):
            other = "keep: last" if self.keep == "best" else "patience: null"
            raise ValueError(
                f"average is {self.average}, which is of the last checkpoints, however good they are; "
                f"set {other}, or average to 1"
            )
        return self

    @model_validator(mode="after")
    def _states_are_compared_within_a_whole_batch(self) -> Self:
        if self.gradient_accumulation > 1 and self.hidden_weight:
            raise ValueError(
                f"gradient_accumulation is {self.gradient_accumulation}, but hidden_weight compares all "
                "examples of a batch with each other; set gradient_accumulation to 1, or hidden_weight to 0"
            )
        return self


class EvaluateParams(Params):
    """Section `student.evaluate`."""

    batch_size: PositiveInt = 64
    """A forward pass has at most the tokens of so many examples of full length; changes speed and memory
    only."""


class StudentSection(Params):
    """Section `student`."""

    pretrain: PretrainParams
    distill: DistillParams = DistillParams()
    evaluate: EvaluateParams = EvaluateParams()
