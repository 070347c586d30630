"""The student of DL-DKD++: two branches of the same architecture that share no weights (METHOD: "Student").

Owns the architecture and nothing else. All work is done on rows, never on padding: sequences lie one after another,
a `Layout` says where each row belongs, and only the attention itself and the pooling see a padded view.

Shapes: N queries, V videos, S sequences (queries or videos), F frames, T tokens, L the longest sequence, R rows of
all sequences together, D features, H heads.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.nn import functional as F

MASKED = -1e4  # added to the logit of an absent row: its weight is exactly zero in float32, and never NaN


@dataclass(frozen=True)
class Layout:
    """Where the rows of ragged sequences belong.

    Attributes:
        sequence_R: int64, the sequence of each row, ascending.
        position_R: int64, its place in that sequence, ascending within a sequence.
        lengths_S: int64, rows of each sequence; it may be empty.
        max_length: L, larger than every position.
    """

    sequence_R: Tensor
    position_R: Tensor
    lengths_S: Tensor
    max_length: int

    @classmethod
    def from_lengths(cls, lengths_S: Tensor) -> "Layout":
        """The layout of sequences without holes."""
        sequence_R = torch.repeat_interleave(lengths_S)
        starts_S = lengths_S.cumsum(0) - lengths_S
        position_R = torch.arange(len(sequence_R), device=lengths_S.device) - starts_S[sequence_R]
        return cls(sequence_R, position_R, lengths_S, int(lengths_S.amax()) if len(lengths_S) else 0)

    @classmethod
    def from_mask(cls, mask_SL: Tensor) -> "Layout":
        """The layout of the valid places of a padded batch."""
        sequence_R, position_R = mask_SL.bool().nonzero(as_tuple=True)
        return cls(sequence_R, position_R, mask_SL.bool().sum(1), mask_SL.shape[1])

    @property
    def num_sequences(self) -> int:
        """S."""
        return len(self.lengths_S)

    def pad(self, rows: Tensor) -> Tensor:
        """(R, ...) rows to (S, L, ...), zero where nothing is."""
        padded = rows.new_zeros(self.num_sequences, self.max_length, *rows.shape[1:])
        return padded.index_put((self.sequence_R, self.position_R), rows)

    def unpad(self, padded: Tensor) -> Tensor:
        """(S, L, ...) to its (R, ...) rows."""
        return padded[self.sequence_R, self.position_R]

    def split(self, num_parts: int) -> list[tuple[slice, "Layout"]]:
        """Cut into parts of about equally many sequences: the rows of each part and its layout."""
        parts: list[tuple[slice, Layout]] = []
        for lengths in self.lengths_S.tensor_split(num_parts):
            start = parts[-1][0].stop if parts else 0
            parts.append((slice(start, start + int(lengths.sum())), Layout.from_lengths(lengths)))
        return parts

    @cached_property
    def absent_SL(self) -> Tensor:
        """MASKED where nothing is, else 0, to be added to logits."""
        absent_SL = torch.full((self.num_sequences, self.max_length), MASKED, device=self.sequence_R.device)
        absent_SL[self.sequence_R, self.position_R] = 0.0
        return absent_SL


class SelfAttention(nn.Module):
    """Multi-head attention, projection, dropout, residual and LayerNorm; no feed-forward."""

    def __init__(self, dim: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.dropout = dropout
        # Three weights, not one: the optimizer clips the gradient of each on its own.
        self.query = nn.Linear(dim, dim)
        self.key = nn.Linear(dim, dim)
        self.value = nn.Linear(dim, dim)
        self.output = nn.Linear(dim, dim)
        self.norm = nn.LayerNorm(dim)

    def forward(self, rows_RD: Tensor, layout: Layout) -> Tensor:
        query, key, value = (self._heads(linear(rows_RD), layout) for linear in (self.query, self.key, self.value))
        attended_SHLd = F.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=layout.absent_SL[:, None, None, :].to(query.dtype),
            dropout_p=self.dropout if self.training else 0.0,
        )
        attended_RD = layout.unpad(attended_SHLd.transpose(1, 2)).flatten(1)
        return self.norm(rows_RD + F.dropout(self.output(attended_RD), self.dropout, self.training))

    def _heads(self, rows_RD: Tensor, layout: Layout) -> Tensor:
        return layout.pad(rows_RD.unflatten(1, (self.num_heads, -1))).transpose(1, 2)


class Tower(nn.Module):
    """Input block and one self-attention block: what the text side and the video side have in common."""

    def __init__(
        self, input_dim: int, dim: int, num_heads: int, max_length: int, input_dropout: float, dropout: float
    ) -> None:
        super().__init__()
        self.input_norm = nn.LayerNorm(input_dim)
        self.input = nn.Linear(input_dim, dim)
        self.position = nn.Embedding(max_length, dim)
        self.norm = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(input_dropout)
        self.attention = SelfAttention(dim, num_heads, dropout)

    def forward(self, rows_RD: Tensor, layout: Layout) -> Tensor:
        hidden_RD = F.relu(self.input(self.dropout(self.input_norm(rows_RD))))
        hidden_RD = self.dropout(self.norm(hidden_RD + self.position(layout.position_R)))
        return self.attention(hidden_RD, layout)


class Branch(nn.Module):
    """One branch: a text side that pools its tokens into a vector, a video side that keeps its frames."""

    def __init__(self, text: Tower, video: Tower, dim: int) -> None:
        super().__init__()
        self.text = text
        self.pooling = nn.Linear(dim, 1, bias=False)
        self.video = video
        self.video_output = nn.Linear(dim, dim)

    def encode_query_rows(self, rows_RD: Tensor, layout: Layout) -> Tensor:
        hidden_RD = self.text(rows_RD, layout)
        logits_NT = layout.pad(self.pooling(hidden_RD)).squeeze(-1) + layout.absent_SL
        return torch.einsum("nt,ntd->nd", logits_NT.softmax(1).to(hidden_RD.dtype), layout.pad(hidden_RD))

    def encode_frame_rows(self, rows_RD: Tensor, layout: Layout) -> Tensor:
        return self.video_output(self.video(rows_RD, layout))


class Student(nn.Module):
    """The two-branch student.

    Args:
        video_dim, query_dim: features of a frame and of a token; L2-normalised inputs are expected.
        hidden_dim: features of the encodings.
        num_heads: attention heads, a divisor of hidden_dim.
        max_frames, max_tokens: the longest video and query that it takes.
        input_dropout: around the input projection. dropout: in the attention block.
        branches: names of the branches, in order.

    Raises:
        ValueError: num_heads does not divide hidden_dim.
    """

    def __init__(
        self,
        video_dim: int,
        query_dim: int,
        *,
        hidden_dim: int = 384,
        num_heads: int = 4,
        max_frames: int = 128,
        max_tokens: int = 30,
        input_dropout: float = 0.1,
        dropout: float = 0.1,
        branches: tuple[str, ...] = ("inheritance", "exploration"),
    ) -> None:
        super().__init__()
        if hidden_dim % num_heads:
            divisors = ", ".join(str(n) for n in range(1, 33) if hidden_dim % n == 0)
            raise ValueError(
                f"student.num_heads={num_heads} does not divide hidden_dim={hidden_dim}; use one of {divisors}"
            )
        self.limits = {"frames": max_frames, "tokens": max_tokens}
        self.arguments = {  # what makes a student like this one; written beside its weights
            "video_dim": video_dim,
            "query_dim": query_dim,
            "hidden_dim": hidden_dim,
            "num_heads": num_heads,
            "max_frames": max_frames,
            "max_tokens": max_tokens,
            "input_dropout": input_dropout,
            "dropout": dropout,
            "branches": list(branches),
        }
        self.branches = nn.ModuleDict(
            {
                name: Branch(
                    Tower(query_dim, hidden_dim, num_heads, max_tokens, input_dropout, dropout),
                    Tower(video_dim, hidden_dim, num_heads, max_frames, input_dropout, dropout),
                    hidden_dim,
                )
                for name in branches
            }
        )
        self.apply(_initialise)

    def encode_frames(self, frames_VFD: Tensor, mask_VF: Tensor) -> dict[str, Tensor]:
        """Encode padded videos: branch -> (V, F, D), zero where the mask is 0; values there are not read.

        Args:
            frames_VFD: at most max_frames frames a video. mask_VF: true or 1 where a frame is.
        """
        layout = Layout.from_mask(mask_VF)
        encoded = self.encode_frame_rows(layout.unpad(frames_VFD), layout)
        return {name: layout.pad(rows_RD) for name, rows_RD in encoded.items()}

    def encode_queries(self, tokens_NTD: Tensor, mask_NT: Tensor) -> dict[str, Tensor]:
        """Encode padded queries: branch -> (N, D); a query without a token is a zero vector."""
        layout = Layout.from_mask(mask_NT)
        return self.encode_query_rows(layout.unpad(tokens_NTD), layout)

    def encode_frame_rows(self, rows_RD: Tensor, layout: Layout) -> dict[str, Tensor]:
        """Encode ragged videos: branch -> (R, D)."""
        self._check(layout, "frames")
        return {name: branch.encode_frame_rows(rows_RD, layout) for name, branch in self._named_branches()}

    def encode_query_rows(self, rows_RD: Tensor, layout: Layout) -> dict[str, Tensor]:
        """Encode ragged queries: branch -> (N, D)."""
        self._check(layout, "tokens")
        return {name: branch.encode_query_rows(rows_RD, layout) for name, branch in self._named_branches()}

    def _named_branches(self) -> list[tuple[str, Branch]]:
        return [(name, branch) for name, branch in self.branches.items() if isinstance(branch, Branch)]

    def _check(self, layout: Layout, what: str) -> None:
        if layout.max_length > self.limits[what]:
            raise ValueError(
                f"a sequence of {layout.max_length} {what} is longer than max_{what}={self.limits[what]}; "
                f"sample or cut it first"
            )


def _initialise(module: nn.Module) -> None:
    """N(0, 0.02) for weights of Linear and Embedding, zero for biases; LayerNorm stays (1, 0)."""
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)
