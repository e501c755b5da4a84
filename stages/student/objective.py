"""The mathematics of stage two: tensors in, tensors out. Axes: B batch, K branches, C classes.

With own-branch logits z, mixture logits m, teacher logits t and temperature τ (Yang et al., 2022; what the
paper's abstract leaves open is a parameter):

    KD(z, t) = τ² · KL(softmax(t/τ) ‖ softmax(z/τ))
    L        = (1-λ) KD(z, t) + λ KD(m, t) + α CE(z, hard label)
"""

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional


def distillation_loss(student_logits: Tensor, teacher_logits: Tensor, *, temperature: float) -> Tensor:
    """Divergence of the student from the softened teacher, averaged over the batch.

    The factor ``temperature ** 2`` keeps its gradient comparable with that of the hard-label loss when the
    temperature changes (Hinton et al., 2015, section 2).

    Args:
        student_logits: Raw scores, float, shape ``(B, C)``.
        teacher_logits: Soft labels of the same shape; no gradient flows into them.
        temperature: Divides both, above 0.

    Returns:
        A scalar in nats, 0 when both agree.

    Raises:
        ValueError: The shapes differ.
    """
    if student_logits.shape != teacher_logits.shape:
        raise ValueError(
            f"student logits {tuple(student_logits.shape)}, teacher's {tuple(teacher_logits.shape)}"
        )
    student = functional.log_softmax(student_logits / temperature, dim=-1)
    teacher = functional.log_softmax(teacher_logits.detach() / temperature, dim=-1)
    divergence = functional.kl_div(student, teacher, reduction="batchmean", log_target=True)
    return divergence * temperature**2


def mixture_weights(
    language_ids: Tensor,
    *,
    n_branches: int,
    weights: Literal["uniform", "dirichlet"],
    own_branch: bool,
) -> Tensor:
    """Draw the weights with which each text's branches are mixed.

    Args:
        language_ids: The texts' own branches, int64, shape ``(B,)``.
        n_branches: K, at least 2 unless `own_branch`.
        weights: ``uniform``: equal; ``dirichlet``: uniform on the simplex, from torch's global generator.
        own_branch: Whether the own branch takes part.

    Returns:
        Float32, shape ``(B, K)``: rows on the simplex, 0 at the own branch unless it takes part.

    Raises:
        ValueError: Nothing is left to mix.
    """
    if n_branches == 1 and not own_branch:
        raise ValueError("a mixture of other branches needs at least two branches")
    shape = (len(language_ids), n_branches)
    if weights == "uniform":
        drawn = torch.ones(shape, device=language_ids.device)
    else:
        # Normalised exponentials are uniform on the simplex (a Dirichlet distribution with all α = 1).
        drawn = torch.empty(shape, device=language_ids.device).exponential_()
    if not own_branch:
        drawn = drawn.scatter(1, language_ids.unsqueeze(1), 0.0)
    return drawn / drawn.sum(dim=1, keepdim=True)


def objective(
    logits: Tensor,
    labels: Tensor,
    *,
    teacher_logits: Tensor | None,
    mixture_logits: Tensor | None,
    temperature: float,
    mixture_weight: float,
    hard_label_weight: float,
) -> dict[str, Tensor]:
    """Compute the loss and its parts.

    Args:
        logits: Of each text's own branch, shape ``(B, C)``.
        labels: Hard labels, int64, shape ``(B,)``.
        teacher_logits: Soft labels in the task's class order, shape ``(B, C)``; None: hard labels alone.
        mixture_logits: Of a mixture of branches, shape ``(B, C)``; None leaves L_mix out.
        temperature: τ, above 0.
        mixture_weight: λ, from 0 to 1.
        hard_label_weight: α, at least 0.

    Returns:
        Scalars in nats: ``loss``, which is minimised, and those of ``own``, ``mixture`` and ``hard`` in it.
    """
    hard = functional.cross_entropy(logits, labels)
    if teacher_logits is None:
        return {"loss": hard, "hard": hard}
    own = distillation_loss(logits, teacher_logits, temperature=temperature)
    parts = {"own": own, "hard": hard}
    loss = own
    if mixture_logits is not None:
        mixture = distillation_loss(mixture_logits, teacher_logits, temperature=temperature)
        parts["mixture"] = mixture
        loss = torch.lerp(own, mixture, mixture_weight)
    return {"loss": loss + hard_label_weight * hard, **parts}
