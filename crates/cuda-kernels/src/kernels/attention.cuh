// Attention of one new token of each row: norms and rotates queries and the key, appends key and value to the cache, and attends, in
// one kernel. Blocks share the positions of a head of keys (`gridDim.x` splits, of which only as many work as there are positions
// for); the last of them to arrive sums up.
struct AttentionArgs {
  const float* qkv;           // [rows][(heads + 2 · kv_heads) · D], as projected
  void* out;                  // [rows][heads · D], halves
  const u64* keys;            // for each row, where its keys lie: [kv_heads][capacity][D]
  const u64* values;          // likewise
  const int* position;        // of each row; negative where the row is idle
  const float* frequencies;   // [rotated / 2], radians for each position; null without rope
  const float* sinks;         // [heads] or null
  float* part;                // [rows][kv_heads][blocks of heads][splits][HEADS][D]
  float2* part_state;         // [rows][kv_heads][blocks of heads][splits][HEADS]: maximum and sum
  u32* ticket;                // [rows][kv_heads][blocks of heads]
  Vector q_norm, k_norm;      // null without
  u32 heads, kv_heads, capacity, head_stride;
  u32 rotated, window, interleaved, min_chunk;
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

DEVICE void spread(uint4 v, float f[8]) {
  f[0] = low(v.x), f[1] = high(v.x), f[2] = low(v.y), f[3] = high(v.y);
  f[4] = low(v.z), f[5] = high(v.z), f[6] = low(v.w), f[7] = high(v.w);
}

// One head of one vector: norm, rotation and scale, from `from` (global) into `to` (shared), by one warp.
template <int D>
DEVICE void prepare(const AttentionArgs& a, const float* from, float* to, const Vector& norm, const float2* turns, float scale,
                    bool rotate, u32 lane) {
  constexpr int N = (D + 31) / 32;
  float v[N], s = 0.f;
#pragma unroll
  for (int i = 0; i < N; i++) {
    v[i] = lane + 32 * i < D ? load1(from + lane + 32 * i) : 0.f;
    s += v[i] * v[i];
  }
  if (norm.data) {
    const float root = rsqrtf(warp_sum(s) / D + a.eps);
#pragma unroll
    for (int i = 0; i < N; i++)
      if (lane + 32 * i < D) v[i] *= root * element(norm, lane + 32 * i);
  }
#pragma unroll
  for (int i = 0; i < N; i++)
    if (lane + 32 * i < D) to[lane + 32 * i] = v[i] * scale;
  __syncwarp();
  if (!rotate) return;
  const u32 half = a.rotated / 2;
  for (u32 i = lane; i < half; i += 32) {
    const u32 first = a.interleaved ? 2 * i : i, second = a.interleaved ? 2 * i + 1 : i + half;
    const float x = to[first], y = to[second];
    to[first] = x * turns[i].x - y * turns[i].y;
    to[second] = x * turns[i].y + y * turns[i].x;
  }
  __syncwarp();
}

// `HEADS` heads of queries at once, of the `heads / kv_heads` that share keys.
template <int D, int HEADS>
DEVICE void attention(const AttentionArgs& a) {
  typedef HeadShape<D> Shape;
  constexpr int L = Shape::lanes, V = Shape::vectors, P = Shape::per_warp, UNROLL = V > 1 ? 2 : 4;
  extern __shared__ __align__(128) u8 smem[];
  float* q = (float*)smem;                                  // [HEADS][D]
  float* fresh = q + HEADS * D;                             // [2][D]: the new key and value
  float2* turns = (float2*)(fresh + 2 * D);                 // [D / 2]
  float2* state = turns + D / 2;                            // [WARPS][HEADS]
  float* sums = (float*)(state + ATTENTION_WARPS * HEADS);  // [WARPS][HEADS][D]
  const u32 tid = threadIdx.x, warp = tid / 32, lane = tid % 32, row = blockIdx.z;
  const u32 group = a.heads / a.kv_heads, parts = (group + HEADS - 1) / HEADS;
  const u32 kv = blockIdx.y / parts, first = kv * group + (blockIdx.y % parts) * HEADS;
  const u32 heads = min((u32)HEADS, group - (blockIdx.y % parts) * HEADS);
  const int position = loadi(a.position + row);
  const u32 splits = gridDim.x, split = blockIdx.x, width = a.heads * D;
  if (position < 0) {
    if (split > 0) return;
    wait_for_previous();
    let_next_start();
    for (u32 i = tid; i < heads * D; i += blockDim.x) ((u16*)a.out)[(u64)row * width + first * D + i] = 0;
    return;
  }
  const u32 start = a.window && (u32)position + 1 > a.window ? position + 1 - a.window : 0;
  const u32 total = position + 1 - start;
  u32 chunk = (total + splits - 1) / splits;
  chunk = max(a.min_chunk, (chunk + 15) / 16 * 16);
  const u32 active = (total + chunk - 1) / chunk;
  if (split >= active) return;
  const u32 begin = start + split * chunk, end = min(begin + chunk, (u32)position + 1);
  const bool newest = split == active - 1;
  const u16* keys = (const u16*)loadp(a.keys + row) + (u64)kv * a.head_stride;
  const u16* values = (const u16*)loadp(a.values + row) + (u64)kv * a.head_stride;
  const u32 offset = begin % a.capacity;
  // What earlier steps cached is there already: it can come nearer while the projection runs.
  for (u32 i = tid; i < (end - begin) * (D / 32); i += blockDim.x) {
    u32 slot = offset + i / (D / 32);
    if (slot >= a.capacity) slot -= a.capacity;
    const u64 at = (u64)slot * D + (i % (D / 32)) * 32;
    if (i % 2 == 0 || D == 96) {
      asm volatile("prefetch.global.L2 [%0];" ::"l"(keys + at));
      asm volatile("prefetch.global.L2 [%0];" ::"l"(values + at));
    }
  }
  if (a.frequencies) {
    for (u32 i = tid; i < a.rotated / 2; i += blockDim.x) {
      // In double precision: an angle grows with the position.
      const double angle = (double)position * (double)__ldg(a.frequencies + i);
      const double turns_of = angle * 0.15915494309189533576888376337251, turn = turns_of - rint(turns_of);
      float sine, cosine;
      sincospif((float)(2.0 * turn), &sine, &cosine);
      turns[i] = make_float2(cosine * a.magnitude, sine * a.magnitude);
    }
  }
  wait_for_previous();
  if (tid == 0) let_next_start();
  __syncthreads();
  const u32 qkv_width = (a.heads + 2 * a.kv_heads) * D;
  const float* mine = a.qkv + (u64)row * qkv_width;
  const float q_scale = a.cap > 0.f ? a.scale : a.scale * LOG2E;
  for (u32 v = warp; v < HEADS + (newest ? 2u : 0u); v += ATTENTION_WARPS) {
    if (v < HEADS) {
      if (v < heads)
        prepare<D>(a, mine + (first + v) * D, q + v * D, a.q_norm, turns, q_scale, a.frequencies, lane);
      else
        for (u32 i = lane; i < D; i += 32) q[v * D + i] = 0.f;
      continue;
    }
    const bool is_key = v == HEADS;
    const Vector none = {};
    float* to = fresh + (is_key ? 0 : D);
    const float* from = mine + (a.heads + (is_key ? 0 : a.kv_heads) + kv) * D;
    prepare<D>(a, from, to, is_key ? a.k_norm : none, turns, 1.f, is_key && a.frequencies, lane);
    u16* cache = (u16*)(is_key ? keys : values) + (u64)((u32)position % a.capacity) * D;
    const bool writes = blockIdx.y % parts == 0;
    for (u32 i = lane; i < D; i += 32) {
      const u16 half = narrow(to[i]);
      if (writes) cache[i] = half;
      to[i] = widen(half);
    }
  }
  __syncthreads();

  const u32 sub = lane % L, set = lane / L;
  float query[HEADS][V * 8], acc[HEADS][V * 8], best[HEADS], sum[HEADS];
#pragma unroll
  for (int h = 0; h < HEADS; h++) {
    best[h] = __int_as_float(0xff800000), sum[h] = 0.f;
#pragma unroll
    for (int i = 0; i < V * 8; i++) {
      const u32 d = (i / 8) * L * 8 + sub * 8 + i % 8;
      query[h][i] = d < D ? q[h * D + d] : 0.f;
      acc[h][i] = 0.f;
    }
  }
  for (u32 p0 = begin + warp * P + set; __any_sync(~0u, p0 < end); p0 += ATTENTION_WARPS * P * UNROLL) {
    uint4 k[UNROLL][V], v[UNROLL][V];
#pragma unroll
    for (int u = 0; u < UNROLL; u++) {
      const u32 p = p0 + u * ATTENTION_WARPS * P;
      u32 slot = offset + (p - begin);
      if (slot >= a.capacity) slot -= a.capacity;
#pragma unroll
      for (int j = 0; j < V; j++) {
        const u32 d = j * L * 8 + sub * 8;
        const bool there = p < end && p != (u32)position && d < D;
        k[u][j] = there ? load16(keys + (u64)slot * D + d) : make_uint4(0, 0, 0, 0);
        v[u][j] = there ? load16(values + (u64)slot * D + d) : make_uint4(0, 0, 0, 0);
      }
    }
    float score[UNROLL][HEADS];
#pragma unroll
    for (int u = 0; u < UNROLL; u++) {
      const u32 p = p0 + u * ATTENTION_WARPS * P;
#pragma unroll
      for (int h = 0; h < HEADS; h++) score[u][h] = 0.f;
#pragma unroll
      for (int j = 0; j < V; j++) {
        float f[8];
        spread(k[u][j], f);
        const u32 d = j * L * 8 + sub * 8;
        if (p == (u32)position && d < D)
#pragma unroll
          for (int i = 0; i < 8; i++) f[i] = fresh[d + i];
#pragma unroll
        for (int h = 0; h < HEADS; h++)
#pragma unroll
          for (int i = 0; i < 8; i++) score[u][h] += query[h][j * 8 + i] * f[i];
      }
#pragma unroll
      for (int h = 0; h < HEADS; h++) {
#pragma unroll
        for (int o = L / 2; o > 0; o >>= 1) score[u][h] += __shfl_xor_sync(~0u, score[u][h], o);
        if (a.cap > 0.f) score[u][h] = a.cap * LOG2E * tanhf(score[u][h] / a.cap);
        if (p >= end) score[u][h] = __int_as_float(0xff800000);
      }
    }
#pragma unroll
    for (int h = 0; h < HEADS; h++) {
      float top = best[h];
#pragma unroll
      for (int u = 0; u < UNROLL; u++) top = fmaxf(top, score[u][h]);
      // Nothing seen yet: any finite number will do.
      const float base = top == __int_as_float(0xff800000) ? 0.f : top;
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
      const u32 p = p0 + u * ATTENTION_WARPS * P;
#pragma unroll
      for (int j = 0; j < V; j++) {
        float f[8];
        spread(v[u][j], f);
        const u32 d = j * L * 8 + sub * 8;
        if (p == (u32)position && d < D)
#pragma unroll
          for (int i = 0; i < 8; i++) f[i] = fresh[D + d + i];
#pragma unroll
        for (int h = 0; h < HEADS; h++)
#pragma unroll
          for (int i = 0; i < 8; i++) acc[h][j * 8 + i] += score[u][h] * f[i];
      }
    }
  }
  // The lanes of a warp that took other positions.
#pragma unroll
  for (int o = L; o < 32; o <<= 1) {
#pragma unroll
    for (int h = 0; h < HEADS; h++) {
      const float other = __shfl_xor_sync(~0u, best[h], o), top = fmaxf(best[h], other);
      const float base = top == __int_as_float(0xff800000) ? 0.f : top;
      const float mine = exp2_fast(best[h] - base), theirs = exp2_fast(other - base);
      best[h] = top;
      sum[h] = sum[h] * mine + __shfl_xor_sync(~0u, sum[h], o) * theirs;
#pragma unroll
      for (int i = 0; i < V * 8; i++) acc[h][i] = acc[h][i] * mine + __shfl_xor_sync(~0u, acc[h][i], o) * theirs;
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
  const u32 unit = row * gridDim.y + blockIdx.y;
  for (u32 i = tid; i < heads * D; i += blockDim.x) {
    const u32 h = i / D, d = i % D;
    float top = __int_as_float(0xff800000);
#pragma unroll
    for (int w = 0; w < ATTENTION_WARPS; w++) top = fmaxf(top, state[w * HEADS + h].x);
    float all = 0.f, value = 0.f;
#pragma unroll
    for (int w = 0; w < ATTENTION_WARPS; w++) {
      const float2 s = state[w * HEADS + h];
      const float weight = exp2_fast(s.x - top);
      all += s.y * weight;
      value += sums[(w * HEADS + h) * D + d] * weight;
    }
    if (active == 1) {
      if (a.sinks) {
        const float sink = __ldg(a.sinks + first + h) * LOG2E, peak = fmaxf(top, sink);
        all = all * exp2_fast(top - peak) + exp2_fast(sink - peak);
        value *= exp2_fast(top - peak);
      }
      ((u16*)a.out)[(u64)row * width + (first + h) * D + d] = narrow(value / all);
    } else {
      const u64 at = ((u64)unit * splits + split) * HEADS + h;
      a.part[at * D + d] = value;
      if (d == 0) a.part_state[at] = make_float2(top, all);
    }
  }
  if (active == 1) return;
  __threadfence();
  __syncthreads();
  __shared__ u32 arrived;
  if (tid == 0) arrived = atomicInc(a.ticket + unit, active - 1);
  __syncthreads();
  if (arrived != active - 1) return;
  __threadfence();
  for (u32 i = tid; i < active * HEADS; i += blockDim.x) {
    const float* s = (const float*)(a.part_state + (u64)unit * splits * HEADS + i);
    ((float2*)sums)[i] = make_float2(load1(s), load1(s + 1));
  }
  __syncthreads();
  for (u32 i = tid; i < heads * D; i += blockDim.x) {
    const u32 h = i / D, d = i % D;
    float top = a.sinks ? __ldg(a.sinks + first + h) * LOG2E : __int_as_float(0xff800000);
    const float sink = top;
    for (u32 s = 0; s < active; s++) top = fmaxf(top, ((float2*)sums)[s * HEADS + h].x);
    float all = a.sinks ? exp2_fast(sink - top) : 0.f, value = 0.f;
#pragma unroll 8
    for (u32 s = 0; s < active; s++) {
      const float2 st = ((float2*)sums)[s * HEADS + h];
      const float weight = exp2_fast(st.x - top);
      all += st.y * weight;
      value += load1(a.part + (((u64)unit * splits + s) * HEADS + h) * D + d) * weight;
    }
    ((u16*)a.out)[(u64)row * width + (first + h) * D + d] = narrow(value / all);
  }
}
