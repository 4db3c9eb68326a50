// The sum over all threads of a block.
template <int THREADS>
__device__ inline float inferlm_block_sum(float value, float* partial) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) {
    value += __shfl_xor_sync(0xffffffffu, value, offset);
  }
  if (THREADS > 32) {
    const int lane = threadIdx.x % 32;
    __syncthreads();
    if (lane == 0) {
      partial[threadIdx.x / 32] = value;
    }
    __syncthreads();
    value = lane < THREADS / 32 ? partial[lane] : 0.0f;
#pragma unroll
    for (int offset = 16; offset > 0; offset /= 2) {
      value += __shfl_xor_sync(0xffffffffu, value, offset);
    }
  }
  return value;
}
