"""The mathematics of stage two against its written-out definition."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.utils.class_weight import compute_class_weight
from torch.autograd import gradcheck

from stages.student.objective import (
    HiddenStates,
    average_translations,
    balanced_class_weights,
    distillation_loss,
    mixture_weights,
    objective,
    similarity_loss,
    trusted,
)

B, K, C = 5, 3, 4
LANGUAGES = torch.tensor([1, 0, 1, 2, 1])
LABELS = torch.tensor([0, 1, 2, 3, 0])


def _logits(seed: int, width: int = C) -> torch.Tensor:
    return torch.randn(B, width, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_distillation_loss_is_its_definition_written_out() -> None:
    z, t, tau = _logits(0), _logits(1), 1.7
    expected = 0.0
    for i in range(B):
        p = [math.exp(t[i, c] / tau) for c in range(C)]
        q = [math.exp(z[i, c] / tau) for c in range(C)]
        p, q = [x / sum(p) for x in p], [x / sum(q) for x in q]
        expected += tau**2 * sum(a * math.log(a / b) for a, b in zip(p, q, strict=True)) / B
    assert distillation_loss(z, t, temperature=tau).item() == pytest.approx(expected, rel=1e-12)


def test_distillation_loss_is_zero_where_both_agree() -> None:
    assert distillation_loss(_logits(0), _logits(0), temperature=3.0).item() == pytest.approx(0, abs=1e-12)


def test_loss_ignores_a_constant_added_to_every_logit() -> None:
    z, t = _logits(0), _logits(1)
    shifted = distillation_loss(z + 7.0, t - 3.0, temperature=2.0)
    assert shifted.item() == pytest.approx(distillation_loss(z, t, temperature=2.0).item(), rel=1e-12)


def test_gradient_of_the_loss_is_right_and_does_not_reach_the_teacher() -> None:
    z, t = _logits(0).requires_grad_(), _logits(1).requires_grad_()
    assert gradcheck(lambda x: distillation_loss(x, _logits(1), temperature=1.7), (z,))
    distillation_loss(z, t, temperature=1.7).backward()
    assert t.grad is None


def test_logits_of_different_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(5, 4\)"):
        distillation_loss(_logits(0), _logits(0)[:, :2], temperature=1.0)


@pytest.mark.parametrize("weights", ["uniform", "dirichlet", (0.5, 1.0, 7.0)])
@pytest.mark.parametrize("own_branch", [False, True])
def test_mixture_weights_are_on_the_simplex(weights: str, own_branch: bool) -> None:
    own = torch.tensor([0, 1, 2, 1, 0])
    w = mixture_weights(own, n_branches=K, weights=weights, own_branch=own_branch)  # type: ignore[arg-type]
    assert w.shape == (B, K)
    torch.testing.assert_close(w.sum(dim=1), torch.ones(B))
    assert ((w[torch.arange(B), own] > 0) == own_branch).all()
    others = torch.ones(B, K, dtype=torch.bool).scatter(1, own.unsqueeze(1), False)
    assert (w[others] > 0).all()


def test_uniform_weights_are_equal_and_dirichlet_weights_average_to_them() -> None:
    own = torch.zeros(20_000, dtype=torch.int64)
    uniform = mixture_weights(own, n_branches=K, weights="uniform", own_branch=False)
    torch.manual_seed(0)
    dirichlet = mixture_weights(own, n_branches=K, weights="dirichlet", own_branch=False)
    assert uniform[0].tolist() == [0.0, 0.5, 0.5]
    torch.testing.assert_close(dirichlet.mean(dim=0), uniform[0], atol=0.01, rtol=0)
    # Uniform on the segment between two branches: variance 1/12.
    assert dirichlet[:, 1].var().item() == pytest.approx(1 / 12, rel=0.05)


def test_fixed_weights_are_renormalised_over_the_branches_that_take_part() -> None:
    own = torch.arange(K)
    w = mixture_weights(own, n_branches=K, weights=(0.5, 0.3, 0.2), own_branch=False)
    expected = [[0, 0.3 / 0.5, 0.2 / 0.5], [0.5 / 0.7, 0, 0.2 / 0.7], [0.5 / 0.8, 0.3 / 0.8, 0]]
    torch.testing.assert_close(w, torch.tensor(expected))
    with_own = mixture_weights(own, n_branches=K, weights=(1, 3, 0), own_branch=True)
    torch.testing.assert_close(with_own, torch.tensor([[0.25, 0.75, 0.0]] * K))


@pytest.mark.parametrize(
    ("weights", "own_branch"), [("uniform", False), ((1.0,), False), ((2.0, 0.0), False), ((0.0, 0.0), True)]
)
def test_a_mixture_of_nothing_is_refused(weights: str | tuple[float, ...], own_branch: bool) -> None:
    n_branches = 1 if isinstance(weights, str) else len(weights)
    with pytest.raises(ValueError, match="two branches"):
        mixture_weights(
            torch.zeros(2, dtype=torch.int64),
            n_branches=n_branches,
            weights=weights,  # type: ignore[arg-type]  # a parametrised string is no Literal
            own_branch=own_branch,
        )


# Hidden states


def test_similarity_loss_is_its_definition_written_out() -> None:
    s, t = _logits(0, 6).tolist(), _logits(1, 7).tolist()
    expected = 0.0
    for i in range(B):
        alike = [j for j in range(B) if LANGUAGES[j] == LANGUAGES[i]]
        rows = []
        for states in (s, t):
            row = [sum(a * b for a, b in zip(states[i], states[j], strict=True)) for j in alike]
            norm = math.sqrt(sum(x * x for x in row))
            rows.append([x / norm for x in row])
        expected += sum((a - b) ** 2 for a, b in zip(*rows, strict=True)) / len(alike) / B
    loss = similarity_loss(_logits(0, 6), _logits(1, 7), LANGUAGES)
    assert loss.item() == pytest.approx(expected, rel=1e-12)


def test_similarity_loss_of_one_language_is_that_of_its_paper() -> None:
    s, t = _logits(0, 6), _logits(1, 7)
    matrices = [(x @ x.T) / (x @ x.T).norm(dim=1, keepdim=True) for x in (s, t)]
    expected = (matrices[1] - matrices[0]).norm() ** 2 / B**2
    torch.testing.assert_close(similarity_loss(s, t, torch.zeros(B)), expected)


def test_similarity_loss_does_not_see_a_rotation_a_scale_or_columns_of_zeros() -> None:
    s = _logits(0, 6)
    rotation = torch.linalg.qr(_logits(1, 6).T @ _logits(1, 6)).Q
    seen = torch.cat([3.0 * s @ rotation, torch.zeros(B, 2, dtype=s.dtype)], dim=1)
    assert similarity_loss(s, seen, LANGUAGES).item() == pytest.approx(0, abs=1e-24)
    t = _logits(2, 7)
    torch.testing.assert_close(similarity_loss(s, t, LANGUAGES), similarity_loss(seen, t, LANGUAGES))


def test_similarity_loss_compares_no_two_languages() -> None:
    s, t = _logits(0, 6), _logits(1, 7)
    scales = torch.tensor([2.0, -5.0, 0.1], dtype=torch.float64)[LANGUAGES].unsqueeze(1)
    torch.testing.assert_close(
        similarity_loss(s, t * scales, LANGUAGES), similarity_loss(s, t, LANGUAGES), rtol=1e-12, atol=0
    )
    assert similarity_loss(s, t, torch.arange(B)).item() == 0


def test_gradient_of_the_similarity_loss_is_right_and_does_not_reach_the_teacher() -> None:
    s, t = _logits(0, 6).requires_grad_(), _logits(1, 7).requires_grad_()
    assert gradcheck(lambda x: similarity_loss(x, _logits(1, 7), LANGUAGES), (s,))
    similarity_loss(s, t, LANGUAGES).backward()
    assert t.grad is None


def test_states_of_zeros_give_no_nan() -> None:
    s = torch.zeros(B, 6, requires_grad=True)
    similarity_loss(s, torch.zeros(B, 7), LANGUAGES).backward()
    assert s.grad is not None
    assert torch.isfinite(s.grad).all()


# The whole


def _objective(**changes: Any) -> dict[str, torch.Tensor]:
    hidden = HiddenStates(_logits(3, 6), _logits(4, 7), LANGUAGES)
    arguments: dict[str, Any] = {
        "teacher_logits": _logits(2),
        "mixture_logits": _logits(1),
        "hidden": hidden,
        "class_weights": None,
        "temperature": 2.0,
        "mixture_weight": 0.3,
        "hard_label_weight": 0.1,
        "hidden_weight": 5.0,
    }
    return objective(_logits(0), LABELS, **arguments | changes)


def test_objective_weighs_its_parts() -> None:
    z, m, t = _logits(0), _logits(1), _logits(2)
    losses = _objective()
    own = distillation_loss(z, t, temperature=2.0)
    mixture = distillation_loss(m, t, temperature=2.0)
    hard = -z.log_softmax(1)[torch.arange(B), LABELS].mean()
    hidden = similarity_loss(_logits(3, 6), _logits(4, 7), LANGUAGES)
    torch.testing.assert_close(losses["loss"], 0.7 * own + 0.3 * mixture + 0.1 * hard + 5.0 * hidden)
    torch.testing.assert_close(losses["hard"], hard)
    torch.testing.assert_close(losses["hidden"], hidden)
    assert set(losses) == {"loss", "own", "mixture", "hard", "hidden"}
    assert set(_objective(hidden=None, mixture_logits=None)) == {"loss", "own", "hard"}


def test_objective_without_soft_labels_is_the_hard_label_loss() -> None:
    losses = _objective(teacher_logits=None)
    torch.testing.assert_close(losses["loss"], torch.nn.functional.cross_entropy(_logits(0), LABELS))
    assert set(losses) == {"loss", "hard"}


# Class weights


def test_an_example_counts_with_its_classes_weight_in_every_part() -> None:
    class_weights = torch.tensor([2.0, 0.5, 1.0, 3.0], dtype=torch.float64)
    losses = _objective(class_weights=class_weights)
    w = class_weights[LABELS]
    one_by_one: dict[str, list[torch.Tensor]] = {"own": [], "mixture": [], "hard": []}
    for i in range(B):
        row = slice(i, i + 1)
        alone = objective(
            _logits(0)[row],
            LABELS[row],
            teacher_logits=_logits(2)[row],
            mixture_logits=_logits(1)[row],
            hidden=None,
            class_weights=None,
            temperature=2.0,
            mixture_weight=0.3,
            hard_label_weight=0.1,
            hidden_weight=0.0,
        )
        for name, values in one_by_one.items():
            values.append(alone[name])
    for name, values in one_by_one.items():
        torch.testing.assert_close(losses[name], (w * torch.stack(values)).sum() / w.sum())
    same = LANGUAGES.unsqueeze(0) == LANGUAGES.unsqueeze(1)
    rows = []
    for states in (_logits(3, 6), _logits(4, 7)):
        similarities = (states @ states.T) * same
        rows.append(similarities / similarities.norm(dim=1, keepdim=True))
    by_example = (rows[1] - rows[0]).square().sum(dim=1) / same.sum(dim=1)
    torch.testing.assert_close(losses["hidden"], (w * by_example).sum() / w.sum())
    total = 0.7 * losses["own"] + 0.3 * losses["mixture"] + 0.1 * losses["hard"] + 5.0 * losses["hidden"]
    torch.testing.assert_close(losses["loss"], total)


def test_equal_class_weights_change_nothing() -> None:
    weighted = _objective(class_weights=torch.full((C,), 7.0, dtype=torch.float64))
    for name, loss in _objective().items():
        torch.testing.assert_close(weighted[name], loss)


def test_gradient_of_the_weighted_objective_is_right() -> None:
    class_weights = torch.tensor([2.0, 0.5, 1.0, 3.0], dtype=torch.float64)

    def loss(z: torch.Tensor, m: torch.Tensor, s: torch.Tensor) -> torch.Tensor:
        return objective(
            z,
            LABELS,
            teacher_logits=_logits(2),
            mixture_logits=m,
            hidden=HiddenStates(s, _logits(4, 7), LANGUAGES),
            class_weights=class_weights,
            temperature=1.7,
            mixture_weight=0.3,
            hard_label_weight=0.1,
            hidden_weight=5.0,
        )["loss"]

    assert gradcheck(loss, tuple(_logits(i, width).requires_grad_() for i, width in ((0, C), (1, C), (3, 6))))


def test_balanced_class_weights_are_those_of_scikit_learn() -> None:
    labels = torch.tensor([0, 0, 3, 1, 0, 2, 2, 3, 0])
    weights = balanced_class_weights(torch.bincount(labels))
    expected = compute_class_weight("balanced", classes=np.arange(C), y=labels.numpy())
    torch.testing.assert_close(weights, torch.tensor(expected).float())
    assert weights[labels].mean().item() == pytest.approx(1)


def test_translations_have_the_average_of_what_their_teachers_said() -> None:
    temperature = 2.5
    logits = _logits(0)
    logits[0] = torch.tensor([2000.0, 0.0, -2000.0, 0.0])  # probabilities of 0
    entities = torch.tensor([3, 1, 3, 3, 0])
    p = (logits / temperature).softmax(dim=1)
    averaged = (average_translations(logits, entities, temperature=temperature) / temperature).softmax(dim=1)
    of_the_first = (p[0] + p[2] + p[3]) / 3
    torch.testing.assert_close(averaged, torch.stack([of_the_first, p[1], of_the_first, of_the_first, p[4]]))


SOFT = torch.tensor([[3.0, 1.0, 0.0, 2.0], [3.0, 1.0, 0.0, 2.0], [3.0, 1.0, 0.0, 2.0]])
HARD = torch.tensor([0, 2, -100])  # right, wrong, not known


def test_a_wrong_soft_label_is_corrected_by_an_exchange() -> None:
    soft, trust = trusted(SOFT, HARD, how="corrected")
    assert soft.tolist() == [[3, 1, 0, 2], [0, 1, 3, 2], [3, 1, 0, 2]]
    assert trust is None


def test_soft_labels_are_trusted_as_far_as_the_hard_label_bears_them_out() -> None:
    soft, trust = trusted(SOFT, HARD, how="right")
    assert soft is SOFT
    assert trust is not None
    assert trust.tolist() == [1, 0, 1]
    soft, trust = trusted(SOFT, HARD, how="probability")
    assert trust is not None
    p = [math.exp(z) / sum(math.exp(value) for value in (3, 1, 0, 2)) for z in (3, 0)]
    assert trust.tolist() == pytest.approx([*p, 1])
    assert trusted(SOFT, HARD, how="always") == (SOFT, None)


def test_the_hard_label_has_the_weight_that_the_soft_label_lost() -> None:
    z, t, m, trust = _logits(0), _logits(1), _logits(2), torch.tensor([1.0, 0.0, 0.25, 1.0, 0.5]).double()
    labels = torch.tensor([0, 1, 2, -100, 0])
    weights = torch.tensor([1.0, 2.0, 3.0, 4.0]).double()
    settings = {"temperature": 2.0, "mixture_weight": 0.3, "hard_label_weight": 0.5, "hidden_weight": 0.0}
    found = objective(
        z,
        labels,
        teacher_logits=t,
        mixture_logits=m,
        hidden=None,
        class_weights=weights,
        trust=trust,
        **settings,
    )["loss"]
    expected = of_all = 0.0
    for i in range(B):
        one = slice(i, i + 1)
        own, mixed = (distillation_loss(x[one], t[one], temperature=2.0) for x in (z, m))
        weight = float(weights[labels[i]]) if labels[i] >= 0 else 1.0
        hard, hard_mixed = (
            float(torch.nn.functional.cross_entropy(x[one], labels[one])) if labels[i] >= 0 else 0.0
            for x in (z, m)
        )
        k = float(trust[i])
        of_own, of_mixture = (k * float(own) + (1 - k) * hard, k * float(mixed) + (1 - k) * hard_mixed)
        expected += weight * (0.7 * of_own + 0.3 * of_mixture + 0.5 * hard)
        of_all += weight
    assert found.item() == pytest.approx(expected / of_all, rel=1e-12)
