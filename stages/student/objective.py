"""The mathematics of stage two: tensors in, tensors out. Axes: B batch, H hidden, K branches, C classes.

With own-branch logits z and states b, mixture logits m, teacher logits t and states h, and temperature τ
(Yang et al., 2022; what the paper's abstract leaves open is a parameter):

    KD(z, t) = τ² · KL(softmax(t/τ) ‖ softmax(z/τ))
    SP(b, h) = the distance of the similarities within b from those within h
    L        = (1-λ) KD(z, t) + λ KD(m, t) + α CE(z, hard label) + β SP(b, h)

Each is a mean over the batch in which an example counts with the weight w of its class: Σ w_i l_i / Σ w_i.
An example without a hard label has the weight 1, and 0 in the place of CE. Where soft labels are trusted to
a degree k, from 0 to 1, k KD + (1-k) CE takes the place of KD.
"""

import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from stages.student.params import Trust

_NOTHING = -1e4
"""A logit without probability, and finite: 0 times the logarithm of a probability stays 0."""


def distillation_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    temperature: float,
    example_weights: Tensor | None = None,
    trust: Tensor | None = None,
) -> Tensor:
    """Divergence of the student from the softened teacher, averaged over the batch.

    The factor ``temperature ** 2`` keeps its gradient comparable with that of the hard-label loss when the
    temperature changes (Hinton et al., 2015, section 2).

    Args:
        student_logits: Raw scores, float, shape ``(B, C)``.
        teacher_logits: Soft labels of the same shape; no gradient flows into them.
        temperature: Divides both, above 0.
        example_weights: Above 0, shape ``(B,)``; None: all alike.
        trust: k, the share of an example's divergence that counts, from 0 to 1, shape ``(B,)``; None: all.

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
    divergence = functional.kl_div(student, teacher, reduction="none", log_target=True)
    if trust is not None:
        divergence = divergence * trust.unsqueeze(1)
    return _mean(divergence, example_weights) * temperature**2


def similarity_loss(
    student_states: Tensor,
    teacher_states: Tensor,
    language_ids: Tensor,
    *,
    example_weights: Tensor | None = None,
) -> Tensor:
    """Distance between which examples are alike to the student and which are to the teacher.

    Similarity-preserving distillation (Tung and Mori, 2019, ICCV, section 3.1) has no weights of its own, so
    that the states may differ in width. Of a batch of b examples of one language, with states S and T:

        G_S = S Sᵀ, each row divided by its Euclidean norm; G_T = T Tᵀ likewise
        SP  = 1/b² · ‖G_T - G_S‖²_F

    Teachers' spaces are not comparable, so a batch of several languages is compared within each. Example i,
    of a language with b_i examples, then has the loss ‖row i of G_T - row i of G_S‖² / b_i, and the mean over
    a batch of one language is the paper's SP.

    Args:
        student_states: Float, shape ``(B, H)``.
        teacher_states: Float, shape ``(B, H_t)``; narrower ones are filled up with zeros, which change no
            inner product. No gradient flows into them.
        language_ids: Int64, shape ``(B,)``.
        example_weights: Above 0, shape ``(B,)``; None: all alike.

    Returns:
        A scalar, at least 0; 0 where the teacher's states are the student's, rotated and scaled.
    """
    same = (language_ids.unsqueeze(0) == language_ids.unsqueeze(1)).to(student_states.dtype)
    student, teacher = (
        functional.normalize(states @ states.T * same, dim=1)
        for states in (student_states, teacher_states.detach())
    )
    return _mean((teacher - student).square().sum(dim=1) / same.sum(dim=1), example_weights)


def average_translations(logits: Tensor, entities: Tensor, *, temperature: float) -> Tensor:
    """Give all texts about an entity the average of the probabilities that their teachers gave them.

    Args:
        logits: Of the texts' own teachers, raw, in the same class order, shape ``(N, C)``.
        entities: What each text is about, from 0 to N-1, int64, shape ``(N,)``.
        temperature: τ at which they are compared with the student, above 0.

    Returns:
        t, shape ``(N, C)``: softmax(t_i/τ) is the mean of softmax(t_j/τ) over the texts j about the same.
    """
    log_probabilities = functional.log_softmax(logits / temperature, dim=-1)
    into = entities.unsqueeze(1).expand_as(logits)
    # The largest of an entity is taken out, so that no sum of exponentials is 0.
    largest = torch.full_like(logits, -math.inf).scatter_reduce(0, into, log_probabilities, "amax")
    shares = (log_probabilities - largest[entities]).exp()
    sums = torch.zeros_like(logits).scatter_add(0, into, shares)
    counts = torch.bincount(entities, minlength=len(logits)).unsqueeze(1)
    return temperature * (largest + sums.log() - counts.log())[entities]


def hardened(logits: Tensor) -> Tensor:
    """Leave nothing of soft labels but the class that they find most probable (Lee, 2013, "Pseudo-Label").

    Args:
        logits: Soft labels, shape ``(N, C)``.

    Returns:
        Of the same shape, 0 for that class and for the others so little that they have no probability:
        at temperature 1, the divergence from it is the cross-entropy with that class.
    """
    none = torch.full_like(logits, _NOTHING)
    return none.scatter(1, logits.argmax(dim=1, keepdim=True), 0.0)


def trusted(
    logits: Tensor, labels: Tensor, *, how: Trust, at_one: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    """Believe soft labels only so far where the hard label is known.

    Args:
        logits: Soft labels in the task's class order, shape ``(N, C)``.
        labels: Hard labels, int64, shape ``(N,)``; -100: none, so that there is nothing to doubt.
        how: ``corrected``: the largest logit of a wrong soft label changes places with that of the hard label
            (Wen et al., 2019, "probability shift"). ``right``: wrong ones are not. ``probability``: as
            far as they believe the hard label.
        at_one: The soft labels with averages taken at temperature 1, likewise, by which they believe; None:
            those of `logits` are.

    Returns:
        The soft labels, and k, how far each is trusted, from 0 to 1, shape ``(N,)``; None: they all are.
    """
    if how == "always":
        return logits, None
    known = labels >= 0
    right = labels.clamp(min=0).unsqueeze(1)
    if how == "probability":
        probs = functional.softmax(logits if at_one is None else at_one, dim=-1)
        believed = probs.gather(1, right).squeeze(1)
        return logits, torch.where(known, believed, 1.0)
    said = logits.argmax(dim=1, keepdim=True)
    is_wrong = known & (said != right).squeeze(1)
    if how == "right":
        return logits, (~is_wrong).to(logits.dtype)
    exchanged = logits.scatter(1, right, logits.gather(1, said)).scatter(1, said, logits.gather(1, right))
    return torch.where(is_wrong.unsqueeze(1), exchanged, logits), None


def mixture_weights(
    language_ids: Tensor,
    *,
    n_branches: int,
    weights: Literal["uniform", "dirichlet"] | Sequence[float],
    own_branch: bool,
) -> Tensor:
    """Draw the weights with which each text's branches are mixed.

    Args:
        language_ids: The texts' own branches, int64, shape ``(B,)``; -1: none, so that all may take part.
        n_branches: K, at least 2 unless `own_branch`.
        weights: ``uniform``: equal; ``dirichlet``: uniform on the simplex, from torch's global generator; or
            K numbers, at least 0, in the proportion of which the branches that take part are mixed.
        own_branch: Whether the own branch takes part.

    Returns:
        Float32, shape ``(B, K)``: rows on the simplex, 0 at the own branch unless it takes part.

    Raises:
        ValueError: Nothing is left to mix.
    """
    n_mixed = n_branches if isinstance(weights, str) else sum(weight > 0 for weight in weights)
    if n_mixed < (1 if own_branch else 2):
        raise ValueError("a mixture of other branches needs at least two branches with a weight above 0")
    shape = (len(language_ids), n_branches)
    if weights == "uniform":
        drawn = torch.ones(shape, device=language_ids.device)
    elif weights != "dirichlet":
        drawn = torch.tensor(weights, device=language_ids.device).expand(shape)
    else:
        # Normalised exponentials are uniform on the simplex (a Dirichlet distribution with all α = 1).
        drawn = torch.empty(shape, device=language_ids.device).exponential_()
    if not own_branch:
        own = functional.one_hot(language_ids.clamp(min=0), n_branches) * (language_ids >= 0).unsqueeze(1)
        drawn = torch.where(own > 0, 0.0, drawn)
    return drawn / drawn.sum(dim=1, keepdim=True)


def balanced_class_weights(counts: Tensor) -> Tensor:
    """Weigh classes so that all count alike in sum, and the average example has the weight 1.

    N / (C · n_c), as in scikit-learn's ``class_weight="balanced"`` (King and Zeng, 2001).

    Args:
        counts: n_c, the examples of each class, above 0, shape ``(C,)``; N in sum.

    Returns:
        Float32, shape ``(C,)``.
    """
    return (counts.sum() / (len(counts) * counts.double())).float()


def example_weights(labels: Tensor, class_weights: Tensor) -> Tensor:
    """Give the weights of examples, ``(B,)``: that of their class, or 1 where they have none.

    Args:
        labels: Hard labels, int64, shape ``(B,)``; -100: none.
        class_weights: Above 0, shape ``(C,)``.
    """
    return torch.where(labels < 0, 1.0, class_weights[labels.clamp(min=0)])


class HiddenStates(NamedTuple):
    """What `similarity_loss` compares.

    Attributes:
        student: Pooled states of each text's own branch, shape ``(B, H)``.
        teacher: Of the texts' teachers, shape ``(B, H_t)``.
        language_ids: The texts' languages, int64, shape ``(B,)``.
    """

    student: Tensor
    teacher: Tensor
    language_ids: Tensor


def objective(
    logits: Tensor,
    labels: Tensor,
    *,
    teacher_logits: Tensor | None,
    mixture_logits: Tensor | None,
    hidden: HiddenStates | None,
    class_weights: Tensor | None,
    trust: Tensor | None = None,
    temperature: float,
    mixture_weight: float,
    hard_label_weight: float,
    hidden_weight: float,
) -> dict[str, Tensor]:
    """Compute the loss and its parts.

    Args:
        logits: Of each text's own branch, shape ``(B, C)``.
        labels: Hard labels, int64, shape ``(B,)``; -100: the example has none, but a soft label.
        teacher_logits: Soft labels in the task's class order, shape ``(B, C)``; None: hard labels alone.
        mixture_logits: Of a mixture of branches, shape ``(B, C)``; None leaves L_mix out.
        hidden: States of student and teacher; None leaves SP out.
        class_weights: Above 0, shape ``(C,)``; None: all alike.
        trust: k, how far each soft label is trusted, from 0 to 1, shape ``(B,)``; None: they all are.
        temperature: τ, above 0.
        mixture_weight: λ, from 0 to 1.
        hard_label_weight: α, at least 0.
        hidden_weight: β, at least 0.

    Returns:
        Scalars: ``loss``, which is minimised, and those of ``own``, ``mixture``, ``hard`` (in nats) and
        ``hidden`` in it.
    """
    weights = None if class_weights is None else example_weights(labels, class_weights)
    of_each = functional.cross_entropy(logits, labels, reduction="none")
    hard = _mean(of_each, weights)
    if teacher_logits is None:
        return {"loss": hard, "hard": hard}
    options: dict[str, Any] = {"temperature": temperature, "example_weights": weights, "trust": trust}
    own = distillation_loss(logits, teacher_logits, **options)
    if trust is not None:
        own = own + _mean((1 - trust) * of_each, weights)
    parts = {"own": own, "hard": hard}
    loss = own
    if mixture_logits is not None:
        mixture = distillation_loss(mixture_logits, teacher_logits, **options)
        if trust is not None:
            of_mixture = functional.cross_entropy(mixture_logits, labels, reduction="none")
            mixture = mixture + _mean((1 - trust) * of_mixture, weights)
        parts["mixture"] = mixture
        loss = torch.lerp(own, mixture, mixture_weight)
    loss = loss + hard_label_weight * hard
    if hidden is not None:
        parts["hidden"] = similarity_loss(
            hidden.student, hidden.teacher, hidden.language_ids, example_weights=weights
        )
        loss = loss + hidden_weight * parts["hidden"]
    return {"loss": loss, **parts}


def _mean(losses: Tensor, weights: Tensor | None) -> Tensor:
    """Average an example's loss over a batch, with weights ``(B,)``.

    Args:
        losses: Shape ``(B,)``, or ``(B, C)`` where an example's loss is the sum over the classes.
        weights: Of the examples; None: all alike.
    """
    if weights is None:
        return losses.sum() / len(losses)
    return (weights @ losses).sum() / weights.sum()
