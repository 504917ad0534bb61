// Launchers of the Hopper kernels, between their files and hopper.cu, which plans.
#pragma once

#include "kernels/ela/cuda/hopper_scan.cuh"

namespace ela::kernels::cuda::hopper {

struct ForwardArgs {
  WalkArgs walk;
  CUtensorMap q, k, v;
  CUtensorMap y_rows;  // of y, in boxes of 16 rows
  void* y;
  int64_t y_stride;
  float* lse;
  int read_parts;  // bidirectional: blocks that share an item
};

/// Blocks of one panel that read a total on a multiprocessor at once; with two panels half as many.
inline constexpr int kReadBlocks = 4;

struct StatesArgs {
  WalkArgs walk;
  CUtensorMap keys, values;
  const float* lse;          // gradient states
  const float* minus_delta;  // gradient states
  bool prefixes;             // only prefixes are wanted: a chain's last state is not
};

struct BackwardArgs {
  WalkArgs walk;
  CUtensorMap q, k, v, dy;
  void* dq;
  void* dk;
  void* dv;
  int64_t dq_stride, dk_stride, dv_stride;
  const float* lse;
  float* minus_delta;  // [T, H]: written by the query scan, read by the key scan
};

/// Head dim 64 * panels. Not causal: reads the totals of the items' chains.
void LaunchForward(cudaStream_t stream, int panels, const ForwardArgs& args, bool causal);
/// States of the items that are segments.
void LaunchStates(cudaStream_t stream, int panels, const StatesArgs& args, bool gradient);
void LaunchQueryGradient(cudaStream_t stream, int panels, const BackwardArgs& args, bool causal);
void LaunchKeyGradients(cudaStream_t stream, int panels, const BackwardArgs& args, bool causal);

/// The same, bidirectional.
void LaunchForwardRead(cudaStream_t stream, int panels, const ForwardArgs& args);
void LaunchQueryRead(cudaStream_t stream, int panels, const BackwardArgs& args);
void LaunchKeyRead(cudaStream_t stream, int panels, const BackwardArgs& args);

}  // namespace ela::kernels::cuda::hopper
