"""The stages: the only package that imports ray. Each reads, maps and writes; none imports another."""
