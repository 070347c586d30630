"""ROOT/scores: query files, the plan of a score job, its partial answers, and single lookups."""
