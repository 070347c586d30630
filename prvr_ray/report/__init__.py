"""The report: one self-contained HTML page about a run, made only from what stands in its ROOT."""
