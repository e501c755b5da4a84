"""How a stage fails."""


class StageError(Exception):
    """An expected failure: its message is one line that says what, where and what to type next."""
