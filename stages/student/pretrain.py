"""The multilingual model (MPLM) that the student starts from: pin one, or pre-train a small one."""

from pathlib import Path

from stages.artifacts import ENCODER, replaced_folder
from stages.data.examples import pretraining_texts
from stages.data.task import TaskParams
from stages.models.encoders import note_encoder, write_encoder
from stages.models.pins import resolve
from stages.models.scratch import build_encoder
from stages.student.params import PretrainParams


def pretrain(task: TaskParams, params: PretrainParams, *, output: Path = ENCODER) -> str:
    """Write an encoder, the first layers of one, or a pin of one, to `output`.

    A small one is pre-trained on the unlabelled texts of all languages where the task has them (translations
    in one input: Conneau and Lample, 2019), and on the supervised languages' training texts otherwise.

    Returns:
        One line about the model.

    Raises:
        StageError: There is no such base, or it has fewer layers.
    """
    if params.base != "scratch":
        source = resolve(params.base, params.revision, key="student.pretrain.base")
        with replaced_folder(output) as folder:
            write_encoder(
                folder,
                source,
                layers=params.layers,
                pooling=params.pooling,
                command="student pretrain",
            )
        return f"encoder: {params.base}, {'pinned' if params.layers is None else f'{params.layers} layers'}"
    assert params.scratch is not None  # held by the validation of params.yaml
    texts = {language: pretraining_texts(task, language) for language in task.languages}
    with replaced_folder(output) as folder:
        build_encoder(
            params.scratch,
            texts,
            folder,
            seed=params.seed,
            max_tokens=params.max_tokens,
            subword_dropout=params.subword_dropout,
            pair_share=params.pair_share,
            title="pre-training for the student",
        )
        note_encoder(folder, None, pooling=params.pooling)
    n_texts = sum(map(len, texts.values()))
    return f"encoder: pre-trained on {n_texts:,} texts in {sum(map(bool, texts.values()))} languages"
