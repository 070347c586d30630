"""The losses of DL-DKD++ on whole (N, V) matrices, without loops (METHOD: "Losses").

Owns the formulas; their weights and schedules are the training loop's. Every function takes numpy arrays or torch
tensors and returns a 0-dimensional tensor.

Shapes: N queries, V videos, F frames. `video_of_query_N` is the column of each query's own video. Where a query has
several relevant videos in a batch, it has a row for each, and `relevant_NV` is true for all of them: a row's other
relevant videos are neither its positives nor its negatives.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

EXCLUDED = -1e10  # a logit that takes no part; finite, so that a fully excluded row gives no NaN
SOFT_TARGET_FLOOR = 1e-12  # METHOD: log(Y + 1e-12)


def triplet_loss(
    cosine_NV: Tensor,
    video_of_query_N: Tensor,
    margin: float,
    hard_pool_size: int,
    generator: torch.Generator | None = None,
    relevant_NV: Tensor | None = None,
) -> Tensor:
    """Hinge loss of both directions: queries against other videos, videos against other videos' queries.

    With r(q) the relevant videos of query q, y(q) its own one and S the scores: mean over q of
    [margin + S[q,v-] - S[q,y(q)]]+ with v- drawn from the hardest videos outside r(q), plus mean over v of
    [margin + max over q with v outside r(q) of S[q,v] - mean over q with y(q) = v of S[q,v]]+.

    Args:
        cosine_NV: score of each query with each video.
        margin: in units of cosine.
        hard_pool_size: each query's negative is drawn uniformly from this many hardest ones; 1: the hardest.
        generator: of the draw, on the CPU; None: torch's own.
        relevant_NV: true where a video is relevant to a query, its own one included; None: only its own one is.

    Returns:
        mean over queries plus mean over videos that have a query; those without any negative are left out, and a
        direction without any is 0.
    """
    cosine_NV, video_of_query_N = torch.as_tensor(cosine_NV), torch.as_tensor(video_of_query_N)
    num_queries, num_videos = cosine_NV.shape
    if num_queries == 0 or num_videos < 2:
        return cosine_NV.sum() * 0.0
    own_NV = _own_matrix(video_of_query_N, num_videos)
    has_several = relevant_NV is not None
    relevant_NV = own_NV if relevant_NV is None else torch.as_tensor(relevant_NV).bool() | own_NV
    own_N = cosine_NV.gather(1, video_of_query_N[:, None]).squeeze(1)

    pool_size = min(hard_pool_size, num_videos - 1)
    pool_NK = cosine_NV.detach().masked_fill(relevant_NV, -math.inf).topk(pool_size, 1).indices
    num_negatives_N = num_videos - relevant_NV.sum(1)
    if has_several:  # a row may have fewer negatives than the pool holds; the pool ends with its relevant videos then
        draw_N1 = torch.rand(num_queries, 1, generator=generator).to(pool_NK.device)
        draw_N1 = (draw_N1 * num_negatives_N.clamp(max=pool_size)[:, None]).long()
    else:
        draw_N1 = torch.randint(pool_size, (num_queries, 1), generator=generator).to(pool_NK.device)
    negative_N = cosine_NV.gather(1, pool_NK.gather(1, draw_N1)).squeeze(1)
    hinge_N = (margin + negative_N - own_N).relu()
    text_to_video = _mean_where(hinge_N, num_negatives_N > 0) if has_several else hinge_N.mean()

    count_V = own_NV.sum(0)
    own_V = (cosine_NV * own_NV).sum(0) / count_V.clamp(min=1)
    negative_V = cosine_NV.masked_fill(relevant_NV, EXCLUDED).amax(0)
    has_both_V = (count_V > 0) & (relevant_NV.sum(0) < num_queries)
    video_to_text = _mean_where((margin + negative_V - own_V).relu(), has_both_V)
    return text_to_video + video_to_text


def nce_loss(dot_NV: Tensor, video_of_query_N: Tensor, relevant_NV: Tensor | None = None) -> Tensor:
    """Contrastive loss with hard labels; a video's queries are its positives together (multiple-instance).

    Args:
        relevant_NV: as for `soft_target_nce_loss`.

    Returns:
        mean over queries plus mean over videos that have a query; 0 for an empty matrix.
    """
    dot_NV = torch.as_tensor(dot_NV)
    return soft_target_nce_loss(dot_NV, torch.zeros_like(dot_NV), video_of_query_N, 1.0, 1.0, relevant_NV)


def soft_target_nce_loss(
    dot_NV: Tensor,
    soft_scores_NV: Tensor,
    video_of_query_N: Tensor,
    alpha: float,
    beta: float,
    relevant_NV: Tensor | None = None,
) -> Tensor:
    """Contrastive loss whose first rows and columns have hard labels and the others labels softened by scores.

    Every softmax and log-sum-exp runs over the pairs (q, v) in which v is q's own video or irrelevant to q: pairs of
    a query and another of its relevant videos take no part, neither in the scores nor in the soft labels.

    Args:
        dot_NV: dot score of each query with each video, rows and columns in batch order.
        soft_scores_NV: the scores whose softmax softens the labels; gradients flow into them unless detached.
        alpha: fraction of queries and of videos with hard labels, and the weight of their part.
        beta: fraction of the hard label in a softened one.
        relevant_NV: true where a video is relevant to a query, its own one included; None: only its own one is.

    Returns:
        alpha * (mean of hard queries + mean of hard videos) + (1 - alpha) * (the same of the others), where the
        mean of nothing is 0. Videos without a query are left out.
    """
    dot_NV, soft_scores_NV = torch.as_tensor(dot_NV), torch.as_tensor(soft_scores_NV)
    num_queries, num_videos = dot_NV.shape
    if dot_NV.numel() == 0:
        return dot_NV.sum() * 0.0
    own_NV = _own_matrix(torch.as_tensor(video_of_query_N), num_videos)
    if relevant_NV is not None:
        other_NV = torch.as_tensor(relevant_NV).bool() & ~own_NV
        dot_NV, soft_scores_NV = dot_NV.masked_fill(other_NV, EXCLUDED), soft_scores_NV.masked_fill(other_NV, EXCLUDED)
    is_hard_N = torch.arange(num_queries, device=dot_NV.device) < math.floor(alpha * num_queries)
    is_hard_V = torch.arange(num_videos, device=dot_NV.device) < math.floor(alpha * num_videos)

    text_targets_NV = _soften(own_NV, soft_scores_NV.softmax(1), beta, is_hard_N[:, None])
    loss_N = dot_NV.logsumexp(1) - (text_targets_NV * dot_NV).sum(1)

    video_targets_NV = _soften(own_NV, soft_scores_NV.softmax(0), beta, is_hard_V)
    # Hard columns are masked: the published log(Y + 1e-12) loses its gradient once a negative leads by 27.6.
    log_soft_NV = (video_targets_NV + SOFT_TARGET_FLOOR).log()
    log_hard_NV = torch.zeros_like(dot_NV).masked_fill(~own_NV, EXCLUDED)
    log_targets_NV = torch.where(is_hard_V, log_hard_NV, log_soft_NV)
    loss_V = dot_NV.logsumexp(0) - (dot_NV + log_targets_NV).logsumexp(0)

    has_query_V = own_NV.any(0)
    hard = _mean_where(loss_N, is_hard_N) + _mean_where(loss_V, is_hard_V & has_query_V)
    soft = _mean_where(loss_N, ~is_hard_N) + _mean_where(loss_V, ~is_hard_V & has_query_V)
    return alpha * hard + (1 - alpha) * soft


def frame_distillation_loss(
    student_cosine_NF: Tensor, teacher_cosine_NF: Tensor, mask_NF: Tensor, temperature: float = 0.2
) -> Tensor:
    """KL divergence of the student's from the teacher's distribution over the frames of each query's own video.

    Args:
        student_cosine_NF, teacher_cosine_NF: cosine of each query with the frames of its video.
        mask_NF: true or 1 where a frame is; other values are not read.
        temperature: cosines are divided by it before the softmax.

    Returns:
        The sum over queries, as published; a query without a valid frame adds 0.
    """
    student_NF, teacher_NF = torch.as_tensor(student_cosine_NF), torch.as_tensor(teacher_cosine_NF)
    is_valid_NF = torch.as_tensor(mask_NF).bool()
    log_student_NF = (student_NF / temperature).masked_fill(~is_valid_NF, EXCLUDED).log_softmax(1)
    log_teacher_NF = (teacher_NF / temperature).masked_fill(~is_valid_NF, EXCLUDED).log_softmax(1)
    divergence_NF = F.kl_div(log_student_NF, log_teacher_NF, reduction="none", log_target=True)
    return divergence_NF.masked_fill(~is_valid_NF, 0.0).sum()


def _own_matrix(video_of_query_N: Tensor, num_videos: int) -> Tensor:
    return video_of_query_N[:, None] == torch.arange(num_videos, device=video_of_query_N.device)


def _soften(own_NV: Tensor, soft_NV: Tensor, beta: float, is_hard: Tensor) -> Tensor:
    label_NV = own_NV.to(soft_NV.dtype)
    return torch.where(is_hard, label_NV, (1 - beta) * soft_NV + beta * label_NV)


def _mean_where(values: Tensor, chosen: Tensor) -> Tensor:
    return torch.where(chosen, values, 0.0).sum() / chosen.sum().clamp(min=1)
