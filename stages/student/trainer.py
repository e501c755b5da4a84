"""The Trainer of stage two: its objective, with what is compared of a batch, and the losses in the log."""

from collections import defaultdict
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Sampler

from stages.models.training import TextTrainer
from stages.student.objective import HiddenStates, example_weights, mixture_weights, objective
from stages.student.params import DistillParams
from stages.student.sampling import ByLanguage
from stages.student.variants import temperature_of


class DistillTrainer(TextTrainer):
    """The Trainer with the objective of stage two; logs each part of the loss under its own name."""

    params: DistillParams

    def __init__(self, params: DistillParams, class_weights: Tensor | None, **kwargs: Any) -> None:
        super().__init__(params, **kwargs)
        self._class_weights = None if class_weights is None else class_weights.to(self.args.device)
        self._languages: list[str] = kwargs["model"].config.languages
        self._n_branches: int = kwargs["model"].config.n_branches
        self._parts: dict[str, list[Tensor]] = defaultdict(list)
        self._n_steps = 0.0

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int]:
        temperature = self.params.sampling_temperature
        if temperature == 1:
            return super()._get_train_sampler(train_dataset)
        return ByLanguage(self.train_dataset, temperature=temperature, **self.order_options())

    def weight(self, labels: Tensor) -> Tensor | int:
        """Say how much some examples of a batch count in its loss: as their classes do."""
        n = super().weight(labels)
        if self._class_weights is None or not n:
            return n
        return example_weights(self.whole_batch(labels), self._class_weights).sum()

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Tensor:
        """Forward, losses, log; the Trainer does backward and step."""
        labels = inputs.pop("labels")
        teacher_logits = inputs.pop("teacher_logits", None)
        teacher_states = inputs.pop("teacher_states", None)
        trust = inputs.pop("trust", None)
        outputs = model(**inputs, mixture_weights=self._mixture_weights(inputs["language_ids"]))
        losses = objective(
            self.whole_batch(outputs.logits),
            self.whole_batch(labels),
            teacher_logits=self.whole_batch(teacher_logits),
            mixture_logits=self.whole_batch(outputs.mixture_logits),
            hidden=self._hidden(outputs.branch_states, teacher_states, inputs["language_ids"]),
            class_weights=self._class_weights,
            trust=self.whole_batch(trust),
            temperature=temperature_of(self.params),
            mixture_weight=self._mixture_loss_weight(),
            hard_label_weight=self.params.hard_label_weight,
            hidden_weight=self.params.hidden_weight,
        )
        for name, loss in losses.items():
            if name != "loss":
                self._parts[f"{name}_loss"].append(loss.detach() * self.share)
        self._n_steps += self.share
        return losses["loss"]

    def _mixture_weights(self, language_ids: Tensor) -> Tensor | None:
        mixture = self.params.mixture
        if self.params.variant != "mblm":
            return None
        weights = mixture.weights
        return mixture_weights(
            language_ids,
            n_branches=self._n_branches,
            weights=weights if isinstance(weights, str) else [weights[name] for name in self._languages],
            own_branch=mixture.own_branch,
        )

    def _mixture_loss_weight(self) -> float:
        """Give λ of this step."""
        mixture = self.params.mixture
        n_ramp = mixture.ramp_share * self.state.max_steps
        return mixture.loss_weight * min(1.0, self.state.global_step / n_ramp if n_ramp else 1.0)

    def _hidden(
        self, branch_states: Tensor, teacher_states: Tensor | None, language_ids: Tensor
    ) -> HiddenStates | None:
        """Pair the states of each text's own branch, out of ``(B, K, H)``, with its teacher's."""
        if teacher_states is None:
            return None
        own = language_ids if self._n_branches > 1 else torch.zeros_like(language_ids)
        states = branch_states[torch.arange(len(own), device=own.device), own]
        parts = (states, teacher_states.to(states.dtype), language_ids)
        return HiddenStates(*(self.whole_batch(part) for part in parts))

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Add the means of the parts of the loss since the last log."""
        if "loss" in logs:
            logs |= {name: float(torch.stack(v).sum()) / self._n_steps for name, v in self._parts.items()}
            self._parts.clear()
            self._n_steps = 0.0
        super().log(logs, *args, **kwargs)

    def prediction_step(
        self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> tuple[None, Tensor, Tensor]:
        """Classify validation examples through their own branches."""
        inputs = self._prepare_inputs(inputs)
        labels = inputs.pop("labels")
        with torch.inference_mode():
            return None, model(**inputs).logits, labels
