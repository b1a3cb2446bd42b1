"""The tasks: one record each, which is all that the rest of the house knows of a task."""

from bertfast.tasks.registry import Answer, Outputs, Request, Task, Vocabulary, get_task, task_of, tasks

__all__ = ["Answer", "Outputs", "Request", "Task", "Vocabulary", "get_task", "task_of", "tasks"]
