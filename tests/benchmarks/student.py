"""Benchmark of the student: own branch, mixture and training step against what they must cost, and loading.

XLM-R's shape at reduced width with random weights: 12 layers, 5 branches of 2 layers. Ratios of one run on
one machine, medians of runs in turn; each part in a process of its own.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from measure import apart, extra_memory, heading, progress, ratio, row, spent_each
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state
from transformers import AutoModelForSequenceClassification, XLMRobertaConfig

from stages.models.batches import current_device
from stages.models.modeling_mblm import BranchedLayer, MBLMForSequenceClassification
from stages.student.objective import mixture_weights, objective

K, C = 5, 3
LANGUAGES = ["ar", "de", "en", "tr", "zh"]


class Shape(NamedTuple):
    """An encoder, and batches of ``texts`` times ``tokens``."""

    layers: int = 12
    branch_layers: int = 2
    hidden: int = 256
    heads: int = 4
    vocabulary: int = 8000
    texts: int = 40
    tokens: int = 32

    @property
    def pairs_of_mixture(self) -> float:
        """Layers that a text of the mixture goes through, over those of the plain encoder."""
        return (self.layers + (K - 1) * self.branch_layers) / self.layers


SMALL = Shape()
LAYERS, BRANCH_LAYERS, HIDDEN = SMALL.layers, SMALL.branch_layers, SMALL.hidden
B, T = SMALL.texts, SMALL.tokens


def main() -> None:
    """Print one table per question."""
    for part in (inference, branches, training, memory, from_disk, loading):
        progress(part.__name__)
        apart(part)


def config(shape: Shape = SMALL) -> XLMRobertaConfig:
    """Give an encoder's configuration."""
    return XLMRobertaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        intermediate_size=4 * shape.hidden,
        max_position_embeddings=130,
        id2label=dict(enumerate("abc")),
        label2id={name: index for index, name in enumerate("abc")},
    )


def models(shape: Shape = SMALL) -> tuple[Any, MBLMForSequenceClassification]:
    """Make a plain classifier, and a student of the same weights."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        plain = AutoModelForSequenceClassification.from_config(config(shape))
        plain.save_pretrained(folder)
        student = MBLMForSequenceClassification.from_mplm(
            folder,
            languages=LANGUAGES,
            n_branches=K,
            branch_layers=shape.branch_layers,
            id2label=dict(enumerate("abc")),
        )
    return plain, student


def inputs(shape: Shape = SMALL, device: torch.device | None = None) -> dict[str, Tensor]:
    """Make up a batch without padding."""
    size = (shape.texts, shape.tokens)
    ids = torch.randint(5, shape.vocabulary, size, device=device)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def inference() -> None:
    """What a text costs by its own branch, in a mixed batch and by the mixture."""
    plain, student = models()
    plain.eval(), student.eval()
    batch = inputs()
    own = torch.full((B,), 1)
    mixed = torch.arange(B) % K

    def run(model: Any, **more: Any) -> Callable[[], object]:
        @torch.inference_mode()
        def forward() -> object:
            return model(**batch, **more).logits

        forward()
        return forward

    base = run(plain)
    ways = [run(student, **more) for more in ({"language_ids": own}, {"language_ids": mixed}, {})]
    one, several, mixture = (ratio(way, base, repeats=20) for way in ways)
    student.set_default_language("de")
    chosen = ratio(run(student), base, repeats=20)
    heading(
        f"Inference, {B} texts of {T} tokens, {LAYERS} layers of {HIDDEN}, {K} branches of {BRANCH_LAYERS}"
    )
    row("one language over the plain encoder", one, "times", at_most=1.03)
    row("the same, language chosen beforehand", chosen, "times", at_most=1.03)
    row("five languages in one batch over the plain encoder", several, "times")
    row("the mixture of all over the plain encoder", mixture, "times")
    row("as many layers over the plain encoder's", SMALL.pairs_of_mixture, "times")


def branches() -> None:
    """Ways to run K branches on their texts: one after the other, or all at once with stacked weights."""
    _, student = models()
    layers = [layer for layer in student.modules() if isinstance(layer, BranchedLayer)]
    states = torch.randn(K * B, T, HIDDEN)
    first: BranchedLayer = layers[0]
    stacked, buffers = stack_module_state(list(first))
    skeleton = first[0]

    def one(parameters: dict[str, Tensor], buffer: dict[str, Tensor], part: Tensor) -> Tensor:
        seen: Tensor = functional_call(skeleton, (parameters, buffer), (part,))
        return seen

    together = torch.vmap(one, randomness="different")

    def loop() -> Tensor:
        return torch.cat([layer(part) for layer, part in zip(first, states.chunk(K), strict=True)])

    def at_once() -> Tensor:
        seen: Tensor = together(stacked, buffers, states.reshape(K, B, T, HIDDEN))
        return seen

    def backwards(forward: Callable[[], Tensor]) -> Callable[[], object]:
        def step() -> None:
            forward().square().mean().backward()

        return step

    for module in first:
        module.eval()
    with torch.no_grad():
        torch.testing.assert_close(loop(), at_once().flatten(0, 1), atol=1e-4, rtol=1e-4)
        in_turn, stacked_ = spent_each(loop, at_once, repeats=9)
    in_turn_back, stacked_back = spent_each(backwards(loop), backwards(at_once), repeats=9)
    heading(f"One layer, {K} branches of {B} texts each: stacked weights and vmap over branch by branch")
    row("forward", stacked_.wall / in_turn.wall, "times")
    row("forward and backward", stacked_back.wall / in_turn_back.wall, "times")


def step_of(model: Any, *, mblm: bool, shape: Shape = SMALL, bfloat16: bool = False) -> Callable[[], None]:
    """Give a training step: of `finetune` for a plain model, of `mblm` for a student."""
    device = next(model.parameters()).device
    batch = inputs(shape, device)
    labels = torch.randint(C, (shape.texts,), device=device)
    teacher_logits = torch.randn(shape.texts, C, device=device)
    language_ids = torch.arange(shape.texts, device=device) % K
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast(device.type, torch.bfloat16, enabled=bfloat16):
            if mblm:
                weights = mixture_weights(language_ids, n_branches=K, weights="dirichlet", own_branch=False)
                seen = model(**batch, language_ids=language_ids, mixture_weights=weights)
                loss = loss_of(seen.logits, labels, teacher_logits, seen.mixture_logits)
            else:
                loss = nn.functional.cross_entropy(model(**batch).logits, labels)
        loss.backward()
        optimizer.step()

    return step


def loss_of(logits: Tensor, labels: Tensor, teacher_logits: Tensor | None, mixture: Tensor | None) -> Tensor:
    """Give the loss of stage two with its default weights."""
    return objective(
        logits,
        labels,
        teacher_logits=teacher_logits,
        mixture_logits=mixture,
        hidden=None,
        class_weights=None,
        temperature=2.0,
        mixture_weight=0.3,
        hard_label_weight=0.0,
        hidden_weight=0.0,
    )["loss"]


def training() -> None:
    """A training step of `mblm` over one of `finetune`."""
    plain, student = models()
    finetune, mblm = step_of(plain, mblm=False), step_of(student, mblm=True)
    finetune(), mblm()
    one, other = spent_each(finetune, mblm, repeats=9)
    heading(f"Training step, {B} texts of {T} tokens in {K} languages")
    row("finetune", one.wall * 1e3, "ms")
    row("mblm over finetune", other.wall / one.wall, "times", at_most=1.10 * SMALL.pairs_of_mixture)
    row("as many layers over the plain encoder's", SMALL.pairs_of_mixture, "times")


def memory() -> None:
    """Peak memory of a forward and backward pass, beyond weights and gradients."""
    finetune, mblm = (apart(memory_of_step, mblm) for mblm in (False, True))
    heading("Peak memory of forward and backward pass beyond weights, gradients and optimizer")
    row("finetune", finetune / 2**20, "MiB")
    row("mblm over finetune", mblm / finetune, "times", at_most=1.15 * SMALL.pairs_of_mixture)


def memory_of_step(mblm: bool) -> int:
    """Measure a step of a batch so large that activations are nearly all of it; the first one warms up."""
    plain, student = models()
    model: nn.Module = student if mblm else plain
    step_of(model, mblm=mblm)()
    return extra_memory(step_of(model, mblm=mblm, shape=SMALL._replace(texts=8 * B)))


def steps_by_source(shape: Shape = SMALL, *, bfloat16: bool = False) -> tuple[list[Callable[[], None]], int]:
    """Give steps with hard labels alone, with soft labels from disk, and with K teachers that are asked.

    Returns:
        The three, and the bytes of the teachers' weights.
    """
    device = current_device() if bfloat16 else torch.device("cpu")
    student: Any = models(shape)[1]
    student.to(device)
    teachers = [
        AutoModelForSequenceClassification.from_config(config(shape)).eval().to(device) for _ in range(K)
    ]
    logits = torch.randn(100_000, C)
    batch = inputs(shape, device)
    labels = torch.randint(C, (shape.texts,), device=device)
    language_ids = torch.arange(shape.texts, device=device) % K
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-5)

    def step(teacher_logits: Callable[[], Tensor | None]) -> Callable[[], None]:
        def run() -> None:
            optimizer.zero_grad()
            with torch.autocast(device.type, torch.bfloat16, enabled=bfloat16):
                seen = student(**batch, language_ids=language_ids)
                loss = loss_of(seen.logits, labels, teacher_logits(), None)
            loss.backward()
            optimizer.step()

        return run

    def online() -> Tensor:
        answers = torch.empty(shape.texts, C, device=device)
        with torch.inference_mode():
            for k, teacher in enumerate(teachers):
                rows = language_ids == k
                said = teacher(**{name: value[rows] for name, value in batch.items()}).logits
                answers[rows] = said.float()
        return answers.clone()

    def cached() -> Tensor:
        return logits[torch.randint(len(logits), (shape.texts,))].to(device)

    weights = sum(parameter.nbytes for teacher in teachers for parameter in teacher.parameters())
    return [step(lambda: None), step(cached), step(online)], weights


def from_disk() -> None:
    """A step with soft labels from disk over hard labels, and over K teachers that are asked on the way."""
    steps, weights = steps_by_source()
    for one in steps:
        one()
    hard, disk, asked = spent_each(*steps, repeats=11)
    heading(f"Training step by where the soft labels come from; {K} teachers of the encoder's size")
    row("cached soft labels over hard labels", disk.wall / hard.wall, "times", at_most=1.02)
    row("teachers in memory over cached soft labels", asked.wall / disk.wall, "times")
    row("memory that the teachers' weights take", weights / 2**20, "MiB")


def loading() -> None:
    """Loading a student over loading a plain model of as many bytes."""
    torch.set_num_threads(1)
    _, student = models()
    n_layers = LAYERS - BRANCH_LAYERS + K * BRANCH_LAYERS
    plain = AutoModelForSequenceClassification.from_config(config(SMALL._replace(layers=n_layers)))
    with tempfile.TemporaryDirectory() as folder:
        student.save_pretrained(f"{folder}/student")
        plain.save_pretrained(f"{folder}/plain")
        size = [Path(f"{folder}/{name}/model.safetensors").stat().st_size for name in ("plain", "student")]

        def load(name: str) -> Callable[[], object]:
            return lambda: AutoModelForSequenceClassification.from_pretrained(f"{folder}/{name}")

        load("plain")(), load("student")()
        one, other = spent_each(load("plain"), load("student"), repeats=7)
    heading("Loading")
    row(f"a plain model of {n_layers} layers", one.wall * 1e3, "ms")
    row("the student's bytes over its bytes", size[1] / size[0], "times")
    row("the student over it", other.wall / one.wall, "times", at_most=1.2)


if __name__ == "__main__":
    main()
