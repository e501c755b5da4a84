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
from inspect import signature
from pathlib import Path
from typing import Any, NamedTuple, Self, Unpack

import torch
from torch import Tensor, nn
from transformers import (
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    AutoConfig,
    AutoModel,
    AutoModelForSequenceClassification,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.modeling_outputs import BaseModelOutputWithPooling, SequenceClassifierOutput
from transformers.utils.generic import TransformersKwargs, can_return_tuple

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
    pooling: str | None = None
    """Configuration key that may hold ``mean`` instead of ``cls``."""

    def pools(self, config: PreTrainedConfig) -> str:
        """Say what represents a text in a plain model: its ``first`` token or the ``mean``."""
        return "mean" if self.pooling and getattr(config, self.pooling) == "mean" else "first"


_ROBERTA = _Family("encoder.layer", "classifier", ())
FAMILIES = {
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
class MBLMModelOutput(BaseModelOutputWithPooling):
    """What the student without its classifier sees in B texts.

    Where a text goes through several branches, everything but `branch_states` is the mean of what they see,
    weighted like their representations: so there is one hidden state per layer, as in any encoder.

    Attributes:
        branch_states: Pooled representations, ``(B, K, H)``; zero where nobody asked for a pair.
        branch_weights: How much of each branch is in the other outputs, ``(B, K)``.
        mixture_weights: Those that were given, as a tensor.
    """

    branch_states: Tensor | None = None
    branch_weights: Tensor | None = None
    mixture_weights: Tensor | None = None


@dataclass
class MBLMOutput(SequenceClassifierOutput):
    """What the student says of B texts.

    Attributes:
        loss: Of `logits` against the labels, where labels were given.
        logits: By each text's own branch, or by the mixture of all where it has none; ``(B, C)``.
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
    entry: list[Tensor] = field(default_factory=list)
    """What came into the first branched layer, ``(B, T, H)``."""
    _expanded: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    """By a value's id: the value, kept alive so that no other can have its id, and its repetition."""

    @classmethod
    def of(cls, wanted: Tensor) -> Self:
        """Collect the pairs that are wanted, bool ``(B, K)``."""
        branches, examples = wanted.T.nonzero(as_tuple=True)
        counts = torch.bincount(branches, minlength=wanted.shape[1]).tolist()
        n_examples = wanted.shape[0]
        identity = max(counts) == n_examples == len(examples)
        return cls(n_examples, examples, branches, counts, identity)

    @classmethod
    def alone(cls, branch: int, n_examples: int, n_branches: int, device: torch.device) -> Self:
        """Send all examples through one branch; no value of a tensor is looked at, so this can be traced."""
        examples = torch.arange(n_examples, device=device)
        counts = [n_examples if index == branch else 0 for index in range(n_branches)]
        return cls(n_examples, examples, torch.full_like(examples, branch), counts, is_identity=True)

    @classmethod
    def everywhere(cls, n_examples: int, n_branches: int, device: torch.device) -> Self:
        """Send all examples through all branches; no value of a tensor is looked at."""
        examples = torch.arange(n_examples, device=device).repeat(n_branches)
        # Not repeat_interleave: torch exports it to ONNX wrongly.
        branches = torch.arange(n_branches, device=device).unsqueeze(1).expand(-1, n_examples).flatten()
        return cls(n_examples, examples, branches, [n_examples] * n_branches, is_identity=n_branches == 1)

    def gather(self, hidden_states: Tensor) -> Tensor:
        """Repeat hidden states for the pairs, ``(B, T, H)`` to ``(P, T, H)``.

        Branch by branch: no branch has an example twice, so each gradient is a sum in a fixed order. A single
        index with repetitions would add them up in parallel, in an order that changes from run to run.
        """
        parts = zip(self.counts, self.examples.split(self.counts), strict=True)
        return torch.cat(
            [
                hidden_states if count == self.n_examples else hidden_states[part]
                for count, part in parts
                if count
            ]
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
        for seen, expanded in self._expanded:  # the layers of a branch share their masks
            if seen is value:
                return expanded
        self._expanded.append((value, value[self.examples]))
        return self._expanded[-1][1]

    def slice(self, value: Any, rows: slice) -> Any:
        """Cut the rows of one branch out of an expanded value."""
        if isinstance(value, tuple | list):
            return type(value)(self.slice(part, rows) for part in value)
        if isinstance(value, Tensor) and value.ndim >= 2 and value.shape[0] == self.examples.shape[0]:
            return value if value.ndim == 2 and value.is_floating_point() else value[rows]
        return value

    def merge(self, value: Tensor, weights: Tensor) -> Tensor:
        """Average over each example's branches, ``(P, …)`` to ``(B, …)``, with weights ``(B, K)``.

        Branch by branch, for the reason given at `gather`.
        """
        if self.is_identity:
            return value
        merged = value.new_zeros(self.n_examples, *value.shape[1:])
        start = 0
        for branch, count in enumerate(self.counts):
            if count:
                rows = slice(start, start + count)
                examples = self.examples[rows]
                share = weights[examples, branch].to(value.dtype).reshape(-1, *[1] * (value.ndim - 1))
                merged = merged.index_add(0, examples, share * value[rows])
            start += count
        return merged


class _CurrentRouting:
    """The routing of the forward pass that is going on.

    The families' own forward lies between those who set it and those who read it, and knows nothing of it. A
    context variable is safe with threads; torch.compile cannot trace it, and traces a plain attribute.
    """

    def __init__(self) -> None:
        self._variable: ContextVar[_Routing | None] = ContextVar("routing", default=None)
        self._traced: _Routing | None = None

    def get(self) -> _Routing | None:
        """Give it; None where no pass is going on."""
        return self._traced if torch.compiler.is_dynamo_compiling() else self._variable.get()

    def set(self, routing: _Routing | None) -> None:
        """Replace it; who does so puts back what was there."""
        if torch.compiler.is_dynamo_compiling():
            self._traced = routing
        else:
            self._variable.set(routing)


_ROUTING = _CurrentRouting()


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
        assert routing is not None
        if self.is_first:
            routing.entry[:] = [hidden_states]
            if not routing.is_identity:
                hidden_states = routing.gather(hidden_states)
        args, kwargs = routing.expand(args), {k: routing.expand(v) for k, v in kwargs.items()}
        outputs = []
        start = 0
        for layer, count in zip(self, routing.counts, strict=True):
            if count == routing.examples.shape[0]:  # len() would be a constant in an export
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


class _ClassificationHead(nn.Module):
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

    def give_back(self, classifier: PreTrainedModel) -> None:
        """Put the modules into a classifier from whose like they were taken."""
        for name, module in self.named_children():
            is_of_base = name == self._first_token and not hasattr(classifier, name)
            setattr(classifier.base_model if is_of_base else classifier, name, module)

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

    config: MBLMConfig
    config_class = MBLMConfig
    base_model_prefix = "mblm"
    supports_gradient_checkpointing = True
    _supports_attention_backend = True
    _no_split_modules = {"BranchedLayer"}  # noqa: RUF012 - as transformers declares it

    @property
    def _supports_sdpa(self) -> bool:  # type: ignore[override]  # not writeable
        return self._supported("_supports_sdpa")

    @property
    def _supports_flash_attn(self) -> bool:  # type: ignore[override]  # not writeable
        return self._supported("_supports_flash_attn")

    @property
    def _supports_flex_attn(self) -> bool:  # type: ignore[override]  # not writeable
        return self._supported("_supports_flex_attn")

    def _supported(self, name: str) -> bool:
        """Say of a way to compute attention what the encoder's family says."""
        plain = MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING[type(self.config.mplm_config)]
        return bool(getattr(plain, name, False))

    def set_default_language(self, language: str | None) -> None:
        """Choose the branch of texts that come without a language id; None chooses the mixture of all.

        Args:
            language: Such as ``de``, or ``de-AT``, for which ``de`` serves. One without a branch is served by
                the mixture.
        """
        self.config.default_language = language


class MBLMModel(MBLMPreTrainedModel):
    """The student without its classifier: a trunk and K branches."""

    encoder: Any  # of any family

    def __init__(self, config: MBLMConfig, encoder: Any = None) -> None:
        """Build it.

        Args:
            config: Its configuration.
            encoder: One of the family, to be taken over; None makes a new one.
        """
        super().__init__(config)
        family = _family(config.mplm_config)
        self.encoder = encoder or _new_classifier(config).base_model
        if encoder is None and family.first_token is not None:
            setattr(self.encoder, family.first_token, None)  # BERT's pooler belongs to the classifier
        self.pooling = config.pooling or family.pools(config.mplm_config)
        # What the encoder's forward names, of what all students name.
        self._optional = set(signature(self.encoder.forward).parameters)
        layers = self.encoder.get_submodule(family.layers)
        self._n_trunk = len(layers) - config.branch_layers
        if self._n_trunk == 0 and getattr(config.mplm_config, "conv_kernel_size", None):
            raise ValueError(
                "this DeBERTa has a convolution beside its first layer, which cannot be part of a branch; "
                f"branch_layers must be below {len(layers)}"
            )
        for index in range(self._n_trunk, len(layers)):
            # The configuration is shared, as among the trunk's layers: set_attn_implementation changes it.
            memo = {id(self.encoder.config): self.encoder.config}
            copies = [deepcopy(layers[index], dict(memo)) for _ in range(config.n_branches)]
            layers[index] = BranchedLayer(copies, is_first=index == self._n_trunk)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """Give the encoder's token embeddings."""
        return self.encoder.get_input_embeddings()  # type: ignore[no-any-return]

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the encoder's token embeddings."""
        self.encoder.set_input_embeddings(value)

    @can_return_tuple  # type: ignore[untyped-decorator]  # transformers has untyped functions
    def forward(  # type: ignore[misc]  # TransformersKwargs names position_ids as well
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        language_ids: Tensor | Sequence[int] | int | None = None,
        mixture_weights: Tensor | Sequence[Sequence[float]] | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> MBLMModelOutput:
        """Look at B texts.

        Args:
            input_ids: Token ids, ``(B, T)``.
            attention_mask: 1 for tokens, 0 for padding, ``(B, T)``.
            language_ids: Position of each text's language in ``config.languages``, or -1 for the mixture of
                all branches; integers, ``(B,)``, or one for all. None stands for ``config.default_language``.
            mixture_weights: Weights of branches that are wanted besides, float ``(B, K)``; rows on the
                simplex.
            token_type_ids: Segments, ``(B, T)``; families that have none leave them unread, as the Trainer
                leaves them out for a plain model.
            position_ids: Positions, ``(B, T)`` or ``(1, T)``; likewise.
            inputs_embeds: Embeddings in place of `input_ids`, ``(B, T, H)``.
            kwargs: What the encoder's family takes besides, and what is to be returned.

        Raises:
            ValueError: There is no input, or language ids or weights are none.
        """
        first = input_ids if input_ids is not None else inputs_embeds
        if first is None:
            raise ValueError("give input_ids or inputs_embeds")
        optional = {
            "token_type_ids": token_type_ids,
            "position_ids": position_ids,
            "inputs_embeds": inputs_embeds,
        }
        passed: dict[str, Any] = {
            **kwargs,
            **{k: value for k, value in optional.items() if value is not None and k in self._optional},
        }
        n, device = first.shape[0], first.device
        chosen = None if language_ids is None else self._checked_ids(language_ids, n, device)
        mixture = None if mixture_weights is None else self._checked_weights(mixture_weights, n, device)
        weights = self._own_weights(chosen, n, device)
        routing = self._route(chosen, weights, mixture)
        for name in ("output_hidden_states", "output_attentions"):  # the encoder reads its own configuration
            if passed.get(name) is None and getattr(self.config, name, None):
                passed[name] = True
        selected = passed.get("output_hidden_states")
        if selected is not None and not isinstance(selected, bool):  # numbers: a branched layer has several
            passed["output_hidden_states"] = bool(selected)
        outer = _ROUTING.get()  # of a student in whose forward pass this one runs
        _ROUTING.set(routing)
        try:
            seen = self.encoder(
                input_ids=input_ids, attention_mask=attention_mask, return_dict=True, **passed
            )
        finally:
            _ROUTING.set(outer)
        states = seen.last_hidden_state
        pooled = self._pool(
            states,
            attention_mask
            if attention_mask is None or routing.is_identity
            else attention_mask[routing.examples],
        )
        branch_states = pooled.new_zeros(*weights.shape, pooled.shape[-1])
        branch_states = branch_states.index_put((routing.examples, routing.branches), pooled)
        return MBLMModelOutput(
            last_hidden_state=routing.merge(states, weights),
            pooler_output=_mix(branch_states, weights),
            hidden_states=_selected(  # type: ignore[arg-type]  # transformers has None there, too
                self._merge_layers(seen.hidden_states, states, routing, weights), selected
            ),
            attentions=self._merge_layers(seen.attentions, None, routing, weights),
            branch_states=branch_states,
            branch_weights=weights,
            mixture_weights=mixture,
        )

    def _own_weights(self, language_ids: Tensor | None, n: int, device: torch.device) -> Tensor:
        """One-hot at each text's own branch, uniform where it has none; ``(B, K)``."""
        n_branches = self.config.n_branches
        mixture = torch.full((n, n_branches), 1 / n_branches, device=device)
        if n_branches == 1:
            return mixture
        if language_ids is None:
            default = self._default_branch()
            return (
                mixture
                if default < 0
                else mixture.zero_().index_fill(1, mixture.new_tensor([default]).long(), 1)
            )
        own = nn.functional.one_hot(language_ids.clamp(min=0), n_branches).to(mixture.dtype)
        return torch.where((language_ids >= 0).unsqueeze(1), own, mixture)

    def _checked_ids(
        self, language_ids: Tensor | Sequence[int] | int, n: int, device: torch.device
    ) -> Tensor:
        """Give language ids as int64, ``(B,)``."""
        given = torch.as_tensor(language_ids, device=device)
        if given.is_floating_point() or given.is_complex() or given.dtype == torch.bool:
            raise ValueError(f"language_ids are {given.dtype}, not integers")
        ids = given.long().expand(n) if given.ndim == 0 else given.long()
        if ids.shape != (n,):
            raise ValueError(f"language_ids has shape {tuple(ids.shape)} for {n} texts")
        n_branches = self.config.n_branches
        allowed = range(-1, n_branches if n_branches > 1 else max(1, len(self.config.languages)))
        if n and not torch.compiler.is_compiling():
            lowest, highest = int(ids.min()), int(ids.max())
            if lowest not in allowed or highest not in allowed:
                raise ValueError(
                    f"language_ids has {lowest} to {highest}; these are positions in config.languages, "
                    f"{self.config.languages}, or -1 for the mixture"
                )
        return ids

    def _checked_weights(
        self, mixture_weights: Tensor | Sequence[Sequence[float]], n: int, device: torch.device
    ) -> Tensor:
        """Give weights of branches as floats, ``(B, K)``."""
        weights = torch.as_tensor(mixture_weights, device=device)
        shape = (n, self.config.n_branches)
        if weights.shape != shape:
            raise ValueError(f"mixture_weights has shape {tuple(weights.shape)}, not {shape}")
        weights = weights if weights.is_floating_point() else weights.float()
        if not torch.compiler.is_compiling():
            sums = weights.float().sum(dim=1)
            # Half precision rounds a sum of weights; NaN is in no order.
            if not bool(((weights >= 0).all(dim=1) & ((sums - 1).abs() < 0.02)).all()):
                raise ValueError("mixture_weights has a row that is not of weights from 0 that add up to 1")
        return weights

    def _default_branch(self) -> int:
        language = self.config.default_language
        return -1 if language is None else self.config.language_id(language)

    def _route(
        self, language_ids: Tensor | None, weights: Tensor, mixture_weights: Tensor | None
    ) -> _Routing:
        """Decide which pairs are computed: those with a weight."""
        n, n_branches = weights.shape
        if n_branches == 1:
            return _Routing.alone(0, n, n_branches, weights.device)
        default = self._default_branch()
        if language_ids is None and default < 0:
            return _Routing.everywhere(n, n_branches, weights.device)
        if language_ids is None and mixture_weights is None:
            return _Routing.alone(default, n, n_branches, weights.device)
        wanted = weights > 0
        return _Routing.of(wanted if mixture_weights is None else wanted | (mixture_weights > 0))

    def _merge_layers(
        self,
        seen: tuple[Tensor, ...] | None,
        last: Tensor | None,
        routing: _Routing,
        weights: Tensor,
    ) -> tuple[Tensor, ...] | None:
        """Give one record per layer, ``(B, …)``, of what was recorded in the layers, or None of nothing.

        Most families' layers are recorded one by one, so there are as many records of a branched layer as
        branches were run; DeBERTa's whole layer is one.

        Args:
            seen: The records: of hidden states or of attentions.
            last: The last hidden states in one piece, ``(P, T, H)``; None for attentions. Hidden states have
                one record more than layers: what comes into the first.
            routing: Which pairs were computed.
            weights: Of the branches, ``(B, K)``.
        """
        if not seen:
            return None
        n_before = self._n_trunk + (last is not None)
        merged, rest = list(seen[:n_before]), list(seen[n_before:])
        if last is not None and self._n_trunk == 0:
            merged = list(routing.entry)  # it was recorded as what came into the first branch
        for _ in range(self.config.branch_layers - (last is not None)):
            record = [rest.pop(0)]
            while sum(map(len, record)) < len(routing.examples):
                record.append(rest.pop(0))
            whole = record[0] if len(record) == 1 else torch.cat(record)  # what is one tensor stays it
            merged.append(routing.merge(whole, weights))
        if last is not None:
            merged.append(routing.merge(last, weights))
        return tuple(merged)

    def _pool(self, states: Tensor, attention_mask: Tensor | None) -> Tensor:
        """Reduce ``(P, T, H)`` to ``(P, H)``."""
        if self.pooling == "first":
            return states[:, 0]
        if attention_mask is None:
            return states[:, -1] if self.pooling == "last" else states.mean(dim=1)
        if self.pooling == "last":
            positions = torch.arange(states.shape[1], device=states.device)
            last = (attention_mask * positions).argmax(dim=1)
            return states[torch.arange(states.shape[0], device=states.device), last]
        mask = attention_mask.unsqueeze(-1).to(states.dtype)
        return (states * mask).sum(dim=1) / mask.sum(dim=1)


class MBLMForSequenceClassification(MBLMPreTrainedModel):
    """Text classifier with a trunk, K branches and one classifier.

    A text of a supervised language goes through its language's branch and costs what the plain encoder costs;
    any other text goes through all branches, and their representations are averaged.
    """

    mblm: MBLMModel
    new_weights: Sequence[str] = ()
    """After `from_mplm`: weights that the encoder lacked and that were drawn, named as in a plain model."""

    def __init__(self, config: MBLMConfig) -> None:
        super().__init__(config)
        classifier = _new_classifier(config)
        self.head = _ClassificationHead(_family(config.mplm_config), classifier)
        self.mblm = MBLMModel(config, classifier.base_model)
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
        mplm_config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        mplm_config.name_or_path = ""  # where it lay makes no other student, and is nobody's business
        family = _family(mplm_config)
        config["id2label"] = id2label = dict(config.get("id2label") or {0: "LABEL_0", 1: "LABEL_1"})
        config["label2id"] = {name: index for index, name in id2label.items()}
        pretrained, loading = AutoModelForSequenceClassification.from_pretrained(
            folder,
            trust_remote_code=False,
            use_safetensors=True,
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
        student.head.load_state_dict(_ClassificationHead(family, pretrained).state_dict())
        student._load_encoder(pretrained.base_model.state_dict())
        student.new_weights = sorted(loading["missing_keys"])
        return student

    @classmethod
    def from_one_branch(cls, other: Self, **config: Any) -> Self:
        """Make a student of one that has a single branch, with copies of its weights, the classifier's too.

        Args:
            other: The one.
            config: As in `from_mplm`.
        """
        id2label = config["id2label"]
        config["label2id"] = {name: index for index, name in id2label.items()}
        student = cls(MBLMConfig(mplm_config=deepcopy(other.config.mplm_config), **config))
        student._load_encoder(other._encoder_weights(0))
        student.head.load_state_dict(other.head.state_dict())
        return student

    def _load_encoder(self, weights: dict[str, Tensor]) -> None:
        """Take over the weights of a plain encoder, by their names in it; each branch gets its top layers."""
        for name in list(weights):
            layer = _branched_layer(name, self.config)
            if layer is not None:
                tensor = weights.pop(name)
                for branch in range(self.config.n_branches):
                    weights[f"{layer.prefix}{branch}.{layer.rest}"] = tensor
        self.mblm.encoder.load_state_dict(weights)

    def to_plain(self, language: str) -> Any:
        """Give trunk, one language's branch and the classifier as a plain model of the encoder's family.

        Args:
            language: One with a branch.

        Returns:
            Such as an ``XLMRobertaForSequenceClassification``, with the same logits; its weights are copies.
            Where the family has no such pooling, a student with this one branch.

        Raises:
            ValueError: The language has no branch.
        """
        branch = self.config.language_id(language)
        if branch < 0:
            raise ValueError(f"'{language}' has no branch; these have: {', '.join(self.config.languages)}")
        weights = self._encoder_weights(branch % self.config.n_branches)
        family, mplm_config = _family(self.config.mplm_config), deepcopy(self.config.mplm_config)
        if self.mblm.pooling != family.pools(mplm_config):
            if family.pooling is None or self.mblm.pooling == "last":
                return self._with_one_branch(language, weights)
            setattr(mplm_config, family.pooling, {"first": "cls"}.get(self.mblm.pooling, "mean"))
        plain = _new_classifier(self.config, mplm_config)
        plain.config.id2label, plain.config.label2id = self.config.id2label, self.config.label2id
        plain.config.problem_type = self.config.problem_type
        head = _ClassificationHead(family, plain)
        head.load_state_dict(self.head.state_dict())
        plain.base_model.load_state_dict(weights)
        head.give_back(plain)
        return plain.to(self.device, self.dtype).eval()

    def _encoder_weights(self, branch: int) -> dict[str, Tensor]:
        """Give the weights of trunk and branch, by their names in a plain encoder."""
        weights = {}
        for name, tensor in self.mblm.encoder.state_dict().items():
            layer = _branched_layer(name, self.config)
            if layer is None:
                weights[name] = tensor
            else:
                index, _, rest = layer.rest.partition(".")
                if int(index) == branch:
                    weights[f"{layer.prefix}{rest}"] = tensor
        return weights

    def _with_one_branch(self, language: str, weights: dict[str, Tensor]) -> Self:
        """Make a student of one language's branch, which serves all texts.

        Args:
            language: The branch's.
            weights: Of the trunk and the branch, as in a plain encoder.
        """
        config = deepcopy(self.config)
        config.languages, config.n_branches, config.default_language = [language], 1, None
        student = type(self)(config)
        student._load_encoder(weights)
        student.head.load_state_dict(self.head.state_dict())
        one: Self = student.to(self.device, self.dtype).eval()  # type: ignore[arg-type]  # transformers' `to`
        return one

    @can_return_tuple  # type: ignore[untyped-decorator]  # transformers has untyped functions
    def forward(  # type: ignore[misc]  # TransformersKwargs names position_ids as well
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        language_ids: Tensor | Sequence[int] | int | None = None,
        mixture_weights: Tensor | Sequence[Sequence[float]] | None = None,
        labels: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> MBLMOutput:
        """Classify B texts.

        Args:
            input_ids: Token ids, ``(B, T)``.
            attention_mask: 1 for tokens, 0 for padding, ``(B, T)``.
            language_ids: Position of each text's language in ``config.languages``, or -1 for the mixture of
                all branches; integers, ``(B,)``, or one for all. None stands for ``config.default_language``.
            mixture_weights: Weights of a mixture whose logits are wanted besides, float ``(B, K)``; rows on
                the simplex.
            labels: Classes, int64, ``(B,)``; or what ``config.problem_type`` asks for.
            token_type_ids: See `MBLMModel.forward`; likewise the next two.
            position_ids: ``(B, T)`` or ``(1, T)``.
            inputs_embeds: ``(B, T, H)``.
            kwargs: What the encoder's family takes besides, and what is to be returned.

        Raises:
            ValueError: There is no input, or language ids or weights are none.
        """
        seen = self.mblm(
            input_ids,
            attention_mask,
            language_ids,
            mixture_weights,
            token_type_ids,
            position_ids,
            inputs_embeds,
            return_dict=True,
            **kwargs,
        )
        states = seen.branch_states
        logits = self.classify(states, seen.branch_weights)
        mixture = seen.mixture_weights
        return MBLMOutput(
            loss=None if labels is None else self.loss_function(labels, logits, self.config),
            logits=logits,
            hidden_states=seen.hidden_states,
            attentions=seen.attentions,
            mixture_logits=None if mixture is None else self.classify(states, mixture),
            branch_states=states,
        )

    def classify(self, branch_states: Tensor, weights: Tensor) -> Tensor:
        """Classify mixtures of the branches' views.

        Args:
            branch_states: Pooled representations, ``(B, K, H)``.
            weights: On the simplex, ``(B, K)``; one-hot stands for a single branch.

        Returns:
            Raw logits, ``(B, C)``.
        """
        if self.config.mixing == "logits":
            return _mix(self.head(branch_states), weights)
        logits: Tensor = self.head(_mix(branch_states, weights))
        return logits


def _selected(states: tuple[Tensor, ...] | None, wanted: Any) -> tuple[Tensor | None, ...] | None:
    """Leave out the hidden states whose numbers are not asked for, as transformers 5 does."""
    if states is None or wanted is None or isinstance(wanted, bool):
        return states
    numbers = [wanted] if isinstance(wanted, int) else wanted
    kept = {number % len(states) for number in numbers if -len(states) <= number < len(states)}
    return tuple(state if number in kept else None for number, state in enumerate(states))


def _mix(values: Tensor, weights: Tensor) -> Tensor:
    """Average over branches, ``(B, K, H)`` to ``(B, H)``, with weights ``(B, K)``."""
    return (weights.to(values.dtype).unsqueeze(-1) * values).sum(dim=1)


class _BranchedWeight(NamedTuple):
    """Where a weight of a branched layer stands: ``<prefix><the rest of its name>``."""

    prefix: str
    rest: str


def _branched_layer(name: str, config: MBLMConfig) -> _BranchedWeight | None:
    """Take the name of an encoder's weight apart; None where the trunk holds it."""
    prefix = f"{_family(config.mplm_config).layers}."
    index, _, rest = name.removeprefix(prefix).partition(".")
    n_trunk = config.mplm_config.num_hidden_layers - config.branch_layers
    if not name.startswith(prefix) or int(index) < n_trunk:
        return None
    return _BranchedWeight(f"{prefix}{index}.", rest)


def _new_classifier(config: MBLMConfig, mplm_config: PreTrainedConfig | None = None) -> Any:
    """Make a plain classifier of the encoder's family with new weights.

    Args:
        config: The student's.
        mplm_config: Of the classifier, which keeps it; None stands for the one in `config`.
    """
    mplm_config = mplm_config or config.mplm_config
    assert config.num_labels is not None  # transformers gives every configuration two
    names = ("id2label", "label2id", "dtype")
    before = {name: getattr(mplm_config, name) for name in names}
    mplm_config.num_labels = config.num_labels
    mplm_config.dtype = None  # that of the student, not that in which the encoder was saved
    try:
        return AutoModelForSequenceClassification.from_config(mplm_config)
    finally:
        for name, value in before.items():
            setattr(mplm_config, name, value)


def _family(config: PreTrainedConfig) -> _Family:
    if config.model_type not in FAMILIES:
        known = ", ".join(sorted(FAMILIES))
        raise ValueError(f"no student can be made of a {config.model_type} model; of these: {known}")
    return FAMILIES[config.model_type]


AutoConfig.register("mblm", MBLMConfig, exist_ok=True)
AutoModel.register(MBLMConfig, MBLMModel, exist_ok=True)
AutoModelForSequenceClassification.register(MBLMConfig, MBLMForSequenceClassification, exist_ok=True)
MBLMModel.register_for_auto_class("AutoModel")
MBLMForSequenceClassification.register_for_auto_class("AutoModelForSequenceClassification")
