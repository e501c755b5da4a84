"""The student as one ONNX graph: the trunk once, each branch for those texts alone that want it."""

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from stages.errors import StageError
from stages.models.modeling_mblm import FAMILIES, BranchedLayer, MBLMForSequenceClassification
from stages.student.exporting.routing import ENTRY, LANGUAGE_IDS, rows_of, states_of


def traced_graph(student: MBLMForSequenceClassification, names: list[str]) -> Any:
    """Trace the student with a tokenizer's outputs and ``language_ids`` as inputs, of any batch and length.

    Torch exports nothing that depends on values. So each branch's rows are inputs here, and what trunk and
    branches see are outputs; `add_routing` puts routing in the place of both.

    Args:
        student: Whose temperatures are folded in: softmax of the graph's logits is calibrated.
        names: Of the tokenizer's outputs.

    Returns:
        An ``onnx.ModelProto``.

    Raises:
        StageError: Torch cannot export a model of this family.
    """
    config = student.config
    example = example_inputs(config, names, batch=config.n_branches + 3, length=4)
    free_batch = {0: torch.export.Dim.DYNAMIC}
    free = {**free_batch, 1: torch.export.Dim.DYNAMIC}
    # Of different counts, so that none is taken for another, or for the batch.
    rows = [torch.arange(2 + branch) for branch in range(config.n_branches)]
    with quiet():
        try:
            program = torch.onnx.export(
                _Traced(student, names).eval(),
                (*(example[name] for name in names), example[LANGUAGE_IDS], *rows),
                input_names=[*names, LANGUAGE_IDS, *map(rows_of, range(len(rows)))],
                output_names=["logits", ENTRY, *map(states_of, range(len(rows)))],
                dynamic_shapes=((*(free,) * len(names), free_batch, *(free_batch,) * len(rows)),),
                dynamo=True,
                verbose=False,
            )
        except torch.onnx.OnnxExporterError as error:
            family = config.mplm_config.model_type
            reason = str(error.__cause__ or error).strip().partition("\n")[0]
            raise StageError(f"torch cannot export a {family} model to ONNX: {reason}") from error
    assert program is not None
    return program.model_proto


class _Traced(nn.Module):
    """A student that takes its inputs by position, and after them which rows each branch is for."""

    def __init__(self, student: MBLMForSequenceClassification, names: list[str]) -> None:
        super().__init__()
        student = deepcopy(student)
        student.set_attn_implementation("eager")  # sdpa is exported with twice as many operators
        self.student, self.names = student, names
        self.routing = _Rows()
        layers = student.mblm.encoder.get_submodule(FAMILIES[student.config.mplm_config.model_type].layers)
        for index, layer in enumerate(layers):
            if isinstance(layer, BranchedLayer):
                layers[index] = _RoutedLayer(layer, self.routing, is_last=index == len(layers) - 1)

    def forward(self, *inputs: Tensor) -> Any:
        values = dict(zip(self.names, inputs, strict=False))
        language_ids, rows = inputs[len(self.names)], inputs[len(self.names) + 1 :]
        self.routing.start(rows, language_ids.shape[0])
        mblm, config = self.student.mblm, self.student.config
        taken = {name: value for name, value in values.items() if name in mblm._optional}
        seen = mblm.encoder(**taken, return_dict=True).last_hidden_state
        examples = torch.cat(rows)
        pooled = mblm._pool(seen, values["attention_mask"][examples])
        own = (language_ids >= 0).to(pooled.dtype)
        share = own + (1 - own) / config.n_branches
        # (B, P) by (P, H): a sum over each text's branches without scattering.
        weights = (torch.arange(language_ids.shape[0]).unsqueeze(1) == examples).to(pooled.dtype)
        if config.n_branches > 1:
            weights = weights * share.unsqueeze(1)
        if config.mixing == "logits":
            logits = weights @ self.student.head(pooled)
        else:
            logits = self.student.head(weights @ pooled)
        temperatures = own * config.own_temperature + (1 - own) * config.mixture_temperature
        return logits / temperatures.unsqueeze(1), self.routing.entry, *self.routing.states


class _Rows:
    """Which rows each branch is for, and what the branches see so far, during a forward pass."""

    def start(self, rows: Sequence[Tensor], n_examples: int) -> None:
        self.rows, self.n_examples = rows, n_examples
        self.states: list[Tensor] = []
        self.entry: Tensor

    def take(self, value: Any, rows: Tensor) -> Any:
        """Take a branch's rows of what a layer gets besides hidden states, as `modeling_mblm` does."""
        if isinstance(value, tuple | list):
            return type(value)(self.take(part, rows) for part in value)
        per_example = isinstance(value, Tensor) and value.ndim >= 2 and value.shape[0] == self.n_examples
        return value[rows] if per_example and not (value.ndim == 2 and value.is_floating_point()) else value


class _RoutedLayer(nn.Module):
    """A layer of all branches. What one branch sees goes beside the encoder to its next layer, unmixed."""

    def __init__(self, layer: BranchedLayer, routing: _Rows, *, is_last: bool) -> None:
        super().__init__()
        self.layer, self.routing, self.is_last = layer, routing, is_last

    def __getattr__(self, name: str) -> Any:
        # ModernBERT reads its layers' attention_type.
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self._modules["layer"], name)

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        routing = self.routing
        if self.layer.is_first:
            routing.entry = hidden_states
            routing.states = [hidden_states[rows] for rows in routing.rows]
        for branch, (layer, rows) in enumerate(zip(self.layer, routing.rows, strict=True)):
            more = {name: routing.take(value, rows) for name, value in kwargs.items()}
            seen = layer(routing.states[branch], *routing.take(args, rows), **more)
            is_tensor = isinstance(seen, Tensor)
            routing.states[branch] = seen if is_tensor else seen[0]
        passed_on = torch.cat(routing.states) if self.is_last else hidden_states
        return passed_on if is_tensor else (passed_on, None)


def example_inputs(config: Any, names: list[str], *, batch: int, length: int) -> dict[str, Tensor]:
    """Draw inputs, ``(B, T)``, and language ids, ``(B,)``; every second text is shorter, and padded.

    Args:
        config: The student's.
        names: Of the tokenizer's outputs.
        batch: B.
        length: T.
    """
    encoder = config.mplm_config
    generator = torch.Generator().manual_seed(batch * length)
    shape = (batch, length)
    mask = torch.ones(shape, dtype=torch.int64)
    mask[1::2, length // 2 :] = 0
    padding = encoder.pad_token_id or 0
    ids = torch.randint(encoder.vocab_size, shape, generator=generator)
    segments = torch.randint(max(1, getattr(encoder, "type_vocab_size", 1)), shape, generator=generator)
    made = {
        "input_ids": torch.where(mask == 1, ids, padding),
        "attention_mask": mask,
        "token_type_ids": segments,
        LANGUAGE_IDS: torch.arange(batch) % (len(config.languages) + 1) - 1,
    }
    for name in names:
        if name not in made:
            raise StageError(f"the tokenizer gives {name}, which ONNX models here do not take")
    return {name: made[name] for name in [*names, LANGUAGE_IDS]}


@contextmanager
def quiet() -> Iterator[None]:
    """Keep back what torch and onnxscript say of themselves: deprecations, operators that it lacks."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
