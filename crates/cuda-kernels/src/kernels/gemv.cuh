// y = W · f(x) for one to eight rows of x, with W read once: one block for each multiprocessor, which walks over tiles of 8 rows of W
// (16 where gate and up are multiplied together). One warp orders the copy engine to fill a ring in shared memory, before the
// previous kernel has ended; eight warps share the columns and multiply with matrix instructions (x in rows 0 to 7 of A, W as B).
//
// Prologues: 0 x as it is (halves); 1 RMS norm of x (f32); 2 x + norm(y), which block 0 writes, and the norm of that.
// The reciprocal root of the norm multiplies sums at the end, so that one pass over x is enough; halves of type f16 would
// overflow there, and are normalised in a second pass.
// Epilogues: 0 store f32; 1 add to the residual (f32); 2 activation(gate) · up, in halves; 3 logits, and the best token of each row.
#define WARPS 8
#define THREADS 256
#define MAX_STAGES 16

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
  int* token;
  int* position;
  int* history;
  int* steps;
  u32 k, n, tiles, history_len;
  u32 pieces, piece, stages, slots;
  u32 row_bytes, stride, scale_bytes, out_stride;
  float eps, cap, scale, reserved2;
};

// Parts of shared memory, in this order.
template <int ROWS, int BITS, int GROUP, int RT>
struct Shared {
  static constexpr bool dense = BITS == 16;
  static constexpr u32 sub = dense ? 32 : GROUP == 32 ? 32 : 64;
  static constexpr u32 bars = 3 * MAX_STAGES * 8;
  static constexpr u32 squares = bars, red = squares + 2 * ROWS * WARPS * 4;
  static constexpr u32 x = red + 2 * WARPS * RT * 32 * 8;
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
  if (BITS != 16) {
    float s = 0.f;
#pragma unroll
    for (int j = 0; j < 4; j++) s += low(p[j]) + high(p[j]);
#pragma unroll
    for (int o = SUB / 16; o > 0; o >>= 1) s += __shfl_xor_sync(~0u, s, o);
    if (valid && i % SUB == 0) sums[i / SUB] = s;
  }
}

template <int ROWS, int BITS, int GROUP, int PRO, int RT>
DEVICE void prologue(const GemvArgs& a, u8* smem, u8* xs, float* sums, u32 xstride, u32 tid) {
  typedef Shared<ROWS, BITS, GROUP, RT> S;
  constexpr u32 SUB = S::sub;
  float* squares = (float*)(smem + S::squares);
  const u32 k = a.k, lane = tid % 32, warp = tid / 32, rounds = (k + THREADS * 8 - 1) / (THREADS * 8);
  const u32 subs = k / SUB;
  if constexpr (PRO == 0) {
    for (u32 it = 0; it < rounds; it++) {
      const u32 i = (it * THREADS + tid) * 8;
      const bool valid = i < k;
      uint4 v[ROWS];
#pragma unroll
      for (int r = 0; r < ROWS; r++) v[r] = valid ? load16(a.a + (u64)r * k + i) : make_uint4(0, 0, 0, 0);
#pragma unroll
      for (int r = 0; r < ROWS; r++) {
        float f[8] = {low(v[r].x), high(v[r].x), low(v[r].y), high(v[r].y), low(v[r].z), high(v[r].z), low(v[r].w), high(v[r].w)};
        put8<BITS, SUB>(xs + r * xstride, sums + r * subs, i, valid, f);
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
    for (int r = 0; r < ROWS; r++) post_root[r] = rsqrtf(sum_of_warps(squares + (ROWS + r) * WARPS) / k + a.eps);
  }
  constexpr int PASSES = HALF_KIND == 0 ? 1 : 2;
#pragma unroll
  for (int pass = 0; pass < PASSES; pass++) {
    float s[ROWS], root[ROWS];
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
      s[r] = 0.f;
      root[r] = pass == 0 ? 1.f : rsqrtf(sum_of_warps(squares + r * WARPS) / k + a.eps);
    }
    for (u32 it = 0; it < rounds; it++) {
      const u32 i = (it * THREADS + tid) * 8;
      const bool valid = i < k;
      float w[8] = {}, post[8] = {};
      if (valid) elements8(a.norm, i, w);
      if (PRO == 2 && valid) elements8(a.post, i, post);
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

// Where row 0 of subtile `rt` of a tile lies: the matrix, and the row in it.
template <int RT>
DEVICE u32 locate(const GemvArgs& a, u32 tile, int rt, const Matrix*& m) {
  u32 row = tile * 8, index = 0;
  if (RT == 2) {
    index = rt;
  } else {
#pragma unroll
    for (u32 i = 0; i < 2; i++)
      if (index == i && row >= a.m[i].rows) row -= a.m[i].rows, index = i + 1;
  }
  m = &a.m[index];
  return row;
}

// The warp that orders copies.
template <int BITS, int GROUP, int RT>
DEVICE void produce(const GemvArgs& a, u8* scales, u8* ring, u64* full, u64* empty, u64* freed, u32 lane) {
  constexpr bool dense = BITS == 16;
  const u32 stage_bytes = RT * 8 * a.stride;
  u32 step = 0, count = 0;
  for (u32 tile = blockIdx.x; tile < a.tiles; tile += gridDim.x, count++) {
    const u32 slot = count % a.slots;
    if (!dense && count >= a.slots) barrier_wait(freed + slot, (count / a.slots - 1) & 1);
    const Matrix* m;
    const u32 rt = RT == 2 && lane % 16 >= 8;
    const u32 row = locate<RT>(a, tile, rt, m) + lane % 8;
    const u8* from = m->w + (u64)row * a.row_bytes;
    for (u32 p = 0; p < a.pieces; p++, step++) {
      const u32 stage = step % a.stages;
      if (step >= a.stages) barrier_wait(empty + stage, (step / a.stages - 1) & 1);
      const u32 elements = min(a.piece, a.k - p * a.piece), bytes = elements / 8 * BITS;
      const bool with_scales = !dense && p == 0;
      if (lane == 0) barrier_expect(full + stage, RT * 8 * bytes + (with_scales ? 2 * RT * a.scale_bytes : 0));
      __syncwarp();
      if (lane < RT * 8) {
        bulk_copy(ring + stage * stage_bytes + lane * a.stride, from + p * (a.piece / 8 * BITS), bytes, full + stage);
      } else if (with_scales && lane >= 16 && lane < 16 + 2 * RT) {
        const u32 part = (lane - 16) % 2, sub = (lane - 16) / 2;
        const u32 first = locate<RT>(a, tile, sub, m);
        const u8* source = (part ? m->biases : m->scales) + (u64)first * (a.scale_bytes / 8);
        bulk_copy(scales + ((slot * RT + sub) * 2 + part) * a.scale_bytes, source, a.scale_bytes, full + stage);
      }
    }
  }
}

// One piece of a tile: the columns of it that are this warp's.
template <int ROWS, int BITS, int GROUP, int RT>
DEVICE void consume(const GemvArgs& a, float acc[RT][2][4], const u8* stage, const u8* scales, const u8* xs, const float* sums,
                    u32 xstride, u32 begin, u32 elements, u32 warp, u32 lane) {
  constexpr u32 SUB = Shared<ROWS, BITS, GROUP, RT>::sub;
  const u32 g = lane / 4, t = lane % 4, subs = elements / SUB;
  const bool mine = g < ROWS;
  if constexpr (BITS == 16) {
#pragma unroll 4
    for (u32 s = warp; s < subs; s += WARPS) {
      uint4 x = make_uint4(0, 0, 0, 0);
      if (mine) x = *(const uint4*)(xs + g * xstride + (begin + s * 32 + t * 8) * 2);
#pragma unroll
      for (int rt = 0; rt < RT; rt++) {
        uint4 w = *(const uint4*)(stage + (rt * 8 + g) * a.stride + (s * 32 + t * 8) * 2);
        multiply(acc[rt][0], x.x, x.y, w.x, w.y);
        multiply(acc[rt][1], x.z, x.w, w.z, w.w);
      }
    }
  } else {
    constexpr u32 N = SUB / 4;
    const u32 groups = a.k / GROUP;
#pragma unroll 2
    for (u32 s = warp; s < subs; s += WARPS) {
      u32 x[N / 2] = {};
      const u32 at = begin + s * SUB;
      if (mine) {
#pragma unroll
        for (u32 i = 0; i < N / 8; i++) {
          uint4 v = *(const uint4*)(xs + g * xstride + (at + t * N + i * 8) * 2);
          x[4 * i] = v.x, x[4 * i + 1] = v.y, x[4 * i + 2] = v.z, x[4 * i + 3] = v.w;
        }
      }
      const float sum = mine ? sums[g * (a.k / SUB) + at / SUB] : 0.f;
#pragma unroll
      for (int rt = 0; rt < RT; rt++) {
        u32 w[N / 2];
        unpack<BITS, N>(stage + (rt * 8 + g) * a.stride + (s * SUB + t * N) / 8 * BITS, w);
        float c[4] = {};
#pragma unroll
        for (u32 i = 0; i < N / 4; i++) multiply(c, x[2 * i], x[2 * i + 1], w[2 * i], w[2 * i + 1]);
#pragma unroll
        for (int j = 0; j < 2; j++) {
          const u32 at_group = (2 * t + j) * groups + at / GROUP;
          const float scale = widen(((const u16*)(scales + (rt * 2) * a.scale_bytes))[at_group]);
          const float bias = widen(((const u16*)(scales + (rt * 2 + 1) * a.scale_bytes))[at_group]);
          acc[rt][0][j] += scale * c[j] + (bias - Unpacked<BITS>::offset * scale) * sum;
        }
      }
    }
  }
}

// Keeps the larger, and the first of equal ones.
DEVICE void better(float& v, int& i, float other, int at) {
  if (other > v || (other == v && at < i)) v = other, i = at;
}

// The best token of each row among all blocks; the last block to arrive writes it and moves the row on.
template <int ROWS>
DEVICE void choose(const GemvArgs& a, float v[2], int at[2], u8* smem, u32 tid) {
  // Each of the eight warps holds candidates in lanes l: row l / 4.
  float* values = (float*)smem;
  int* indices = (int*)(smem + WARPS * 32 * 4);
  better(v[0], at[0], v[1], at[1]);
#pragma unroll
  for (int o = 1; o < 4; o <<= 1) {
    float ov = __shfl_xor_sync(~0u, v[0], o);
    int oi = __shfl_xor_sync(~0u, at[0], o);
    better(v[0], at[0], ov, oi);
  }
  values[tid] = v[0];
  indices[tid] = at[0];
  consumers_sync();
  if (tid < ROWS) {
    float b = values[tid * 4];
    int bi = indices[tid * 4];
    for (int w = 1; w < WARPS; w++) better(b, bi, values[w * 32 + tid * 4], indices[w * 32 + tid * 4]);
    a.best[blockIdx.x * ROWS + tid] = b;
    a.best_index[blockIdx.x * ROWS + tid] = bi;
    __threadfence();
  }
  consumers_sync();
  int* last = (int*)smem;
  if (tid == 0) *last = atomicInc(a.ticket, gridDim.x - 1) == gridDim.x - 1;
  consumers_sync();
  if (!*last) return;
  __threadfence();
  const u32 lane = tid % 32, row = tid / 32;
  if (row >= ROWS) return;
  float b = __int_as_float(0xff800000);
  int bi = 0x7fffffff;
  for (u32 i = lane; i < gridDim.x; i += 32) better(b, bi, load1(a.best + i * ROWS + row), loadi(a.best_index + i * ROWS + row));
#pragma unroll
  for (int o = 16; o > 0; o >>= 1) {
    float ov = __shfl_xor_sync(~0u, b, o);
    int oi = __shfl_xor_sync(~0u, bi, o);
    better(b, bi, ov, oi);
  }
  if (lane == 0 && a.token) {
    const int position = a.position[row], step = a.steps[row];
    if (position >= 0) {
      // Where all logits are NaN, there is no best.
      const int token = bi < (int)a.n ? bi : 0;
      a.token[row] = token;
      a.position[row] = position + 1;
      a.history[row * a.history_len + (u32)step % a.history_len] = token;
      a.steps[row] = step + 1;
    }
  }
}

template <int ROWS, int BITS, int GROUP, int PRO, int EPI, int ACT>
DEVICE void gemv(const GemvArgs& a) {
  constexpr int RT = EPI == 2 ? 2 : 1;
  typedef Shared<ROWS, BITS, GROUP, RT> S;
  extern __shared__ __align__(128) u8 smem[];
  u64 *full = (u64*)smem, *empty = full + MAX_STAGES, *freed = empty + MAX_STAGES;
  const u32 tid = threadIdx.x, warp = tid / 32, lane = tid % 32;
  const u32 xstride = a.k * 2 + 16;
  u8* xs = smem + S::x;
  float* sums = (float*)(xs + ROWS * xstride);
  u8* scales = (u8*)(sums + (S::dense ? 0 : (ROWS * (a.k / S::sub) + 3) / 4 * 4));
  u8* ring = scales + a.slots * RT * 2 * a.scale_bytes;
  if (tid == 0) {
    for (u32 i = 0; i < a.stages; i++) barrier_init(full + i, 1), barrier_init(empty + i, WARPS);
    for (u32 i = 0; i < a.slots; i++) barrier_init(freed + i, WARPS);
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
  }
  __syncthreads();
  if (warp == WARPS) {
    produce<BITS, GROUP, RT>(a, scales, ring, full, empty, freed, lane);
    return;
  }
  wait_for_previous();
  if (tid == 0) let_next_start();
  prologue<ROWS, BITS, GROUP, PRO, RT>(a, smem, xs, sums, xstride, tid);
  float root = 1.f;
  const u32 g = lane / 4, t = lane % 4;
  if (PRO != 0 && HALF_KIND == 0 && g < ROWS)
    root = rsqrtf(sum_of_warps((float*)(smem + S::squares) + g * WARPS) / a.k + a.eps);
  float2* red = (float2*)(smem + S::red);
  const u32 stage_bytes = RT * 8 * a.stride;
  float best[2] = {__int_as_float(0xff800000), __int_as_float(0xff800000)};
  int best_at[2] = {0x7fffffff, 0x7fffffff};
  u32 step = 0, count = 0;
  for (u32 tile = blockIdx.x; tile < a.tiles; tile += gridDim.x, count++) {
    // Lanes part ways at the end of a tile.
    __syncwarp();
    const bool final = count % WARPS == warp && g < ROWS;
    const u32 n = tile * 8 + 2 * t;
    float2 old = make_float2(0.f, 0.f);
    if (EPI == 1 && final) old = make_float2(load1((float*)a.out + (u64)g * a.out_stride + n), load1((float*)a.out + (u64)g * a.out_stride + n + 1));
    float acc[RT][2][4] = {};
    const u32 slot = count % a.slots;
    const u8* tile_scales = scales + slot * RT * 2 * a.scale_bytes;
    for (u32 p = 0; p < a.pieces; p++, step++) {
      const u32 stage = step % a.stages;
      barrier_wait(full + stage, (step / a.stages) & 1);
      consume<ROWS, BITS, GROUP, RT>(a, acc, ring + stage * stage_bytes, tile_scales, xs, sums, xstride, p * a.piece,
                                     min(a.piece, a.k - p * a.piece), warp, lane);
      __syncwarp();
      if (lane == 0) barrier_arrive(empty + stage);
    }
    if (!S::dense && lane == 0) barrier_arrive(freed + slot);
    float2* mine = red + ((count & 1) * WARPS + warp) * RT * 32;
    if (g < ROWS)
#pragma unroll
      for (int rt = 0; rt < RT; rt++)
        mine[rt * 32 + lane] = make_float2(acc[rt][0][0] + acc[rt][1][0], acc[rt][0][1] + acc[rt][1][1]);
    consumers_sync();
    if (!final) continue;
    float2 v[RT];
#pragma unroll
    for (int rt = 0; rt < RT; rt++) {
      v[rt] = make_float2(0.f, 0.f);
#pragma unroll
      for (int w = 0; w < WARPS; w++) {
        float2 part = red[((count & 1) * WARPS + w) * RT * 32 + rt * 32 + lane];
        v[rt].x += part.x, v[rt].y += part.y;
      }
      v[rt].x *= root, v[rt].y *= root;
      const Matrix* m;
      const u32 row = locate<RT>(a, tile, rt, m) + 2 * t;
      if (m->bias) v[rt].x += widen(__ldg(m->bias + row)), v[rt].y += widen(__ldg(m->bias + row + 1));
    }
    if constexpr (EPI == 0) {
      *(float2*)((float*)a.out + (u64)g * a.out_stride + n) = v[0];
    } else if constexpr (EPI == 1) {
      *(float2*)((float*)a.out + (u64)g * a.out_stride + n) = make_float2(old.x + v[0].x, old.y + v[0].y);
    } else if constexpr (EPI == 2) {
      *(u32*)((u16*)a.out + (u64)g * a.out_stride + n) = narrow2(gated<ACT>(v[0].x, v[1].x), gated<ACT>(v[0].y, v[1].y));
    } else {
      float z[2] = {v[0].x * a.scale, v[0].y * a.scale};
#pragma unroll
      for (int j = 0; j < 2; j++) {
        if (a.cap > 0.f) z[j] = a.cap * tanhf(z[j] / a.cap);
        better(best[j], best_at[j], z[j], (int)n + j);
      }
      if (a.out) *(float2*)((float*)a.out + (u64)g * a.out_stride + n) = make_float2(z[0], z[1]);
    }
  }
  if constexpr (EPI == 3) {
    consumers_sync();
    choose<ROWS>(a, best, best_at, smem + S::red, tid);
  }
}
