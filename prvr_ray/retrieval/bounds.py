"""How far a quick product may lie from the score that the routine of `prvr_ray.retrieval.routine` gives.

r(q, v) is the routine's float32 dot product of one query row and one frame row. s(q, v) comes out of a matrix product
in float32 (mode `exact`) or bfloat16 (`fast`) and only selects. Let q', v' be the rows rounded to that type, t = <q, v>
without any rounding, and u = 2^-24. Then

    |<q', v'> - t| <= |q - q'| |v'| + |q| |v - v'|    Cauchy-Schwarz on (q' - q) v' + q (v' - v); norms are measured
    |a - <q', v'>| <= g |q'| |v'|                     a, the sum before it is stored: D float32 additions in any order,
                                                      g = (D + 8) u / (1 - (D + 8) u)
    |s - a|        <= e / (1 - e) |s|                 stored in the type: e = 2^-8 for bfloat16, else 0
    |r - t|        <= g |q| |v|                       the routine's own additions

and the sum of the right sides bounds |s - r|. The share that grows with |s| is `relative_slack`, the rest, with the
largest norms of some frames, is `slack`. A product of two bfloat16 is exact in float32; the 8 spare roundings in g
cover the weighted sum over branches, of r and of s, and adding the bound to s.

Let m = slack + relative_slack |s| for the largest s of some frames. The largest r lies within m of that s, for
x + e / (1 - e) |x| rises with x. So m holds for branch maxima and, weighted by |w_b|, for the scores of windows: a
window promises s - m and cannot exceed s + m, and its largest r lies where s is at most 2 m below the largest. What the
bound leaves open goes through the routine, in both modes.

Shape suffixes: Q queries, N rows of any kind, D features.
"""

from dataclasses import dataclass

import torch

from prvr_ray.retrieval.memory import Memory

# One percent covers the bound's own arithmetic, and the frames that may matter though their |s| exceeds that of their
# window's maximum, where both are negative: by 2 m at the most, and e / (1 - e) of that is 0.8 % of m.
_MARGIN = 1.01


@dataclass(frozen=True, eq=False)
class Norms:
    """Of some rows: Euclidean norms, and norms of what rounding to the product's type takes away."""

    norm: torch.Tensor
    rounding: torch.Tensor

    def __getitem__(self, rows: slice) -> "Norms":
        return Norms(self.norm[rows], self.rounding[rows])

    def largest(self) -> "Norms":
        """The largest of all rows."""
        return Norms(self.norm.amax(0), self.rounding.amax(0))

    def first_broken(self) -> int | None:
        """The first row that holds NaN or infinity."""
        broken = (~self.norm.isfinite()).nonzero()
        return int(broken[0]) if len(broken) else None


def measure(rows_ND: torch.Tensor, rounded_ND: torch.Tensor, memory: Memory) -> Norms:
    """Measure each row for the bound.

    Args:
        rows_ND: float32.
        rounded_ND: the same rows in the type of the products.
        memory: where the differences may stand.
    """
    norm_N = torch.linalg.vector_norm(rows_ND, dim=1)
    if rounded_ND.dtype == torch.float32:
        return Norms(norm_N, torch.zeros_like(norm_N))
    lost_ND = memory.tensor("lost", rows_ND.shape)
    return Norms(norm_N, torch.linalg.vector_norm(lost_ND.copy_(rounded_ND).sub_(rows_ND), dim=1))


def slack(queries: Norms, frames: Norms, dim: int) -> torch.Tensor:
    """The part of the bound on |s - r| that does not depend on s, (Q,).

    Args:
        queries: of Q queries.
        frames: the largest of all frames.
        dim: D.
    """
    unit = (dim + 8) * 2.0**-24
    g = unit / (1 - unit)
    largest_frame = frames.norm + frames.rounding
    operands_Q = queries.rounding * largest_frame + queries.norm * frames.rounding
    sums_Q = g * ((queries.norm + queries.rounding) * largest_frame + queries.norm * frames.norm)
    return _MARGIN * (operands_Q + sums_Q) + 1e-30  # underflow


def relative_slack(dtype: torch.dtype) -> float:
    """The part of the bound on |s - r| for each unit of |s|."""
    e = 2.0**-8 if dtype == torch.bfloat16 else 0.0
    return _MARGIN * e / (1 - e)
