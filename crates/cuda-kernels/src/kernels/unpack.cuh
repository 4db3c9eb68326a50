// Integers of MLX's affine quantisation as halves. MLX packs them as a stream of bits, the lowest first.
//
// Its other modes have floats instead, as they are packed: E2M1 in 4 bits, E4M3 in 8.
//
// In bf16 the halves are the integers plus UNPACK_OFFSET (but for 8 bits), which the caller takes out by the sum of x; that saves
// an instruction for each pair.
template <int BITS>
struct Unpacked {
#if HALF_KIND == 0
  static constexpr float offset = BITS == 8 || SCALE_KIND > 0 ? 0.f : 128.f;
#else
  static constexpr float offset = 0.f;
#endif
};

// How eight neighbours of x are ordered: pairs 0, 2, 1, 3 (see `multiply`). 4-bit integers come out of their word as pairs of
// elements (0, 4), (1, 5), (2, 6), (3, 7), and x follows them.
template <int BITS>
DEVICE uint4 in_order(u32 p01, u32 p23, u32 p45, u32 p67) {
  if (BITS != 4) return make_uint4(p01, p45, p23, p67);
  return make_uint4(__byte_perm(p01, p45, 0x5410), __byte_perm(p23, p67, 0x5410), __byte_perm(p01, p45, 0x7632),
                    __byte_perm(p23, p67, 0x7632));
}

// A pair of integers in the low bits of each half of `v`, below the magic exponent.
DEVICE u32 magic(u32 v, u32 mask) {
  u32 w;
  // (v & mask) | exponent, in one instruction.
#if HALF_KIND == 0
  asm("lop3.b32 %0, %1, %2, %3, 0xEA;" : "=r"(w) : "r"(v), "r"(mask), "r"(0x43004300u));
  return w;
#else
  u32 d;
  asm("lop3.b32 %0, %1, %2, %3, 0xEA;" : "=r"(w) : "r"(v), "r"(mask), "r"(0x64006400u));
  asm("sub.f16x2 %0, %1, %2;" : "=r"(d) : "r"(w), "r"(0x64006400u));
  return d;
#endif
}

// Two floats of 4 bits (E2M1) in the low bits of each half of `v`, as halves. Their bits are those of halves with another exponent.
DEVICE u32 e2m1(u32 v) {
#if HALF_KIND == 0
  return times2((v & 0x00070007u) << 6 | (v & 0x00080008u) << 12, 0x7e807e80u);
#else
  return times2((v & 0x00070007u) << 9 | (v & 0x00080008u) << 12, 0x74007400u);
#endif
}
// Likewise of 8 bits (E4M3). The code of NaN is 480, as in MLX.
DEVICE u32 e4m3(u32 v) {
#if HALF_KIND == 0
  return times2((v & 0x007f007fu) << 4 | (v & 0x00800080u) << 8, 0x7b807b80u);
#else
  return times2((v & 0x007f007fu) << 7 | (v & 0x00800080u) << 8, 0x5c005c00u);
#endif
}
// A power of two (E8M0).
DEVICE float e8m0(u32 v) { return __uint_as_float(v == 0 ? 1u << 22 : v << 23); }

// `N` numbers of `BITS` bits from shared memory at `p`, in the order of `in_order`.
template <int BITS, int N>
DEVICE void unpack(const u8* p, u32 out[N / 2]) {
  if constexpr (BITS == 4) {
    u32 words[N / 8];
    if constexpr (N == 16) {
      uint2 v = *(const uint2*)p;
      words[0] = v.x;
      words[1] = v.y;
    } else {
      words[0] = *(const u32*)p;
    }
#pragma unroll
    for (int i = 0; i < N / 8; i++)
#pragma unroll
      for (int j = 0; j < 4; j++) out[4 * i + j] = SCALE_KIND > 0 ? e2m1(words[i] >> (4 * j)) : magic(words[i] >> (4 * j), 0x000f000fu);
  } else if constexpr (BITS == 8) {
    u32 words[N / 4];
    if constexpr (N == 16) {
      uint4 v = *(const uint4*)p;
      words[0] = v.x, words[1] = v.y, words[2] = v.z, words[3] = v.w;
    } else {
      uint2 v = *(const uint2*)p;
      words[0] = v.x, words[1] = v.y;
    }
#pragma unroll
    for (int i = 0; i < N / 4; i++) {
      if constexpr (SCALE_KIND > 0) {
        out[2 * i] = e4m3(__byte_perm(words[i], 0, 0x4140));
        out[2 * i + 1] = e4m3(__byte_perm(words[i], 0, 0x4342));
        continue;
      }
      float f[4];
#pragma unroll
      for (int j = 0; j < 4; j++)
        f[j] = __uint_as_float(__byte_perm(words[i], 0x4B000000u, 0x7440 | j)) - 8388608.f;
      out[2 * i] = narrow2(f[0], f[1]);
      out[2 * i + 1] = narrow2(f[2], f[3]);
    }
  } else {
    constexpr int BYTES = N * BITS / 8;
    u32 words[(BYTES + 3) / 4 + 1] = {};
    if constexpr (N == 16) {
#pragma unroll
      for (int i = 0; i < BYTES / 2; i++) words[i / 2] |= (u32)((const u16*)p)[i] << (16 * (i % 2));
    } else {
#pragma unroll
      for (int i = 0; i < BYTES; i++) words[i / 4] |= (u32)p[i] << (8 * (i % 4));
    }
#pragma unroll
    for (int i = 0; i < N / 2; i++) {
      u32 pair[2];
#pragma unroll
      for (int j = 0; j < 2; j++) {
        const int at = (2 * i + j) * BITS;
        pair[j] = __funnelshift_r(words[at / 32], words[at / 32 + 1], at % 32) & ((1u << BITS) - 1);
      }
      out[i] = magic(pair[0] | pair[1] << 16, ~0u);
    }
  }
}

// One integer of a row in global memory.
template <int BITS>
DEVICE u32 integer_at(const u8* row, u32 i) {
  u32 bit = i * BITS, byte = bit / 8, shift = bit % 8;
  u32 v = row[byte];
  if (shift + BITS > 8) v |= (u32)row[byte + 1] << 8;
  return (v >> shift) & ((1u << BITS) - 1);
}

// One weight of a dense (16 bits) or quantised matrix in global memory.
template <int BITS, int GROUP>
DEVICE float weight_at(const void* w, const void* scales, const void* biases, u64 row, u32 k, u32 i) {
  if constexpr (BITS == 16) {
    return widen(__ldg((const u16*)w + row * k + i));
  } else {
    const u64 group = row * (k / GROUP) + i / GROUP;
    const u32 code = integer_at<BITS>((const u8*)w + row * (k / 8 * BITS), i);
    if constexpr (SCALE_KIND > 0) {
      const u32 scale = __ldg((const u8*)scales + group);
      return low(BITS == 4 ? e2m1(code) : e4m3(code)) * (SCALE_KIND == 1 ? e8m0(scale) : low(e4m3(scale)));
    }
    const float q = (float)code;
    return q * widen(__ldg((const u16*)scales + group)) + widen(__ldg((const u16*)biases + group));
  }
}
