"""What the variants do to the layers that all languages share: do translations stay each other's neighbours?

    make demo && python docs/trunk.py

For each seed, pre-trains a trunk and trains the four variants from it on the demo's soft labels. Then a test
text's states behind the layers below the branches, averaged over its tokens, are compared with those of all
test texts of a supervised language: how often is the most similar one, by cosine, its translation? Chance is
one in 300.
"""

from collections import defaultdict
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
import typer
from numpy.typing import NDArray
from torch.nn import functional
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from pipeline.params import PipelineParams, load_params
from stages.data.examples import read_entities, read_examples
from stages.models.batches import tokenize
from stages.models.modeling_mblm import MBLMForSequenceClassification
from stages.student.distill import distill
from stages.student.pretrain import pretrain


def main(n_seeds: int = 3) -> None:
    """Print a table: the share of translations that are found, mean and standard deviation over seeds."""
    params = load_params(Path("params.yaml"))
    found = defaultdict(list)
    for seed in range(n_seeds):
        with TemporaryDirectory() as name:
            encoder = Path(name) / "encoder"
            pretrain(params.task, params.student.pretrain.model_copy(update={"seed": seed}), output=encoder)
            untrained = MBLMForSequenceClassification.from_mplm(
                encoder, languages=params.task.supervised, n_branches=1, branch_layers=1
            )
            found["before"].append(translations_found(params, untrained, encoder))
            for variant in ("finetune", "distill", "branches", "mblm"):
                changes = {"variant": variant, "seed": seed}
                folder = Path(name) / variant
                distill(
                    params.task,
                    params.teachers,
                    params.student.distill.model_copy(update=changes),
                    encoder=encoder,
                    output=folder,
                )
                student = MBLMForSequenceClassification.from_pretrained(folder)
                found[variant].append(translations_found(params, student, folder))
    typer.echo("|          | of supervised languages | of zero-shot languages |")
    typer.echo("|----------|------------------------:|-----------------------:|")
    for variant, shares in found.items():
        mean, deviation = np.mean(shares, axis=0), np.std(shares, axis=0, ddof=1)
        cells = [f"{m:.3f} ± {d:.3f}" for m, d in zip(mean, deviation, strict=True)]
        typer.echo(f"| {variant:8} | {cells[0]:>23} | {cells[1]:>22} |")


def translations_found(
    params: PipelineParams, model: MBLMForSequenceClassification, folder: Path
) -> tuple[float, float]:
    """Give the share of texts whose translation is nearest: of supervised and of zero-shot languages."""
    task = params.task
    tokenizer = AutoTokenizer.from_pretrained(folder)
    states = {language: trunk_states(params, model, tokenizer, language) for language in task.languages}

    def share(languages: list[str]) -> float:
        pairs = [(of, among) for of in languages for among in task.supervised if of != among]
        return float(np.mean([_share(states[of], states[among]) for of, among in pairs]))

    return share(task.supervised), share(task.zero_shot)


def trunk_states(
    params: PipelineParams,
    model: MBLMForSequenceClassification,
    tokenizer: PreTrainedTokenizerBase,
    language: str,
) -> dict[str, NDArray[np.float32]]:
    """Give what the layers below the branches make of each test text, by its entity: unit vectors, (H,)."""
    n_trunk = model.config.mplm_config.num_hidden_layers - params.student.distill.branch_layers
    fields = [read_examples(params.task, language, "test")["text"].to_pylist()]
    tokens = tokenize(tokenizer, fields, max_tokens=params.student.distill.max_tokens)
    vectors = np.empty((len(tokens), model.config.hidden_size), np.float32)
    model.eval()
    with torch.inference_mode():
        for texts in tokens.batches(8192):
            batch = tokens.batch(texts, tokenizer)
            seen = model.mblm(**batch, output_hidden_states=True).hidden_states[n_trunk]
            mask = batch["attention_mask"].unsqueeze(-1)
            means = functional.normalize((seen * mask).sum(dim=1), dim=1)
            vectors[tokens.positions[texts]] = means.numpy()
    return dict(zip(read_entities(language, "test"), vectors, strict=True))


def _share(of: dict[str, NDArray[np.float32]], among: dict[str, NDArray[np.float32]]) -> float:
    both = [entity for entity in of if entity in among]
    order = list(among)
    similar = np.stack([of[entity] for entity in both]) @ np.stack(list(among.values())).T
    return float(
        np.mean([order[i] == entity for i, entity in zip(similar.argmax(axis=1), both, strict=True)])
    )


if __name__ == "__main__":
    typer.run(main)
