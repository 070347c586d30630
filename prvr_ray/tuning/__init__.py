"""The search without Ray: its space, its suggestions, the statistics of its proof, and the ablations' variants."""
