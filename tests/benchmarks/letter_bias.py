"""Benchmark of the letter bias: accuracy of a biased chat model before and after it is taken off.

A small Llama learns to answer with letters from texts of which 80 % have the letter A. While it learns, it is
asked over HTTP about as many texts of each class, as they are and with `letter_bias: contextual`.
"""

import os
import random
import sys
from contextlib import chdir, redirect_stdout
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from measure import heading, progress, row

STEPS = (20, 40, 60, 80, 100)


def main() -> None:
    """Print accuracies at several moments of the training."""
    import torch
    from behind_http import PROMPT
    from endpoint_server import ChatModel, write_chat_model
    from tiny import CLASSES, examples, tiny_params, write_input, write_params

    rng = random.Random(0)
    torch.manual_seed(0)
    heading("57 texts, three classes: a chat model that has seen too many of the letter A")
    with TemporaryDirectory(prefix="mblm-bench-") as folder, chdir(folder):
        os.environ["MBLM_TEACHER_CACHE"] = str(Path(folder) / "store")
        write_params(tiny_params())
        write_input(Path(folder))
        _pipeline("prepare")
        write_chat_model(Path("model"), hidden=48)
        chat = ChatModel(Path("model"), lift=0.0)
        for weights in chat.model.parameters():
            if weights.dim() > 1:
                weights.data *= 0.2
        optimizer = torch.optim.AdamW(chat.model.parameters(), lr=2e-3)
        texts = {
            name: [one["text"] for one in examples("de", "train") if one["label"] == name] for name in CLASSES
        }
        listed = "\n".join(f"{letter}. {name}" for letter, name in zip("ABC", CLASSES, strict=True))
        for step in range(1, max(STEPS) + 1):
            losses = []
            for name in rng.choices(CLASSES, [0.8, 0.1, 0.1], k=8):
                prompt = PROMPT.replace("{text}", rng.choice(texts[name])).replace("{classes}", listed)
                ids = chat.ids([{"role": "user", "content": prompt}])
                letter = chat.tokenizer.convert_tokens_to_ids("ABC"[CLASSES.index(name)])
                logits = chat.model.train()(ids).logits[:, -1]
                losses.append(torch.nn.functional.cross_entropy(logits, torch.tensor([letter])))
            torch.stack(losses).mean().backward()
            torch.nn.utils.clip_grad_norm_(chat.model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            if step in STEPS:
                progress(f"step {step}")
                chat.model.eval().save_pretrained("model")
                for bias in (None, "contextual"):
                    row(
                        f"after {step} steps, letter_bias: {bias or 'null'}", 100 * _accuracy(step, bias), "%"
                    )


def _accuracy(step: int, bias: str | None) -> float:
    """Ask the model that was saved about all texts."""
    from behind_http import FINETUNE, LABEL, said, set_chat
    from endpoint_server import ChatModel, chat_answer, serving
    from tiny import CLASSES, SIZES, examples

    with serving(v1_chat_completions=chat_answer(ChatModel(Path("model"), lift=0.0))) as server:
        set_chat(server.url, revision=f"{step}", max_outside=1.0, max_missing=1.0, letter_bias=bias)
        _pipeline(*FINETUNE)
        _pipeline(*LABEL)
    labels = [CLASSES.index(one["label"]) for split in SIZES for one in examples("de", split)]
    return float((said().argmax(axis=1) == np.array(labels)).mean())


def _pipeline(*arguments: str) -> None:
    from pipeline.__main__ import main as run

    sys.argv = ["pipeline", *arguments]
    try:
        with redirect_stdout(StringIO()):
            code = run()
    except SystemExit as stop:
        code = int(stop.code or 0)
    if code:
        raise RuntimeError(f"{' '.join(arguments)}: exit code {code}")


if __name__ == "__main__":
    main()
