"""Text-to-video retrieval over long, untrimmed videos.

A trained run in a notebook, once `prvr index` has made an index `main` of it:

>>> import prvr_ray
>>> root = prvr_ray.open_root(ROOT)
>>> best, *others = prvr_ray.search(root, "main", "a red circle rises", k=3)
>>> best.score >= others[0].score
True
>>> 0 <= best.start_s <= best.peak_s <= best.end_s
True
>>> sorted(prvr_ray.load_run(root, "demo").best())[:2]
['epoch', 'exploration/map']
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prvr_ray.notebook import load_run, open_root, search

__all__ = ["load_run", "open_root", "search"]


def __getattr__(name: str) -> Any:
    """Load the API when one of its names is first used: importing the package stays light."""
    if name not in __all__:
        raise AttributeError(f"module 'prvr_ray' has no attribute {name!r}; it has {', '.join(__all__)}")
    from prvr_ray import notebook

    return getattr(notebook, name)
