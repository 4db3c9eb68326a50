// y = W · f(x) for one to eight rows of x, with W read once: one block for each multiprocessor, which walks over tiles of 8 rows of W
// (16 where gate and up are multiplied together, or there are many). Tiles are copied into a ring in shared memory, from before the
// previous kernel has ended: those of a dense matrix by the copy engine, others by four warps, 16 bytes at a time. Eight warps share the
// columns and multiply with matrix instructions (x in rows 0 to 7 of A, W as B).
//
// Prologues: 0 x as it is (halves); 1 RMS norm of x (f32); 2 x + norm(y), which block 0 writes, and the norm of that.
// The reciprocal root of the norm multiplies sums at the end, so that one pass over x is enough; halves of type f16 would
// overflow there, and are normalised in a second pass.
// Sums of warps meet once for a batch of tiles, each of which then has a warp for its epilogue. Rows of A beyond those of x hold
// whatever; so do the rows of the product, which nobody reads.
// Epilogues: 0 store f32; 1 add to the residual (f32); 2 activation(gate) · up, in halves; 3 logits, and the best token of each row.

// One group of columns of a tile. Scales of groups that are smaller (`own`) multiply the weights, others the sums.
template <int ROWS, int BITS, int GROUP, int RT>
DEVICE void consume_sub(float acc[RT][2][4], const u8* w_row, const u8* x_row, u32 stride, u32 at, float sum, const float scale[RT][2],
                        const float bias[RT][2], const u32 own[RT]) {
  constexpr u32 N = Shared<ROWS, BITS, GROUP, RT>::sub / 4;
  uint4 x[N / 8];
#pragma unroll
  for (u32 i = 0; i < N / 8; i++) x[i] = *(const uint4*)(x_row + (at + i * 8) * 2);
#pragma unroll
  for (int rt = 0; rt < RT; rt++) {
    u32 w[N / 2];
    unpack<BITS, N>(w_row + rt * 8 * stride + at / 8 * BITS, w);
    if constexpr (SCALE_KIND == 2)
#pragma unroll
      for (u32 i = 0; i < N / 2; i++) w[i] = times2(w[i], own[rt]);
    float c[2][4] = {};
#pragma unroll
    for (u32 i = 0; i < N / 8; i++) {
      multiply(c[0], x[i], w[4 * i], w[4 * i + 1]);
      multiply(c[1], x[i], w[4 * i + 2], w[4 * i + 3]);
    }
#pragma unroll
    for (int j = 0; j < 2; j++)
      if constexpr (SCALE_KIND > 0)
        acc[rt][0][j] += (SCALE_KIND == 1 ? scale[rt][j] : 1.f) * (c[0][j] + c[1][2 + j]);
      else
        acc[rt][0][j] += scale[rt][j] * (c[0][j] + c[1][2 + j]) + (bias[rt][j] - Unpacked<BITS>::offset * scale[rt][j]) * sum;
  }
}

// One piece of a tile: the columns of it that are this warp's. `EVEN` says that rows and pieces have even numbers of groups.
template <int ROWS, int BITS, int GROUP, int RT, bool EVEN>
DEVICE void consume(const GemvArgs& a, float acc[RT][2][4], const u8* stage, const u8* scales, const u8* xs, const float* sums,
                    u32 xstride, u32 begin, u32 elements, u32 warp, u32 lane) {
  constexpr u32 SUB = Shared<ROWS, BITS, GROUP, RT>::sub;
  const u32 g = lane / 4, t = lane % 4, subs = elements / SUB;
  const u8* x_row = xs + (g % ROWS) * xstride + begin * 2;
  const u8* w_row = stage + g * a.stride;
  if constexpr (BITS == 16) {
#pragma unroll 4
    for (u32 s = warp; s < subs; s += WARPS) {
      const uint4 x = *(const uint4*)(x_row + (s * 32 + t * 8) * 2);
#pragma unroll
      for (int rt = 0; rt < RT; rt++) {
        const uint4 w = *(const uint4*)(w_row + rt * 8 * a.stride + (s * 32 + t * 8) * 2);
        multiply(acc[rt][0], x, w.x, w.y);
        multiply(acc[rt][1], x, w.z, w.w);
      }
    }
    return;
  }
  constexpr u32 N = SUB / 4, PAIR = EVEN ? 2 : 1;
  const float* sum_row = sums + (g % ROWS) * (a.k / SUB) + begin / SUB;
  constexpr u32 BYTES = SCALE_KIND == 0 ? 2 : 1;
  const u8* scale_row = scales + ((SCALE_KIND == 2 ? g : 2 * t) * (a.k / GROUP) + begin / GROUP) * BYTES;
  const u32 next_row = a.k / GROUP * BYTES;
#pragma unroll (RT == 1 ? 2 : 1)
  for (u32 s = PAIR * warp; s < subs; s += PAIR * WARPS) {
    float scale[PAIR][RT][2], bias[PAIR][RT][2];
    u32 own[PAIR][RT];
#pragma unroll
    for (int rt = 0; rt < RT; rt++)
#pragma unroll
      for (int j = 0; j < 2; j++) {
        const u8* at = scale_row + rt * 2 * a.scale_bytes + j * next_row + s * SUB / GROUP * BYTES;
        if constexpr (SCALE_KIND == 1) {
          scale[0][rt][j] = e8m0(at[0]), scale[PAIR - 1][rt][j] = e8m0(at[PAIR - 1]);
        } else if constexpr (SCALE_KIND == 2) {
          // Of the lane's own row and columns.
          const u8* there = at - j * next_row + t / 2;
          own[0][rt] = e4m3(there[0] * 0x10001u), own[PAIR - 1][rt] = e4m3(there[(PAIR - 1) * 2] * 0x10001u);
        } else if constexpr (EVEN && GROUP == SUB) {
          const u32 two = *(const u32*)at, others = *(const u32*)(at + a.scale_bytes);
          scale[0][rt][j] = low(two), scale[PAIR - 1][rt][j] = high(two);
          bias[0][rt][j] = low(others), bias[PAIR - 1][rt][j] = high(others);
        } else {
          scale[0][rt][j] = scale[PAIR - 1][rt][j] = widen(*(const u16*)at);
          bias[0][rt][j] = bias[PAIR - 1][rt][j] = widen(*(const u16*)(at + a.scale_bytes));
        }
      }
    float sum[PAIR];
#pragma unroll
    for (u32 q = 0; q < PAIR; q++) sum[q] = SCALE_KIND == 0 ? sum_row[s + q] : 0.f;
#pragma unroll
    for (u32 q = 0; q < PAIR; q++)
      consume_sub<ROWS, BITS, GROUP, RT>(acc, w_row, x_row, a.stride, (s + q) * SUB + t * N, sum[q], scale[q], bias[q],
                                       own[q]);
  }
}

// Keeps the larger, and the first of equal ones.
DEVICE void better(float& v, int& i, float other, int at) {
  if (other > v || (other == v && at < i)) v = other, i = at;
}

// As `better`, for a logit. One that is NaN or infinite beats all others, with an index that no token has.
DEVICE void better_logit(float& v, int& i, float other, int at) {
  if (!(fabsf(other) < __int_as_float(0x7f800000))) other = __int_as_float(0x7f800000), at = -1;
  better(v, i, other, at);
}
DEVICE bool is_finite(float v, int at) { return at >= 0 && v < __int_as_float(0x7f800000); }

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
      const bool finite = is_finite(b, bi);
      const int token = finite ? bi : 0;
      a.token[row] = token;
      a.position[row] = position + 1;
      a.history[row * a.history_len + (u32)step % a.history_len] = finite ? token : -1;
      a.steps[row] = step + 1;
    }
  }
}

template <int ROWS, int BITS, int GROUP, bool EVEN, int RT, int PRO, int EPI, int ACT>
DEVICE void gemv(const GemvArgs& a) {
  constexpr bool GATED = EPI == 2;
  // Outputs of a tile.
  constexpr u32 WIDE = GATED ? 8 : RT * 8;
  typedef Shared<ROWS, BITS, GROUP, RT> S;
  extern __shared__ __align__(128) u8 smem[];
  u64 *full = (u64*)smem, *empty = full + MAX_STAGES, *freed = empty + MAX_STAGES;
  u32* order = (u32*)(smem + S::order);
  const u32 tid = threadIdx.x, warp = tid / 32, lane = tid % 32;
  const u32 xstride = a.k * 2 + 16;
  u8* xs = smem + S::x;
  float* sums = (float*)(xs + ROWS * xstride);
  // Copies to addresses that were 16 bytes behind a multiple of 128 lost up to a tenth of the bandwidth.
  const u32 scales_at = next_128(S::x + ROWS * xstride + (S::dense ? 0 : ROWS * (a.k / S::sub) * 4));
  u8 *scales = smem + scales_at, *ring = smem + next_128(scales_at + a.slots * RT * 2 * a.scale_bytes);
  let_next_start();
  if (tid == 0) {
    order[0] = blockIdx.x;
    for (u32 i = 0; i < a.stages; i++) barrier_init(full + i, S::dense ? 1 : COPY_WARPS * 32), barrier_init(empty + i, WARPS);
    for (u32 i = 0; i < a.slots; i++) barrier_init(freed + i, WARPS);
    barriers_ready();
  }
  __syncthreads();
  if (warp >= WARPS) {
    if constexpr (S::dense)
      produce_dense<RT, GATED>(a, order, shared_address(ring), full, empty, lane);
    else
      produce<BITS, GROUP, RT, GATED>(a, shared_address(scales), shared_address(ring), full, empty, freed, warp - WARPS, lane);
    return;
  }
  // The weights of norms are there already, but far away.
  float norm[8] = {}, post[8] = {};
  if (PRO != 0 && tid * 8 < a.k) elements8(a.norm, tid * 8, norm);
  if (PRO == 2 && tid * 8 < a.k) elements8(a.post, tid * 8, post);
  MARK(0);
  wait_for_previous();
  MARK(1);
  prologue<ROWS, BITS, GROUP, PRO, RT>(a, smem, xs, sums, xstride, tid, norm, post);
  const u32 g = lane / 4, t = lane % 4;
  float2* red = (float2*)(smem + S::red);
  const u32 stage_bytes = RT * 8 * a.stride;
  float best[2] = {__int_as_float(0xff800000), __int_as_float(0xff800000)};
  int best_at[2] = {0x7fffffff, 0x7fffffff};
  MARK(2);
  Turn stage, slot;
  u32 turn = 0;
  const bool asks = S::dense && EPI != 1 && a.next;
  bool done = false;
  for (u32 first = blockIdx.x, seen = 0; asks ? !done : first < a.tiles; first += S::batch * gridDim.x, seen += S::batch, turn ^= 1) {
    // The tile whose epilogue is this warp's; where tiles are asked for, it is known later.
    u32 own = asks || warp >= S::batch ? a.tiles : first + warp * gridDim.x;
    float2 old[RT] = {};
    if (EPI == 1 && own < a.tiles && g < ROWS) {
#pragma unroll
      for (int rt = 0; rt < RT; rt++) {
        const float* p = (float*)a.out + (u64)g * a.out_stride + own * WIDE + 2 * t + rt * 8;
        old[rt] = make_float2(load1(p), load1(p + 1));
      }
    }
    __syncwarp();
#pragma unroll 1
    for (u32 b = 0; b < S::batch; b++) {
      u32 tile = first + b * gridDim.x;
      if (asks) {
        barrier_wait(full + stage.index, stage.round & 1);
        tile = *(volatile u32*)(order + (seen + b) % ORDER);
        done = tile >= a.tiles;
        if (b == warp) own = tile;
      }
      if (tile >= a.tiles) break;
      float acc[RT][2][4] = {};
      const u8* tile_scales = scales + slot.index * RT * 2 * a.scale_bytes;
      for (u32 p = 0; p < a.pieces; p++) {
        barrier_wait(full + stage.index, stage.round & 1);
        if (b == 0 && p == 0) MARK(3);
        consume<ROWS, BITS, GROUP, RT, EVEN>(a, acc, ring + stage.index * stage_bytes, tile_scales, xs, sums, xstride, p * a.piece,
                                       min(a.piece, a.k - p * a.piece), warp, lane);
        __syncwarp();
        if (lane == 0) barrier_arrive(empty + stage.index);
        stage.next(a.stages);
        if (b == 0 && p == 0) MARK(4);
      }
      if (!S::dense) {
        if (lane == 0) barrier_arrive(freed + slot.index);
        slot.next(a.slots);
      }
      if (g < ROWS)
#pragma unroll
        for (int rt = 0; rt < RT; rt++)
          red[(((turn * S::batch + b) * WARPS + warp) * RT + rt) * 4 * ROWS + lane] =
              make_float2(acc[rt][0][0] + acc[rt][1][2], acc[rt][0][1] + acc[rt][1][3]);
      __syncwarp();
    }
    consumers_sync();
    MARK(5);
    if (own >= a.tiles || g >= ROWS) continue;
    const u32 n = own * WIDE + 2 * t;
    float root = 1.f;
    if (PRO != 0 && HALF_KIND == 0) root = rsqrtf(sum_of_warps((float*)(smem + S::squares) + g * WARPS) * a.inverse_k + a.eps);
    float2 v[RT];
#pragma unroll
    for (int rt = 0; rt < RT; rt++) {
      v[rt] = make_float2(0.f, 0.f);
#pragma unroll
      for (int w = 0; w < WARPS; w++) {
        const float2 part = red[(((turn * S::batch + warp) * WARPS + w) * RT + rt) * 4 * ROWS + lane];
        v[rt].x += part.x, v[rt].y += part.y;
      }
      v[rt].x *= root, v[rt].y *= root;
      const Matrix* m;
      const u32 row = locate<RT, GATED>(a, own, rt, m) + 2 * t;
      if (m->bias) v[rt].x += widen(__ldg(m->bias + row)), v[rt].y += widen(__ldg(m->bias + row + 1));
    }
    if constexpr (GATED) {
      *(u32*)((u16*)a.out + (u64)g * a.out_stride + n) = narrow2(gated<ACT>(v[0].x, v[1].x), gated<ACT>(v[0].y, v[1].y));
      continue;
    }
#pragma unroll
    for (int rt = 0; rt < RT; rt++) {
      float2* to = (float2*)((float*)a.out + (u64)g * a.out_stride + n + rt * 8);
      if constexpr (EPI == 0) {
        *to = v[rt];
      } else if constexpr (EPI == 1) {
        *to = make_float2(old[rt].x + v[rt].x, old[rt].y + v[rt].y);
      } else {
        float z[2] = {v[rt].x * a.scale, v[rt].y * a.scale};
#pragma unroll
        for (int j = 0; j < 2; j++) {
          if (a.cap > 0.f) z[j] = a.cap * tanhf(z[j] / a.cap);
          better_logit(best[j], best_at[j], z[j], (int)n + rt * 8 + j);
        }
        if (a.out) *to = make_float2(z[0], z[1]);
      }
    }
  }
  __syncwarp();
  MARK(6);
  if constexpr (EPI == 3) {
    consumers_sync();
    choose<ROWS>(a, best, best_at, smem + S::red, tid);
  }
}
