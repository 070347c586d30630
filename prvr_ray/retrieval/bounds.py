"""Bounds how far a product of `prvr_ray.retrieval.matmul` may lie from the dot product of `exact_dots`.

r(q, v) is the float32 dot product of one query row and one frame row that `prvr_ray.retrieval.exact_dots` computes, of
which scores are made. s(q, v) comes from a matrix product in float32 (mode `exact`), or in bfloat16 or float16
(`fast`), and serves for selection only. Let q', v' be the rows rounded to that type, t = <q, v> without any rounding,
and u = 2^-24. Then

    |<q', v'> - t| <= |q - q'| |v'| + |q| |v - v'|    Cauchy-Schwarz on (q' - q) v' + q (v' - v); norms are measured
    |a - <q', v'>| <= g |q'| |v'|                     a, the sum before it is stored: D float32 additions in any order,
                                                      g = (D + 8) u / (1 - (D + 8) u)
                                                      on tensor cores, which truncate the sums of a step, 4 u for u
                                                      (Fasi et al. 2021, "Numerical behavior of NVIDIA tensor cores")
    |s - a|        <= e / (1 - e) |s|                 stored in the type: e = 2^-8 for bfloat16, else 0; products of
                                                      float16 operands keep their maxima in float32
    |r - t|        <= g |q| |v|                       the additions within r

and the sum of the right sides bounds |s - r|. Its part that grows with |s| is `relative_slack`; the rest, taken with
the largest norms of some frames, is `slack`. A product of two bfloat16 or float16 numbers is exact in float32. The 8
spare roundings in g cover the weighted sums of r and of s over branches, and the addition of the bound to s.

Let m = slack + relative_slack |s| for the largest s of some frames. The largest r lies within m of that s, because
x + e / (1 - e) |x| rises with x. So m holds for branch maxima and, weighted by |w_b|, for the scores of windows: the
exact score of a window is at least s - m and at most s + m, and the frame with the largest r has an s at most 2 m below
the largest s. In both modes r is computed wherever this bound decides nothing.

Shape suffixes: Q queries, N rows of any kind, D features.
"""

from dataclasses import dataclass

import torch

from prvr_ray.retrieval.buffers import Memory

# One percent covers the rounding of the bound itself, and frames whose |s| exceeds that of their window's maximum since
# both are negative. Their |s| is larger by at most 2 m, and e / (1 - e) of that is 0.8 % of m.
_MARGIN = 1.01


@dataclass(frozen=True, eq=False)
class Norms:
    """Euclidean norms of some rows, and of the differences that rounding to the product's type makes to them."""

    norm: torch.Tensor
    rounding: torch.Tensor

    def __getitem__(self, rows: slice) -> "Norms":
        return Norms(self.norm[rows], self.rounding[rows])

    def largest(self) -> "Norms":
        """Return the largest of all rows."""
        return Norms(self.norm.amax(0), self.rounding.amax(0))

    def first_broken(self) -> int | None:
        """Return the first row that holds NaN or infinity, or None."""
        # A value beyond 65,504 becomes infinite in float16, so that its bound decides nothing.
        broken = (~(self.norm.isfinite() & self.rounding.isfinite())).nonzero()
        return int(broken[0]) if len(broken) else None


def measure(rows_ND: torch.Tensor, rounded_ND: torch.Tensor, memory: Memory) -> Norms:
    """Measure each row for the bound.

    The rounding is measured because its worst case, 2^-8 of a norm, would leave 14 % more pairs undecided.

    Args:
        rows_ND: float32.
        rounded_ND: the same rows in the type of the products.
        memory: buffers for the differences.
    """
    norm_N = torch.linalg.vector_norm(rows_ND, dim=1)
    if rounded_ND.dtype == torch.float32:
        return Norms(norm_N, torch.zeros_like(norm_N))
    lost_ND = memory.tensor("lost", rows_ND.shape)
    return Norms(norm_N, torch.linalg.vector_norm(lost_ND.copy_(rounded_ND).sub_(rows_ND), dim=1))


def slack(queries: Norms, frames: Norms, dim: int, on_tensor_cores: bool = False) -> torch.Tensor:
    """Return the part of the bound on |s - r| that does not depend on s, (Q,).

    Args:
        queries: norms of Q queries.
        frames: the largest norms of all frames.
        dim: D, the number of features.
        on_tensor_cores: whether these added the products.
    """
    g, product_g = _relative_error(dim, 2.0**-24), _relative_error(dim, 2.0**-22 if on_tensor_cores else 2.0**-24)
    largest_frame = frames.norm + frames.rounding
    operands_Q = queries.rounding * largest_frame + queries.norm * frames.rounding
    sums_Q = product_g * (queries.norm + queries.rounding) * largest_frame + g * queries.norm * frames.norm
    return _MARGIN * (operands_Q + sums_Q) + 1e-30  # covers underflow, which relative errors do not


def _relative_error(dim: int, unit: float) -> float:
    """Return g: how far a sum of D products may be off, per unit of the product of the norms."""
    return (dim + 8) * unit / (1 - (dim + 8) * unit)


def relative_slack(dtype: torch.dtype) -> float:
    """Return the part of the bound on |s - r| per unit of |s|."""
    e = 2.0**-8 if dtype == torch.bfloat16 else 0.0
    return _MARGIN * e / (1 - e)
