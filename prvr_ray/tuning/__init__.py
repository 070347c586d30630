"""The search without Ray: its space, its suggestions, its confirmation on several seeds, and the ablations."""
