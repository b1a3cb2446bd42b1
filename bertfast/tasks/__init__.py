"""The tasks: one record each, which is all that the rest of the house knows of a task."""

from bertfast.tasks.registry import TASKS, get_task, task_of
from bertfast.tasks.task import Answer, Context, Outputs, Task

__all__ = ["TASKS", "Answer", "Context", "Outputs", "Task", "get_task", "task_of"]
