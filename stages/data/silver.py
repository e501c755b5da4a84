"""Which zero-shot languages have something in the place of a teacher of their own."""

from collections.abc import Collection

from stages.data.task import TaskParams


def silver_languages(task: TaskParams, teachers: Collection[str]) -> list[str]:
    """List the zero-shot languages whose texts teach what a teacher says of them.

    Args:
        task: Section `task`.
        teachers: The languages in section `teachers`.
    """
    return [language for language in task.zero_shot if task.zero_shot_texts and language in teachers]
