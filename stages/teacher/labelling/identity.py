"""Who a teacher is: its files, how it is asked, and what else decides its answers. No weights are loaded."""

import hashlib
import json
from pathlib import Path
from typing import Any

from cache import Outputs, Producer, canonical_json
from stages.data.task import TaskParams
from stages.models.loading import loading
from stages.teacher.params import LabelParams

PROBE = (
    "The quick brown fox's 3.14 don't-know e-mail: a.b@c.org (see §2)!",
    "Straße ÜBER Ångström naïve façade ﬁne ½ №5 ǅ İstanbul ıspanak",
    "e\u0301 and \u00e9, a\u0300\u0323 and \u1ea1\u0300; zero\u200bwidth\u200djoin\u00adsoft\ufeffmark",
    "  two  spaces\tand\na line\r\nbreak \u00a0 \u3000 ideographic ",
    "Příliš žluťoučký kůň, zażółć gęślą jaźń, ő ű ș ț, Þórr ð, ħaġar",
    "Tiếng Việt: Trường hợp nghiêng; Yorùbá ọ̀rọ̀; Hausa ɓ ɗ ƙ; ʻōlelo Hawaiʻi",
    "Ελληνικά ΟΔΥΣΣΕΥΣ ἀρχή, კართული ᲥᲐᲠᲗᲣᲚᲘ, Հայերեն և",
    "Съешь ещё этих мягких булок; їжак ґанок; Қазақ ңү; Монгол өү; Ђорђе љ",
    "עִבְרִית שלום עולם, יידיש װאָס",
    "العَرَبِيَّة لا إله ١٢٣ ـــ ﷺ، فارسی می‌خواهم ک گ، اردو ہے، ئۇيغۇرچە",
    "हिन्दी क्षत्रिय श्री १२३, मराठी ळ, বাংলা ক্ষ ড়, ਪੰਜਾਬੀ ੱ, ગુજરાતી",
    "தமிழ் ஸ்ரீ, తెలుగు క్ష, ಕನ್ನಡ, മലയാളം ൻ ൽ, සිංහල ක්‍ෂ",
    "ภาษาไทยไม่มีช่องว่างระหว่างคำ ๑๒๓, ພາສາລາວ, ភាសាខ្មែរ ស្រី, မြန်မာဘာသာ က္က",
    "བོད་སྐད་ཡིག, አማርኛ ሰላም።, ᏣᎳᎩ, ᐃᓄᒃᑎᑐᑦ, ⵜⴰⵎⴰⵣⵉⵖⵜ, ߒߞߏ",
    "外国人参政権について、東京都に住んでいる。ヴァイオリン ﾊﾝｶｸ 全角ＡＢＣ１２３ 々 〆",
    "すもももももももものうち。国立大学法人の教授は食べられなかった。",
    "中华人民共和国万岁，研究生命起源；中華民國，乒乓球拍賣完了。𠮷野家",
    "한국어 띄어쓰기가틀린문장 아버지가방에들어가신다 각 각, ㄱㄴㄷ",
    "😀👩‍👩‍👧‍👦🇩🇪👍🏽 ❤️ ∑∫√≠ →⇒ ©®™ €£¥₹ “quotes” «guillemets» …—–",
    "https://example.org/path?q=1&r=2#x @user #hashtag <b>tag</b> [MASK] </s> [SEP] <unk>",
    "supercalifragilisticexpialidocious Donaudampfschifffahrtsgesellschaftskapitän "
    "muvaffakiyetsizleştiricileştiriveremeyebileceklerimizdenmişsinizcesine 1234567890 1,234,567.89",
    "\U00010330\U0001033f \U00012000 \U0001d400\U0001d7d8 \x07 \u2028 \ufffd \ue000",
    "",
)
"""Texts in many scripts, of which tokenizers that cut words in other ways make other tokens."""


def producer_of(folder: Path, task: TaskParams, params: LabelParams) -> Producer:
    """Identify a teacher by its files, by how it is asked, and by what else decides its answers.

    Raises:
        StageError: transformers can make no classifier or no tokenizer of the files.
        ProducerError: The files are incomplete, or the teacher's classes do not fit `params`.
    """
    producer = Producer.of_teacher(
        folder,
        text_fields=task.text_fields,
        max_tokens=params.max_tokens,
        dtype=params.precision,
        outputs=Outputs(dtype=params.logits, top_k=params.top_k, hidden=params.hidden),
    )
    return producer.with_facts(facts_of(folder, params))


def facts_of(folder: Path, params: LabelParams) -> dict[str, Any]:
    """Give the facts of a teacher that a look at its files does not give; most teachers have none.

    Args:
        folder: Where its files are.
        params: Section `teacher.label`.

    Raises:
        StageError: transformers can make no classifier or no tokenizer of the files.
    """
    return {**_probed(folder), **(_hidden(folder) if params.hidden else {})}


def _probed(folder: Path) -> dict[str, Any]:
    """Say what a tokenizer makes of the probe, unless it is all in ``tokenizer.json``.

    A tokenizer in Python may ask a library and its dictionary how to cut words, and one that is converted
    when it is loaded depends on who converts it.
    """
    if _is_all_in_its_file(folder):
        return {}
    from transformers import AutoTokenizer  # slow import

    with loading(f"the tokenizer in {folder}"):
        tokenizer: Any = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        if tokenizer.is_fast and (folder / "tokenizer.json").is_file():
            return {}
        ids = tokenizer(list(PROBE))["input_ids"]
    return {"probed_tokens": hashlib.sha256(canonical_json([list(map(int, row)) for row in ids])).hexdigest()}


def _is_all_in_its_file(folder: Path) -> bool:
    """Tell whether a tokenizer is surely what ``tokenizer.json`` says, without loading it."""
    if not (folder / "tokenizer.json").is_file():
        return False
    declared = str(_value(folder / "tokenizer_config.json", "tokenizer_class"))
    if declared.endswith(("Fast", "TokenizersBackend")):
        return True
    from transformers import PreTrainedTokenizerFast  # slow import
    from transformers.models.auto.tokenization_auto import TOKENIZER_MAPPING_NAMES, tokenizer_class_from_name

    usual = TOKENIZER_MAPPING_NAMES.get(str(_value(folder / "config.json", "model_type")))
    classes = [tokenizer_class_from_name(name) for name in (declared, usual) if name]
    return all(one is None or issubclass(one, PreTrainedTokenizerFast) for one in classes)


def _value(path: Path, key: str) -> Any:
    """Read one value of a JSON file that may be absent; None where it has none."""
    try:
        return json.loads(path.read_text(encoding="utf-8")).get(key)
    except (AttributeError, FileNotFoundError, RecursionError, ValueError):
        return None  # `cache.Producer` says what is wrong with it


def _hidden(folder: Path) -> dict[str, Any]:
    """Say whose state is kept, where it is not the first token's."""
    from stages.teacher.labelling.decoders import classifier_of, is_decoder  # slow import: torch

    with loading(f"the teacher in {folder}"):
        config, classifier = classifier_of(folder)
        if config.model_type == "mblm":
            return {"hidden_token": config.pooling or "pooled"}
        return {"hidden_token": "last"} if is_decoder(config, classifier) else {}
