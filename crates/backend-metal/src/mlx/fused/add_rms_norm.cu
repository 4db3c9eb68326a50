// sum = x + y, where y is normalised first with BEFORE; normalised = norm(sum) with AFTER. A block for each row of D elements.
constexpr int V = 16 / sizeof(T);
constexpr int PARTS = (D / V + THREADS - 1) / THREADS;
union Vector {
  uint4 whole;
  T parts[V];
};
__shared__ float partial[32];
const int64_t row = int64_t(blockIdx.x) * D;
float held[PARTS][V];
#pragma unroll
for (int part = 0; part < PARTS; ++part) {
  const int at = (part * THREADS + int(threadIdx.x)) * V;
  Vector vector;
  if (at < D) {
    vector.whole = *reinterpret_cast<const uint4*>(y + row + at);
  }
#pragma unroll
  for (int i = 0; i < V; ++i) {
    held[part][i] = at < D ? static_cast<float>(vector.parts[i]) : 0.0f;
  }
}
#ifdef INFERLM_BEFORE
float squares_of_y = 0.0f;
#pragma unroll
for (int part = 0; part < PARTS; ++part) {
#pragma unroll
  for (int i = 0; i < V; ++i) {
    squares_of_y += held[part][i] * held[part][i];
  }
}
const float scale_of_y = rsqrtf(inferlm_block_sum<THREADS>(squares_of_y, partial) / D + __int_as_float(EPS_BEFORE));
#endif
float squares = 0.0f;
#pragma unroll
for (int part = 0; part < PARTS; ++part) {
  const int at = (part * THREADS + int(threadIdx.x)) * V;
  if (at < D) {
    Vector vector;
#ifdef INFERLM_BEFORE
#pragma unroll
    for (int i = 0; i < V; ++i) {
      held[part][i] *= scale_of_y * static_cast<float>(before[at + i]);
    }
#endif
    vector.whole = *reinterpret_cast<const uint4*>(x + row + at);
#pragma unroll
    for (int i = 0; i < V; ++i) {
      vector.parts[i] = static_cast<T>(held[part][i] + static_cast<float>(vector.parts[i]));
      held[part][i] = static_cast<float>(vector.parts[i]);
      squares += held[part][i] * held[part][i];
    }
    *reinterpret_cast<uint4*>(sum + row + at) = vector.whole;
  }
}
#ifdef INFERLM_AFTER
const float scale = rsqrtf(inferlm_block_sum<THREADS>(squares, partial) / D + __int_as_float(EPS_AFTER));
#pragma unroll
for (int part = 0; part < PARTS; ++part) {
  const int at = (part * THREADS + int(threadIdx.x)) * V;
  if (at < D) {
    Vector vector;
#pragma unroll
    for (int i = 0; i < V; ++i) {
      vector.parts[i] = static_cast<T>(held[part][i] * scale * static_cast<float>(after[at + i]));
    }
    *reinterpret_cast<uint4*>(normalised + row + at) = vector.whole;
  }
}
#endif
