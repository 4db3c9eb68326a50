// Attention of one new token of each row: norms and rotates queries and the key, appends key and value to the cache, and attends, in
// one kernel. The blocks of a cluster share the positions of a head of keys, and sum up through each other's shared memory. Long rows
// are shared by several clusters (of `gridDim.x` blocks only as many work as there are positions for); the last block to arrive
// sums up those.
struct AttentionArgs {
  const float* qkv;           // [rows][(heads + 2 · kv_heads) · D], as projected
  void* out;                  // [rows][heads · D], halves
  const u64* keys;            // for each row, where its keys lie: [kv_heads][capacity][D]
  const u64* values;          // likewise
  const int* row_capacity;    // positions of each row's cache
  const int* position;        // of each row; negative where the row is idle
  const float* frequencies;   // [rotated / 2], radians for each position; null without rope
  const float* sinks;         // [heads] or null
  float* part;                // [rows][kv_heads][blocks of heads][splits][HEADS][D]
  float2* part_state;         // [rows][kv_heads][blocks of heads][splits][HEADS]: maximum and sum
  u32* ticket;                // [rows][kv_heads][blocks of heads]
  Vector q_norm, k_norm;      // null without
  u32 heads, kv_heads;
  u32 rotated, window, interleaved, cluster;
  float scale, cap, eps, magnitude;
};

#define ATTENTION_WARPS 8

template <int D>
struct HeadShape {
  // Lanes that share a position, 8 dimensions for each vector.
  static constexpr int lanes = D <= 64 ? 8 : D <= 128 ? 16 : 32;
  static constexpr int vectors = (D + lanes * 8 - 1) / (lanes * 8);
  static constexpr int per_warp = 32 / lanes;
};

DEVICE float exp2_fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// tanh to single precision but for numbers near zero, where it is to 1e-7 of 1.
DEVICE float tanh_fast(float x) { return 1.f - __fdividef(2.f, exp2_fast(2.f * LOG2E * x) + 1.f); }

DEVICE void spread(uint4 v, float f[8]) {
  f[0] = low(v.x), f[1] = high(v.x), f[2] = low(v.y), f[3] = high(v.y);
  f[4] = low(v.z), f[5] = high(v.z), f[6] = low(v.w), f[7] = high(v.w);
}

// A number in the shared memory of a block of the cluster.
DEVICE float remote(const float* p, u32 rank) {
  float v;
  asm volatile(
      "{\n.reg .u32 at;\nmapa.shared::cluster.u32 at, %1, %2;\nld.shared::cluster.f32 %0, [at];\n}"
      : "=f"(v)
      : "r"(shared_address(p)), "r"(rank)
      : "memory");
  return v;
}

// Positions that a block takes before another cluster helps.
#define BLOCK_POSITIONS 256
#define NOTHING __int_as_float(0xff800000)

// One head of one vector: norm, rotation and scale, from `from` (global) into `to` (shared), by one warp.
template <int D>
DEVICE void prepare(const AttentionArgs& a, const float* from, float* to, bool normed, const float* norm, const float2* turns,
                    float scale, bool rotate, u32 lane) {
  constexpr int N = (D + 31) / 32;
  float v[N], s = 0.f;
#pragma unroll
  for (int i = 0; i < N; i++) v[i] = lane + 32 * i < D ? load1(from + lane + 32 * i) : 0.f;
  if (normed) {
#pragma unroll
    for (int i = 0; i < N; i++) s += v[i] * v[i];
    const float root = rsqrtf(warp_sum(s) / D + a.eps);
#pragma unroll
    for (int i = 0; i < N; i++) v[i] *= root * norm[i];
  }
#pragma unroll
  for (int i = 0; i < N; i++)
    if (lane + 32 * i < D) to[lane + 32 * i] = v[i] * scale;
  __syncwarp();
  if (!rotate) return;
  const u32 half = a.rotated / 2;
#pragma unroll 1
  for (u32 i = lane; i < half; i += 32) {
    const u32 first = a.interleaved ? 2 * i : i, second = a.interleaved ? 2 * i + 1 : i + half;
    const float x = to[first], y = to[second];
    to[first] = x * turns[i].x - y * turns[i].y;
    to[second] = x * turns[i].y + y * turns[i].x;
  }
  __syncwarp();
}

// Keys and values that are on their way to shared memory where many rows are decoded: each thread copies what it reads.
#define ATTENTION_DEPTH 4

// `HEADS` heads of queries at once, of the `heads / kv_heads` that share keys. Where blocks are many, they go through keys and values
// `DEEP` in copies.
template <int D, int HEADS, bool DEEP>
DEVICE void attention(const AttentionArgs& a) {
  static_assert(HEADS + 2 <= ATTENTION_WARPS);
  typedef HeadShape<D> Shape;
  constexpr int L = Shape::lanes, V = Shape::vectors, P = Shape::per_warp, UNROLL = 2, N = (D + 31) / 32;
  // Whether registers hold what comes after, too.
  constexpr bool AHEAD = !DEEP && HEADS * V <= 2;
  constexpr u32 STRIDE = ATTENTION_WARPS * P;
  extern __shared__ __align__(128) u8 smem[];
  float* q = (float*)smem;                                  // [HEADS + 2][D]: queries, the new key and value
  u32* fresh = (u32*)(q + (HEADS + 2) * D);                 // [2][D / 2]: the latter as halves
  float2* turns = (float2*)(fresh + D);                     // [D / 2]
  float2* state = turns + D / 2;                            // [WARPS][HEADS]
  float2* total = state + ATTENTION_WARPS * HEADS;          // [HEADS]: maximum and sum of the block
  float* sums = (float*)(total + HEADS);                    // [WARPS][HEADS][D]; then the block's in the first of WARPS
  // [DEPTH][UNROLL][V][keys, values][threads], where it is deep; at a multiple of 16 bytes.
  uint4* ring = (uint4*)(sums + ATTENTION_WARPS * HEADS * D + HEADS % 2 * 2);
  const u32 tid = threadIdx.x, warp = tid / 32, lane = tid % 32, row = blockIdx.z;
  const u32 group = a.heads / a.kv_heads, parts = (group + HEADS - 1) / HEADS;
  const u32 kv = blockIdx.y / parts, first = kv * group + (blockIdx.y % parts) * HEADS;
  const u32 heads = min((u32)HEADS, group - (blockIdx.y % parts) * HEADS);
  MARK(0);
  let_next_start();
  const u64 key_base = loadp(a.keys + row), value_base = loadp(a.values + row);
  const int position = loadi(a.position + row);
  const u32 capacity = (u32)loadi(a.row_capacity + row);
  const u32 clusters = gridDim.x / a.cluster, cluster = blockIdx.x / a.cluster, rank = blockIdx.x % a.cluster;
  const u32 width = a.heads * D;
  const Vector norm = warp < HEADS ? a.q_norm : a.k_norm;
  const bool normed = norm.data && warp <= HEADS;
  float norms[N] = {};
#pragma unroll
  for (int i = 0; i < N; i++)
    if (normed && lane + 32 * i < D) norms[i] = element(norm, lane + 32 * i);
  float frequency = 0.f;
  if (a.frequencies && tid < a.rotated / 2) frequency = __ldg(a.frequencies + tid);
  if (position < 0) {
    if (blockIdx.x > 0) return;
    wait_for_previous();
    for (u32 i = tid; i < heads * D; i += blockDim.x) ((u16*)a.out)[(u64)row * width + first * D + i] = 0;
    return;
  }
  MARK(1);
  const u32 start = a.window && (u32)position + 1 > a.window ? position + 1 - a.window : 0;
  const u32 count = position + 1 - start;
  const u32 active = min(clusters, (count + a.cluster * BLOCK_POSITIONS - 1) / (a.cluster * BLOCK_POSITIONS));
  if (cluster >= active) return;
  const u32 chunk = max(16u, (count + active * a.cluster - 1) / (active * a.cluster));
  const u32 stop = (u32)position + 1, begin = min(start + blockIdx.x * chunk, stop), end = min(begin + chunk, stop);
  const bool newest = begin < end && end == stop;
  const u16* keys = (const u16*)key_base + (u64)kv * capacity * D;
  const u16* values = (const u16*)value_base + (u64)kv * capacity * D;
  const u32 offset = begin % capacity, sub = lane % L, set = lane / L;
  // What earlier steps cached is there already: the first of it comes while the projection runs, the rest comes nearer.
  uint4 k[UNROLL][V], v[UNROLL][V];
  auto fetch = [&](u32 p0, uint4 k[UNROLL][V], uint4 v[UNROLL][V]) {
#pragma unroll
    for (int u = 0; u < UNROLL; u++) {
      const u32 p = p0 + u * STRIDE;
      u32 slot = offset + (p - begin);
      if (slot >= capacity) slot -= capacity;
#pragma unroll
      for (int j = 0; j < V; j++) {
        const u32 d = j * L * 8 + sub * 8;
        const bool there = p < end && p != (u32)position && d < D;
        k[u][j] = there ? load16(keys + (u64)slot * D + d) : make_uint4(0, 0, 0, 0);
        v[u][j] = there ? load16(values + (u64)slot * D + d) : make_uint4(0, 0, 0, 0);
      }
    }
  };
  auto place = [&](u32 stage, int u, int j, int which) {
    return ring + (((stage * UNROLL + u) * V + j) * 2 + which) * ATTENTION_WARPS * 32 + tid;
  };
  auto copy = [&](u32 p0, u32 stage) {
#pragma unroll
    for (int u = 0; u < UNROLL; u++) {
      const u32 p = p0 + u * STRIDE;
      u32 slot = offset + (p - begin);
      if (slot >= capacity) slot -= capacity;
#pragma unroll
      for (int j = 0; j < V; j++) {
        const u32 d = j * L * 8 + sub * 8;
        const bool there = p < end && p != (u32)position && d < D;
        const u64 at = there ? (u64)slot * D + d : 0;
        copy16_or_zero(shared_address(place(stage, u, j, 0)), keys + at, there);
        copy16_or_zero(shared_address(place(stage, u, j, 1)), values + at, there);
      }
    }
    copies_end_group();
  };
  u32 p0 = begin + warp * P + set, stage = 0;
  if constexpr (DEEP) {
#pragma unroll
    for (u32 i = 0; i < ATTENTION_DEPTH; i++) copy(p0 + i * UNROLL * STRIDE, i);
  } else {
    fetch(p0, k, v);
  }
  for (u32 p = begin + UNROLL * STRIDE + tid; p < end; p += blockDim.x) {
    u32 slot = offset + (p - begin);
    if (slot >= capacity) slot -= capacity;
#pragma unroll 1
    for (u32 d = 0; d < D; d += 64) {
      asm volatile("prefetch.global.L2 [%0];" ::"l"(keys + (u64)slot * D + d));
      asm volatile("prefetch.global.L2 [%0];" ::"l"(values + (u64)slot * D + d));
    }
  }
  if (a.frequencies && tid < a.rotated / 2) {
    // In double precision: an angle grows with the position.
    const double revolutions = (double)position * (double)frequency * 0.15915494309189533576888376337251;
    float sine, cosine;
    sincospif((float)(2.0 * (revolutions - rint(revolutions))), &sine, &cosine);
    turns[tid] = make_float2(cosine * a.magnitude, sine * a.magnitude);
  }
  __syncthreads();
  MARK(2);
  wait_for_previous();
  MARK(3);
  const float* mine = a.qkv + (u64)row * (a.heads + 2 * a.kv_heads) * D;
  const bool is_query = warp < HEADS, is_key = warp == HEADS;
  if (is_query ? warp < heads : warp < HEADS + 2 && newest) {
    const u32 from = is_query ? first + warp : a.heads + (is_key ? 0 : a.kv_heads) + kv;
    const float scale = !is_query ? 1.f : a.cap > 0.f ? a.scale : a.scale * LOG2E;
    float* to = q + warp * D;
    prepare<D>(a, mine + from * D, to, normed, norms, turns, scale, warp <= HEADS && a.frequencies, lane);
    if (!is_query) {
      u16* cache = (u16*)(is_key ? keys : values) + (u64)((u32)position % capacity) * D;
      const bool writes = blockIdx.y % parts == 0;
#pragma unroll 1
      for (u32 i = lane; i < D / 2; i += 32) {
        const u32 pair = narrow2(to[2 * i], to[2 * i + 1]);
        if (writes) ((u32*)cache)[i] = pair;
        fresh[(is_key ? 0 : D / 2) + i] = pair;
      }
    }
  } else if (is_query) {
    for (u32 i = lane; i < D; i += 32) q[warp * D + i] = 0.f;
  }
  __syncthreads();
  MARK(4);
  float query[HEADS][V * 8], acc[HEADS][V * 8], best[HEADS], sum[HEADS];
#pragma unroll
  for (int h = 0; h < HEADS; h++) {
    best[h] = NOTHING, sum[h] = 0.f;
#pragma unroll
    for (int i = 0; i < V * 8; i++) query[h][i] = 0.f, acc[h][i] = 0.f;
#pragma unroll
    for (int i = 0; i < V * 8; i += 4) {
      const u32 d = (i / 8) * L * 8 + sub * 8 + i % 8;
      if (d < D) {
        const float4 four = *(const float4*)(q + h * D + d);
        query[h][i] = four.x, query[h][i + 1] = four.y, query[h][i + 2] = four.z, query[h][i + 3] = four.w;
      }
    }
  }
  while (__any_sync(~0u, p0 < end)) {
    uint4 next_k[UNROLL][V], next_v[UNROLL][V];
    if constexpr (AHEAD) fetch(p0 + UNROLL * STRIDE, next_k, next_v);
    if constexpr (DEEP) {
      wait_for_groups<ATTENTION_DEPTH - 1>();
#pragma unroll
      for (int u = 0; u < UNROLL; u++)
#pragma unroll
        for (int j = 0; j < V; j++) k[u][j] = *place(stage, u, j, 0), v[u][j] = *place(stage, u, j, 1);
    }
    float score[UNROLL][HEADS];
#pragma unroll
    for (int u = 0; u < UNROLL; u++) {
      const u32 p = p0 + u * STRIDE;
#pragma unroll
      for (int h = 0; h < HEADS; h++) score[u][h] = 0.f;
#pragma unroll
      for (int j = 0; j < V; j++) {
        const u32 d = j * L * 8 + sub * 8;
        if (newest && p == (u32)position && d < D) {
          k[u][j] = *(const uint4*)(fresh + d / 2);
          v[u][j] = *(const uint4*)(fresh + D / 2 + d / 2);
        }
        float f[8];
        spread(k[u][j], f);
#pragma unroll
        for (int h = 0; h < HEADS; h++)
#pragma unroll
          for (int i = 0; i < 8; i++) score[u][h] += query[h][j * 8 + i] * f[i];
      }
#pragma unroll
      for (int h = 0; h < HEADS; h++) {
#pragma unroll
        for (int o = L / 2; o > 0; o >>= 1) score[u][h] += __shfl_xor_sync(~0u, score[u][h], o);
        if (a.cap > 0.f) score[u][h] = a.cap * LOG2E * tanh_fast(score[u][h] / a.cap);
        if (p >= end) score[u][h] = NOTHING;
      }
    }
#pragma unroll
    for (int h = 0; h < HEADS; h++) {
      float top = best[h];
#pragma unroll
      for (int u = 0; u < UNROLL; u++) top = fmaxf(top, score[u][h]);
      // Nothing seen yet: any finite number will do.
      const float base = top == NOTHING ? 0.f : top;
      const float shrink = exp2_fast(best[h] - base);
      best[h] = top;
      sum[h] *= shrink;
#pragma unroll
      for (int i = 0; i < V * 8; i++) acc[h][i] *= shrink;
#pragma unroll
      for (int u = 0; u < UNROLL; u++) {
        score[u][h] = exp2_fast(score[u][h] - base);
        sum[h] += score[u][h];
      }
    }
#pragma unroll
    for (int u = 0; u < UNROLL; u++) {
#pragma unroll
      for (int j = 0; j < V; j++) {
        float f[8];
        spread(v[u][j], f);
#pragma unroll
        for (int h = 0; h < HEADS; h++)
#pragma unroll
          for (int i = 0; i < 8; i++) acc[h][j * 8 + i] += score[u][h] * f[i];
      }
    }
    p0 += UNROLL * STRIDE;
    if constexpr (DEEP) {
      copy(p0 + (ATTENTION_DEPTH - 1) * UNROLL * STRIDE, stage);
      stage = (stage + 1) % ATTENTION_DEPTH;
    } else if constexpr (AHEAD) {
#pragma unroll
      for (int u = 0; u < UNROLL; u++)
#pragma unroll
        for (int j = 0; j < V; j++) k[u][j] = next_k[u][j], v[u][j] = next_v[u][j];
    } else if (__any_sync(~0u, p0 < end)) {
      fetch(p0, k, v);
    }
  }
  if constexpr (DEEP) wait_for_copies();
  MARK(5);
  // The lanes of a warp that took other positions.
#pragma unroll
  for (int o = L; o < 32; o <<= 1) {
#pragma unroll
    for (int h = 0; h < HEADS; h++) {
      const float other = __shfl_xor_sync(~0u, best[h], o), top = fmaxf(best[h], other);
      const float base = top == NOTHING ? 0.f : top;
      const float ours = exp2_fast(best[h] - base), theirs = exp2_fast(other - base);
      best[h] = top;
      sum[h] = sum[h] * ours + __shfl_xor_sync(~0u, sum[h], o) * theirs;
#pragma unroll
      for (int i = 0; i < V * 8; i++) acc[h][i] = acc[h][i] * ours + __shfl_xor_sync(~0u, acc[h][i], o) * theirs;
    }
  }
#pragma unroll
  for (int h = 0; h < HEADS; h++) {
    if (lane == 0) state[warp * HEADS + h] = make_float2(best[h], sum[h]);
    if (set == 0)
#pragma unroll
      for (int i = 0; i < V * 8; i++) {
        const u32 d = (i / 8) * L * 8 + sub * 8 + i % 8;
        if (d < D) sums[(warp * HEADS + h) * D + d] = acc[h][i];
      }
  }
  __syncthreads();
  // The block's: each thread sums what it then overwrites.
  for (u32 i = tid; i < HEADS * D; i += blockDim.x) {
    const u32 h = i / D;
    float top = NOTHING, all = 0.f, value = 0.f;
#pragma unroll
    for (int w = 0; w < ATTENTION_WARPS; w++) top = fmaxf(top, state[w * HEADS + h].x);
    const float base = top == NOTHING ? 0.f : top;
#pragma unroll
    for (int w = 0; w < ATTENTION_WARPS; w++) {
      const float2 s = state[w * HEADS + h];
      const float weight = exp2_fast(s.x - base);
      all += s.y * weight;
      value += sums[w * HEADS * D + i] * weight;
    }
    sums[i] = value;
    if (i % D == 0) total[h] = make_float2(top, all);
  }
  MARK(6);
  cluster_sync();
  MARK(7);
  const u32 unit = row * gridDim.y + blockIdx.y;
  // Each block sums its share, a warp for 32 neighbouring elements, all of one head.
  const u32 share = (heads * D / 32 + a.cluster - 1) / a.cluster * 32;
  for (u32 at = warp * 32; at < share && rank * share + at < heads * D; at += blockDim.x) {
    const u32 i = rank * share + at + lane, h = i / D;
    float part_top = NOTHING, all = 0.f, value = 0.f;
    if (lane < a.cluster) part_top = remote(&total[h].x, lane), all = remote(&total[h].y, lane);
    float top = part_top;
#pragma unroll
    for (int o = 8; o > 0; o >>= 1) top = fmaxf(top, __shfl_xor_sync(~0u, top, o));
    top = __shfl_sync(~0u, top, 0);
    const float weight = lane < a.cluster ? exp2_fast(part_top - top) : 0.f;
    all = warp_sum(all * weight);
#pragma unroll 8
    for (u32 r = 0; r < a.cluster; r++) value += remote(&sums[i], r) * __shfl_sync(~0u, weight, r);
    if (active == 1) {
      if (a.sinks) {
        const float sink = __ldg(a.sinks + first + h) * LOG2E, peak = fmaxf(top, sink);
        all = all * exp2_fast(top - peak) + exp2_fast(sink - peak);
        value *= exp2_fast(top - peak);
      }
      ((u16*)a.out)[(u64)row * width + first * D + i] = narrow(value / all);
    } else {
      const u64 to = ((u64)unit * clusters + cluster) * HEADS + h;
      a.part[to * D + i % D] = value;
      if (i % D == 0) a.part_state[to] = make_float2(top, all);
    }
  }
  MARK(8);
  // No block leaves while others read its memory.
  if (active > 1) __threadfence();
  cluster_sync();
  MARK(9);
  if (active == 1) return;
  __shared__ u32 arrived;
  if (tid == 0) arrived = rank == 0 ? atomicInc(a.ticket + unit, active - 1) : 0u;
  __syncthreads();
  if (rank != 0 || arrived != active - 1) return;
  __threadfence();
  for (u32 i = tid; i < heads * D; i += blockDim.x) {
    const u32 h = i / D, d = i % D;
    const float sink = a.sinks ? __ldg(a.sinks + first + h) * LOG2E : NOTHING;
    float top = sink, all = a.sinks ? 1.f : 0.f, value = 0.f;
#pragma unroll 4
    for (u32 c = 0; c < active; c++) {
      const u64 at = ((u64)unit * clusters + c) * HEADS + h;
      const float* s = (const float*)(a.part_state + at);
      const float other = load1(s), peak = fmaxf(top, other);
      const float ours = exp2_fast(top - peak), theirs = exp2_fast(other - peak);
      all = all * ours + load1(s + 1) * theirs;
      value = value * ours + load1(a.part + at * D + d) * theirs;
      top = peak;
    }
    ((u16*)a.out)[(u64)row * width + first * D + i] = narrow(value / all);
  }
}
