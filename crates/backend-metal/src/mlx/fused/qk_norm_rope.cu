// Queries, keys and values of one token for each block, from one row of HEADS + 2 * KV_HEADS heads: queries and keys are normalised
// (INFERLM_NORMS) and rotated by their positions, PAIRS pairs of each head. Queries come out as [B, T, heads, D], keys and values as
// [B, heads, T, D].
constexpr int V = 16 / sizeof(T);
constexpr int WARPS = 4;
constexpr int ALL = HEADS + 2 * KV_HEADS;
union Vector {
  uint4 whole;
  T parts[V];
};
__shared__ float cosines[PAIRS + 1], sines[PAIRS + 1];
__shared__ float heads[WARPS][D];
const int tokens = qkv_shape[1];
const int64_t token = blockIdx.x;
const int64_t batch = token / tokens;
const int at = int(token % tokens);
for (int pair = threadIdx.x; pair < PAIRS; pair += WARPS * 32) {
  float sine, cosine;
  sincosf(float(offsets[batch] + at) * frequencies[pair], &sine, &cosine);
  cosines[pair] = cosine * __int_as_float(MAGNITUDE);
  sines[pair] = sine * __int_as_float(MAGNITUDE);
}
__syncthreads();
const int lane = threadIdx.x % 32;
float* held = heads[threadIdx.x / 32];
for (int head = threadIdx.x / 32; head < ALL; head += WARPS) {
  const bool is_query = head < HEADS;
  const bool is_value = head >= HEADS + KV_HEADS;
  const T* from = qkv + (token * ALL + head) * D;
  T* to = is_query ? queries + (token * HEADS + head) * D
                   : (is_value ? values + ((batch * KV_HEADS + head - HEADS - KV_HEADS) * tokens + at) * D
                               : keys + ((batch * KV_HEADS + head - HEADS) * tokens + at) * D);
  if (is_value) {
    for (int v = lane; v < D / V; v += 32) {
      reinterpret_cast<uint4*>(to)[v] = reinterpret_cast<const uint4*>(from)[v];
    }
    continue;
  }
  float squares = 0.0f;
  for (int v = lane; v < D / V; v += 32) {
    Vector vector;
    vector.whole = reinterpret_cast<const uint4*>(from)[v];
#pragma unroll
    for (int i = 0; i < V; ++i) {
      const float value = static_cast<float>(vector.parts[i]);
      squares += value * value;
      held[v * V + i] = value;
    }
  }
#ifdef INFERLM_NORMS
  const T* weights = is_query ? q_weight : k_weight;
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) {
    squares += __shfl_xor_sync(0xffffffffu, squares, offset);
  }
  const float scale = rsqrtf(squares / D + __int_as_float(is_query ? EPS_Q : EPS_K));
  for (int v = lane; v < D / V; v += 32) {
#pragma unroll
    for (int i = 0; i < V; ++i) {
      held[v * V + i] *= scale * static_cast<float>(weights[v * V + i]);
    }
  }
#endif
  __syncwarp();
  for (int v = lane; v < D / V; v += 32) {
    Vector vector;
#pragma unroll
    for (int i = 0; i < V; ++i) {
      const int element = v * V + i;
      float value = held[element];
      if (element < 2 * PAIRS) {
        const bool is_second = INTERLEAVED ? element % 2 == 1 : element >= PAIRS;
        const int pair = INTERLEAVED ? element / 2 : (is_second ? element - PAIRS : element);
        const int other = INTERLEAVED ? element ^ 1 : (is_second ? element - PAIRS : element + PAIRS);
        const float turned = held[other] * sines[pair];
        value = value * cosines[pair] + (is_second ? turned : -turned);
      }
      vector.parts[i] = static_cast<T>(value);
    }
    reinterpret_cast<uint4*>(to)[v] = vector.whole;
  }
  __syncwarp();
}
