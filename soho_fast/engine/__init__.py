"""The engine: DeepSpeed, optimiser, schedule, checkpoints, logs. It knows a task only by `task.Task`."""

import logging

# At import DeepSpeed looks for an accelerator and warns where it finds none; a CPU is no cause for a warning here.
logging.getLogger("DeepSpeed").addFilter(lambda record: "Setting accelerator to CPU" not in record.getMessage())
