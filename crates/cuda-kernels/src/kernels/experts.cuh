// Mixtures of experts: the choice of a few experts for each row, and the products of those. A warp computes an output; it reads rows of
// W where they lie, since few rows of x share them.
struct RouteArgs {
  NormArgs norm;        // what experts multiply
  Matrix gate;          // one row, of a shared expert; or null
  const float* scores;  // [rows][experts]
  const float* bias;    // [experts], added for the choice alone; or null
  int* picks;           // [rows][top_k]
  float* weights;       // [rows][top_k]
  u16* shared;          // [rows][shared_k], what down of the shared expert multiplies
  u32 experts, top_k, sigmoid, normalize;
  u32 shared_k;
  float epsilon, scale;
};

// Multiplies what the shared expert has gated by the probability that its own gate gives.
template <int BITS, int GROUP>
DEVICE void scale_shared(const RouteArgs& a, float* parts) {
  const u64 row = blockIdx.x;
  const u32 k = a.norm.k;
  float s = 0.f;
  // Each thread reads what it has normalised itself.
  for (u32 i = threadIdx.x; i < k; i += blockDim.x)
    s += widen(loadh(a.norm.out + row * k + i)) * weight_at<BITS, GROUP>(a.gate.w, a.gate.scales, a.gate.biases, 0, k, i);
  const float score = block_sum(s, parts) + (a.gate.bias ? widen(__ldg(a.gate.bias)) : 0.f);
  const float factor = 1.f / (1.f + __expf(-score));
  for (u32 i = threadIdx.x; i < a.shared_k; i += blockDim.x) {
    u16* to = a.shared + row * a.shared_k + i;
    *to = narrow(widen(loadh(to)) * factor);
  }
}

// The norm of a row, and the experts that its scores pick: the largest, the first of equal ones. A warp picks, each lane of which holds
// every 32nd expert.
template <int BITS, int GROUP, int HELD>
DEVICE void route(const RouteArgs& a) {
  __shared__ float parts[32];
  norm_rows(a.norm);
  if (a.gate.w) scale_shared<BITS, GROUP>(a, parts);
  if (threadIdx.x >= 32) return;
  const u32 row = blockIdx.x, lane = threadIdx.x;
  const float least = __int_as_float(0xff800000);
  float choice[HELD], p[HELD], top = least;
#pragma unroll
  for (u32 i = 0; i < HELD; i++) {
    const u32 expert = i * 32 + lane;
    choice[i] = expert < a.experts ? load1(a.scores + (u64)row * a.experts + expert) : least;
    top = fmaxf(top, choice[i]);
  }
#pragma unroll
  for (int o = 16; o > 0; o >>= 1) top = fmaxf(top, __shfl_xor_sync(~0u, top, o));
  float all = 0.f;
#pragma unroll
  for (u32 i = 0; i < HELD; i++) {
    p[i] = a.sigmoid ? 1.f / (1.f + __expf(-choice[i])) : __expf(choice[i] - top);
    all += p[i];
  }
  const float factor = a.sigmoid ? 1.f : 1.f / warp_sum(all);
#pragma unroll
  for (u32 i = 0; i < HELD; i++) {
    const u32 expert = i * 32 + lane;
    p[i] *= factor;
    // Without a bias scores are compared, since small probabilities may be equal.
    if (a.bias && expert < a.experts) choice[i] = p[i] + __ldg(a.bias + expert);
  }
  // The lane's own pick: there are at most 32.
  float weight = 0.f, sum = 0.f;
  int pick = 0;
  for (u32 n = 0; n < a.top_k; n++) {
    // Scores that are no numbers pick nothing: the row's logits are none either.
    float best = least, value = __int_as_float(0x7fffffff);
    int at = 0x7fffffff;
#pragma unroll
    for (u32 i = 0; i < HELD; i++)
      if (choice[i] > best) best = choice[i], at = (int)(i * 32 + lane), value = p[i];
#pragma unroll
    for (int o = 16; o > 0; o >>= 1) {
      const float other = __shfl_xor_sync(~0u, best, o), other_value = __shfl_xor_sync(~0u, value, o);
      const int other_at = __shfl_xor_sync(~0u, at, o);
      if (other > best || (other == best && other_at < at)) best = other, at = other_at, value = other_value;
    }
#pragma unroll
    for (u32 i = 0; i < HELD; i++)
      if ((int)(i * 32 + lane) == at) choice[i] = least;
    sum += value;
    if (lane == n) pick = at < (int)a.experts ? at : 0, weight = value;
  }
  if (lane >= a.top_k) return;
  a.picks[row * a.top_k + lane] = pick;
  a.weights[row * a.top_k + lane] = weight / (a.normalize ? sum + a.epsilon : 1.f) * a.scale;
}

struct ExpertArgs {
  Matrix m[2];           // from the first expert's first row on; `rows` are those from one expert to the next
  const u16* a;          // halves: [rows][k] for gate and up, [rows][top_k][k] for down
  const int* picks;      // [rows][top_k]
  const float* weights;  // likewise
  void* out;             // gate and up: [rows][top_k][n] halves; down: [rows][n]
  u32 k, n, top_k, each;  // outputs of a block
  u32 step;              // rows from one output to the next
  u32 add;               // whether down adds to what is there
  float alpha, limit;
};

// Elements of x that a lane multiplies at once.
template <int BITS>
struct Chunk {
  static constexpr u32 size = BITS == 16 ? 8 : 16, eights = size / 8;
};

// Chunks of x into shared memory, ordered as the weights come out of their words, and the sums of each. The eights of a chunk lie apart,
// so that neighbours read from different banks.
template <int BITS>
DEVICE void put_x(const u16* from, u8* xs, float* sums, u32 chunks) {
  typedef Chunk<BITS> C;
  for (u32 i = threadIdx.x; i < chunks; i += blockDim.x) {
    float sum = 0.f;
#pragma unroll
    for (u32 e = 0; e < C::eights; e++) {
      const uint4 v = load16(from + i * C::size + e * 8);
      *(uint4*)(xs + (e * chunks + i) * 16) = in_order<BITS>(v.x, v.y, v.z, v.w);
      sum += low(v.x) + high(v.x) + low(v.y) + high(v.y) + low(v.z) + high(v.z) + low(v.w) + high(v.w);
    }
    if (BITS != 16 && SCALE_KIND == 0) sums[i] = sum;
  }
  __syncthreads();
}

DEVICE float dot2(u32 a, u32 b) { return low(a) * low(b) + high(a) * high(b); }

// A chunk of a row of W times that of x, whose sum is given.
template <int BITS, int GROUP>
DEVICE float chunk_times(const Matrix& m, u64 row, u32 k, u32 chunk, const uint4* x, float sum) {
  typedef Chunk<BITS> C;
  const u8* p = m.w + row * (k / 8 * BITS) + chunk * (C::size / 8 * BITS);
  u32 w[C::size / 2];
  if constexpr (BITS == 16) {
    const uint4 v = constant16(p);
    w[0] = v.x, w[1] = v.y, w[2] = v.z, w[3] = v.w;
  } else {
    unpack<BITS, C::size>(p, w);
  }
  float dot = 0.f;
#pragma unroll
  for (u32 e = 0; e < C::eights; e++)
    dot += dot2(x[e].x, w[4 * e]) + dot2(x[e].z, w[4 * e + 1]) + dot2(x[e].y, w[4 * e + 2]) + dot2(x[e].w, w[4 * e + 3]);
  if constexpr (BITS == 16) return dot;
  const u64 group = row * (k / GROUP) + chunk * C::size / GROUP;
  if constexpr (SCALE_KIND > 0) {
    const u32 scale = __ldg(m.scales + group);
    return dot * (SCALE_KIND == 1 ? e8m0(scale) : low(e4m3(scale)));
  }
  const float scale = widen(__ldg((const u16*)m.scales + group)), bias = widen(__ldg((const u16*)m.biases + group));
  return scale * dot + (bias - Unpacked<BITS>::offset * scale) * sum;
}

// Output `n` of each of the first matrices, of all lanes: the weighted sum over experts whose x follow each other in shared memory.
template <int BITS, int GROUP, int MATRICES>
DEVICE void experts_times(const ExpertArgs& a, const int* experts, const float* weights, u32 count, u32 n, const u8* xs, const float* sums,
                          float total[MATRICES]) {
  typedef Chunk<BITS> C;
  const u32 lane = threadIdx.x % 32, of_row = a.k / C::size, chunks = count * of_row;
#pragma unroll
  for (int j = 0; j < MATRICES; j++) {
    total[j] = 0.f;
    if (a.m[j].bias && lane < count)
      total[j] = weights[lane] * widen(__ldg(a.m[j].bias + (u64)experts[lane] * a.m[j].rows + n * a.step));
  }
#pragma unroll 4
  for (u32 i = lane; i < chunks; i += 32) {
    const u32 which = i / of_row, chunk = i - which * of_row;
    uint4 x[C::eights];
#pragma unroll
    for (u32 e = 0; e < C::eights; e++) x[e] = *(const uint4*)(xs + (e * chunks + i) * 16);
    const float sum = BITS != 16 && SCALE_KIND == 0 ? sums[i] : 0.f, weight = weights[which];
    const u64 expert = (u64)experts[which];
#pragma unroll
    for (int j = 0; j < MATRICES; j++)
      total[j] += weight * chunk_times<BITS, GROUP>(a.m[j], expert * a.m[j].rows + n * a.step, a.k, chunk, x, sum);
  }
#pragma unroll
  for (int j = 0; j < MATRICES; j++) total[j] = warp_sum(total[j]);
}

// Activation 3 is that of gpt-oss. What is no number stays none.
template <int ACT>
DEVICE float gated_expert(const ExpertArgs& a, float gate, float up) {
  if constexpr (ACT < 3) return gated<ACT>(gate, up);
  gate = gate > a.limit ? a.limit : gate;
  up = up > a.limit ? a.limit : up < -a.limit ? -a.limit : up;
  return gate / (1.f + __expf(-a.alpha * gate)) * (up + 1.f);
}

// activation(gate) · up of a row and one of its experts.
template <int BITS, int GROUP, int ACT>
DEVICE void expert_gate_up(const ExpertArgs& a) {
  extern __shared__ __align__(128) u8 smem[];
  float* sums = (float*)(smem + a.k * 2);
  const u32 pick = blockIdx.z * a.top_k + blockIdx.y;
  let_next_start();
  wait_for_previous();
  put_x<BITS>(a.a + (u64)blockIdx.z * a.k, smem, sums, a.k / Chunk<BITS>::size);
  const int expert = loadi(a.picks + pick);
  const float whole = 1.f;
  for (u32 i = threadIdx.x / 32; i < a.each; i += blockDim.x / 32) {
    const u32 n = blockIdx.x * a.each + i;
    if (n >= a.n) break;
    float v[2];
    experts_times<BITS, GROUP, 2>(a, &expert, &whole, 1, n, smem, sums, v);
    if (threadIdx.x % 32 == 0) ((u16*)a.out)[(u64)pick * a.n + n] = narrow(gated_expert<ACT>(a, v[0], v[1]));
  }
}

// The weighted sum of what the experts of a row give.
template <int BITS, int GROUP>
DEVICE void expert_down(const ExpertArgs& a) {
  extern __shared__ __align__(128) u8 smem[];
  __shared__ int experts[32];
  __shared__ float weights[32];
  float* sums = (float*)(smem + a.top_k * a.k * 2);
  const u32 row = blockIdx.z;
  let_next_start();
  wait_for_previous();
  if (threadIdx.x < a.top_k) {
    experts[threadIdx.x] = loadi(a.picks + row * a.top_k + threadIdx.x);
    weights[threadIdx.x] = load1(a.weights + row * a.top_k + threadIdx.x);
  }
  put_x<BITS>(a.a + (u64)row * a.top_k * a.k, smem, sums, a.top_k * a.k / Chunk<BITS>::size);
  for (u32 i = threadIdx.x / 32; i < a.each; i += blockDim.x / 32) {
    const u32 n = blockIdx.x * a.each + i;
    if (n >= a.n) break;
    float* to = (float*)a.out + (u64)row * a.n + n;
    const float old = a.add ? load1(to) : 0.f;
    float v[1];
    experts_times<BITS, GROUP, 1>(a, experts, weights, a.top_k, n, smem, sums, v);
    if (threadIdx.x % 32 == 0) *to = old + v[0];
  }
}
