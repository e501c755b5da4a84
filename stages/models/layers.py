"""Which layer a weight belongs to: what is frozen, and how fast the others learn."""

import re
from typing import Any, Literal

from torch import nn

from stages.errors import StageError
from stages.params import TrainingParams

_LAYER = re.compile(r"(?:^|\.)(?:layers?|blocks?|h)\.(\d+)\.")
_EMBEDDINGS = re.compile(
    r"(?:^|\.)(?:embeddings|embeddings_project|embed_tokens|shared|word_embeddings|word_embeddings_layernorm|wpe|wte)\."
)


def freeze(model: Any, what: int | Literal["embeddings"] | None) -> None:
    """Leave weights as they are: they get no gradient, and the optimizer keeps nothing for them.

    Args:
        model: A plain classifier or a student.
        what: ``embeddings``: of the words; a number n: all embeddings and the lowest n layers.

    Raises:
        StageError: There are fewer layers, or a student's branches would all stay the copies that they are.
    """
    if what is None:
        return
    if what == "embeddings":
        model.get_input_embeddings().requires_grad_(False)
        return
    n_layers = model.config.num_hidden_layers
    n_shared = (
        n_layers - model.config.branch_layers if getattr(model.config, "n_branches", 1) > 1 else n_layers
    )
    if what > n_shared:
        why = f"{n_layers} layers"
        if n_shared < n_layers:
            why = f"branches of {n_layers - n_shared} of its {n_layers} layers, which would all stay the same"
        most = f"{n_shared} at most" if n_shared else "embeddings, or to null"
        raise StageError(f"freeze is {what}, but the model has {why}; set it to {most}")
    require_layers(model, key="freeze")
    for name, parameter in model.named_parameters():
        layer = _LAYER.search(name)
        frozen = int(layer[1]) < what if layer else _EMBEDDINGS.search(name) is not None
        if frozen or (what == n_layers and not _is_of_head(name, model)):
            parameter.requires_grad_(False)


def require_layers(model: Any, *, key: str) -> None:
    """Refuse a model whose layers have no weights of their own by which they could be told apart.

    Args:
        model: A plain classifier or a student.
        key: The option that needs them.

    Raises:
        StageError: It is one.
    """
    found = {int(layer[1]) for name, _ in model.named_parameters() if (layer := _LAYER.search(name))}
    if found != set(range(model.config.num_hidden_layers)):
        raise StageError(
            f"{key} needs layers that are known here, which a {model.config.model_type} model has not"
        )


def _is_of_head(name: str, model: Any) -> bool:
    """Tell whether a weight belongs to the classifier."""
    return not name.startswith(f"{model.base_model_prefix}.") or ".pooler." in name


def learning_rate(name: str, params: TrainingParams, model: Any) -> float:
    """Give the highest learning rate of a weight.

    Each layer learns `layer_decay` times as fast as the one above it (Howard and Ruder, 2018, section 3.2).

    Args:
        name: Of the weight in the model.
        params: The training's section of params.yaml.
        model: A plain classifier or a student.
    """
    layer = _LAYER.search(name)
    n_above = 0
    if layer:
        n_above = model.config.num_hidden_layers - 1 - int(layer[1])
    elif _EMBEDDINGS.search(name):
        n_above = model.config.num_hidden_layers
    elif _is_of_head(name, model):
        return params.head_learning_rate or params.learning_rate
    return float(params.learning_rate * params.layer_decay**n_above)


def optimizer_groups(model: nn.Module, params: TrainingParams, decayed: set[str]) -> list[dict[str, Any]]:
    """Sort a model's weights by how fast they learn and whether they decay, as an optimizer takes them.

    Args:
        model: A plain classifier or a student.
        params: The training's section of params.yaml.
        decayed: Names of the weights that decay.
    """
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups.setdefault((learning_rate(name, params, model), name in decayed), []).append(parameter)
    return [
        {"params": weights, "lr": rate, "weight_decay": params.weight_decay if decays else 0.0}
        for (rate, decays), weights in groups.items()
    ]
