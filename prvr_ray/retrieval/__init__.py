"""Windows, exact scoring and top-k, moments and metrics. Functions take and return arrays: no storage, no Ray."""
