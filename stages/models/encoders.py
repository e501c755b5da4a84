"""What a student is made from: an encoder as it lies somewhere, or its first layers; and how it pools."""

import json
import shutil
from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoModel, AutoTokenizer

import stages.models.quiet  # noqa: F401
from cache import write_atomically
from stages.errors import StageError
from stages.models.loading import loading, require_embeddings
from stages.models.pins import fetch, model_files, pin, read_pin
from stages.models.vocabulary import Vocabulary, trim_embeddings

_NOTE = "encoder.json"


def write_encoder(
    folder: Path,
    source: dict[str, Any],
    *,
    layers: int | None,
    vocabulary: Vocabulary | None,
    pooling: str | None,
    command: str,
) -> None:
    """Let a folder stand for an encoder that exists, or hold what is kept of it.

    Args:
        folder: An empty one.
        source: What `stages.models.pins.resolve` gave.
        layers: How many layers are kept, from below; None: all.
        vocabulary: What is kept of its vocabulary; None: all. Where all is kept, nothing is copied.
        pooling: How a student of it represents a text; None: as the encoder's family does.
        command: What calls this, for messages.

    Raises:
        StageError: The encoder cannot be had or loaded, or has fewer layers.
    """
    if layers is None and vocabulary is None:
        pin(folder, source)
    else:
        _write_part(fetch(source, command=command), folder, layers, vocabulary)
    note_encoder(folder, source, layers=layers, vocabulary=vocabulary, pooling=pooling)


def note_encoder(
    folder: Path,
    source: dict[str, Any] | None,
    *,
    layers: int | None = None,
    vocabulary: Vocabulary | None = None,
    pooling: str | None,
) -> None:
    """Write down where an encoder is from and how it pools, if there is more to say than a pin does.

    Args:
        folder: The encoder's.
        source: What `stages.models.pins.resolve` gave; None: it was pre-trained here.
        layers: As in `write_encoder`.
        vocabulary: Likewise.
        pooling: Likewise.
    """
    if layers is not None or vocabulary is not None or pooling is not None:
        note = {"source": source, "layers": layers, "pooling": pooling}
        write_atomically(folder / _NOTE, json.dumps(note, indent=2, sort_keys=True).encode())


def read_note(folder: Path) -> dict[str, Any]:
    """Give ``source``, ``layers`` and ``pooling`` of an encoder, as `note_encoder` took them."""
    path = folder / _NOTE
    if path.is_file():
        note: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return note
    return {"source": read_pin(folder), "layers": None, "pooling": None}


def _write_part(base: Path, folder: Path, layers: int | None, vocabulary: Vocabulary | None) -> None:
    """Write what is kept of an encoder: some of its layers and tokens, and no classifier."""
    with loading(f"the encoder in {base}"):
        config = AutoConfig.from_pretrained(base, trust_remote_code=False)
        n_layers = config.num_hidden_layers
        if layers is not None and layers > n_layers:
            raise StageError(f"student.pretrain.layers is {layers}, but {base} has {n_layers} layers")
        config.num_hidden_layers = layers or n_layers
        if layers is not None and getattr(config, "layer_types", None):
            config.layer_types = config.layer_types[:layers]
        model, found = AutoModel.from_pretrained(
            base,
            trust_remote_code=False,
            use_safetensors=True,
            config=config,
            dtype="auto",
            output_loading_info=True,
        )
        tokenizer = AutoTokenizer.from_pretrained(base, trust_remote_code=False)
    require_embeddings(tokenizer, model, what=f"the encoder in {base}")
    missing = set(found["missing_keys"])
    if vocabulary is not None:
        trim_embeddings(model, vocabulary.kept)
    model.save_pretrained(
        folder, state_dict={name: value for name, value in model.state_dict().items() if name not in missing}
    )
    if vocabulary is not None:
        vocabulary.tokenizer.save_pretrained(folder)
        return
    for path in model_files(base):
        if not (path.name == "config.json" or path.name.startswith("model")):
            shutil.copy(path, folder)
