// What `gemv` multiplies: its arguments, x in shared memory, and tiles of W in a ring. See `gemv.cuh`.
#define WARPS 8
#define THREADS 256
// Warps that copy a quantised matrix. The copy engine copies a dense one, for one warp.
#define COPY_WARPS 4
#define MAX_STAGES 16
// Tiles of a block that are known at once: those in the ring, and those whose epilogue is due.
#define ORDER 32

struct Matrix {
  const u8* w;
  const u8* scales;
  const u8* biases;
  const u16* bias;
  u32 rows;
  u32 reserved;
};

struct GemvArgs {
  Matrix m[3];
  const float* x;
  const float* y;
  float* x_out;
  const u16* a;
  Vector norm;
  Vector post;
  void* out;
  float* best;
  int* best_index;
  u32* ticket;
  u32* next;
  int* token;
  int* position;
  int* history;
  int* steps;
  u32 k, n, tiles, history_len;
  u32 pieces, piece, stages, slots;
  u32 row_bytes, stride, scale_bytes, out_stride;
  float eps, cap, scale, inverse_k;
};

// Parts of shared memory, in this order.
template <int ROWS, int BITS, int GROUP, int RT>
struct Shared {
  static constexpr bool dense = BITS == 16;
  static constexpr u32 sub = dense ? 32 : GROUP <= 32 ? 32 : 64;
  static constexpr u32 order = 3 * MAX_STAGES * 8;
  static constexpr u32 squares = order + ORDER * 4, red = squares + 2 * ROWS * WARPS * 4;
  static constexpr u32 batch = ROWS <= 2 ? 8 : ROWS == 4 ? 4 : 2;
  static constexpr u32 x = red + 2 * batch * WARPS * RT * 4 * ROWS * 8;
};

DEVICE void consumers_sync() { asm volatile("bar.sync 1, 256;" ::: "memory"); }

// The sum of a value over the warps, which lies in `parts`.
DEVICE float sum_of_warps(const float* parts) {
  float s = 0.f;
#pragma unroll
  for (int w = 0; w < WARPS; w++) s += parts[w];
  return s;
}

// Eight elements of x as halves into shared memory, and the sums of groups.
template <int BITS, int SUB>
DEVICE void put8(u8* xs, float* sums, u32 i, bool valid, const float v[8]) {
  u32 p[4];
#pragma unroll
  for (int j = 0; j < 4; j++) p[j] = narrow2(v[2 * j], v[2 * j + 1]);
  if (valid) *(uint4*)(xs + 2 * i) = in_order<BITS>(p[0], p[1], p[2], p[3]);
  if (BITS != 16 && SCALE_KIND == 0) {
    float s = 0.f;
#pragma unroll
    for (int j = 0; j < 4; j++) s += low(p[j]) + high(p[j]);
#pragma unroll
    for (int o = SUB / 16; o > 0; o >>= 1) s += __shfl_xor_sync(~0u, s, o);
    if (valid && i % SUB == 0) sums[i / SUB] = s;
  }
}

template <int ROWS, int BITS, int GROUP, int PRO, int RT>
DEVICE void prologue(const GemvArgs& a, u8* smem, u8* xs, float* sums, u32 xstride, u32 tid,
                     const float first_norm[8], const float first_post[8]) {
  typedef Shared<ROWS, BITS, GROUP, RT> S;
  constexpr u32 SUB = S::sub;
  float* squares = (float*)(smem + S::squares);
  const u32 k = a.k, lane = tid % 32, warp = tid / 32, rounds = (k + THREADS * 8 - 1) / (THREADS * 8);
  const u32 subs = k / SUB;
  if constexpr (PRO == 0) {
    // Several loads at once, however long rows are.
    constexpr u32 AHEAD = ROWS == 1 ? 8 : ROWS == 2 ? 4 : ROWS == 4 ? 2 : 1;
    for (u32 first = 0; first < rounds; first += AHEAD) {
      uint4 v[AHEAD][ROWS];
#pragma unroll
      for (u32 n = 0; n < AHEAD; n++)
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
          const u32 i = ((first + n) * THREADS + tid) * 8;
          v[n][r] = i < k ? load16(a.a + (u64)r * k + i) : make_uint4(0, 0, 0, 0);
        }
#pragma unroll
      for (u32 n = 0; n < AHEAD; n++) {
        if (first + n >= rounds) break;
        const u32 i = ((first + n) * THREADS + tid) * 8;
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
          const uint4 w = v[n][r];
          const float f[8] = {low(w.x), high(w.x), low(w.y), high(w.y), low(w.z), high(w.z), low(w.w), high(w.w)};
          put8<BITS, SUB>(xs + r * xstride, sums + r * subs, i, i < k, f);
        }
      }
    }
    consumers_sync();
    return;
  }
  float post_root[ROWS];
  if constexpr (PRO == 2) {
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
      float s = 0.f;
      for (u32 it = 0; it < rounds; it++) {
        const u32 i = (it * THREADS + tid) * 8;
        if (i >= k) break;
        float4 p = load4(a.y + (u64)r * k + i), q = load4(a.y + (u64)r * k + i + 4);
        s += p.x * p.x + p.y * p.y + p.z * p.z + p.w * p.w + q.x * q.x + q.y * q.y + q.z * q.z + q.w * q.w;
      }
      s = warp_sum(s);
      if (lane == 0) squares[(ROWS + r) * WARPS + warp] = s;
    }
    consumers_sync();
#pragma unroll
    for (int r = 0; r < ROWS; r++) post_root[r] = rsqrtf(sum_of_warps(squares + (ROWS + r) * WARPS) * a.inverse_k + a.eps);
  }
  constexpr int PASSES = HALF_KIND == 0 ? 1 : 2;
#pragma unroll
  for (int pass = 0; pass < PASSES; pass++) {
    float s[ROWS], root[ROWS];
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
      s[r] = 0.f;
      root[r] = pass == 0 ? 1.f : rsqrtf(sum_of_warps(squares + r * WARPS) * a.inverse_k + a.eps);
    }
#pragma unroll (ROWS == 1 ? 2 : 1)
    for (u32 it = 0; it < rounds; it++) {
      const u32 i = (it * THREADS + tid) * 8;
      const bool valid = i < k;
      float w[8], post[8];
#pragma unroll
      for (int j = 0; j < 8; j++) w[j] = first_norm[j], post[j] = first_post[j];
      if (it > 0 && valid) {
        elements8(a.norm, i, w);
        if (PRO == 2) elements8(a.post, i, post);
      }
#pragma unroll
      for (int r = 0; r < ROWS; r++) {
        float v[8] = {};
        if (valid) {
          const float* row = a.x + (u64)r * k + i;
          float4 p = load4(row), q = load4(row + 4);
          v[0] = p.x, v[1] = p.y, v[2] = p.z, v[3] = p.w, v[4] = q.x, v[5] = q.y, v[6] = q.z, v[7] = q.w;
          if constexpr (PRO == 2) {
            const float* branch = a.y + (u64)r * k + i;
            float4 c = load4(branch), d = load4(branch + 4);
            float b[8] = {c.x, c.y, c.z, c.w, d.x, d.y, d.z, d.w};
#pragma unroll
            for (int j = 0; j < 8; j++) v[j] += b[j] * post_root[r] * post[j];
            if (blockIdx.x == 0 && pass == 0) {
              float4* to = (float4*)(a.x_out + (u64)r * k + i);
              to[0] = make_float4(v[0], v[1], v[2], v[3]);
              to[1] = make_float4(v[4], v[5], v[6], v[7]);
            }
          }
        }
        if (pass == 0)
#pragma unroll
          for (int j = 0; j < 8; j++) s[r] += v[j] * v[j];
#pragma unroll
        for (int j = 0; j < 8; j++) v[j] *= w[j] * root[r];
        if (pass == PASSES - 1) put8<BITS, SUB>(xs + r * xstride, sums + r * subs, i, valid, v);
      }
    }
    if (pass == 0) {
#pragma unroll
      for (int r = 0; r < ROWS; r++) {
        float total = warp_sum(s[r]);
        if (lane == 0) squares[r * WARPS + warp] = total;
      }
    }
    consumers_sync();
  }
}

DEVICE u32 next_128(u32 at) { return (at + 127) / 128 * 128; }

// Where a walk around a ring stands.
struct Turn {
  u32 index = 0, round = 0;
  DEVICE void next(u32 length) {
    if (++index == length) index = 0, round++;
  }
};

// Where row 0 of subtile `rt` of a tile lies: the matrix, and the row in it. Of a gated tile the first half is of the first matrix.
template <int RT, bool GATED>
DEVICE u32 locate(const GemvArgs& a, u32 tile, u32 rt, const Matrix*& m) {
  constexpr u32 EACH = GATED ? RT / 2 : RT;
  u32 row = (tile * EACH + (GATED ? rt % EACH : rt)) * 8, index = 0;
  if (GATED) {
    index = rt / EACH;
  } else {
#pragma unroll
    for (u32 i = 0; i < 2; i++)
      if (index == i && row >= a.m[i].rows) row -= a.m[i].rows, index = i + 1;
  }
  m = &a.m[index];
  return row;
}

// Where row `r` of a tile begins.
template <int RT, bool GATED>
DEVICE const u8* locate_row(const GemvArgs& a, u32 tile, u32 r) {
  const Matrix* m;
  const u32 first = locate<RT, GATED>(a, tile, r / 8, m);
  return m->w + (u64)(first + r % 8) * a.row_bytes;
}

// The warp that has tiles of a dense matrix copied.
//
// Where blocks have many tiles, they take the next from a counter: some multiprocessors read memory faster than others.
// It is asked for when a tile begins and told to all warps in `order` when it ends; whoever asks last sets the counter back to zero.
template <int RT, bool GATED>
DEVICE void produce_dense(const GemvArgs& a, u32* order, u32 ring, u64* full, u64* empty, u32 lane) {
  const u32 stage_bytes = RT * 8 * a.stride;
  const u64 policy = evict_first();
  Turn stage;
  u32 tile = blockIdx.x, place = 0;
  while (tile < a.tiles) {
    u32 turn = 0;
    if (a.next && lane == 0) turn = atomicAdd(a.next, 1u);
    const u8* from = locate_row<RT, GATED>(a, tile, lane % (RT * 8));
    u32 left = a.row_bytes;
    for (u32 p = 0; p < a.pieces; p++) {
      if (stage.round > 0) barrier_wait(empty + stage.index, (stage.round - 1) & 1);
      const u32 bytes = min(a.piece * 2, left);
      left -= bytes;
      if (lane == 0) barrier_expect(full + stage.index, bytes * RT * 8);
      __syncwarp();
      if (lane < RT * 8)
        copy_bulk_once(ring + stage.index * stage_bytes + lane * a.stride, from, bytes, full + stage.index, policy);
      from += bytes;
      stage.next(a.stages);
    }
    if (!a.next) {
      tile += gridDim.x;
      continue;
    }
    place = (place + 1) % ORDER;
    if (lane == 0) {
      order[place] = gridDim.x + turn;
      if (turn == a.tiles - 1) *a.next = 0;
    }
    __syncwarp();
    tile = *(volatile u32*)(order + place);
  }
  if (a.next && lane == 0) {
    // Those who multiply see that there is none.
    if (stage.round > 0) barrier_wait(empty + stage.index, (stage.round - 1) & 1);
    barrier_arrive(full + stage.index);
  }
}

// The warps that copy tiles of a quantised matrix; `warp` counts from 0 among them.
template <int BITS, int GROUP, int RT, bool GATED>
DEVICE void produce(const GemvArgs& a, u32 scales, u32 ring, u64* full, u64* empty, u64* freed, u32 warp, u32 lane) {
  constexpr u32 ROWS_EACH = RT * 8 / COPY_WARPS;
  const u32 stage_bytes = RT * 8 * a.stride;
  Turn stage, slot;
  for (u32 tile = blockIdx.x; tile < a.tiles; tile += gridDim.x) {
    const u8* from[ROWS_EACH];
#pragma unroll
    for (u32 i = 0; i < ROWS_EACH; i++) from[i] = locate_row<RT, GATED>(a, tile, i * COPY_WARPS + warp) + lane * 16;
    u32 left = a.k;
    for (u32 p = 0; p < a.pieces; p++) {
      if (stage.round > 0) barrier_wait(empty + stage.index, (stage.round - 1) & 1);
      const u32 bytes = min(a.piece, left) / 8 * BITS;
      left -= a.piece;
      u32 to[ROWS_EACH];
#pragma unroll
      for (u32 i = 0; i < ROWS_EACH; i++) to[i] = ring + stage.index * stage_bytes + (i * COPY_WARPS + warp) * a.stride + lane * 16;
      if (bytes >= 1024) {
        // Row by row: with matrices of 4 bits that took 5 % less time.
#pragma unroll
        for (u32 i = 0; i < ROWS_EACH; i++) {
#pragma unroll 4
          for (u32 b = 0; b + lane * 16 < bytes; b += 512) copy16(to[i] + b, from[i] + b);
          from[i] += bytes;
        }
      } else {
        // All lanes at once, but for the end: no loop depends on the lane, and copies of several rows follow each other.
#pragma unroll 2
        for (u32 b = 512; b <= bytes; b += 512) {
#pragma unroll
          for (u32 i = 0; i < ROWS_EACH; i++) copy16(to[i], from[i]), to[i] += 512, from[i] += 512;
        }
        const u32 rest = bytes % 512;
        if (rest > 0) {
#pragma unroll
          for (u32 i = 0; i < ROWS_EACH; i++) {
            if (lane * 16 < rest) copy16(to[i], from[i]);
            from[i] += rest;
          }
        }
      }
      if (p == 0) {
        if (warp < 2 * RT && (SCALE_KIND == 0 || warp % 2 == 0)) {
          if (slot.round > 0) barrier_wait(freed + slot.index, (slot.round - 1) & 1);
          const Matrix* m;
          const u32 first = locate<RT, GATED>(a, tile, warp / 2, m);
          const u8* source = (warp % 2 ? m->biases : m->scales) + (u64)first * (a.scale_bytes / 8);
          const u32 slot_at = scales + (slot.index * RT * 2 + warp) * a.scale_bytes;
          for (u32 b = lane * 16; b < a.scale_bytes; b += 512) copy16(slot_at + b, source + b);
        }
        slot.next(a.slots);
      }
      barrier_arrive_after_copies(full + stage.index);
      stage.next(a.stages);
    }
  }
  wait_for_copies();
}
