"""ROOT/runs: what a training run leaves in storage, and the data that it reads."""
