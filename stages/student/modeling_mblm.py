"""The student: one trunk, one branch of transformer layers per language, one classifier that reads them all.

Built from any encoder whose layers are a ModuleList. Each of its top layers is replaced by `BranchedLayer`,
which holds one copy per branch; the family's own forward, with its masks and positions, stays untouched.
Where the first of them is reached, the batch of B examples becomes a batch of P pairs (example, branch), of
only those pairs that somebody asked for, sorted by branch. Axes: B batch, T tokens, H hidden, K branches,
C classes, P pairs.

Imports only torch, transformers and its configuration, so that an exported model stands alone.
"""

from collections.abc import Sequence
from contextvars import ContextVar
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.modeling_outputs import SequenceClassifierOutput

from .configuration_mblm import MBLMConfig


@dataclass(frozen=True)
class _Family:
    """Foreign names: where an encoder family keeps its layers, and which modules make up its classifier."""

    layers: str
    """Path from the base model to the ModuleList of its layers."""
    first_token: str | None
    """The classifier's module that picks the first token itself, and so wants the shape ``(B, T, H)``."""
    then: tuple[str, ...]
    """The classifier's other modules in their order."""
    mean_pooling: str | None = None
    """Configuration key that may hold ``mean`` instead of ``cls``."""


_ROBERTA = _Family("encoder.layer", "classifier", ())
_FAMILIES = {
    "bert": _Family("encoder.layer", "pooler", ("dropout", "classifier")),
    "camembert": _ROBERTA,
    "deberta-v2": _Family("encoder.layer", "pooler", ("dropout", "classifier")),
    "distilbert": _Family("transformer.layer", None, ("pre_classifier", "relu", "dropout", "classifier")),
    "electra": _ROBERTA,
    "modernbert": _Family("layers", None, ("head", "drop", "classifier"), "classifier_pooling"),
    "roberta": _ROBERTA,
    "xlm-roberta": _ROBERTA,
}


@dataclass
class MBLMOutput(SequenceClassifierOutput):
    """What the student says of B examples.

    Attributes:
        loss: Cross-entropy of `logits` with the labels, where labels were given.
        logits: By each example's own branch, or by the mixture of all where it has none; ``(B, C)``.
        mixture_logits: By the mixture that was asked for, ``(B, C)``.
        branch_states: Pooled representations, ``(B, K, H)``; zero where nobody asked for a pair.
    """

    mixture_logits: Tensor | None = None
    branch_states: Tensor | None = None


@dataclass(frozen=True)
class _Routing:
    """Which pairs (example, branch) a forward pass computes, sorted by branch."""

    n_examples: int
    examples: Tensor
    """The pairs' examples, int64, shape ``(P,)``."""
    branches: Tensor
    """The pairs' branches, int64, shape ``(P,)``."""
    counts: list[int]
    """Pairs of each branch."""
    is_identity: bool
    """Whether pair i is example i, so that nothing needs to be copied."""
    _expanded: dict[int, Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, wanted: Tensor) -> Self:
        """Collect the pairs that are wanted, bool ``(B, K)``."""
        branches, examples = wanted.T.nonzero(as_tuple=True)
        counts = torch.bincount(branches, minlength=wanted.shape[1]).tolist()
        n_examples = wanted.shape[0]
        identity = max(counts) == n_examples == len(examples)
        return cls(n_examples, examples, branches, counts, identity)

    def gather(self, hidden_states: Tensor) -> Tensor:
        """Repeat hidden states for the pairs, ``(B, T, H)`` to ``(P, T, H)``.

        Branch by branch: no branch has an example twice, so each gradient is a sum in a fixed order. A single
        index with repetitions would add them up in parallel, in an order that changes from run to run.
        """
        parts = (part for part in self.examples.split(self.counts) if len(part))
        return torch.cat(
            [hidden_states if len(part) == self.n_examples else hidden_states[part] for part in parts]
        )

    def expand(self, value: Any) -> Any:
        """Repeat what a layer gets besides hidden states, such as masks, for the pairs.

        Args:
            value: Tensors whose first axis is B get the axis P; tuples and lists are searched for them.
        """
        if self.is_identity:
            return value
        if isinstance(value, tuple | list):
            return type(value)(self.expand(part) for part in value)
        # A float matrix is no mask: DeBERTa's table of relative positions may have B rows by chance.
        per_example = (
            isinstance(value, Tensor)
            and value.ndim >= 2
            and value.shape[0] == self.n_examples
            and not (value.ndim == 2 and value.is_floating_point())
        )
        if not per_example:
            return value
        if id(value) not in self._expanded:  # the layers of a branch share their masks
            self._expanded[id(value)] = value[self.examples]
        return self._expanded[id(value)]

    def slice(self, value: Any, rows: slice) -> Any:
        """Cut the rows of one branch out of an expanded value."""
        if isinstance(value, tuple | list):
            return type(value)(self.slice(part, rows) for part in value)
        if isinstance(value, Tensor) and value.ndim >= 2 and value.shape[0] == len(self.examples):
            return value if value.ndim == 2 and value.is_floating_point() else value[rows]
        return value


# Set around the encoder's forward. A context variable is safe with threads, and the families' own forward,
# which lies between, need not know of it.
_ROUTING: ContextVar[_Routing] = ContextVar("routing")


class BranchedLayer(nn.ModuleList):
    """One transformer layer, once per branch, in the place of the original layer."""

    def __init__(self, layers: Sequence[nn.Module], *, is_first: bool) -> None:
        super().__init__(layers)
        self.is_first = is_first

    def __getattr__(self, name: str) -> Any:
        # ModernBERT reads its layers' attention_type.
        try:
            return super().__getattr__(name)
        except AttributeError:
            if "0" not in self._modules:
                raise
            return getattr(self._modules["0"], name)

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Run each branch on its pairs.

        Args:
            hidden_states: ``(B, T, H)`` in the first branched layer, ``(P, T, H)`` in those above it.
            args: What the family's encoder passes on, per example.
            kwargs: Likewise.

        Returns:
            What the family's layer returns, with P as its first axis.
        """
        routing = _ROUTING.get()
        if self.is_first and not routing.is_identity:
            hidden_states = routing.gather(hidden_states)
        args, kwargs = routing.expand(args), {k: routing.expand(v) for k, v in kwargs.items()}
        outputs = []
        start = 0
        for layer, count in zip(self, routing.counts, strict=True):
            if count == len(routing.examples):
                return layer(hidden_states, *args, **kwargs)
            if count:
                rows = slice(start, start + count)
                part = {name: routing.slice(value, rows) for name, value in kwargs.items()}
                outputs.append(layer(hidden_states[rows], *routing.slice(args, rows), **part))
            start += count
        if isinstance(outputs[0], Tensor):
            return torch.cat(outputs)
        # DeBERTa's layers return (hidden states, attention or None).
        return tuple(None if parts[0] is None else torch.cat(parts) for parts in zip(*outputs, strict=True))


class _Head(nn.Module):
    """The family's own classifier, from pooled representations ``(…, H)`` to logits ``(…, C)``."""

    def __init__(self, family: _Family, classifier: PreTrainedModel) -> None:
        """Take the modules out of a classifier; its base model is then without them."""
        super().__init__()
        self._first_token = family.first_token
        self._then = family.then
        if family.first_token is not None:
            owner = classifier if hasattr(classifier, family.first_token) else classifier.base_model
            self.add_module(family.first_token, getattr(owner, family.first_token))
            setattr(owner, family.first_token, None)  # BERT's base model would run its pooler, too
        for name in family.then:
            self.add_module(name, nn.ReLU() if name == "relu" else getattr(classifier, name))

    def forward(self, pooled: Tensor) -> Tensor:
        if self._first_token is not None:
            first_tokens = pooled.reshape(-1, 1, pooled.shape[-1])
            states = self.get_submodule(self._first_token)(first_tokens)
            pooled = states.reshape(*pooled.shape[:-1], states.shape[-1])
        for name in self._then:
            pooled = self.get_submodule(name)(pooled)
        return pooled


class MBLMPreTrainedModel(PreTrainedModel):
    """Ties the student to its configuration."""

    config_class = MBLMConfig
    base_model_prefix = "mblm"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_attention_backend = True


class MBLMForSequenceClassification(MBLMPreTrainedModel):
    """Text classifier with a trunk, K branches and one classifier.

    A text of a supervised language goes through its language's branch and costs what the plain encoder costs;
    any other text goes through all branches, and their representations are averaged.
    """

    def __init__(self, config: MBLMConfig) -> None:
        super().__init__(config)
        family = _family(config.mplm_config)
        mplm_config = deepcopy(config.mplm_config)
        assert config.num_labels is not None  # transformers gives every configuration two
        mplm_config.num_labels = config.num_labels
        mplm_config.dtype = None  # that of the student, not that in which the encoder was saved
        # sdpa is the default of the families that have it, and DeBERTa does not.
        attention = config._attn_implementation
        classifier = AutoModelForSequenceClassification.from_config(
            mplm_config, attn_implementation=None if attention == "sdpa" else attention
        )
        self.head = _Head(family, classifier)
        self.encoder = classifier.base_model
        self._mean_pooling = family.mean_pooling is not None and (
            getattr(mplm_config, family.mean_pooling) == "mean"
        )
        layers = self.encoder.get_submodule(family.layers)
        n_trunk = len(layers) - config.branch_layers
        for index in range(n_trunk, len(layers)):
            copies = [deepcopy(layers[index]) for _ in range(config.n_branches)]
            layers[index] = BranchedLayer(copies, is_first=index == n_trunk)
        self.post_init()

    @classmethod
    def from_mplm(cls, folder: str | Path, **config: Any) -> Self:
        """Make a student of a pre-trained encoder: each branch starts as a copy of its top layers.

        Args:
            folder: A Hugging Face encoder, with or without a classifier.
            config: Attributes of `MBLMConfig`, and ``id2label``.

        Raises:
            ValueError: The encoder's family is not one of those that fit, or it lacks weights.
        """
        mplm_config = AutoConfig.from_pretrained(folder)
        family = _family(mplm_config)
        config["id2label"] = id2label = dict(config.get("id2label") or {0: "LABEL_0", 1: "LABEL_1"})
        config["label2id"] = {name: index for index, name in id2label.items()}
        pretrained, loading = AutoModelForSequenceClassification.from_pretrained(
            folder,
            dtype=torch.float32,
            num_labels=len(id2label),
            ignore_mismatched_sizes=True,  # a classifier for another task is replaced
            output_loading_info=True,
        )
        unfit = {*loading["missing_keys"], *(key for key, *_ in loading["mismatched_keys"])}
        unfit = {key for key in unfit if key.startswith(f"{pretrained.base_model_prefix}.")}
        if any(".pooler." not in key for key in unfit):
            raise ValueError(f"{folder} has no fitting weights for {', '.join(sorted(unfit))}")
        student = cls(MBLMConfig(mplm_config=mplm_config, **config))
        student.head.load_state_dict(_Head(family, pretrained).state_dict())
        weights = pretrained.base_model.state_dict()
        prefix = f"{family.layers}."
        n_trunk = mplm_config.num_hidden_layers - student.config.branch_layers
        for name in [name for name in weights if name.startswith(prefix)]:
            index, _, rest = name.removeprefix(prefix).partition(".")
            if int(index) >= n_trunk:
                tensor = weights.pop(name)
                for branch in range(student.config.n_branches):
                    weights[f"{prefix}{index}.{branch}.{rest}"] = tensor
        student.encoder.load_state_dict(weights)
        return student

    def get_input_embeddings(self) -> nn.Module:
        """Give the encoder's token embeddings."""
        return self.encoder.get_input_embeddings()  # type: ignore[no-any-return]

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the encoder's token embeddings."""
        self.encoder.set_input_embeddings(value)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        language_ids: Tensor | None = None,
        mixture_weights: Tensor | None = None,
        labels: Tensor | None = None,
        **kwargs: Any,
    ) -> MBLMOutput:
        """Classify B texts.

        Args:
            input_ids: Token ids, ``(B, T)``.
            attention_mask: 1 for tokens, 0 for padding, ``(B, T)``.
            language_ids: Position of each text's language in ``config.languages``, or -1 for the mixture of
                all branches; int64, ``(B,)``. None stands for -1 everywhere.
            mixture_weights: Weights of a mixture whose logits are wanted besides, float ``(B, K)``.
            labels: Classes, int64, ``(B,)``.
            kwargs: What the encoder's family takes besides, such as ``token_type_ids`` or ``inputs_embeds``.
        """
        first = input_ids if input_ids is not None else kwargs["inputs_embeds"]
        own_weights = self._own_weights(language_ids, first.shape[0], first.device)
        wanted = own_weights > 0
        if mixture_weights is not None:
            wanted = wanted | (mixture_weights > 0)
        routing = _Routing.of(wanted)
        token = _ROUTING.set(routing)
        try:
            states = self.encoder(
                input_ids=input_ids, attention_mask=attention_mask, return_dict=True, **kwargs
            ).last_hidden_state
        finally:
            _ROUTING.reset(token)
        pooled = self._pool(states, routing.expand(attention_mask))
        branch_states = pooled.new_zeros(*wanted.shape, pooled.shape[-1])
        branch_states = branch_states.index_put((routing.examples, routing.branches), pooled)
        logits = self.classify(branch_states, own_weights)
        return MBLMOutput(
            loss=None if labels is None else nn.functional.cross_entropy(logits, labels),
            logits=logits,
            mixture_logits=(
                None if mixture_weights is None else self.classify(branch_states, mixture_weights)
            ),
            branch_states=branch_states,
        )

    def classify(self, branch_states: Tensor, weights: Tensor) -> Tensor:
        """Classify mixtures of the branches' views.

        Args:
            branch_states: Pooled representations, ``(B, K, H)``.
            weights: On the simplex, ``(B, K)``; one-hot stands for a single branch.

        Returns:
            Raw logits, ``(B, C)``.
        """
        weights = weights.to(branch_states.dtype).unsqueeze(-1)
        if self.config.mixing == "logits":
            mixed: Tensor = (weights * self.head(branch_states)).sum(dim=1)
            return mixed
        logits: Tensor = self.head((weights * branch_states).sum(dim=1))
        return logits

    def _own_weights(self, language_ids: Tensor | None, n: int, device: torch.device) -> Tensor:
        """One-hot at each text's own branch, uniform where it has none; ``(B, K)``."""
        n_branches = self.config.n_branches
        mixture = torch.full((n, n_branches), 1 / n_branches, device=device)
        if language_ids is None or n_branches == 1:
            return mixture
        own = nn.functional.one_hot(language_ids.clamp(min=0), n_branches).to(mixture.dtype)
        return torch.where((language_ids >= 0).unsqueeze(1), own, mixture)

    def _pool(self, states: Tensor, attention_mask: Tensor | None) -> Tensor:
        """Reduce ``(P, T, H)`` to ``(P, H)`` as the family does."""
        if not self._mean_pooling:
            return states[:, 0]
        if attention_mask is None:
            return states.mean(dim=1)
        mask = attention_mask.unsqueeze(-1).to(states.dtype)
        return (states * mask).sum(dim=1) / mask.sum(dim=1)


def _family(config: PreTrainedConfig) -> _Family:
    if config.model_type not in _FAMILIES:
        known = ", ".join(sorted(_FAMILIES))
        raise ValueError(f"no student can be made of a {config.model_type} model; of these: {known}")
    return _FAMILIES[config.model_type]


AutoConfig.register("mblm", MBLMConfig, exist_ok=True)
AutoModelForSequenceClassification.register(MBLMConfig, MBLMForSequenceClassification, exist_ok=True)
MBLMForSequenceClassification.register_for_auto_class("AutoModelForSequenceClassification")
