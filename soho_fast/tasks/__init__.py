"""Tasks: what is learnt, from which data, and by which measure; one file a task, with its settings."""

from soho_fast.extras import from_extra

with from_extra("train"):
    from soho_fast.tasks.base import BaseTask
    from soho_fast.tasks.pretraining import PretrainingTask
    from soho_fast.tasks.question_answering import QuestionAnsweringTask
    from soho_fast.tasks.retrieval import RetrievalTask
    from soho_fast.tasks.visual_entailment import VisualEntailmentTask
    from soho_fast.tasks.visual_reasoning import VisualReasoningTask

TASKS: dict[str, type[BaseTask]] = {
    task.name: task
    for task in (
        PretrainingTask,
        QuestionAnsweringTask,
        VisualReasoningTask,
        VisualEntailmentTask,
        RetrievalTask,
    )
}
"""The tasks by their names in recipes."""
