"""The mathematics of stage two against its written-out definition."""

import math

import pytest
import torch
from torch.autograd import gradcheck

from stages.student.objective import distillation_loss, mixture_weights, objective

B, K, C = 5, 3, 4


def _logits(seed: int) -> torch.Tensor:
    return torch.randn(B, C, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


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


@pytest.mark.parametrize("weights", ["uniform", "dirichlet"])
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


def test_a_mixture_of_no_other_branch_is_refused() -> None:
    with pytest.raises(ValueError, match="two branches"):
        mixture_weights(torch.zeros(2, dtype=torch.int64), n_branches=1, weights="uniform", own_branch=False)


def test_objective_weighs_its_parts() -> None:
    z, m, t = _logits(0), _logits(1), _logits(2)
    labels = torch.tensor([0, 1, 2, 3, 0])
    losses = objective(
        z,
        labels,
        teacher_logits=t,
        mixture_logits=m,
        temperature=2.0,
        mixture_weight=0.3,
        hard_label_weight=0.1,
    )
    own = distillation_loss(z, t, temperature=2.0)
    mixture = distillation_loss(m, t, temperature=2.0)
    hard = -z.log_softmax(1)[torch.arange(B), labels].mean()
    torch.testing.assert_close(losses["loss"], 0.7 * own + 0.3 * mixture + 0.1 * hard)
    torch.testing.assert_close(losses["hard"], hard)
    assert set(losses) == {"loss", "own", "mixture", "hard"}


def test_objective_without_soft_labels_is_the_hard_label_loss() -> None:
    z, labels = _logits(0), torch.tensor([0, 1, 2, 3, 0])
    losses = objective(
        z,
        labels,
        teacher_logits=None,
        mixture_logits=None,
        temperature=9.0,
        mixture_weight=0.9,
        hard_label_weight=0.0,
    )
    torch.testing.assert_close(losses["loss"], torch.nn.functional.cross_entropy(z, labels))
