"""transformers' common tests, as classes: of each family a plain model and a student.

`run_common.py` copies this beside the tests, into a package of theirs.
"""

import unittest
from typing import Any

from transformers import (
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    MODEL_MAPPING,
    AutoConfig,
    PreTrainedConfig,
)
from transformers.models.auto import modeling_auto
from transformers_tests.test_configuration_common import ConfigTester  # type: ignore[import-not-found]
from transformers_tests.test_modeling_common import (  # type: ignore[import-not-found]
    ModelTesterMixin,
    ids_tensor,
    random_attention_mask,
)
from transformers_tests.test_training_mixin import TrainingTesterMixin  # type: ignore[import-not-found]

from stages.models.configuration_mblm import MBLMConfig
from stages.models.modeling_mblm import MBLMForSequenceClassification, MBLMModel

_SIZES = {
    "vocab_size": 99,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 37,
    "max_position_embeddings": 512,
}
_SPECIAL = {"bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2}
FAMILIES: dict[str, dict[str, Any]] = {
    "bert": _SIZES,
    "camembert": {**_SIZES, "pad_token_id": 1},
    "deberta-v2": {**_SIZES, "relative_attention": False, "position_biased_input": True},
    "distilbert": {"vocab_size": 99, "dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 37},
    "electra": {**_SIZES, "embedding_size": 32},
    "modernbert": {**_SIZES, **_SPECIAL, "pad_token_id": 0},
    "roberta": {**_SIZES, "pad_token_id": 1},
    "xlm-roberta": {**_SIZES, "pad_token_id": 1},
}
_WITH_A_HEAD = ("camembert", "electra", "roberta", "xlm-roberta")
"""Families whose classifier is a module of its own, which the student's head holds."""

# The tests know by these names which class has no loss, and which takes what labels.
modeling_auto.MODEL_MAPPING_NAMES["mblm"] = "MBLMModel"
modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES["mblm"] = "MBLMForSequenceClassification"


class _Tester:
    """What the tests ask for: sizes, a configuration and inputs."""

    batch_size, seq_length, is_training = 13, 7, True
    hidden_size, num_hidden_layers, num_attention_heads = 32, 2, 4
    causal_lm_class = None

    def __init__(self, family: str, classifier: type, *, is_student: bool) -> None:
        self.sequence_classification_class = classifier
        self._family, self._is_student = family, is_student

    def get_config(self) -> PreTrainedConfig:
        plain = AutoConfig.for_model(self._family, **FAMILIES[self._family])
        if not self._is_student:
            return plain
        return MBLMConfig(mplm_config=plain, languages=["de", "en"], n_branches=2, branch_layers=1)

    def prepare_config_and_inputs_for_common(self) -> tuple[PreTrainedConfig, dict[str, Any]]:
        shape = [self.batch_size, self.seq_length]
        # Without ids of padding, which RoBERTa leaves out of its positions, in tokens and not in embeddings.
        inputs = {"input_ids": ids_tensor(shape, 94) + 5, "attention_mask": random_attention_mask(shape)}
        return self.get_config(), inputs


def _case(family: str, *, is_student: bool) -> type:
    """Make the test class of a plain model or of a student."""
    kind = type(AutoConfig.for_model(family))
    plain: tuple[Any, Any] = (MODEL_MAPPING[kind], MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING[kind])
    classes = (MBLMModel, MBLMForSequenceClassification) if is_student else plain
    options: dict[str, Any] = {"dim" if family == "distilbert" else "hidden_size": 36}
    if is_student:
        options = {"languages": ["de", "en"], "n_branches": 2, "branch_layers": 1}

    class Case(ModelTesterMixin, TrainingTesterMixin, unittest.TestCase):  # type: ignore[misc]
        all_model_classes = classes
        model_tester = _Tester(family, classes[1], is_student=is_student)

        def test_config(self) -> None:
            ConfigTester(self, config_class=MBLMConfig if is_student else kind, **options).run_common_tests()

        def test_sdpa_can_dispatch_non_composite_models(self) -> None:
            if not plain[1]._supports_sdpa:
                self.skipTest("the family has no sdpa, and a student's class is that of all families")
            super().test_sdpa_can_dispatch_non_composite_models()

        def test_can_load_ignoring_mismatched_shapes(self) -> None:
            if is_student and family in _WITH_A_HEAD:
                self.skipTest("the last layer is one level below where it looks; test_plain_in_use.py does")
            super().test_can_load_ignoring_mismatched_shapes()

    Case.__name__ = Case.__qualname__ = f"{'Student' if is_student else 'Plain'}_{family.replace('-', '_')}"
    return Case


for _family in FAMILIES:
    for _is_student in (False, True):
        _made = _case(_family, is_student=_is_student)
        globals()[_made.__name__] = _made
del _made
