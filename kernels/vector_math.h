// Float mathematics that compilers vectorise: no branch, no library call, the same result in a
// vector as alone.
#pragma once

#include <bit>
#include <cstdint>

namespace ela::kernels {

/// e^r for |r| <= ln(2) / 2, within 2 units in the last place.
inline float ExpNearZeroF(float r) {
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  return p * (r * r) + (r + 1.0f);
}

/// e^x within 2 units in the last place; 0 below -87, infinity above 88.72, NaN for NaN.
inline float ExpF(float x) {
  x = x > 89.0f ? 89.0f : x;
  x = x < -87.2f ? -87.2f : x;  // n = -126
  // n = round(x / ln 2), found by pushing the fraction out of the mantissa.
  const float shifted = x * 1.44269504088896341f + 12582912.0f;
  const float n = shifted - 12582912.0f;
  const float r = (x - n * 0.693359375f) - n * -2.12194440e-4f;
  const float p = ExpNearZeroF(r);
  // 2^(n-1), twice: n may be 128. The low bits of `shifted` hold n, and a field of 0 (n = -126) is
  // the value 0.
  const uint32_t field = (std::bit_cast<uint32_t>(shifted) - 0x4B400000u + 126u) & 0xffu;
  const float scale = std::bit_cast<float>(field << 23);
  return p * scale * 2.0f;
}

inline float SigmoidF(float x) { return 1.0f / (1.0f + ExpF(-x)); }

/// Sine and cosine of 2 pi t, |error| <= 2e-7, for |t| below 2^20; the range is reduced in double.
inline void SinCosTurns(double t, float* sine, float* cosine) {
  const double shifted = t * 4.0 + 6755399441055744.0;  // low bits: round(4 t), the quadrant
  const float x =
      static_cast<float>((t - (shifted - 6755399441055744.0) * 0.25) * 6.283185307179586);
  const uint32_t quadrant = static_cast<uint32_t>(std::bit_cast<uint64_t>(shifted));
  const float z = x * x;
  const float s = ((-1.9515295891e-4f * z + 8.3321608736e-3f) * z - 1.6666654611e-1f) * z * x + x;
  const float c =
      ((2.443315711809948e-5f * z - 1.388731625493765e-3f) * z + 4.166664568298827e-2f) * z * z -
      0.5f * z + 1.0f;
  const float first = quadrant & 1u ? c : s;
  const float second = quadrant & 1u ? s : c;
  *sine = quadrant & 2u ? -first : first;
  *cosine = (quadrant + 1u) & 2u ? -second : second;
}

/// Sixteen interleaved sums, then the lanes in order: one order whatever the compiler vectorises.
inline float Dot(const float* a, const float* b, int64_t n) {
  float lanes[16] = {};
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) {
    for (int j = 0; j < 16; ++j) lanes[j] += a[i + j] * b[i + j];
  }
  for (int j = 0; i < n; ++i, ++j) lanes[j] += a[i] * b[i];
  float sum = 0;
  for (int j = 0; j < 16; ++j) sum += lanes[j];
  return sum;
}

/// Largest of n > 0 values; NaNs are passed over unless they come first in their lane.
inline float MaxOf(const float* x, int64_t n) {
  float lanes[16];
  for (int j = 0; j < 16; ++j) lanes[j] = x[0];
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) {
    for (int j = 0; j < 16; ++j) lanes[j] = x[i + j] > lanes[j] ? x[i + j] : lanes[j];
  }
  for (int j = 0; i < n; ++i, ++j) lanes[j] = x[i] > lanes[j] ? x[i] : lanes[j];
  float largest = lanes[0];
  for (int j = 1; j < 16; ++j) largest = lanes[j] > largest ? lanes[j] : largest;
  return largest;
}

/// y = e^(x - shift), returning the sum of y; y may be x.
inline float ExpSum(float* y, const float* x, float shift, int64_t n) {
  float lanes[16] = {};
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) {
    for (int j = 0; j < 16; ++j) {
      const float e = ExpF(x[i + j] - shift);
      y[i + j] = e;
      lanes[j] += e;
    }
  }
  for (int j = 0; i < n; ++i, ++j) {
    y[i] = ExpF(x[i] - shift);
    lanes[j] += y[i];
  }
  float sum = 0;
  for (int j = 0; j < 16; ++j) sum += lanes[j];
  return sum;
}

/// Sum of e^(x - shift).
inline float ExpSumOf(const float* x, float shift, int64_t n) {
  float lanes[16] = {};
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) {
    for (int j = 0; j < 16; ++j) lanes[j] += ExpF(x[i + j] - shift);
  }
  for (int j = 0; i < n; ++i, ++j) lanes[j] += ExpF(x[i] - shift);
  float sum = 0;
  for (int j = 0; j < 16; ++j) sum += lanes[j];
  return sum;
}

}  // namespace ela::kernels
