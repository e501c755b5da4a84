"""A small encoder from nothing: byte-pair tokenizer, random weights, masked language modelling.

For tasks such as `names`, where no pre-trained model is at hand. Real tasks start from a model on the Hub.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors, trainers
from torch import Tensor
from torch.nn import functional
from transformers import (
    DataCollatorForLanguageModeling,
    ModernBertConfig,
    ModernBertForMaskedLM,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForMaskedLM,
    set_seed,
)

from stages.models.texts import SPLIT_MARK, Texts, split_randomly
from stages.models.training import TextTrainer, run, training_arguments
from stages.params import ScratchParams, TrainingParams

_SPECIAL_TOKENS = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
_POSITIONS = 512


def build_tokenizer(texts: Sequence[str], *, merges: int) -> PreTrainedTokenizerFast:
    """Learn byte-pair merges over characters; every character of the texts is in the vocabulary."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Metaspace(),
            pre_tokenizers.Split(Regex(SPLIT_MARK), "removed"),
        ]
    )
    alphabet = sorted({character for text in texts for character in text} | {"▁"})
    trainer = trainers.BpeTrainer(
        vocab_size=len(_SPECIAL_TOKENS) + len(alphabet) + merges,
        special_tokens=_SPECIAL_TOKENS,
        initial_alphabet=alphabet,
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    begin, end = (tokenizer.token_to_id(token) for token in ("<s>", "</s>"))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>",
        pair="<s> $A </s> </s> $B </s>",
        special_tokens=[("<s>", begin), ("</s>", end)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        cls_token="<s>",
        eos_token="</s>",
        sep_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        mask_token="<mask>",
        model_max_length=_POSITIONS - 2,
    )


def build_encoder(
    params: ScratchParams,
    names: Mapping[str, Mapping[str, str]],
    folder: Path,
    *,
    seed: int,
    max_tokens: int,
    subword_dropout: float,
    pair_share: float,
    title: str,
) -> None:
    """Build an encoder, train it on masked language modelling and save it with its tokenizer.

    Args:
        params: Size and length of the training.
        names: By language, texts by the entity they name: equal entities are translations.
        folder: Where ``config.json``, weights and tokenizer go.
        seed: Decides weights, order, masks and splits.
        max_tokens: Longer inputs are truncated.
        subword_dropout: Chance of a split at each character boundary.
        pair_share: Share of the inputs that hold a text and its translation into another language.
        title: Of the progress bar.
    """
    set_seed(seed)
    names = {
        language: {entity: text for entity, text in texts.items() if text.strip()}
        for language, texts in names.items()
    }
    texts = [text for by_entity in names.values() for text in by_entity.values()]
    tokenizer = build_tokenizer(texts, merges=params.merges)
    model = _MODELS[params.architecture](params, tokenizer)
    training = TrainingParams(
        seed=seed,
        batch_size=params.mlm_batch_size,
        learning_rate=params.mlm_learning_rate,
        warmup_share=0.1,
        weight_decay=0.01,
        max_tokens=max_tokens,
        subword_dropout=subword_dropout,
        precision="float32",
    )
    data = _Translations(names, training, pair_share=pair_share)
    if params.mlm_steps:
        trainer = _MaskedTrainer(
            training,
            model=model,
            args=training_arguments(training, folder, max_steps=params.mlm_steps, save_strategy="no"),
            train_dataset=data,
            data_collator=_MaskingCollator(tokenizer, max_tokens, params.mlm_share),
        )
        run(trainer, title=title)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


class _MaskedTrainer(TextTrainer):
    """Predicts the vocabulary at masked tokens only, which are a fifth of all and where the work is."""

    def compute_loss(self, model: Any, inputs: dict[str, Tensor], *args: Any, **kwargs: Any) -> Tensor:
        """Mean cross-entropy over the masked tokens, in nats."""
        labels = inputs.pop("labels")
        states = model.base_model(**inputs).last_hidden_state
        masked = labels >= 0
        states = states[masked]
        is_roberta = isinstance(model, RobertaForMaskedLM)
        logits = model.lm_head(states) if is_roberta else model.decoder(model.head(states))
        return functional.cross_entropy(logits, labels[masked])


class _Translations(Texts):
    """Texts in all languages, some together with their translation into another language."""

    def __init__(
        self, names: Mapping[str, Mapping[str, str]], params: TrainingParams, *, pair_share: float
    ) -> None:
        self._rows = [(entity, language) for language, texts in names.items() for entity in texts]
        super().__init__([[names[lang][entity] for entity, lang in self._rows]], {}, seed=params.seed)
        self._names = names
        self._translations: dict[str, list[str]] = {}
        for entity, language in self._rows:
            self._translations.setdefault(entity, []).append(language)
        self._split_chance = params.subword_dropout
        self._pair_share = pair_share

    def __getitem__(self, index: int) -> dict[str, Any]:
        entity, language = self._rows[index]
        generator = self.generator(index)
        texts = [self._names[language][entity]]
        others = [other for other in self._translations[entity] if other != language]
        if others and generator.random() < self._pair_share:
            texts.append(self._names[others[generator.integers(len(others))]][entity])
        return {"texts": [split_randomly(text, self._split_chance, generator) for text in texts]}


class _MaskingCollator:
    def __init__(self, tokenizer: PreTrainedTokenizerFast, max_tokens: int, share: float) -> None:
        self._tokenizer = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
        self._tokenizer.enable_truncation(max_tokens)
        self._mask = DataCollatorForLanguageModeling(tokenizer, mlm_probability=share)

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Tensor]:
        encodings = self._tokenizer.encode_batch(
            [tuple(texts) if len(texts) == 2 else texts[0] for texts in (e["texts"] for e in examples)]
        )
        rows = [
            {"input_ids": encoding.ids, "special_tokens_mask": encoding.special_tokens_mask}
            for encoding in encodings
        ]
        while True:
            batch: dict[str, Tensor] = self._mask(rows)
            # A batch of very short texts may by chance have nothing masked; its mean loss would be 0/0.
            if (batch["labels"] >= 0).any():
                return batch


def _roberta(params: ScratchParams, tokenizer: PreTrainedTokenizerFast) -> RobertaForMaskedLM:
    config = RobertaConfig(
        vocab_size=len(tokenizer),
        hidden_size=params.hidden,
        num_hidden_layers=params.layers,
        num_attention_heads=params.heads,
        intermediate_size=4 * params.hidden,
        hidden_dropout_prob=params.dropout,
        attention_probs_dropout_prob=params.dropout,
        max_position_embeddings=_POSITIONS,
        type_vocab_size=1,
        bos_token_id=tokenizer.bos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return RobertaForMaskedLM(config)


def _modernbert(params: ScratchParams, tokenizer: PreTrainedTokenizerFast) -> ModernBertForMaskedLM:
    config = ModernBertConfig(
        vocab_size=len(tokenizer),
        hidden_size=params.hidden,
        num_hidden_layers=params.layers,
        num_attention_heads=params.heads,
        intermediate_size=8 * params.hidden // 3,  # three matrices of it, where RoBERTa has two
        embedding_dropout=params.dropout,
        mlp_dropout=params.dropout,
        attention_dropout=0.0,  # with any, PyTorch has no fused attention on CPUs
        classifier_dropout=params.dropout,
        classifier_pooling="mean",
        layer_types=["full_attention"] * params.layers,  # texts are short
        max_position_embeddings=_POSITIONS,
        bos_token_id=tokenizer.bos_token_id,
        cls_token_id=tokenizer.bos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        sep_token_id=tokenizer.eos_token_id,
    )
    return ModernBertForMaskedLM(config)


_MODELS = {"roberta": _roberta, "modernbert": _modernbert}
