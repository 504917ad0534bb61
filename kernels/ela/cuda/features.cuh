// Feature maps of the polynomial kernels on the device: phi and psi of model.md section 1.
#pragma once

#include "kernels/ela/cuda/scan.cuh"

namespace ela::kernels::cuda {

/// Feature f of a row x with |x|^2 = norm2; x_f is x[f], saturated, for f < D, anything else
/// beyond.
__device__ inline float PolynomialFeature(FeatureMap kernel, bool phi, int f, int dim, float x_f,
                                          float norm2) {
  if (kernel == FeatureMap::kModulatedDot) {
    const float scale = norm2 + 1.0f;
    if (f < dim) return scale * (x_f / fmaxf(sqrtf(norm2), 1e-12f));
    return phi ? scale * (1.0f + kKernelEps) : scale;
  }
  if (phi) return f < dim ? x_f : f == dim ? norm2 + kKernelEps : 1.0f;
  if (f < dim) return kernel == FeatureMap::kSumSquared ? 2.0f * x_f : -2.0f * x_f;
  return f == dim ? 1.0f : norm2;
}

/// Lanes hold partial sums; every lane gets their total.
__device__ inline float WarpSum(float x) {
#pragma unroll
  for (int lanes = 16; lanes > 0; lanes /= 2) x += __shfl_xor_sync(0xffffffffu, x, lanes);
  return x;
}

__device__ inline float WarpMax(float x) {
#pragma unroll
  for (int lanes = 16; lanes > 0; lanes /= 2) {
    x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, lanes));
  }
  return x;
}

/// |x|^2 of a row, saturated, by a warp.
template <class T>
__device__ float WarpNorm2(const T* x, int dim) {
  float sum = 0;
  for (int d = static_cast<int>(threadIdx.x % 32); d < dim; d += 32) {
    const float value = Saturate(ToFloat(x[d]));
    sum = fmaf(value, value, sum);
  }
  return WarpSum(sum);
}

/// k(q, k) of a polynomial kernel without the cancellation of |q|^2 + |k|^2 +- 2 q.k, by a warp:
/// never below eps.
template <class T>
__device__ float WarpKernel(FeatureMap kernel, const T* q, const T* k, int dim, float q_norm2,
                            float k_norm2) {
  const bool modulated = kernel == FeatureMap::kModulatedDot;
  const float q_scale = modulated ? 1.0f / fmaxf(sqrtf(q_norm2), 1e-12f) : 1.0f;
  const float k_scale = modulated                           ? 1.0f / fmaxf(sqrtf(k_norm2), 1e-12f)
                        : kernel == FeatureMap::kSubSquared ? -1.0f
                                                            : 1.0f;
  float sum = 0;
  for (int d = static_cast<int>(threadIdx.x % 32); d < dim; d += 32) {
    const float x = Saturate(ToFloat(q[d])) * q_scale + Saturate(ToFloat(k[d])) * k_scale;
    sum = fmaf(x, x, sum);
  }
  sum = WarpSum(sum);
  if (!modulated) return sum + kKernelEps;
  // q^.k^ + 1 = |q^ + k^|^2 / 2 + (2 - |q^|^2 - |k^|^2) / 2, the last 0 but for rows of zeros.
  const float q_unit = q_norm2 * q_scale * q_scale, k_unit = k_norm2 * k_scale * k_scale;
  const float rest = q_norm2 > 0 && k_norm2 > 0 ? 0.0f : 1.0f - 0.5f * (q_unit + k_unit);
  return (0.5f * sum + rest + kKernelEps) * (q_norm2 + 1.0f) * (k_norm2 + 1.0f);
}

}  // namespace ela::kernels::cuda
