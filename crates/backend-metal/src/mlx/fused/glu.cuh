template <int ACT>
__device__ inline float inferlm_gate(float gate, float up, float alpha, float limit) {
  if (ACT == 0) {
    return gate / (1.0f + __expf(-gate)) * up;
  }
  if (ACT == 1) {
    return 0.5f * gate * (1.0f + erff(gate * 0.70710678118654752f)) * up;
  }
  if (ACT == 2) {
    const float z = 0.79788456080286536f * (gate + 0.044715f * gate * gate * gate);
    return gate / (1.0f + __expf(-2.0f * z)) * up;
  }
  if (ACT == 3) {
    const float positive = fmaxf(gate, 0.0f);
    return positive * positive * up;
  }
  // fminf and fmaxf drop NaN: keep it.
  gate = gate > limit ? limit : gate;
  up = up > limit ? limit : up;
  up = up < -limit ? -limit : up;
  return gate / (1.0f + __expf(-alpha * gate)) * (up + 1.0f);
}
