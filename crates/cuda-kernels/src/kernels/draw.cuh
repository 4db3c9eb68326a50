// Draws of tokens from the logits of each row, by the Gumbel-max trick: one cluster for each row, whose blocks share the logits.
//
// The filters act on log-probabilities at temperature 1, and leave a beginning of the tokens, the likeliest first and of equal ones the
// first. Its end is looked for in a histogram of how far tokens are below the likeliest, and then among those of the one bin that it
// lies in. Probabilities are added as integers, so that no order of additions changes a draw.

// What a row draws with, and its greedy choice where the temperature is 0.
struct Draw {
  u64 seed, step;     // what the key of the noise is made of
  float temperature;
  float top_p;        // 1 and more: all
  float min_p;        // the logarithm of the fraction; minus infinity: all
  u32 top_k;          // 0xffffffff: all
};

struct DrawArgs {
  const float* logits;  // [rows][n]
  Draw* draws;          // [rows]
  int* token;
  int* position;
  int* history;
  int* steps;
  u32 n, history_len;
  u32 cluster, per;     // blocks of a cluster, and the pairs of logits that each takes
};

#define DRAW_THREADS 1024
// Bins of a histogram, one for each thread, and how many of the first one make a natural logarithm.
#define BINS 1024
#define BINS_BITS 10
#define BINS_EACH 32.f
// Tokens that are compared one with another.
#define LISTED 256
// A probability of 1.
#define ONE 281474976710656.f

// The part of a beginning of the tokens: how many, and their probability in parts of `ONE`.
struct Mass {
  u64 probability;
  u32 count;
};

struct DrawShared {
  u64 keys[LISTED], masses[LISTED];
  u64 best[2][33], range[2][33];
  u64 least;
  Mass before_warp[32];
  Mass before, inside;  // the tokens above the bin that the beginning ends in, and those in it
  u32 count[BINS], low[BINS], high[BINS];
  float sum[33];
  u32 bin, listed;
  // Then come the logits.
};
static_assert(sizeof(DrawShared) == 18136, "the size that the launch counts on");

// Numbers in the order of what they say, NaN and infinity above all.
DEVICE u32 ordered(float v) {
  const u32 bits = __float_as_uint(v + 0.f);
  return v < __int_as_float(0x7f800000) ? bits ^ ((u32)((int)bits >> 31) | 0x80000000u) : ~0u;
}
DEVICE float unordered(u32 v) { return __uint_as_float(v ^ ((u32)(~(int)v >> 31) | 0x80000000u)); }
// A token and its value in one number, which is larger for larger values, and of equal ones for the first.
DEVICE u64 key_of(float v, u32 id) { return (u64)ordered(v) << 32 | (u32)~id; }

DEVICE u64 larger(u64 a, u64 b) { return a > b ? a : b; }
DEVICE float plus(float a, float b) { return a + b; }

// All values of a cluster in one, the same in every thread. `parts` holds one for each warp, and one for the block.
template <typename T>
DEVICE T over_cluster(T v, T (*both)(T, T), T parts[33], u32 blocks) {
  const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
  for (int o = 16; o > 0; o >>= 1) v = both(v, __shfl_xor_sync(~0u, v, o));
  if (lane == 0) parts[warp] = v;
  __syncthreads();
  if (warp == 0) {
    v = lane < blockDim.x / 32 ? parts[lane] : T(0);
#pragma unroll
    for (int o = 16; o > 0; o >>= 1) v = both(v, __shfl_xor_sync(~0u, v, o));
    if (lane == 0) parts[32] = v;
  }
  cluster_sync();
  v = lane < blocks ? *in_block(parts + 32, lane) : T(0);
#pragma unroll
  for (int o = 16; o > 0; o >>= 1) v = both(v, __shfl_xor_sync(~0u, v, o));
  return v;
}

// SplitMix64 (Steele, Lea, Flood 2014) of a seed and a counter.
DEVICE u64 mix(u64 seed, u64 step) {
  u64 z = seed + (step + 1) * 0x9e3779b97f4a7c15ull;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
  return z ^ (z >> 31);
}

// Threefry-2x32 with 20 rounds (Salmon et al. 2011) of a pair of counters.
DEVICE void threefry(const u32 keys[3], u32& a, u32& b) {
  constexpr int ROTATIONS[2][4] = {{13, 15, 26, 6}, {17, 29, 16, 24}};
  a += keys[0], b += keys[1];
#pragma unroll
  for (int group = 0; group < 5; group++) {
#pragma unroll
    for (int i = 0; i < 4; i++) {
      a += b;
      b = __funnelshift_l(b, b, ROTATIONS[group % 2][i]) ^ a;
    }
    a += keys[(group + 1) % 3];
    b += keys[(group + 2) % 3] + group + 1;
  }
}

// −ln(−ln u) for u = bits · 2⁻³², kept between 2⁻³³ and the largest number below 1.
DEVICE float gumbel(u32 bits) {
  const float uniform = fminf(fmaxf((float)bits * 2.3283064365386963e-10f, 1.1641532182693481e-10f), 0.99999994f);
  return -logf(-logf(uniform));
}

// The logits of a block: those of tokens `begin` … and of as many from the middle on, which share the bits of their noise.
struct Share {
  const float* logits;  // shared memory, [2][per]
  u32 n, begin, count, per;

  // Calls `f` with each logit that is above minus infinity, and its key.
  template <typename F>
  DEVICE void for_each(F f) const {
    for (u32 j = threadIdx.x; j < count; j += blockDim.x) {
#pragma unroll
      for (u32 half = 0; half < 2; half++) {
        const float v = logits[half * per + j];
        if (v > -__int_as_float(0x7f800000)) f(v, key_of(v, begin + j + half * (n - n / 2)));
      }
    }
  }
};

// What top-k and top-p leave.
struct Most {
  u64 probability;
  u32 count;

  // Whether the token after these is left.
  DEVICE bool more(u64 p, u32 c) const { return p < probability && c < count; }
  // Whether the last token that is left is one of these, which follow `before`.
  DEVICE bool end_in(Mass before, Mass these) const {
    return more(before.probability, before.count) &&
           !more(before.probability + these.probability, before.count + these.count);
  }
};

DEVICE u64 probability(float log_probability) { return (u64)(expf(log_probability) * ONE); }

// The bin of the first histogram.
DEVICE u32 depth_bin(float top, float v) { return (u32)fminf((top - v) * BINS_EACH, BINS - 1.f); }

// Adds the histograms of all blocks up and finds the bin that the beginning ends in, in the first block; an empty one where all are left.
DEVICE void find_bin(const DrawArgs& a, DrawShared& s, Most most) {
  const u32 t = threadIdx.x, lane = t % 32, warp = t / 32;
  const Mass before = s.before;
  Mass own = {0, 0};
  for (u32 r = 0; r < a.cluster; r++) {
    own.count += *in_block(s.count + t, r);
    own.probability += ((u64)*in_block(s.high + t, r) << 32) + *in_block(s.low + t, r);
  }
  Mass sum = own;
#pragma unroll
  for (int o = 1; o < 32; o <<= 1) {
    const u32 count = __shfl_up_sync(~0u, sum.count, o);
    const u64 probability = __shfl_up_sync(~0u, sum.probability, o);
    if (lane >= o) sum.count += count, sum.probability += probability;
  }
  if (lane == 31) s.before_warp[warp] = sum;
  if (t == 0) s.inside.count = 0;
  __syncthreads();
  sum.count += before.count - own.count;
  sum.probability += before.probability - own.probability;
  for (u32 w = 0; w < warp; w++) sum.count += s.before_warp[w].count, sum.probability += s.before_warp[w].probability;
  if (most.end_in(sum, own)) s.before = sum, s.inside = own, s.bin = t;
}

// The least key that top-k and top-p leave.
DEVICE u64 last_left(const DrawArgs& a, DrawShared& s, const Share& share, Most most, u32 rank, float top, float total) {
  const u32 t = threadIdx.x;
  // Those that it is among: a bin of the first histogram, and a range of keys.
  u32 bin = 0, shift = 0;
  u64 low = 0, high = ~0ull;
  if (t == 0) s.before = {0, 0}, s.listed = 0;
  for (u32 round = 0;; round++) {
    s.count[t] = s.low[t] = s.high[t] = 0;
    __syncthreads();
    share.for_each([&](float v, u64 key) {
      u32 to = depth_bin(top, v);
      if (round > 0) {
        if (to != bin || key < low || key > high) return;
        to = (u32)((high - key) >> shift);
      }
      const u64 p = probability(v - total);
      atomicAdd(s.count + to, 1u);
      const u32 lower = (u32)p, old = atomicAdd(s.low + to, lower), upper = (u32)(p >> 32) + (old + lower < old);
      if (upper > 0) atomicAdd(s.high + to, upper);
    });
    cluster_sync();
    if (rank == 0) find_bin(a, s, most);
    cluster_sync();
    const u32 inside = in_block(&s.inside, 0)->count, found = *in_block(&s.bin, 0);
    if (inside == 0) return 0;
    if (round == 0) {
      bin = found;
    } else {
      high -= (u64)found << shift;
      low = larger(low, high - ((1ull << shift) - 1));
    }
    if (inside <= LISTED) break;
    if (round == 0) {
      u64 ends[2] = {0, 0};
      share.for_each([&](float v, u64 key) {
        if (depth_bin(top, v) == bin) ends[0] = larger(ends[0], key), ends[1] = larger(ends[1], ~key);
      });
      high = over_cluster(ends[0], larger, s.range[0], a.cluster);
      low = ~over_cluster(ends[1], larger, s.range[1], a.cluster);
    }
    const int bits = 64 - __clzll(high - low);
    shift = bits > BINS_BITS ? bits - BINS_BITS : 0;
  }
  share.for_each([&](float v, u64 key) {
    if (depth_bin(top, v) != bin || key < low || key > high) return;
    const u32 at = atomicAdd(in_block(&s.listed, 0), 1u);
    in_block(s.keys, 0)[at] = key;
    in_block(s.masses, 0)[at] = probability(v - total);
  });
  cluster_sync();
  if (rank == 0 && t < s.listed) {
    const u64 key = s.keys[t];
    Mass before = s.before;
    for (u32 i = 0; i < s.listed; i++)
      if (s.keys[i] > key) before.count++, before.probability += s.masses[i];
    if (most.end_in(before, {s.masses[t], 1})) s.least = key;
  }
  cluster_sync();
  return *in_block(&s.least, 0);
}

DEVICE void draw(const DrawArgs& a) {
  extern __shared__ __align__(128) u8 smem[];
  DrawShared& s = *(DrawShared*)smem;
  float* logits = (float*)(smem + sizeof(DrawShared));
  let_next_start();
  wait_for_previous();
  const u32 row = blockIdx.y, rank = blockIdx.x;
  if (loadi(a.position + row) < 0) return;
  const Draw* at = a.draws + row;
  const u64 seed = loadp(&at->seed), step = loadp(&at->step);
  const float temperature = load1(&at->temperature), top_p = load1(&at->top_p), min_p = load1(&at->min_p);
  const u32 top_k = (u32)loadi((const int*)&at->top_k);
  const u32 second = a.n - a.n / 2, begin = min(rank * a.per, second), count = min(a.per, second - begin);
  const Share share = {logits, a.n, begin, count, a.per};
  const float* from = a.logits + (u64)row * a.n + begin;
  u64 best = 0;
#pragma unroll 4
  for (u32 j = threadIdx.x; j < count; j += blockDim.x) {
    const u32 id = begin + j;
    // Of an odd number of tokens the middle one is alone.
    const float v = load1(from + j), w = second + id < a.n ? load1(from + second + j) : -__int_as_float(0x7f800000);
    logits[j] = v, logits[a.per + j] = w;
    best = larger(best, larger(key_of(v, id), key_of(w, second + id)));
  }
  best = over_cluster(best, larger, s.best[0], a.cluster);
  const float top = unordered((u32)(best >> 32));
  const bool finite = best >> 32 != ~0u && top > -__int_as_float(0x7f800000);
  if (finite && temperature > 0.f) {
    float sum = 0.f;
    share.for_each([&](float v, u64) { sum += expf(v - top); });
    const float total = top + logf(over_cluster(sum, plus, s.sum, a.cluster));
    const Most most = {top_p < 1.f ? larger((u64)(top_p * ONE), 1) : ~0ull, top_k};
    u64 least = 0;
    if (top_p < 1.f || top_k < a.n) least = last_left(a, s, share, most, rank, top, total);
    const float floor = top - total + fminf(min_p, 0.f);
    const u64 random = mix(seed, step);
    const u32 keys[3] = {(u32)(random >> 32), (u32)random, (u32)(random >> 32) ^ (u32)random ^ 0x1bd11bdau};
    best = 0;
    for (u32 j = threadIdx.x; j < count; j += blockDim.x) {
      const u32 ids[2] = {begin + j, second + begin + j};
      float v[2];
      bool left[2];
#pragma unroll
      for (int i = 0; i < 2; i++) {
        const float l = logits[i * a.per + j];
        v[i] = l - total;
        left[i] = v[i] > -__int_as_float(0x7f800000) && v[i] >= floor && key_of(l, ids[i]) >= least;
      }
      if (!(left[0] || left[1])) continue;
      u32 bits[2] = {ids[0], ids[1] < a.n ? ids[1] : 0};
      threefry(keys, bits[0], bits[1]);
#pragma unroll
      for (int i = 0; i < 2; i++)
        if (left[i]) best = larger(best, key_of(v[i] / temperature + gumbel(bits[i]), ids[i]));
    }
    best = over_cluster(best, larger, s.best[1], a.cluster);
  }
  if (rank == 0 && threadIdx.x == 0) {
    move_on(a, row, finite, (int)~(u32)best);
    a.draws[row].step = step + 1;
  }
  // No block leaves while others read its memory.
  cluster_sync();
}
