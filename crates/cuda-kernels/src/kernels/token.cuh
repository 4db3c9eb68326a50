// The ends of a step: the embedding of a token, the best of all logits, and products whose shape `gemv` cannot take.
struct EmbedArgs {
  const void* w;
  const void* scales;
  const void* biases;
  const int* token;     // [rows]
  const int* position;  // [rows]; negative where the row is idle
  float* out;           // [rows][k]
  u32 k, vocab;
  float scale;
};

// One block for each row and each 256 columns.
template <int BITS, int GROUP>
DEVICE void embed(const EmbedArgs& a) {
  let_next_start();
  wait_for_previous();
  const u32 row = blockIdx.y, i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= a.k) return;
  const u32 token = (u32)loadi(a.token + row);
  const bool idle = loadi(a.position + row) < 0 || token >= a.vocab;
  a.out[(u64)row * a.k + i] = idle ? 0.f : weight_at<BITS, GROUP>(a.w, a.scales, a.biases, token, a.k, i) * a.scale;
}

struct PlainArgs {
  Matrix m[3];
  const u16* a;      // [rows][k], halves
  void* out;
  u32 rows, k, n, out_stride;
  float cap, scale;
};

// y = W · x for any number of rows and columns: a warp for each output. Epilogues as in `gemv`, but for the choice of a token.
template <int BITS, int GROUP, int EPI, int ACT>
DEVICE void plain(const PlainArgs& a) {
  let_next_start();
  wait_for_previous();
  const u32 lane = threadIdx.x % 32, n = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
  if (n >= a.n) return;
  for (u32 r = 0; r < a.rows; r++) {
    float v[2] = {0.f, 0.f};
#pragma unroll
    for (int part = 0; part < (EPI == 2 ? 2 : 1); part++) {
      u32 row = n, index = EPI == 2 ? part : 0;
      if (EPI != 2)
        for (u32 i = 0; i < 2; i++)
          if (index == i && row >= a.m[i].rows) row -= a.m[i].rows, index = i + 1;
      const Matrix& m = a.m[index];
      float s = 0.f;
      for (u32 i = lane; i < a.k; i += 32)
        s += widen(loadh(a.a + (u64)r * a.k + i)) * weight_at<BITS, GROUP>(m.w, m.scales, m.biases, row, a.k, i);
      v[part] = warp_sum(s) + (m.bias ? widen(__ldg(m.bias + row)) : 0.f);
    }
    if (lane != 0) continue;
    const u64 at = (u64)r * a.out_stride + n;
    if (EPI == 0) ((float*)a.out)[at] = v[0];
    if (EPI == 1) ((float*)a.out)[at] = load1((float*)a.out + at) + v[0];
    if (EPI == 2) ((u16*)a.out)[at] = narrow(gated<ACT>(v[0], v[1]));
    if (EPI == 3) {
      const float z = v[0] * a.scale;
      ((float*)a.out)[at] = a.cap > 0.f ? a.cap * tanhf(z / a.cap) : z;
    }
  }
}

struct NormArgs {
  const float* x;
  const float* y;
  float* x_out;
  u16* out;
  Vector norm, post;
  u32 k, sandwich;
  float eps;
};

DEVICE float block_sum(float v, float* parts) {
  v = warp_sum(v);
  if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = v;
  __syncthreads();
  float s = 0.f;
  for (u32 w = 0; w < blockDim.x / 32; w++) s += parts[w];
  __syncthreads();
  return s;
}

// The prologue of `gemv` alone, one block for each row: what `plain` reads.
DEVICE void norm_rows(const NormArgs& a) {
  __shared__ float parts[32];
  let_next_start();
  wait_for_previous();
  const u64 at = (u64)blockIdx.x * a.k;
  float root = 0.f, s = 0.f;
  if (a.sandwich) {
    for (u32 i = threadIdx.x; i < a.k; i += blockDim.x) {
      const float y = load1(a.y + at + i);
      s += y * y;
    }
    root = rsqrtf(block_sum(s, parts) / a.k + a.eps);
    s = 0.f;
  }
  for (u32 i = threadIdx.x; i < a.k; i += blockDim.x) {
    float x = load1(a.x + at + i);
    if (a.sandwich) {
      x += load1(a.y + at + i) * root * element(a.post, i);
      a.x_out[at + i] = x;
    }
    s += x * x;
  }
  const float* x = a.sandwich ? a.x_out : a.x;
  const float scale = rsqrtf(block_sum(s, parts) / a.k + a.eps);
  for (u32 i = threadIdx.x; i < a.k; i += blockDim.x) a.out[at + i] = narrow(load1(x + at + i) * scale * element(a.norm, i));
}

// Tells a row, which is not idle, what it has chosen.
template <typename Args>
DEVICE void move_on(const Args& a, u32 row, bool finite, int chosen) {
  const int token = finite ? chosen : 0, step = a.steps[row];
  a.token[row] = token;
  a.position[row] += 1;
  a.history[row * a.history_len + (u32)step % a.history_len] = finite ? token : -1;
  a.steps[row] = step + 1;
}

struct ArgmaxArgs {
  const float* logits;  // [rows][n]
  int* token;
  int* position;
  int* history;
  int* steps;
  u32 n, history_len;
};

// The first of the largest logits, one block of 1,024 threads for each row, which moves the row on.
DEVICE void argmax(const ArgmaxArgs& a) {
  __shared__ float values[32];
  __shared__ int indices[32];
  let_next_start();
  wait_for_previous();
  const u32 row = blockIdx.x, lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  float best = __int_as_float(0xff800000);
  int at = 0x7fffffff;
  for (u32 i = threadIdx.x; i < a.n; i += blockDim.x) better_logit(best, at, load1(a.logits + (u64)row * a.n + i), (int)i);
  for (int pass = 0; pass < 2; pass++) {
#pragma unroll
    for (int o = 16; o > 0; o >>= 1) {
      const float ov = __shfl_xor_sync(~0u, best, o);
      const int oi = __shfl_xor_sync(~0u, at, o);
      better(best, at, ov, oi);
    }
    if (pass == 1) break;
    if (lane == 0) values[warp] = best, indices[warp] = at;
    __syncthreads();
    if (warp > 0) return;
    best = lane < blockDim.x / 32 ? values[lane] : __int_as_float(0xff800000);
    at = lane < blockDim.x / 32 ? indices[lane] : 0x7fffffff;
  }
  if (lane > 0 || loadi(a.position + row) < 0) return;
  move_on(a, row, is_finite(best, at), at);
}
