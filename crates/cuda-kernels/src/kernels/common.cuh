// What every kernel shares: types, loads that skip L1, rounding, matrix instructions, barriers. No header of CUDA is needed.
//
// HALF_KIND is 0 for bf16 and 1 for f16: the type of activations, norms, caches and dense weights.
// SCALE_KIND is 0 for integers with scales and biases in halves (and for dense matrices), 1 for floats with scales that are powers of
// two (E8M0), 2 for floats with scales in E4M3.
typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

#define DEVICE __device__ __forceinline__

// Where a kernel stands, in cycles, for whoever compiles it with TRACE.
#ifdef TRACE
__device__ long long marks[16];
#define MARK(i) \
  if (threadIdx.x == 0 && blockIdx.x == 0 && blockIdx.y == 0) marks[i] = clock64()
#else
#define MARK(i)
#endif
#define LOG2E 1.4426950408889634f

DEVICE float widen(u16 v) {
#if HALF_KIND == 0
  return __uint_as_float((u32)v << 16);
#else
  float f;
  asm("cvt.f32.f16 %0, %1;" : "=f"(f) : "h"(v));
  return f;
#endif
}

// Two floats as halves, `lo` in the lower 16 bits.
DEVICE u32 narrow2(float lo, float hi) {
  u32 d;
#if HALF_KIND == 0
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(d) : "f"(hi), "f"(lo));
#else
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(d) : "f"(hi), "f"(lo));
#endif
  return d;
}

DEVICE u16 narrow(float f) { return (u16)(narrow2(f, 0.f) & 0xffff); }
DEVICE float low(u32 v) { return widen((u16)(v & 0xffff)); }
DEVICE float high(u32 v) { return widen((u16)(v >> 16)); }

// The products of two pairs of halves.
DEVICE u32 times2(u32 a, u32 b) {
  u32 d;
#if HALF_KIND == 0
  asm("mul.rn.bf16x2 %0, %1, %2;" : "=r"(d) : "r"(a), "r"(b));
#else
  asm("mul.rn.f16x2 %0, %1, %2;" : "=r"(d) : "r"(a), "r"(b));
#endif
  return d;
}

// Loads of what an earlier kernel wrote. L1 may hold lines from before, so they go to L2.
DEVICE float4 load4(const float* p) {
  float4 v;
  asm volatile("ld.global.cg.v4.f32 {%0,%1,%2,%3}, [%4];" : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w) : "l"(p) : "memory");
  return v;
}
DEVICE float load1(const float* p) {
  float v;
  asm volatile("ld.global.cg.f32 %0, [%1];" : "=f"(v) : "l"(p) : "memory");
  return v;
}
DEVICE int loadi(const int* p) {
  int v;
  asm volatile("ld.global.cg.s32 %0, [%1];" : "=r"(v) : "l"(p) : "memory");
  return v;
}
DEVICE u16 loadh(const u16* p) {
  u16 v;
  asm volatile("ld.global.cg.u16 %0, [%1];" : "=h"(v) : "l"(p) : "memory");
  return v;
}
DEVICE u64 loadp(const u64* p) {
  u64 v;
  asm volatile("ld.global.cg.u64 %0, [%1];" : "=l"(v) : "l"(p) : "memory");
  return v;
}
DEVICE uint4 load16(const void* p) {
  uint4 v;
  asm volatile("ld.global.cg.v4.u32 {%0,%1,%2,%3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(p) : "memory");
  return v;
}
DEVICE uint4 constant16(const void* p) {
  uint4 v;
  asm("ld.global.nc.v4.u32 {%0,%1,%2,%3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(p));
  return v;
}

// A vector of weights for a norm: f32 (kind 1) or halves (kind 0), to which `offset` is added.
struct Vector {
  const void* data;
  u32 kind;
  float offset;
};

DEVICE float element(const Vector& v, u32 i) {
  float w = v.kind == 1 ? __ldg((const float*)v.data + i) : widen(__ldg((const u16*)v.data + i));
  return w + v.offset;
}

// Eight of them; the vector starts at 16 bytes.
DEVICE void elements8(const Vector& v, u32 i, float w[8]) {
  if (v.kind == 1) {
    uint4 a = constant16((const float*)v.data + i), b = constant16((const float*)v.data + i + 4);
    u32 bits[8] = {a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w};
#pragma unroll
    for (int j = 0; j < 8; j++) w[j] = __uint_as_float(bits[j]) + v.offset;
  } else {
    uint4 a = constant16((const u16*)v.data + i);
    u32 bits[4] = {a.x, a.y, a.z, a.w};
#pragma unroll
    for (int j = 0; j < 4; j++) {
      w[2 * j] = low(bits[j]) + v.offset;
      w[2 * j + 1] = high(bits[j]) + v.offset;
    }
  }
}

DEVICE float warp_sum(float v) {
#pragma unroll
  for (int i = 16; i > 0; i >>= 1) v += __shfl_xor_sync(~0u, v, i);
  return v;
}

// c += a · b, of a [16 × 16] and b [16 × 8]. Lane l holds pairs of columns of a's rows l / 4 (x, z) and l / 4 + 8 (y, w), and of b's
// column l / 4; c[0] and c[1] are c's row l / 4, columns 2 (l % 4) and the next, c[2] and c[3] those of row l / 4 + 8.
//
// A vector of four pairs (0, 2, 1, 3), as it comes from memory, is thus two rows: the first meets b's pairs 0 and 1 and gives c[0] and
// c[1], the second meets 2 and 3 and gives c[2] and c[3]. The other halves are worth nothing; nothing has to be moved.
DEVICE void multiply(float c[4], uint4 a, u32 b0, u32 b1) {
#if HALF_KIND == 0
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
#else
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
#endif
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "r"(b0), "r"(b1));
}

// Programmatic dependent launch: a kernel starts while those before it run, and waits here for their memory. It lets the next one
// start at once, so that the copies of two or three products are under way: whoever waits for a kernel waits for those before it,
// because each waits itself.
DEVICE void wait_for_previous() { asm volatile("griddepcontrol.wait;" ::: "memory"); }
DEVICE void let_next_start() {
  if (threadIdx.x == 0) asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
}

DEVICE u32 shared_address(const void* p) { return (u32)__cvta_generic_to_shared(p); }

DEVICE void barrier_init(u64* bar, u32 count) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(bar)), "r"(count) : "memory");
}
// The copy engine sees barriers that were initialised before.
DEVICE void barriers_ready() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }
DEVICE void barrier_arrive(u64* bar) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(bar)) : "memory");
}
DEVICE void barrier_wait(u64* bar, u32 parity) {
  asm volatile(
      "{\n.reg .pred done;\nagain:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@!done bra again;\n}" ::"r"(shared_address(bar)),
      "r"(parity)
      : "memory");
}
// A copy of 16 bytes, both at multiples of 16, that goes on by itself.
DEVICE void copy16(u32 to, const void* from) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(from) : "memory");
}
// The same, or zeros.
DEVICE void copy16_or_zero(u32 to, const void* from, bool there) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(there ? 16 : 0) : "memory");
}
// Copies so far are a group; all but so many of the last groups are there.
DEVICE void copies_end_group() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int GROUPS>
DEVICE void wait_for_groups() {
  asm volatile("cp.async.wait_group %0;" ::"n"(GROUPS) : "memory");
}
// A copy of 4 bytes.
DEVICE void copy4(u32 to, const void* from) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(to), "l"(from) : "memory");
}
// Arrives, and has the barrier wait for so many bytes of the copy engine.
DEVICE void barrier_expect(u64* bar, u32 bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(bar)), "r"(bytes) : "memory");
}
// A copy of the copy engine, of a multiple of 16 bytes.
DEVICE void copy_bulk(u32 to, const void* from, u32 bytes, u64* bar) {
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(to), "l"(from), "r"(bytes),
               "r"(shared_address(bar))
               : "memory");
}
// The same, of what is read once: the second cache gives it up first.
DEVICE void copy_bulk_once(u32 to, const void* from, u32 bytes, u64* bar, u64 policy) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1], %2, [%3], %4;" ::"r"(to),
      "l"(from), "r"(bytes), "r"(shared_address(bar)), "l"(policy)
      : "memory");
}
DEVICE u64 evict_first() {
  u64 policy;
  asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
  return policy;
}
// Arrives once the copies of this thread so far are there.
DEVICE void barrier_arrive_after_copies(u64* bar) {
  asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(shared_address(bar)) : "memory");
}
DEVICE void wait_for_copies() { asm volatile("cp.async.wait_all;" ::: "memory"); }

// Whatever the blocks of a cluster did before it is seen by all after it.
DEVICE void cluster_sync() {
  asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory");
}
// Where a thing of this block's shared memory lies in another block of the cluster.
template <typename T>
DEVICE T* in_block(T* p, u32 rank) {
  u64 to;
  asm("mapa.u64 %0, %1, %2;" : "=l"(to) : "l"(p), "r"(rank));
  return (T*)to;
}

DEVICE float activate_silu(float x) { return x / (1.f + __expf(-x)); }
DEVICE float activate_gelu_tanh(float x) {
  float z = 1.5957691216057308f * (x + 0.044715f * x * x * x);
  return x / (1.f + __expf(-z));
}
DEVICE float activate_gelu(float x) { return 0.5f * x * (1.f + erff(x * 0.7071067811865476f)); }
template <int ACT>
DEVICE float gated(float gate, float up) {
  float a = ACT == 0 ? activate_silu(gate) : ACT == 1 ? activate_gelu_tanh(gate) : activate_gelu(gate);
  return a * up;
}
