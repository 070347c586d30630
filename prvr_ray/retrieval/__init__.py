"""Windows, exact scoring and top-k, moments and metrics. Arrays in, arrays out: no storage, no Ray."""
