"""Corrects presentation times: continues a clock that restarts, and replaces single wild times.

Joined recordings restart their clock, up or down, and some muxers write one absurd time among hundreds. Sorting such
times would mistake a restart for reordering, so the packets' order in the file is the evidence: decoding times rise,
and reordering moves a picture by a few places only.

Shapes: P packets of one stream in decoding order.
"""

from dataclasses import dataclass

import numpy as np

_REORDER = 16  # pictures that a decoder may hold back, in H.264 and HEVC
_BACK_S, _BACK_STEPS = 0.1, 4  # a decoding time that falls by more is suspect; ffmpeg's figure is 0.1 s
_AHEAD_S, _AHEAD_STEPS = 10.0, 20  # one that rises by more is suspect; ffmpeg's dts_delta_threshold is 10 s
_WILD_S = 30 * 3600.0  # no pause is longer: ffmpeg's dts_error_threshold
_MAX_WILD_RUN = 512  # packets in a row, such as one Matroska cluster with a wrong time


@dataclass(frozen=True)
class Clock:
    """Corrected times.

    pts_P: (P,) int64, in ticks. step: the usual ticks from one packet to the next. num_restarts: of the clock.
    num_wild: packets whose time was replaced.
    """

    pts_P: np.ndarray
    step: float
    num_restarts: int = 0
    num_wild: int = 0

    @property
    def is_corrected(self) -> bool:
        return bool(self.num_restarts or self.num_wild)


@dataclass(frozen=True)
class _Tolerance:
    """In ticks: a step of the clock further back or ahead than this is no ordinary one."""

    step: float
    back: float
    ahead: float
    wild: float


def steady_clock(pts_P: np.ndarray, dts_P: np.ndarray, has_dts_P: np.ndarray, tick_s: float, may_jump: bool) -> Clock:
    """Continue a clock over its restarts, and replace wild times.

    Args:
        pts_P, dts_P: (P,) int64 presentation and decoding times in ticks.
        has_dts_P: (P,) bool, where dts_P is known.
        tick_s: seconds of one tick.
        may_jump: a leap ahead of more than 10 s is a restart, as in MPEG streams; elsewhere it is a pause.

    Returns:
        The clock; times that need no correction come back unchanged.
    """
    has_dts = has_dts_P.mean() > 0.5
    keys_P = _filled(dts_P, has_dts_P) if has_dts else pts_P
    steps = np.diff(keys_P)
    step = float(np.median(steps[steps > 0])) if (steps > 0).any() else 1.0
    back_steps = _BACK_STEPS if has_dts else _REORDER + 2
    tolerance = _Tolerance(
        step, max(_BACK_S / tick_s, back_steps * step), max(_AHEAD_S / tick_s, _AHEAD_STEPS * step), _WILD_S / tick_s
    )
    spans = _spans(keys_P, pts_P, tolerance)
    is_wild_P = np.zeros(len(pts_P), bool)
    spans = _without_returns(spans, pts_P, is_wild_P, tolerance)
    for span in spans:
        _mark_misplaced(pts_P[span.begin : span.end], is_wild_P[span.begin : span.end], tolerance)
    corrected_P, num_restarts = _joined(spans, pts_P, is_wild_P, tolerance, may_jump)
    _fill_wild(corrected_P, is_wild_P, step)
    return Clock(corrected_P, step, num_restarts, int(is_wild_P.sum()))


@dataclass(frozen=True)
class _Span:
    """Packets begin to end, half-open. leap: ticks by which the clock is ahead of the span before, or behind it."""

    begin: int
    end: int
    leap: float

    def __len__(self) -> int:
        return self.end - self.begin


def _filled(dts_P: np.ndarray, has_dts_P: np.ndarray) -> np.ndarray:
    """Decoding times, each unknown one replaced by the known one before it, at the beginning by the first."""
    places = np.where(has_dts_P, np.arange(len(dts_P)), int(has_dts_P.argmax()))
    return dts_P[np.maximum.accumulate(places)]


def _spans(keys_P: np.ndarray, pts_P: np.ndarray, tolerance: _Tolerance) -> list[_Span]:
    """Cut the packets where the clock leaps.

    A leap of the decoding times counts only if the presentation times around it leap too, because many muxers write
    wrong decoding times beside right presentation times.
    """
    steps = np.diff(keys_P)
    suspects = (np.flatnonzero((steps < -tolerance.back) | (steps > tolerance.ahead)) + 1).tolist()
    borders = [0, *suspects, len(pts_P)]
    cuts, leaps = [0], [0.0]
    for before, place, after in zip(borders, suspects, borders[2:], strict=False):
        left, right = pts_P[max(before, place - _REORDER - 1) : place], pts_P[place : min(after, place + _REORDER + 1)]
        leap = np.median(right) - np.median(left) - tolerance.step * (len(left) + len(right)) / 2
        if leap < -tolerance.back or leap > tolerance.ahead:
            cuts.append(place)
            leaps.append(float(leap))
    return [_Span(*span) for span in zip(cuts, [*cuts[1:], len(pts_P)], leaps, strict=True)]


def _without_returns(
    spans: list[_Span], pts_P: np.ndarray, is_wild_P: np.ndarray, tolerance: _Tolerance
) -> list[_Span]:
    """Join spans between which the clock was away for a while and came back; the packets between are wild."""
    kept, place = spans[:1], 1
    while place < len(spans):
        before, span = kept[-1], spans[place]
        after = spans[place + 1] if place + 1 < len(spans) else None
        if after and _is_away(before, span, after, pts_P, is_wild_P, tolerance):
            is_wild_P[span.begin : span.end] = True
            kept[-1] = _Span(before.begin, after.end, before.leap)
            place += 2
        else:
            kept.append(span)
            place += 1
    if len(kept) > 1 and len(kept[0]) <= 2 and len(kept[1]) > _REORDER:  # the first packets alone are wild
        is_wild_P[: kept[0].end] = True
        kept[:2] = [_Span(0, kept[1].end, 0.0)]
    return kept


def _is_away(
    before: _Span, span: _Span, after: _Span, pts_P: np.ndarray, is_wild_P: np.ndarray, tolerance: _Tolerance
) -> bool:
    """Whether the clock of `after` continues that of `before` as if the packets of `span` had been timed normally."""
    if len(span) > min(_MAX_WILD_RUN, len(before)):
        return False
    earlier_P = pts_P[before.begin : before.end][~is_wild_P[before.begin : before.end]][-_REORDER - 1 :]
    gap = pts_P[after.begin : min(after.end, after.begin + _REORDER + 1)].min() - earlier_P.max()
    return bool(abs(gap - tolerance.step * (len(span) + 1)) <= tolerance.step * (len(span) / 2 + 4))


def _mark_misplaced(pts_P: np.ndarray, is_wild_P: np.ndarray, tolerance: _Tolerance) -> None:
    """Mark packets that would be shown further from where they are decoded than any codec reorders."""
    while True:
        healthy = np.flatnonzero(~is_wild_P)
        order = np.argsort(pts_P[healthy], kind="stable")
        away = np.zeros(len(healthy), np.int64)
        away[order] = np.abs(np.arange(len(healthy)) - order)
        gaps = np.flatnonzero(np.diff(pts_P[healthy][order]) > tolerance.wild)
        if len(gaps):  # of the two sides of an absurd gap, the smaller one is wild
            above, below = order[gaps[0] + 1 :], order[: gaps[0] + 1]
            is_wild_P[healthy[above if len(above) <= len(below) else below]] = True
        elif len(away) and away.max() > _REORDER:
            is_wild_P[healthy[away > max(_REORDER, away.max() / 2)]] = True
        else:
            return


def _joined(
    spans: list[_Span], pts_P: np.ndarray, is_wild_P: np.ndarray, tolerance: _Tolerance, may_jump: bool
) -> tuple[np.ndarray, int]:
    """Times of all spans on the clock of the first one, and how often the clock restarted."""
    longest_pause = tolerance.ahead if may_jump else tolerance.wild
    corrected_P, offset, end, num_restarts = pts_P.copy(), 0, 0, 0
    for number, span in enumerate(spans):
        healthy_P = pts_P[span.begin : span.end][~is_wild_P[span.begin : span.end]]
        if not len(healthy_P):
            continue
        if number and not 0 <= span.leap <= longest_pause:
            offset = end + round(tolerance.step) - int(healthy_P.min())
            num_restarts += 1
        corrected_P[span.begin : span.end] += offset
        end = int(healthy_P.max()) + offset
    return corrected_P, num_restarts


def _fill_wild(pts_P: np.ndarray, is_wild_P: np.ndarray, step: float) -> None:
    """Put packets with wild times into the widest gap between the times of their neighbours."""
    borders = np.flatnonzero(np.diff(is_wild_P.astype(np.int8), prepend=0, append=0)).reshape(-1, 2)
    for begin, end in borders.tolist():
        before_P, after_P = (
            part[~is_wild]
            for part, is_wild in (
                (pts_P[max(0, begin - _REORDER) : begin], is_wild_P[max(0, begin - _REORDER) : begin]),
                (pts_P[end : end + _REORDER], is_wild_P[end : end + _REORDER]),
            )
        )
        places = np.arange(1, end - begin + 1)
        near = np.sort(np.concatenate([before_P, after_P]))
        if len(before_P) and len(after_P):
            widest = int(np.diff(near).argmax())
            low, high = int(near[widest]), int(near[widest + 1])
            pts_P[begin:end] = low + np.round((high - low) * places / (len(places) + 1)).astype(np.int64)
        elif len(before_P):
            pts_P[begin:end] = near[-1] + np.round(step * places).astype(np.int64)
        elif len(after_P):
            pts_P[begin:end] = near[0] - np.round(step * places[::-1]).astype(np.int64)
