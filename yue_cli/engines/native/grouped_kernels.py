"""A kernel for the attention of a step where eight heads share each key, as in stage 1, with a cache in 16 bits.

It computes what `attention_kernels.attend` does, but loads keys and values into shared memory before the queries are
there: as soon as the product before has ended on a multiprocessor, it need not have on all. In Gluon every tensor's
layout over threads is given, so that softmax's weights already lie as the left operand of their product with the
values; it cannot be interpreted.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.ampere import async_copy, mma_v2

from yue_cli.engines.native import tiles
from yue_cli.engines.native.gluon_parts import axes, let_next_begin, mma_layout, narrow, wait_for_all, wait_for_last

GROUPS = gl.constexpr(tiles.GROUPED)  # heads that share a key
QUERIES = gl.constexpr(2 * tiles.GROUPED)  # as many as tensor cores take; the last eight are zeros
COLUMNS = gl.constexpr(8)  # of a product, that they take at least
SIZE = gl.constexpr(tiles.GROUPED_SIZE)  # features of a head
HALF = gl.constexpr(tiles.GROUPED_SIZE // 2)  # they turn in pairs: one of the first half with one of the second
SLICE = gl.constexpr(tiles.GROUPED_SIZE // 4)  # that are multiplied at once
LOWEST = gl.constexpr(-1e30)  # a peak where nothing was seen yet: finite, so that differences are no NaN
_load_async = getattr(async_copy, "async_load", None) or async_copy.async_copy_global_to_shared  # before Triton 3.9


@gluon.jit
def attend(
    qkv,  # [rows, (GROUPS + 2) * SHARED, SIZE], as the product leaves it
    cosine,  # float32 [length, HALF]
    sine,
    keys,  # [rows, SHARED, places, SIZE], with room for BLOCK more behind; those of the new ids are written
    values,  # the same
    filled,  # int64 [rows]: ids in the cache before these
    sums,  # float32 [rows, SHARED, CHUNKS, GROUPS, SIZE]
    peaks,  # float32 [rows, SHARED, CHUNKS, GROUPS, 2]: highest score, sum of weights
    arrived,  # int32 [rows, SHARED]: chunks that are done; zeros before and after
    y,  # [rows, SHARED * GROUPS, SIZE]
    places,  # that the cache has for a row
    sharpness,  # of the scores, for powers of two
    SHARED: gl.constexpr,
    CHUNKS: gl.constexpr,  # that a row's keys are cut into, at most
    BLOCK: gl.constexpr,  # keys at once; a chunk is some of these
    WARPS: gl.constexpr,  # each looks at its own part of a block
    BUFFERS: gl.constexpr,  # blocks that are under way
    CHAINED: gl.constexpr,
):
    """Let the queries of one key head look at one chunk of its keys; whoever is last joins all chunks, in their order.

    How long chunks are depends on the row's length alone. The last one also looks at the new id's own key, and writes
    it into the cache, where nobody reads it before the next step.
    """
    PART: gl.constexpr = BLOCK // WARPS
    answer_of: gl.constexpr = mma_layout(WARPS)
    left: gl.constexpr = gl.DotOperandLayout(0, answer_of, 2)
    right: gl.constexpr = gl.DotOperandLayout(1, answer_of, 2)
    chunk, shared, row = gl.program_id(0), gl.program_id(1), gl.program_id(2)
    old = gl.load(filled + row).to(gl.int32)
    known = old + 1
    size = (known + CHUNKS * BLOCK - 1) // (CHUNKS * BLOCK) * BLOCK  # keys of a chunk
    first = chunk * size
    stop = gl.minimum(first + size, old)
    if first < known:
        head = row * SHARED + shared
        slots = head * places.to(gl.int64)

        # Old keys and angles are there already; what the kernel before this one makes, is not. No load of keys has a
        # mask: what lies behind them is finite, and counts nothing.
        copied: gl.constexpr = gl.BlockedLayout([1, 8], [2, 16], [WARPS, 1], [1, 0])
        key = gl.arange(0, BLOCK, layout=gl.SliceLayout(1, copied))[:, None]
        feature = gl.arange(0, SIZE, layout=gl.SliceLayout(0, copied))[None, :]
        at = (slots + first) * SIZE + key * SIZE + feature
        kept_as: gl.constexpr = gl.SwizzledSharedLayout(8, 1, 8, [1, 0])
        kept_keys = gl.allocate_shared_memory(keys.dtype.element_ty, [BUFFERS, BLOCK, SIZE], kept_as)
        kept_values = gl.allocate_shared_memory(values.dtype.element_ty, [BUFFERS, BLOCK, SIZE], kept_as)
        for number in gl.static_range(BUFFERS):
            if first + number * BLOCK < stop:
                _load_async(kept_keys.index(number), keys + at + number * BLOCK * SIZE)
                _load_async(kept_values.index(number), values + at + number * BLOCK * SIZE)
            async_copy.commit_group()
        warp_q, query, feature_q = axes(WARPS, QUERIES, SLICE, left)
        warp_n, feature_n, column = axes(WARPS, SLICE, COLUMNS, right)
        angles_q = _angles(cosine, sine, old * HALF + feature_q)
        angles_n = _angles(cosine, sine, old * HALF + feature_n)
        if CHAINED:
            wait_for_last()

        # Every warp has all queries. The new key is the first of eight columns.
        own = row * (GROUPS + 2) * SHARED
        queries = qkv + (own + shared * GROUPS + query) * SIZE + feature_q + 0 * warp_q
        q = _turned(queries, angles_q, query < GROUPS)
        new_key = qkv + (own + GROUPS * SHARED + shared) * SIZE
        n = _turned(new_key + feature_n + 0 * (column + warp_n), angles_n, column == 0)
        newest = gl.zeros([WARPS, QUERIES, COLUMNS], gl.float32, layout=answer_of)
        for number in gl.static_range(4):
            newest = mma_v2(q[number], n[number], newest)
        newest = gl.sum(newest, 2)
        has_new = first + size >= known
        if has_new:
            place = keys + (slots + old) * SIZE + feature_n + 0 * (column + warp_n)
            for number in gl.static_range(4):
                gl.store(place + number * SLICE, n[number], mask=(column == 0) & (warp_n == 0))

        warp_k, _, key_k = axes(WARPS, QUERIES, PART, answer_of)
        by_query: gl.constexpr = gl.SliceLayout(2, answer_of)
        peak = gl.full([WARPS, QUERIES], LOWEST, gl.float32, layout=by_query)
        weights = gl.zeros([WARPS, QUERIES], gl.float32, layout=by_query)
        total = gl.zeros([WARPS, QUERIES, SIZE], gl.float32, layout=answer_of)
        for start in range(first, stop, BLOCK):
            buffer = (start - first) // BLOCK % BUFFERS
            async_copy.wait_group(BUFFERS - 1)
            wait_for_all()
            k = kept_keys.index(buffer).reshape([WARPS, PART, SIZE]).permute([0, 2, 1])
            scores = gl.zeros([WARPS, QUERIES, PART], gl.float32, layout=answer_of)
            for number in gl.static_range(4):
                scores = mma_v2(q[number], k.slice(number * SLICE, SLICE, dim=1).load(right), scores)
            is_old = start + warp_k * PART + key_k < stop
            scores = gl.where(is_old, scores * sharpness, float("-inf"))
            higher = gl.maximum(peak, gl.max(scores, 2))
            fade = gl.exp2(peak - higher)
            weight = gl.exp2(scores - higher[:, :, None])
            weights = weights * fade + gl.sum(weight, 2)
            peak = higher
            v = kept_values.index(buffer).reshape([WARPS, PART, SIZE]).load(right)
            weight = gl.convert_layout(weight.to(v.dtype), left)
            total = mma_v2(weight, v, total * fade[:, :, None])
            if start + BUFFERS * BLOCK < stop:
                wait_for_all()
                more = at + (start - first + BUFFERS * BLOCK) * SIZE
                _load_async(kept_keys.index(buffer), keys + more)
                _load_async(kept_values.index(buffer), values + more)
            async_copy.commit_group()
        if CHAINED:
            let_next_begin()  # not before, or its programs would take the place of these

        # Join what the warps found, and the new id.
        wide: gl.constexpr = gl.BlockedLayout([WARPS, 1, 4], [1, 1, 32], [1, WARPS, 1], [2, 1, 0])
        by_head: gl.constexpr = gl.SliceLayout(2, wide)
        line: gl.constexpr = gl.SliceLayout(0, wide)
        each: gl.constexpr = gl.SliceLayout(1, line)
        peak = gl.convert_layout(_first(peak), by_head)
        newest = gl.max(gl.convert_layout(_first(newest), by_head), 0)  # all warps have the same
        newest = gl.where(has_new, newest * sharpness, LOWEST)
        top = gl.maximum(gl.max(peak, 0), newest)
        share, new_share = gl.exp2(peak - top[None, :]), gl.exp2(newest - top)
        weights = gl.sum(gl.convert_layout(_first(weights), by_head) * share, 0) + new_share
        total = gl.sum(gl.convert_layout(_first_lines(total), wide) * share[:, :, None], 0)  # [GROUPS, SIZE]
        top, weights = gl.convert_layout(top, each), gl.convert_layout(weights, each)
        group = gl.arange(0, GROUPS, layout=each)[:, None]
        feature = gl.arange(0, SIZE, layout=gl.SliceLayout(0, line))[None, :]
        value = gl.load(new_key + SHARED * SIZE + feature)
        total += gl.convert_layout(new_share, each)[:, None] * value.to(gl.float32)
        if has_new:
            gl.store(values + (slots + old) * SIZE + feature, value)

        answers = y + (head * GROUPS + group) * SIZE + feature
        if known <= size:
            gl.store(answers, narrow(total / weights[:, None], y.dtype.element_ty))
        else:
            places_of_sums = sums + (head * CHUNKS * GROUPS + group) * SIZE + feature
            places_of_peaks = peaks + (head * CHUNKS * GROUPS + gl.arange(0, GROUPS, layout=each)) * 2
            gl.store(places_of_sums + chunk * GROUPS * SIZE, total)
            gl.store(places_of_peaks + chunk * GROUPS * 2, top)
            gl.store(places_of_peaks + chunk * GROUPS * 2 + 1, weights)
            wait_for_all()
            used = (known + size - 1) // size
            if gl.atomic_add(arrived + head, 1, sem="acq_rel") == used - 1:
                gl.store(arrived + head, 0)
                gl.store(answers, narrow(_joined(places_of_sums, places_of_peaks, used, CHUNKS), y.dtype.element_ty))


@gluon.jit
def _angles(cosine, sine, place):
    """Load cosine and sine of a slice of features and of the next one. place: of the first slice, of any shape."""
    first = gl.load(cosine + place), gl.load(sine + place)
    second = gl.load(cosine + place + SLICE), gl.load(sine + place + SLICE)
    return first, second


@gluon.jit
def _turned(place, angles, is_there):
    """Load the four slices of heads, and turn them; rounded as the eager path rounds.

    place: of the first slice, [WARPS, QUERIES, SLICE] or [WARPS, SLICE, COLUMNS], as are the answers. angles: see
    `_angles`.
    """
    KIND: gl.constexpr = place.dtype.element_ty
    lower, upper = (), ()
    for number in gl.static_range(2):
        cos, sin = angles[number]
        one = gl.load(place + number * SLICE, mask=is_there, other=0.0).to(gl.float32)
        other = gl.load(place + number * SLICE + HALF, mask=is_there, other=0.0).to(gl.float32)
        lower = lower + ((one * cos - other * sin).to(KIND),)
        upper = upper + ((other * cos + one * sin).to(KIND),)
    return lower + upper


@gluon.jit
def _joined(sums, peaks, used, CHUNKS: gl.constexpr):
    """Join what the queries of one key head found in all chunks. What others wrote is not in this one's own cache.

    sums: where those of the first chunk lie, [GROUPS, SIZE]. peaks: the same, [GROUPS]. used: chunks. Returns float32
    [GROUPS, SIZE].
    """
    heights, counts, found = (), (), ()
    for chunk in gl.static_range(CHUNKS):
        place = peaks + chunk * GROUPS * 2
        heights = heights + (gl.load(place, mask=chunk < used, other=LOWEST, cache_modifier=".cg"),)
        counts = counts + (gl.load(place + 1, mask=chunk < used, other=0.0, cache_modifier=".cg"),)
        found = found + (gl.load(sums + chunk * GROUPS * SIZE, mask=chunk < used, other=0.0, cache_modifier=".cg"),)
    top = heights[0]
    for chunk in gl.static_range(1, CHUNKS):
        top = gl.maximum(top, heights[chunk])
    share = gl.exp2(heights[0] - top)
    weights, total = counts[0] * share, found[0] * share[:, None]
    for chunk in gl.static_range(1, CHUNKS):
        share = gl.exp2(heights[chunk] - top)
        weights += counts[chunk] * share
        total += found[chunk] * share[:, None]
    return total / weights[:, None]


@gluon.jit
def _first(numbers):
    """Take the numbers of the first eight of [WARPS, QUERIES]: [WARPS, GROUPS]."""
    first, _ = gl.split(gl.permute(gl.reshape(numbers, [numbers.shape[0], 2, GROUPS]), [0, 2, 1]))
    return first


@gluon.jit
def _first_lines(lines):
    """Do the same with [WARPS, QUERIES, SIZE]."""
    parts = gl.reshape(lines, [lines.shape[0], 2, GROUPS, SIZE])
    first, _ = gl.split(gl.permute(parts, [0, 2, 3, 1]))
    return first
