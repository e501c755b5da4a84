"""Teachers as LoRA adapters (Hu et al., 2021): small matrices beside the base's, which stays as it is."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers.utils.import_utils import is_peft_available

from stages.errors import StageError
from stages.models.pins import link, model_files
from stages.teacher.params import LoraParams


def with_lora(model: Any, params: LoraParams, *, new: Sequence[str]) -> Any:
    """Put an adapter around a classifier, of which only it and the classifier's own layers learn.

    Args:
        model: A classifier whose encoder was loaded.
        params: Section `teacher.finetune.lora`.
        new: Names of the weights that the base lacks, which learn as a whole.

    Raises:
        StageError: PEFT is not installed, or the model has no such layers.
    """
    if not is_peft_available():
        raise StageError(
            "teacher.finetune.lora needs PEFT; install it with: pip install -c constraints.txt -e '.[peft]'"
        )
    from peft import LoraConfig, get_peft_model  # an extra

    whole = [
        name
        for name, module in model.named_children()
        if name != model.base_model_prefix and any(True for _ in module.parameters())
    ]
    whole += ["pooler"] if any(".pooler." in name for name in new) else []
    try:
        config = LoraConfig(
            task_type="SEQ_CLS",
            r=params.rank,
            lora_alpha=params.alpha,
            lora_dropout=params.dropout,
            target_modules=params.targets or "all-linear",
            modules_to_save=whole,
        )
        return get_peft_model(model, config)
    except ValueError as error:
        first = str(error).partition("\n")[0]
        raise StageError(f"teacher.finetune.lora does not fit the model: {first}") from error


def save_adapter(model: Any, base: Path, folder: Path, *, fits: bool) -> None:
    """Write an adapter beside its base, as transformers loads it; the base is a link where there are links.

    Args:
        model: What `with_lora` gave.
        base: The folder that the base was loaded from.
        folder: Where to.
        fits: Whether transformers can load the base as the teacher's class. If not, both become one model.
    """
    if not fits:
        model.merge_and_unload().save_pretrained(folder)
        return
    model.save_pretrained(folder)
    (folder / "README.md").unlink(missing_ok=True)  # PEFT's, about nothing
    model.get_base_model().config.save_pretrained(folder)
    for path in model_files(base):
        if path.name.startswith("model"):
            link(path, folder / path.name)
