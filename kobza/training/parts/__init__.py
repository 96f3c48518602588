"""What the techniques of the training room share: data, schedules, checkpoints, losses, optimizers, adapters."""
