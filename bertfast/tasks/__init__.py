"""The tasks: one record each, which is all that the rest of the house knows of a task."""

from bertfast.tasks.registry import TASKS, get_task, task_of
from bertfast.tasks.task import Answer, Outputs, Request, Task, Vocabulary

__all__ = ["TASKS", "Answer", "Outputs", "Request", "Task", "Vocabulary", "get_task", "task_of"]
