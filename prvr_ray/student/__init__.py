"""The student: model, losses, schedules, optimizer, batches and training. Pure torch and numpy, one process or many."""
