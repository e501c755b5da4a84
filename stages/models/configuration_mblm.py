"""Configuration of the multi-branch student. Imports only transformers: an exported model stands alone."""

from typing import Any

from transformers import AutoConfig, PreTrainedConfig

SCHEMA_VERSION = 1
"""Of what is written. Older ones are read, and newer ones refused: an absent version is the first."""

_SIZES = (
    *("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"),
    *("vocab_size", "max_position_embeddings", "type_vocab_size", "pad_token_id"),
)
_OWN = frozenset(vars(PreTrainedConfig()))
"""What every configuration has for itself."""


def _has(config: PreTrainedConfig, name: str) -> bool:
    return name in vars(config) or name in config.attribute_map


class MBLMConfig(PreTrainedConfig):
    """A multilingual encoder (MPLM) whose top layers exist once per supervised language.

    Attributes:
        mplm_config: Configuration of the encoder that the student is made from.
        languages: The supervised languages; a language's id is its position here.
        n_branches: One per language, or 1: then all languages share it, as in a plain classifier.
        branch_layers: How many of the encoder's top layers form a branch.
        mixing: What a mixture is of: ``representations`` (before the classifier) or ``logits``.
        pooling: What represents a text: the state of its ``first`` token, of its ``last``, or the ``mean`` of
            all; None: as the encoder's family does.
        own_temperature: What the logits of a text in one of `languages` are divided by, so that probabilities
            are as high as they are often right. The model's logits are raw; who needs probabilities divides.
        mixture_temperature: Likewise of a text in any other language.
        default_language: Whose branch serves texts that come without a language id; None: the mixture.
        text_fields: What the texts of an example were called in training: one, or the two of a pair; None:
            an earlier version did not write it down.
        schema_version: Of the folder that the student is saved to.
    """

    model_type = "mblm"
    sub_configs = {"mplm_config": AutoConfig}  # noqa: RUF012 - as transformers declares it
    keys_to_ignore_at_inference = ["mixture_logits", "branch_states", "hidden_states", "attentions"]  # noqa: RUF012

    def __init__(
        self,
        mplm_config: dict[str, Any] | PreTrainedConfig | None = None,
        languages: list[str] | None = None,
        n_branches: int = 1,
        branch_layers: int = 1,
        mixing: str = "representations",
        pooling: str | None = None,
        own_temperature: float = 1.0,
        mixture_temperature: float = 1.0,
        default_language: str | None = None,
        text_fields: list[str] | None = None,
        schema_version: int = 1,
        **kwargs: Any,
    ) -> None:
        if schema_version > SCHEMA_VERSION:
            raise ValueError(
                f"a newer version of MBLM wrote this student: it is of schema version {schema_version}, and "
                f"this version reads up to {SCHEMA_VERSION}; upgrade"
            )
        if mplm_config is None:
            mplm_config = {"model_type": "xlm-roberta"}
        if isinstance(mplm_config, dict):
            mplm_config = AutoConfig.for_model(**mplm_config)
        self.mplm_config = mplm_config
        self.languages = list(languages or [])
        self.n_branches = n_branches
        self.branch_layers = branch_layers
        self.mixing = mixing
        self.pooling = pooling
        self.own_temperature = own_temperature
        self.mixture_temperature = mixture_temperature
        self.default_language = default_language
        self.text_fields = text_fields
        self.schema_version = SCHEMA_VERSION
        # With these, a folder that holds the code as well loads as each of them.
        self.auto_map = {
            "AutoConfig": "configuration_mblm.MBLMConfig",
            "AutoModel": "modeling_mblm.MBLMModel",
            "AutoModelForSequenceClassification": "modeling_mblm.MBLMForSequenceClassification",
        }
        if n_branches not in (1, len(self.languages)):
            raise ValueError(f"n_branches is {n_branches}: one, or one per language of {self.languages}")
        if not 1 <= branch_layers <= mplm_config.num_hidden_layers:
            raise ValueError(
                f"branch_layers is {branch_layers}, but {mplm_config.model_type} has "
                f"{mplm_config.num_hidden_layers} layers"
            )
        if mixing not in ("representations", "logits"):
            raise ValueError(f"mixing is {mixing!r}: representations or logits")
        if pooling not in (None, "first", "mean", "last"):
            raise ValueError(f"pooling is {pooling!r}: first, mean, last or null")
        for name in ("own_temperature", "mixture_temperature"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}: a number above 0")
        super().__init__(**kwargs)

    def __getattr__(self, name: str) -> Any:
        """Give what this configuration has not and the encoder's has, such as ``hidden_size``."""
        encoder = self.__dict__.get("mplm_config")
        if encoder is None or name.startswith("_"):
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")
        return getattr(encoder, name)

    def __setattr__(self, name: str, value: Any) -> None:
        """Set what is the encoder's alone in its configuration, as ``from_pretrained`` does with options."""
        encoder = self.__dict__.get("mplm_config")
        if encoder is not None and name not in _OWN and not hasattr(type(self), name) and _has(encoder, name):
            setattr(encoder, name, value)
        else:
            super().__setattr__(name, value)

    def to_dict(self) -> dict[str, Any]:
        """Give all values, with the encoder's sizes under their standard names, which PEFT looks for."""
        sizes = {name: getattr(self.mplm_config, name) for name in _SIZES if hasattr(self.mplm_config, name)}
        return {**super().to_dict(), **sizes}

    def to_diff_dict(self) -> dict[str, Any]:
        """Give what is saved: the encoder's sizes stand in its own section alone."""
        return {name: value for name, value in super().to_diff_dict().items() if name not in _SIZES}

    def language_id(self, language: str) -> int:
        """Find the branch of a language; tags are compared without case, as BCP 47 says.

        Returns:
            The position of the language in `languages`, or of what it is a variety of (``de`` for ``de-AT``);
            -1, which stands for the mixture, where there is none.
        """
        known = [one.replace("_", "-").casefold() for one in self.languages]
        parts = language.strip().replace("_", "-").casefold().split("-")
        for end in range(len(parts), 0, -1):
            if "-".join(parts[:end]) in known:
                return known.index("-".join(parts[:end]))
        return -1


MBLMConfig.register_for_auto_class()
