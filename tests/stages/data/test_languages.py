"""Language tags find the branch that the student's own configuration finds, and what is no tag is refused."""

import pytest

from stages.data.languages import language_id
from stages.models.configuration_mblm import MBLMConfig

LANGUAGES = ["de", "zh-Hant", "pt_BR"]


@pytest.mark.parametrize(
    "name", ["de", "DE", " de ", "de-AT", "de_at_1996", "zh-Hant-TW", "zh-Hans", "pt-br", "el", "", "deu-AT"]
)
def test_a_tag_finds_the_branch_that_the_configuration_finds(name: str) -> None:
    config = MBLMConfig(languages=LANGUAGES, n_branches=3)
    assert language_id(name, LANGUAGES) == config.language_id(name)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("deu", "did you mean de?"),
        ("German", "did you mean de?"),
        ("??", "write one such as de"),
        ("zh", "zh-Hant"),
    ],
)
def test_what_is_no_tag_or_another_tag_of_a_branch_is_refused(name: str, hint: str) -> None:
    with pytest.raises(ValueError, match=r"has no branch|is no language tag") as caught:
        language_id(name, LANGUAGES)
    assert hint in str(caught.value)
