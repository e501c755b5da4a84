"""Which files of a folder are a model: what is downloaded and pinned, and what decides its tokens."""

# The files that transformers' tokenizers read; those that tokenizer_config.json names come to them.
TOKENIZER_FILES = (
    *("added_tokens.json", "bpe.codes", "entity_vocab.json", "merges.txt", "prophetnet.tokenizer"),
    *(
        "sentencepiece.bpe.model",
        "sentencepiece.model",
        "special_tokens_map.json",
        "spiece.model",
        "spm.model",
    ),
    *("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json", "vocab.txt"),
    *("word_pronunciation.json", "word_shape.json"),
)

MODEL_FILES = ("*.json", "*.safetensors", "*.txt", "*.model", "*.codes", "*.tokenizer")
"""Patterns of a model's files: weights, configuration, and whatever a tokenizer may read."""
