// gated[row] = act(gates[row]) * ups[row]. JOINED: one array of gates and then ups in each row, or taking turns.
constexpr int V = 16 / sizeof(T);
constexpr int CHUNKS = (N / V + 255) / 256;
const int64_t row = blockIdx.x / CHUNKS;
const int at = (int(blockIdx.x % CHUNKS) * 256 + int(threadIdx.x)) * V;
if (at >= N) {
  return;
}
union Vector {
  uint4 whole;
  T parts[V];
};
Vector gates, ups, out;
if (LAYOUT == 1) {
  Vector pair[2];
  const uint4* from = reinterpret_cast<const uint4*>(joined + row * 2 * N + 2 * at);
  pair[0].whole = from[0];
  pair[1].whole = from[1];
#pragma unroll
  for (int i = 0; i < V; ++i) {
    gates.parts[i] = pair[2 * i / V].parts[2 * i % V];
    ups.parts[i] = pair[(2 * i + 1) / V].parts[(2 * i + 1) % V];
  }
} else {
  gates.whole = *reinterpret_cast<const uint4*>(joined + row * 2 * N + at);
  ups.whole = *reinterpret_cast<const uint4*>(joined + row * 2 * N + N + at);
}
#pragma unroll
for (int i = 0; i < V; ++i) {
  out.parts[i] = static_cast<T>(
      inferlm_gate<ACT>(static_cast<float>(gates.parts[i]), static_cast<float>(ups.parts[i]), __int_as_float(ALPHA), __int_as_float(LIMIT)));
}
*reinterpret_cast<uint4*>(gated + row * N + at) = out.whole;
