"""Makes the Ray Data datasets with which ingest and index start."""

import pyarrow as pa
import ray

_START_DEATHS = 3  # consecutive workers that may die while loading: a spot node may vanish at any time
_WAIT_FOR_NODES_S = 6 * 3600.0  # Ray's default of half an hour without progress is too short if GPUs are scarce


def make_dataset(tasks: list[pa.Table], block_bytes: int) -> ray.data.Dataset:
    """Make a dataset with one block per task. Datasets derived from it inherit its context.

    Args:
        tasks: tables with the same schema.
        block_bytes: size at which a worker's output is passed on to the next stage.
    """
    dataset = ray.data.from_arrow(tasks)
    dataset.context.target_max_block_size = block_bytes
    dataset.context.execution_no_progress_timeout_s = _WAIT_FOR_NODES_S
    dataset.context.max_consecutive_actor_init_deaths = _START_DEATHS
    return dataset
