"""The engine: DeepSpeed, optimiser, schedule, checkpoints, logs. It knows a task only by `task.Task`."""
