"""Search against a float64 brute force, and fast against exact."""

import contextlib
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from support.ragged_worlds import as_blocks, assert_equals_brute_force, brute_force_scores, ragged_world, unit_rows

from prvr_ray.retrieval import bounds, buffers, matmul, products, scoring
from prvr_ray.retrieval.blocks import Names
from prvr_ray.retrieval.scoring import FrameBlock, search

MODES = ("exact", "fast")


def some_queries(rng, num_queries, dims, weights):
    return [(weight, unit_rows(rng, (num_queries, dim))) for weight, dim in zip(weights, dims, strict=True)]


def assert_identical(one, other):
    assert one.video_ids == other.video_ids
    for name in ("scores", "windows", "branch_scores"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize(
    ("dims", "weights"), [((24,), (1.0,)), ((24, 40), (0.7, 0.3)), ((8, 24, 16), (0.5, -0.2, 0.7))]
)
def test_search_equals_brute_force_on_ragged_windows_of_repeated_videos(mode, dtype, dims, weights):
    rng = np.random.default_rng(len(dims))
    world = ragged_world(rng, 130, 90, dims, dtype=dtype)
    queries = some_queries(rng, 23, dims, weights)
    top = search(queries, iter(as_blocks(world, [7, 1, 40])), 12, mode)
    assert_equals_brute_force(top, queries, world, 12)


@pytest.mark.parametrize("mode", MODES)
def test_answer_does_not_depend_on_blocks_groups_tiles_or_query_blocks(mode, monkeypatch):
    rng = np.random.default_rng(1)
    world = ragged_world(rng, 120, 60, (16, 16))
    queries = some_queries(rng, 21, (16, 16), (0.7, 0.3))
    whole = search(queries, as_blocks(world, [120]), 10, mode)
    monkeypatch.setattr(scoring, "_GROUP_ROWS", 400)
    monkeypatch.setattr(scoring, "_QUERY_BLOCK", {"cpu": 8})
    monkeypatch.setattr(products, "_TILE_PRODUCTS", {"cpu": 64})
    monkeypatch.setattr(products, "_EXACT_ROWS", 150)
    assert_identical(search(queries, as_blocks(world, [3, 50, 1]), 10, mode), whole)
    monkeypatch.setattr(scoring, "_MAXIMA", {"cpu": 500})
    assert_identical(search(queries, as_blocks(world, [3, 50, 1]), 10, mode), whole)


@pytest.mark.parametrize("mode", MODES)
def test_searches_on_several_threads_keep_their_answers(mode):
    rng = np.random.default_rng(11)
    worlds = [ragged_world(rng, 300, 200, (64, 64), max_frames=30) for _ in range(3)]
    queries = some_queries(rng, 200, (64, 64), (0.7, 0.3))

    def answers(world):
        return search(queries, as_blocks(world, [300]), 10, mode)

    expected = [answers(world) for world in worlds]
    with ThreadPoolExecutor(3) as pool:
        for found, alone in zip(pool.map(answers, worlds * 8), expected * 8, strict=True):
            assert_identical(found, alone)


@pytest.fixture
def two_threads(monkeypatch):
    """Torch has two threads, and a small search has parts for both."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(2)
    monkeypatch.setattr(products, "_TILE_PRODUCTS", {"cpu": 1024})
    monkeypatch.setattr(products, "_EXACT_ROWS", 100)
    yield
    torch.set_num_threads(num_threads)


def test_threads_of_a_search_leave_settings_of_the_process_alone(two_threads, monkeypatch):
    """Warning filters among them: two threads that change and restore them lose each other's."""
    rng = np.random.default_rng(12)
    world = ragged_world(rng, 100, 100, (16,))
    queries = some_queries(rng, 20, (16,), (1.0,))
    change = warnings.filterwarnings

    def filterwarnings(*arguments, **options):
        assert threading.current_thread() is threading.main_thread()
        change(*arguments, **options)

    monkeypatch.setattr(warnings, "filterwarnings", filterwarnings)
    search(queries, as_blocks(world, [100]), 10)
    assert torch.get_num_threads() == 2


def test_an_error_on_a_thread_of_a_search_is_raised(two_threads, monkeypatch):
    def row_dots(*_):
        raise MemoryError("no room for the rows")

    monkeypatch.setattr(products, "row_dots", row_dots)
    rng = np.random.default_rng(12)
    with pytest.raises(MemoryError, match="no room for the rows"):
        search(some_queries(rng, 20, (16,), (1.0,)), as_blocks(ragged_world(rng, 100, 100, (16,)), [100]), 10)
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize("mode", MODES)
def test_windows_that_close_before_any_other_are_no_trouble(mode, monkeypatch):
    monkeypatch.setattr(products, "_EXACT_ROWS", 100)
    frames = [-GOOD[:1]] * 50 + [np.repeat(GOOD[:1], 20, axis=0)]  # the short ones come first, none is asked for
    world = [(f"video-{number:02d}", [rows]) for number, rows in enumerate(frames)]
    assert search(QUERY, as_blocks(world, [51]), 1, mode).video_ids == [["video-50"]]


@pytest.mark.parametrize("mode", MODES)
def test_gradients_and_inference_mode_change_no_answer(mode, monkeypatch):
    monkeypatch.setattr(products, "_TILE_PRODUCTS", {"cpu": 1024})
    monkeypatch.setattr(products, "_EXACT_ROWS", 100)
    rng = np.random.default_rng(13)
    block = as_blocks(ragged_world(rng, 60, 60, (16,), dtype=np.float32), [60])[0]
    queries = some_queries(rng, 8, (16,), (1.0,))
    expected = search(queries, [block], 10, mode)
    for make, surroundings in ((True, contextlib.nullcontext()), (False, torch.inference_mode())):
        with surroundings:
            frames = torch.tensor(block.frames[0], requires_grad=make)
            assert_identical(
                search(queries, [FrameBlock(block.video_ids, block.offsets, [frames])], 10, mode), expected
            )
    assert_identical(search(queries, [block], 10, mode), expected)


def test_memory_has_one_user_and_goes_to_the_next_of_its_purpose_unless_it_is_large(spare, monkeypatch):
    cpu = torch.device("cpu")
    monkeypatch.setattr(buffers, "_SPARE_BYTES", 4096)
    owners = [set(), set()]  # sets can be referred to weakly
    small, large = (buffers.memory_of(owner, "maxima", cpu) for owner in owners)
    assert small is not large
    small.tensor("windows", (4, 8))
    large.tensor("windows", (4, 1024), torch.bfloat16)
    owners.clear()
    assert spare["maxima"] == [small]
    with buffers.borrowed_memory("tile", cpu) as tile:
        assert tile is not small
    with buffers.borrowed_memory("maxima", cpu) as again:
        assert again is small
        assert spare["maxima"] == []
    assert spare == {"maxima": [small], "tile": [tile]}


@pytest.mark.parametrize("mode", MODES)
def test_planted_ties_go_by_video_id_across_blocks(mode):
    rng = np.random.default_rng(2)
    frames = [unit_rows(rng, (9, 20), np.float16)]
    others = ragged_world(rng, 30, 30, (20,))
    tied = [("zebra", frames), ("apple", frames), ("mole", frames)]
    world = [tied[0], *others[:15], tied[1], *others[15:], tied[2]]
    query = frames[0][4].astype(np.float32)
    queries = [(1.0, (query / np.linalg.norm(query))[None])]
    for k in (1, 2, 3, 40):
        top = search(queries, as_blocks(world, [4, 9]), k, mode)
        assert top.video_ids[0][:3] == ["apple", "mole", "zebra"][:k]
        assert len(set(top.scores[0, : min(k, 3)].tolist())) == 1


def test_equal_rows_score_equal_bits_wherever_they_lie():
    rng = np.random.default_rng(3)
    row = unit_rows(rng, (1, 100), np.float16)
    world = [(f"v{v:03d}", [np.concatenate([unit_rows(rng, (v, 100), np.float16) * 0.1, row])]) for v in range(1, 60)]
    queries = [(1.0, row.astype(np.float32))]
    for mode in MODES:
        top = search(queries, as_blocks(world, [11]), 59, mode)
        assert len(np.unique(top.scores)) == 1
        assert top.video_ids[0] == sorted(owner for owner, _ in world)


def near_ties(rng, dim, num_videos, level, every=1):
    """Videos whose best frames differ from one another by less than bfloat16 can tell, around one query.

    All frames but every so manieth are far below.
    """
    query = unit_rows(rng, (1, dim))
    offsets = rng.uniform(-1e-4, 1e-4, (num_videos, 1))
    noise = rng.standard_normal((num_videos, dim)) * 0.05
    best = (level + offsets) * query + noise - (noise @ query.T) * query
    world = [
        (f"v{v:04d}", [np.concatenate([best[v] * (1 - 1e-4 * f) - (f % every > 0) * query for f in range(20)])])
        for v in rng.permutation(num_videos)
    ]
    return [(1.0, query)], world


@pytest.mark.parametrize("group_rows", [200, 1000, 100_000])
@pytest.mark.parametrize("level", [0.6, 0.0, -0.6])
@pytest.mark.parametrize("every", [1, 7])
def test_fast_equals_exact_on_adversarial_near_ties(every, level, group_rows, monkeypatch):
    monkeypatch.setattr(scoring, "_GROUP_ROWS", group_rows)
    queries, world = near_ties(np.random.default_rng(4), 64, 300, level, every)
    exact = search(queries, as_blocks(world, [64, 3]), 50, "exact")
    assert_equals_brute_force(exact, queries, world, 50)
    fast = search(queries, as_blocks(world, [64, 3]), 50, "fast")
    assert_identical(fast, exact)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("weight", [1.0, -0.5])
@pytest.mark.parametrize("level", [0.6, 0.0, -0.6])
def test_scores_of_windows_lie_within_their_slack(level, weight, mode):
    [(_, query_QD)], world = near_ties(np.random.default_rng(5), 64, 300, level, every=7)
    resident, names = scoring.QueryBlocks([query_QD], mode), Names()
    [group] = resident.groups(as_blocks(world, [300]), names)
    [(_, made)] = resident.products(group, names.ids)
    fused = made.fused([weight])
    _, true_QV = brute_force_scores([(weight, query_QD)], [(f"{w:03d}", rows) for w, (_, rows) in enumerate(world)])
    true_WQ = torch.from_numpy(true_QV.T)[group.windows_W]
    assert ((fused.scores_WQ.double() - true_WQ).abs() <= fused.slack_WQ).all()


@pytest.mark.parametrize("setting", [None, "ONEDNN_DEFAULT_FPMATH_MODE", "DNNL_DEFAULT_FPMATH_MODE"])
@pytest.mark.parametrize("dim", [1, 3, 64, 385])
def test_products_stay_within_the_stated_slack(dim, setting, monkeypatch):
    if setting:  # the environment sets oneDNN's precision: float32 goes elsewhere
        monkeypatch.setenv(setting, "BF16")
        assert not matmul._suits_onednn(torch.ones(1, dim))
    rng, place = np.random.default_rng(dim), buffers.Memory(torch.device("cpu"))
    for dtype in (torch.float32, torch.bfloat16):
        queries = torch.from_numpy(unit_rows(rng, (50, dim)) * rng.uniform(0.1, 3, (50, 1)).astype(np.float32))
        frames = torch.from_numpy(unit_rows(rng, (200, dim), np.float16))
        norms = [bounds.measure(rows.float(), rows.float().to(dtype), place) for rows in (queries, frames)]
        slack_Q = bounds.slack(norms[0], norms[1].largest(), dim)
        product = matmul.multiplier(queries.to(dtype))(frames.float().to(dtype), place).double().T
        error = (product - queries.double() @ frames.double().T).abs()
        bound = slack_Q[:, None] + bounds.relative_slack(dtype) * product.abs()
        assert (error <= bound).all()
        assert (error > 0.02 * bound).any() or dtype == torch.float32  # a bound, not a blank cheque


@pytest.mark.parametrize("mode", MODES)
def test_k_beyond_the_corpus_pads_with_minus_infinity(mode):
    rng = np.random.default_rng(5)
    world = ragged_world(rng, 6, 4, (8,))
    queries = some_queries(rng, 3, (8,), (1.0,))
    top = search(queries, as_blocks(world, [2]), 9, mode)
    assert_equals_brute_force(top, queries, world, 9)
    assert top.scores.shape == (3, 9)
    assert (top.windows[:, 4:] == -1).all()


def test_windows_and_branch_scores_are_the_winning_windows_own():
    rng = np.random.default_rng(6)
    world = ragged_world(rng, 40, 15, (16, 12))
    queries = some_queries(rng, 5, (16, 12), (0.7, 0.3))
    top = search(queries, as_blocks(world, [6]), 8)
    for query in range(5):
        for place, video_id in enumerate(top.video_ids[query]):
            owner, rows = world[top.windows[query, place]]
            parts = [float((q[query] @ r.T.astype(np.float32)).max()) for (_, q), r in zip(queries, rows, strict=True)]
            assert owner == video_id
            np.testing.assert_allclose(top.branch_scores[query, place], parts, atol=1e-6)
            np.testing.assert_allclose(top.scores[query, place], 0.7 * parts[0] + 0.3 * parts[1], atol=1e-6)


def test_tensors_and_shared_offsets_are_taken_as_well():
    rng = np.random.default_rng(7)
    world = [(f"v{v}", [rows := unit_rows(rng, (v + 1, 8), np.float32), rows[::-1].copy()]) for v in range(9)]
    queries = some_queries(rng, 4, (8, 8), (0.5, 0.5))
    (block,) = as_blocks(world, [9])
    tensors = FrameBlock(
        block.video_ids, torch.from_numpy(block.branch_offsets[0]), list(map(torch.tensor, block.frames))
    )
    as_tensors = [(weight, torch.from_numpy(rows_QD)) for weight, rows_QD in queries]
    assert_identical(search(as_tensors, [tensors], 5), search(queries, [block], 5))


@pytest.mark.parametrize("mode", MODES)
def test_no_blocks_and_no_queries_are_answered_with_nothing(mode):
    rng = np.random.default_rng(8)
    queries = some_queries(rng, 2, (8,), (1.0,))
    nothing = search(queries, [], 3, mode)
    assert nothing.video_ids == [[], []]
    assert np.isneginf(nothing.scores).all()
    empty = search([(1.0, np.zeros((0, 8), np.float32))], as_blocks(ragged_world(rng, 4, 4, (8,)), [2]), 3, mode)
    assert empty.video_ids == []
    assert empty.scores.shape == (0, 3)


def test_precision_settings_of_the_process_are_overruled_and_restored():
    rng = np.random.default_rng(9)
    world = ragged_world(rng, 50, 50, (64,))
    queries = some_queries(rng, 8, (64,), (1.0,))
    expected = search(queries, as_blocks(world, [50]), 10)
    torch.set_float32_matmul_precision("medium")
    try:
        assert_identical(search(queries, as_blocks(world, [50]), 10), expected)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")


def test_a_search_keeps_its_precision_when_one_that_began_before_it_ends():
    block = as_blocks(ragged_world(np.random.default_rng(9), 5, 5, (4,)), [5])
    begun, ended, seen = threading.Event(), threading.Event(), []

    def blocks_of_the_first():
        assert begun.wait(60)
        yield from block

    def blocks_of_the_second():
        begun.set()
        assert ended.wait(60)
        seen.append(torch.get_float32_matmul_precision())
        yield from block

    torch.set_float32_matmul_precision("medium")
    try:
        with ThreadPoolExecutor(2) as pool:
            first = pool.submit(search, QUERY, blocks_of_the_first(), 1)
            first.add_done_callback(lambda _: ended.set())
            second = pool.submit(search, QUERY, blocks_of_the_second(), 1)
            assert_identical(second.result(), first.result())
        assert seen == ["highest"]
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("has_onednn", [True, False])
def test_autocast_changes_no_answer(mode, has_onednn, monkeypatch):
    rng = np.random.default_rng(12)
    world = ragged_world(rng, 50, 50, (64,))
    queries = some_queries(rng, 8, (64,), (1.0,))
    expected = search(queries, as_blocks(world, [50]), 10, mode)
    if not has_onednn:
        monkeypatch.setattr(matmul, "_suits_onednn", lambda queries_QD: False)
    for dtype in (torch.float16, torch.bfloat16):
        with torch.autocast("cpu", dtype):
            assert_identical(search(queries, as_blocks(world, [50]), 10, mode), expected)


def block_of(frames, offsets=None, ids=("a", "b")):
    return FrameBlock(list(ids), np.array([0, 1, 2]) if offsets is None else offsets, [frames])


GOOD, QUERY = np.eye(2, 4, dtype=np.float16), [(1.0, np.eye(1, 4, dtype=np.float32))]
NAN = np.full((2, 4), np.nan, np.float16)


@pytest.mark.parametrize(
    ("ask", "match"),
    [
        (lambda: search(QUERY, [block_of(GOOD)], 0), "k=0"),
        (lambda: search(QUERY, [block_of(GOOD)], 1, "quick"), "exact, fast"),
        (lambda: search(QUERY, [block_of(NAN)], 1), "video 'a' hold NaN"),
        (lambda: search(QUERY, [block_of(NAN)], 1, "fast"), "NaN"),
        (
            lambda: search(QUERY, [block_of(np.full((2, 4), 1e20, np.float32))], 1),
            "video 'a' hold .* norm overflows float32",
        ),
        (lambda: search([(1.0, NAN.astype(np.float32))], [block_of(GOOD)], 1), "NaN"),
        (lambda: search([(np.nan, QUERY[0][1])], [block_of(GOOD)], 1), "weights"),
        (lambda: search([(1e39, QUERY[0][1])], [block_of(GOOD)], 1), "weights"),
        (lambda: search(QUERY, [block_of(GOOD[:, :3])], 1), "features"),
        (lambda: search(QUERY * 2, [block_of(GOOD)], 1), "features"),
        (lambda: search([], [block_of(GOOD)], 1), "every branch"),
        (lambda: block_of(GOOD, np.array([0, 2, 2])), "window 1 .*'b'.* no frames"),
        (lambda: block_of(GOOD, np.array([0, 1, 3])), "2 rows"),
        (lambda: block_of(GOOD, np.array([0, 2])), "2 windows"),
        (lambda: FrameBlock(["a", "b"], [np.arange(3)] * 2, [GOOD]), "branches"),
    ],
)
def test_unusable_input_is_refused(ask, match):
    with pytest.raises(ValueError, match=match):
        ask()


def test_brute_force_itself_takes_the_maximum_per_branch_before_fusing():
    rows = [np.array([[1.0, 0], [0, 1.0]]), np.array([[0, 1.0], [1.0, 0]])]
    queries = [(0.7, np.array([[1.0, 0]])), (0.3, np.array([[1.0, 0]]))]
    assert brute_force_scores(queries, [("v", rows)])[1] == pytest.approx(1.0)
