"""How cells are written."""

from stages.page.tables import clip


def test_long_and_invisible_texts_are_shown_as_what_they_are() -> None:
    assert clip("a\u202eb", 9) == "a⟨U+202E⟩b"
    assert clip("\x00\n", 9) == "⟨U+0000⟩\n"
    assert clip("x" * 1000, 3) == "xxx…"
    assert clip("\U0001f600 \u200d مرحبا", 99) == "\U0001f600 \u200d مرحبا"
