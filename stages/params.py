"""How a section of params.yaml is declared, and what several sections have in common.

Defaults are those for real encoders. They never change while a major version lasts: docs/store.md.
"""

from pathlib import PurePosixPath
from typing import Annotated, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    model_validator,
)


def _is_watched(path: str) -> str:
    """Refuse a path whose changes DVC would not see."""
    if not path.startswith("data/") or ".." in PurePosixPath(path).parts:
        raise ValueError(
            f"{path} must begin with data/, which DVC watches, and stay in it; link your files there"
        )
    return path


WatchedPath = Annotated[str, AfterValidator(_is_watched)]
Share = Annotated[float, Field(ge=0, lt=1)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
MaxTokens = Annotated[int, Field(ge=4)]
Precision = Literal["float32", "bfloat16"]
Keep = Literal["last", "best"]
Reporter = Literal["dvclive", "tensorboard", "wandb"]
Pooling = Literal["first", "mean", "last"]


class Params(BaseModel):
    """A section of params.yaml: no unknown keys, no silent conversions, no changes after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class TrainingParams(Params):
    """What every training has. AdamW; linear warm-up, then linear decay to 0."""

    seed: Seed = 0
    """Decides initial weights, dropout, the order of examples and the splitting of words."""
    batch_size: PositiveInt = 32
    """Examples per optimizer step, over all processes together."""
    learning_rate: PositiveFloat = 2e-5
    """Highest learning rate, reached at the end of the warm-up."""
    warmup_share: Share = 0.1
    """Share of the steps that the warm-up takes."""
    weight_decay: NonNegativeFloat = 0.01
    """AdamW's decoupled weight decay."""
    max_tokens: MaxTokens = 128
    """Longer inputs are truncated to this many tokens, special tokens included."""
    subword_dropout: Share = 0.0
    """Chance of a split at each character boundary while training, so that words are seen in varying pieces;
    only for tokenizers that were built here from scratch."""
    precision: Precision = "float32"
    """``bfloat16`` runs matrix products in bfloat16 (autocast); weights stay in float32."""
    gradient_accumulation: PositiveInt = 1
    """Pieces in which a batch goes through the model, one after the other, where its memory is too small; the
    loss is that of the whole batch."""
    gradient_checkpointing: bool = False
    """Whether layers are computed again for their gradients: less memory for a third more time."""
    max_grad_norm: PositiveFloat = 1.0
    """Gradients longer than this are shortened to it."""
    freeze: PositiveInt | Literal["embeddings"] | None = None
    """What stays as it is: ``embeddings``, those of the words; a number n: all embeddings and the lowest n
    layers; null: nothing."""
    head_learning_rate: PositiveFloat | None = None
    """Highest learning rate of the classifier, which is new where the encoder is not; null: that of all."""
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Each layer's learning rate is this share of that of the layer above."""
    report_to: Annotated[list[Reporter], Field(exclude=True)] = []  # no result depends on it
    """Which tools the curves are written for while it runs; docs/training.md says where to."""
    patience: PositiveInt | None = None
    """Epochs without a better validation accuracy after which the training ends; null: it goes on."""


class ScratchParams(Params):
    """A small encoder that is built from scratch, with a byte-pair tokenizer."""

    architecture: Literal["roberta", "modernbert"] = "roberta"
    """``roberta`` reads a text's class off its first token; ``modernbert`` off the mean of all, which small
    encoders with little pre-training learn sooner."""
    layers: PositiveInt = 4
    """Transformer layers."""
    hidden: PositiveInt = 128
    """Width of a layer; feed-forward layers have eight times its square in weights."""
    heads: PositiveInt = 4
    """Attention heads; `hidden` must be a multiple."""
    merges: PositiveInt = 2000
    """Byte-pair merges; the vocabulary is every character of the training text and this many merges."""
    dropout: Share = 0.1
    """Of embeddings and layers; with ``roberta``, of attention too."""
    mlm_steps: Annotated[int, Field(ge=0)] = 1000
    """Optimizer steps of masked language modelling before anything else."""
    mlm_batch_size: PositiveInt = 64
    """Texts per step of it."""
    mlm_learning_rate: PositiveFloat = 1e-3
    """Highest learning rate of it."""
    mlm_share: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Share of the tokens that are to be predicted."""

    @model_validator(mode="after")
    def _heads_divide_hidden(self) -> Self:
        if self.hidden % self.heads:
            raise ValueError(f"hidden is {self.hidden}, which is no multiple of heads, {self.heads}")
        return self
