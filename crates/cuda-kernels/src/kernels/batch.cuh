// y = W · x for 16 or 32 rows of x, with W read once. x of so many rows does not fit into shared memory: it is packed in the order in which
// lanes multiply (`pack`), and a ring holds pieces of it beside those of W. A block takes tiles of 8 · RT rows of W. Four warps
// copy W, before the previous kernel has ended; one thread has the copy engine fetch x; eight warps share the columns of a piece, and
// sum up once a tile is done. Epilogues are those of `gemv`, but for the choice of a token.

template <int ROWS, int BITS, int GROUP, int RT>
struct Batch {
  static constexpr bool dense = BITS == 16;
  static constexpr u32 sub = dense || GROUP == 32 ? 32 : 64;
  // Columns of a piece: those that eight warps multiply at once.
  static constexpr u32 piece = WARPS * sub;
  static constexpr u32 x_bytes = piece * ROWS * 2, sum_bytes = dense ? 0 : WARPS * ROWS * 4;
  // Scales of a row of a piece, and as many biases.
  static constexpr u32 scale_bytes = dense ? 0 : piece / GROUP * 2;
  // Pairs of floats from one row of sums to the next: four rows share no bank.
  static constexpr u32 red_stride = RT * 4 + (RT % 2 == 0 ? 4 : 0);
  static constexpr u32 red = 2 * MAX_STAGES * 8, ring = red + WARPS * ROWS * red_stride * 8;
  static constexpr u32 w = x_bytes + sum_bytes;
  DEVICE static u32 scales(u32 stride) { return w + RT * 8 * stride; }
  DEVICE static u32 stage(u32 stride) { return scales(stride) + RT * 8 * 2 * scale_bytes; }
};

struct PackArgs {
  const float* x;
  const float* y;
  float* x_out;
  const u16* a;
  u32* out;     // [k / 16][ROWS / 16][32 lanes][4 words]
  float* sums;  // [k / sub][ROWS], of matrices with integers
  Vector norm, post;
  u32 k;
  float eps;
};

// Eight columns of a row of x, where `multiply` wants them, and the sums of groups.
template <int ROWS, int BITS, int SUB>
DEVICE void pack8(const PackArgs& a, u32 row, u32 i, bool valid, const float v[8]) {
  u32 p[4];
#pragma unroll
  for (int j = 0; j < 4; j++) p[j] = narrow2(v[2 * j], v[2 * j + 1]);
  const uint4 ordered = in_order<BITS>(p[0], p[1], p[2], p[3]);
  const u32 pairs[4] = {ordered.x, ordered.z, ordered.y, ordered.w};
  constexpr u32 N = SUB / 4;
  const u32 lane = row % 8 * 4 + i % SUB / N, step = i / SUB * (SUB / 16) + i % N / 8 * 2;
  if (valid)
#pragma unroll
    for (u32 q = 0; q < 4; q++)
      a.out[(((step + q / 2) * (ROWS / 16) + row / 16) * 32 + lane) * 4 + row % 16 / 8 + q % 2 * 2] = pairs[q];
  if (BITS != 16) {
    float s = 0.f;
#pragma unroll
    for (int j = 0; j < 4; j++) s += low(p[j]) + high(p[j]);
#pragma unroll
    for (int o = SUB / 16; o > 0; o >>= 1) s += __shfl_xor_sync(~0u, s, o);
    if (valid && i % SUB == 0) a.sums[i / SUB * ROWS + row] = s;
  }
}

DEVICE float sum_of_block(float v, float* parts) {
  v = warp_sum(v);
  if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = v;
  __syncthreads();
  const float s = sum_of_warps(parts);
  __syncthreads();
  return s;
}

DEVICE void load8(const float* p, float v[8]) {
  const float4 a = load4(p), b = load4(p + 4);
  v[0] = a.x, v[1] = a.y, v[2] = a.z, v[3] = a.w, v[4] = b.x, v[5] = b.y, v[6] = b.z, v[7] = b.w;
}

// What the prologue of `gemv` makes of x. A block for each row; rows that are only copied are shared by `gridDim.y` blocks.
template <int ROWS, int BITS, int GROUP, int PRO>
DEVICE void pack(const PackArgs& a) {
  constexpr u32 SUB = Batch<ROWS, BITS, GROUP, 1>::sub;
  __shared__ float parts[WARPS];
  const u32 row = blockIdx.x, k = a.k, at = threadIdx.x * 8, step = THREADS * 8;
  const u64 begin = (u64)row * k;
  let_next_start();
  wait_for_previous();
  if constexpr (PRO == 0) {
    for (u32 i = at + blockIdx.y * step; i - at < k; i += gridDim.y * step) {
      const uint4 w = i < k ? load16(a.a + begin + i) : make_uint4(0, 0, 0, 0);
      const float f[8] = {low(w.x), high(w.x), low(w.y), high(w.y), low(w.z), high(w.z), low(w.w), high(w.w)};
      pack8<ROWS, BITS, SUB>(a, row, i, i < k, f);
    }
    return;
  }
  float v[8], b[8], w[8], post_root = 0.f, s = 0.f;
  if constexpr (PRO == 2) {
    for (u32 i = at; i < k; i += step) {
      load8(a.y + begin + i, b);
#pragma unroll
      for (int j = 0; j < 8; j++) s += b[j] * b[j];
    }
    post_root = rsqrtf(sum_of_block(s, parts) / k + a.eps);
    s = 0.f;
  }
  auto element8 = [&](u32 i) {
    load8(a.x + begin + i, v);
    if constexpr (PRO == 2) {
      load8(a.y + begin + i, b);
      elements8(a.post, i, w);
#pragma unroll
      for (int j = 0; j < 8; j++) v[j] += b[j] * post_root * w[j];
    }
  };
  for (u32 i = at; i < k; i += step) {
    element8(i);
#pragma unroll
    for (int j = 0; j < 8; j++) s += v[j] * v[j];
  }
  const float root = rsqrtf(sum_of_block(s, parts) / k + a.eps);
  for (u32 i = at; i - at < k; i += step) {
#pragma unroll
    for (int j = 0; j < 8; j++) v[j] = 0.f;
    if (i < k) {
      element8(i);
      if constexpr (PRO == 2) {
        float4* to = (float4*)(a.x_out + begin + i);
        to[0] = make_float4(v[0], v[1], v[2], v[3]);
        to[1] = make_float4(v[4], v[5], v[6], v[7]);
      }
      elements8(a.norm, i, w);
#pragma unroll
      for (int j = 0; j < 8; j++) v[j] *= root * w[j];
    }
    pack8<ROWS, BITS, SUB>(a, row, i, i < k, v);
  }
}

// The warps that copy W; `tid` counts from 0 among their threads.
template <int ROWS, int BITS, int GROUP, int RT, bool GATED>
DEVICE void copy_w(const GemvArgs& a, u32 ring, u64* full, u64* empty, u32 tid) {
  typedef Batch<ROWS, BITS, GROUP, RT> B;
  constexpr u32 CHUNKS = B::piece * BITS / 128, COPIERS = COPY_WARPS * 32, WORDS = B::scale_bytes / 4;
  const u32 stage_bytes = B::stage(a.stride), groups = a.k / GROUP;
  Turn stage;
  for (u32 tile = blockIdx.x; tile < a.tiles; tile += gridDim.x)
    for (u32 p = 0; p < a.pieces; p++) {
      if (stage.round > 0) barrier_wait(empty + stage.index, (stage.round - 1) & 1);
      const u32 at = ring + stage.index * stage_bytes, first = p * CHUNKS * 16;
#pragma unroll 4
      for (u32 i = tid; i < RT * 8 * CHUNKS; i += COPIERS) {
        const u32 row = i / CHUNKS, from = first + i % CHUNKS * 16;
        if (from < a.row_bytes)
          copy16(at + B::w + row * a.stride + i % CHUNKS * 16, locate_row<RT, GATED>(a, tile, row) + from);
      }
      if constexpr (!B::dense) {
#pragma unroll 1
        for (u32 i = tid; i < RT * 8 * 2 * WORDS; i += COPIERS) {
          const u32 row = i / (2 * WORDS), word = i % WORDS, group = p * (B::piece / GROUP) + word * 2;
          const Matrix* m;
          const u32 w_row = locate<RT, GATED>(a, tile, row / 8, m) + row % 8;
          const u8* from = i % (2 * WORDS) < WORDS ? m->scales : m->biases;
          if (group < groups) copy4(at + B::scales(a.stride) + i * 4, from + ((u64)w_row * groups + group) * 2);
        }
      }
      barrier_arrive_after_copies(full + stage.index);
      stage.next(a.stages);
    }
  wait_for_copies();
}

// The thread that has x copied.
template <int ROWS, int BITS, int GROUP, int RT>
DEVICE void copy_x(const GemvArgs& a, u32 ring, u64* full, u64* empty) {
  typedef Batch<ROWS, BITS, GROUP, RT> B;
  const u32 stage_bytes = B::stage(a.stride);
  Turn stage;
  wait_for_previous();
  for (u32 tile = blockIdx.x; tile < a.tiles; tile += gridDim.x)
    for (u32 p = 0; p < a.pieces; p++) {
      if (stage.round > 0) barrier_wait(empty + stage.index, (stage.round - 1) & 1);
      const u32 at = ring + stage.index * stage_bytes, columns = min(B::piece, a.k - p * B::piece);
      const u32 sums = B::dense ? 0 : columns / B::sub * ROWS * 4;
      barrier_expect(full + stage.index, columns * ROWS * 2 + sums);
      copy_bulk(at, (const u8*)a.a + (u64)p * B::x_bytes, columns * ROWS * 2, full + stage.index);
      if constexpr (!B::dense) copy_bulk(at + B::x_bytes, (const u8*)a.x + (u64)p * B::sum_bytes, sums, full + stage.index);
      stage.next(a.stages);
    }
}

// The columns of a piece that are this warp's.
template <int ROWS, int BITS, int GROUP, int RT>
DEVICE void multiply_sub(float acc[RT][ROWS / 16][4], const u8* stage, u32 stride, u32 warp, u32 lane) {
  typedef Batch<ROWS, BITS, GROUP, RT> B;
  constexpr u32 MB = ROWS / 16, STEPS = B::sub / 16, N = B::sub / 4;
  const u32 g = lane / 4, t = lane % 4;
  uint4 x[STEPS][MB];
#pragma unroll
  for (u32 i = 0; i < STEPS; i++)
#pragma unroll
    for (u32 m = 0; m < MB; m++) x[i][m] = ((const uint4*)stage)[((warp * STEPS + i) * MB + m) * 32 + lane];
  const u8* w_row = stage + B::w + g * stride + (warp * B::sub + t * N) / 8 * BITS;
  if constexpr (B::dense) {
#pragma unroll
    for (int rt = 0; rt < RT; rt++) {
      const uint4 w = *(const uint4*)(w_row + rt * 8 * stride);
#pragma unroll
      for (u32 m = 0; m < MB; m++) multiply(acc[rt][m], x[0][m], w.x, w.y);
#pragma unroll
      for (u32 m = 0; m < MB; m++) multiply(acc[rt][m], x[1][m], w.z, w.w);
    }
  } else {
    float sum[MB][2];
#pragma unroll
    for (u32 m = 0; m < MB; m++)
#pragma unroll
      for (u32 h = 0; h < 2; h++) sum[m][h] = *(const float*)(stage + B::x_bytes + (warp * ROWS + m * 16 + h * 8 + g) * 4);
    const u8* scale_row = stage + B::scales(stride) + 2 * t * 2 * B::scale_bytes + warp * B::sub / GROUP * 2;
#pragma unroll
    for (int rt = 0; rt < RT; rt++) {
      u32 w[N / 2];
      unpack<BITS, N>(w_row + rt * 8 * stride, w);
      float scale[2], bias[2];
#pragma unroll
      for (int j = 0; j < 2; j++) {
        const u8* at = scale_row + (rt * 8 + j) * 2 * B::scale_bytes;
        scale[j] = widen(*(const u16*)at);
        bias[j] = widen(*(const u16*)(at + B::scale_bytes)) - Unpacked<BITS>::offset * scale[j];
      }
#pragma unroll
      for (u32 m = 0; m < MB; m++) {
        float c[4] = {};
#pragma unroll
        for (u32 i = 0; i < STEPS; i++) multiply(c, x[i][m], w[2 * i], w[2 * i + 1]);
#pragma unroll
        for (int i = 0; i < 4; i++) acc[rt][m][i] += scale[i % 2] * c[i] + bias[i % 2] * sum[m][i / 2];
      }
    }
  }
}

// The sums of a tile, from all warps.
template <int ROWS, int BITS, int GROUP, int RT, int EPI, int ACT>
DEVICE void finish(const GemvArgs& a, const float2* red, u32 tile, u32 tid) {
  typedef Batch<ROWS, BITS, GROUP, RT> B;
  constexpr bool GATED = EPI == 2;
  constexpr u32 PAIRS = GATED ? RT * 2 : RT * 4;
  auto total = [&](u32 row, u32 pair) {
    float2 v = make_float2(0.f, 0.f);
#pragma unroll
    for (u32 w = 0; w < WARPS; w++) {
      const float2 part = red[(w * ROWS + row) * B::red_stride + pair];
      v.x += part.x, v.y += part.y;
    }
    const Matrix* m;
    const u32 at = locate<RT, GATED>(a, tile, pair / 4, m) + pair % 4 * 2;
    if (m->bias) v.x += widen(__ldg(m->bias + at)), v.y += widen(__ldg(m->bias + at + 1));
    return v;
  };
  for (u32 i = tid; i < ROWS * PAIRS; i += THREADS) {
    const u32 row = i / PAIRS, pair = i % PAIRS;
    const float2 v = total(row, pair);
    const u64 at = (u64)row * a.out_stride + tile * PAIRS * 2 + pair * 2;
    if constexpr (GATED) {
      const float2 up = total(row, pair + PAIRS);
      *(u32*)((u16*)a.out + at) = narrow2(gated<ACT>(v.x, up.x), gated<ACT>(v.y, up.y));
      continue;
    }
    float2* to = (float2*)((float*)a.out + at);
    if constexpr (EPI == 0) *to = v;
    if constexpr (EPI == 1) *to = make_float2(load1((float*)to) + v.x, load1((float*)to + 1) + v.y);
    if constexpr (EPI == 3) {
      float z[2] = {v.x * a.scale, v.y * a.scale};
      if (a.cap > 0.f) z[0] = a.cap * tanhf(z[0] / a.cap), z[1] = a.cap * tanhf(z[1] / a.cap);
      *to = make_float2(z[0], z[1]);
    }
  }
}

template <int ROWS, int BITS, int GROUP, int RT, int EPI, int ACT>
DEVICE void batch(const GemvArgs& a) {
  typedef Batch<ROWS, BITS, GROUP, RT> B;
  extern __shared__ __align__(128) u8 smem[];
  u64 *full = (u64*)smem, *empty = full + MAX_STAGES;
  float2* red = (float2*)(smem + B::red);
  u8* ring = smem + B::ring;
  const u32 tid = threadIdx.x, warp = tid / 32, lane = tid % 32;
  let_next_start();
  if (tid == 0) {
    for (u32 i = 0; i < a.stages; i++) barrier_init(full + i, COPY_WARPS * 32 + 1), barrier_init(empty + i, WARPS);
    barriers_ready();
  }
  __syncthreads();
  if (warp >= WARPS + COPY_WARPS) {
    if (lane == 0) copy_x<ROWS, BITS, GROUP, RT>(a, shared_address(ring), full, empty);
    return;
  }
  if (warp >= WARPS) {
    copy_w<ROWS, BITS, GROUP, RT, EPI == 2>(a, shared_address(ring), full, empty, tid - THREADS);
    return;
  }
  wait_for_previous();
  const u32 stage_bytes = B::stage(a.stride), g = lane / 4, t = lane % 4;
  Turn stage;
  for (u32 tile = blockIdx.x; tile < a.tiles; tile += gridDim.x) {
    float acc[RT][ROWS / 16][4] = {};
    for (u32 p = 0; p < a.pieces; p++) {
      barrier_wait(full + stage.index, stage.round & 1);
      if ((p * WARPS + warp) * B::sub < a.k) multiply_sub<ROWS, BITS, GROUP, RT>(acc, ring + stage.index * stage_bytes, a.stride, warp, lane);
      __syncwarp();
      if (lane == 0) barrier_arrive(empty + stage.index);
      stage.next(a.stages);
    }
    // All have read the sums of the tile before.
    consumers_sync();
#pragma unroll
    for (int rt = 0; rt < RT; rt++)
#pragma unroll
      for (u32 m = 0; m < ROWS / 16; m++)
#pragma unroll
        for (u32 h = 0; h < 2; h++)
          red[(warp * ROWS + m * 16 + h * 8 + g) * B::red_stride + rt * 4 + t] = make_float2(acc[rt][m][2 * h], acc[rt][m][2 * h + 1]);
    consumers_sync();
    finish<ROWS, BITS, GROUP, RT, EPI, ACT>(a, red, tile, tid);
  }
}
