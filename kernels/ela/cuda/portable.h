// The portable scans: any card, any kernel, any head dim up to 256, exact for any finite input.
//
// Token by token in float, with the state in registers and a running maximum per token, so no key
// can outgrow the gauge: there is no guard and no other path. Two shapes of one scan over a stream
// of (key, value) rows, which keeps S' = sum w(key) [value, extra]:
//   row scan      out_c = sum_f a_f S'_fc      lanes are columns; the forward pass, dv, states
//   feature scan  out_f = a_f sum_c S'_fc p_c  lanes are features; dq, dk
// Bytes per row: every operand once per block of 32 columns (or features).
#pragma once

#include "kernels/ela/cuda/scan.cuh"
#include "kernels/tensor.h"

namespace ela::kernels::cuda {

/// Rows [T, H, width] of a tensor, bf16 or float.
struct RowsView {
  void* data = nullptr;
  int64_t stride = 0;  // elements between rows
};

inline RowsView ViewOf(const Tensor& t) { return {t.data(), t.stride()}; }

/// Features of rows: hadamard_exp e^(x - lse), the others phi(x) e^-lse or psi(x) e^-lse.
struct FeatureRows {
  RowsView x;
  const float* lse = nullptr;  // [T, H]; null: 0
  bool phi = false;            // else psi
};

enum class ScanMode : uint8_t {
  kStates,  // adds up each item's state, no output
  kScan,    // reads out what was seen up to and including each row
  kRead,    // reads out the item's total state, which stays as it is
};

struct ScanArgs {
  FeatureRows keys, queries;
  RowsView values;                     // [T, H, Dv]
  const float* value_extra = nullptr;  // [T, H], the normaliser's column; null: 1
  RowsView probes;                     // feature scan: p
  const float* probe_extra = nullptr;  // null: 1
  RowsView out;                        // row scan [T, H, Dv]; feature scan [T, H, D] or raw
  float* raw = nullptr;                // feature scan of a polynomial kernel: [T, heads, F]
  float* lse_out = nullptr;            // row scan; non-null: divide by the normaliser
  float* states = nullptr;             // [slots, H, size]
  const float* edge_states = nullptr;  // [B, H, size] where a span starts in scan order, or null
  DevicePlan plan;
  StateLayout layout;
  FeatureMap kernel = FeatureMap::kHadamardExp;
  int heads = 1, dim = 0;
  int first_head = 0, num_heads = 1;  // the heads of this launch
  bool reverse = false;
};

void LaunchRowScan(const Context& ctx, DType dtype, ScanMode mode, const ScanArgs& args);
void LaunchFeatureScan(const Context& ctx, DType dtype, ScanMode mode, const ScanArgs& args);

/// delta [T, H] = factor * sum_c a b over rows [T, H, width].
void LaunchHeadDots(const Context& ctx, DType dtype, float* dots, float factor, RowsView a,
                    RowsView b, int64_t rows, int heads, int width);

/// d [T, heads from first_head, D] = the gradient of x from that of its features, `raw`, in rows
/// [begin, end).
void LaunchFeatureGradient(const Context& ctx, DType dtype, RowsView d, const FeatureRows& x,
                           const float* raw, int64_t begin, int64_t end, const ScanArgs& args);

/// ElaForward and ElaBackward by these scans alone, whatever the card.
decltype(ElaForward) PortableForward;
decltype(ElaBackward) PortableBackward;

/// One token of each of B sequences.
void LaunchDecode(const Context& ctx, DType dtype, const Tensor& y, float* states, const Tensor& q,
                  const Tensor& k, const Tensor& v, const ElaConfig& config);

}  // namespace ela::kernels::cuda
