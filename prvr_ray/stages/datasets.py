"""Datasets of Ray Data that the long pipelines begin with."""

import pyarrow as pa
import ray

_START_DEATHS = 3  # workers that may die one after the other while they load: a spot node goes whenever it likes
_WAIT_FOR_NODES_S = 6 * 3600.0  # Ray's own limit, half an hour without progress, is short where GPUs are scarce


def dataset_of(tasks: list[pa.Table], block_bytes: int) -> ray.data.Dataset:
    """One block a task. What follows from it inherits its context.

    Args:
        tasks: tables of one schema.
        block_bytes: what a worker gives back travels on when there is so much of it.
    """
    dataset = ray.data.from_arrow(tasks)
    dataset.context.target_max_block_size = block_bytes
    dataset.context.execution_no_progress_timeout_s = _WAIT_FOR_NODES_S
    dataset.context.max_consecutive_actor_init_deaths = _START_DEATHS
    return dataset
