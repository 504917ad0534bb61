// A block has some output rows of one expert's matrix, a row a warp. It collects the expert's slots
// and meets them in groups of 8, so the matrix comes from memory once however many tokens there
// are, and an expert that no token chose costs a look at the choices. One expert alone is a plain
// product. Each dot product is of one warp in one order.
#include "kernels/device_gemm.h"
#include "kernels/experts/experts.h"
#include "kernels/swiglu/swiglu.h"
#include "kernels/thin_product.cuh"

namespace ela::kernels::cuda {

decltype(::ela::kernels::SwigluForward) SwigluForward;

namespace {

constexpr int kWarps = kBlock / kWarp;
constexpr int kGroup = 8;        // slots that meet a row of the matrix at a time
constexpr int kFewExperts = 64;  // whose matrices' addresses fit the launch

struct Matrices {
  const void* few[kFewExperts];
  const void* const* many;  // or null
  int64_t stride;           // elements between rows
};

/// Scratch: the addresses of many.
Matrices AddressesOf(const Context& ctx, const std::vector<Tensor>& w) {
  Matrices m = {};
  m.stride = w[0].stride();
  std::vector<int64_t> words;
  for (size_t e = 0; e < w.size(); ++e) {
    CheckShape("an expert's matrix", w[e], w[0].dim(0), w[0].row_numel());
    ELA_CHECK(w[e].stride() == m.stride && w[e].dtype() == w[0].dtype(), "experts differ");
    if (w.size() <= kFewExperts) m.few[e] = w[e].data();
    words.push_back(reinterpret_cast<int64_t>(w[e].data()));
  }
  if (w.size() > kFewExperts) {
    m.many = reinterpret_cast<const void* const*>(
        UploadWords(ctx, words.data(), static_cast<int64_t>(words.size())));
  }
  return m;
}

/// The slots from `begin` on, a thread each, that chose `expert`: how many, in order in `found`.
__device__ int CollectSlots(int32_t* found, int* of_warp, const int32_t* experts, int64_t begin,
                            int64_t slots, int expert, int num_experts) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const int64_t slot = begin + threadIdx.x;
  const int chosen = slot < slots ? experts[slot] : 0;
  ELA_DEVICE_CHECK(chosen >= 0 && chosen < num_experts, ": expert %d of %d\n", chosen, num_experts);
  const bool mine = slot < slots && chosen == expert;
  const unsigned same = __ballot_sync(kAllLanes, mine);
  __syncthreads();  // what was found before is done with
  if (lane == 0) of_warp[warp] = __popc(same);
  __syncthreads();
  int at = 0, all = 0;
  for (int w = 0; w < kWarps; ++w) {
    if (w < warp) at += of_warp[w];
    all += of_warp[w];
  }
  if (mine) found[at + __popc(same & ((1u << lane) - 1))] = static_cast<int32_t>(slot);
  __syncthreads();
  return all;
}

/// A row of the matrix, `weights`, with at most kCount slots of its expert; by a warp.
template <class T, int N, int kCount>
__device__ void MeetSlots(Rows<T> y, Rows<T> x, const T* weights, const int32_t* slots, int count,
                          int divisor, int row, int columns) {
  const T* from[kCount];
#pragma unroll
  for (int s = 0; s < kCount; ++s) from[s] = x[slots[min(s, count - 1)] / divisor];
  float sum[kCount];
  DotRows<T, N>(sum, weights, from, columns);
  if (threadIdx.x % kWarp != 0) return;
#pragma unroll
  for (int s = 0; s < kCount; ++s) {
    if (s < count) Store(y[slots[s]] + row, sum[s]);
  }
}

/// y [slots, rows of the matrix]; slot s reads row s / divisor of x.
template <class T, int N>
__global__ void SlotProducts(Rows<T> y, Rows<T> x, const __grid_constant__ Matrices w,
                             const int32_t* experts, int64_t slots, int divisor, int rows,
                             int columns) {
  __shared__ int32_t found[kBlock];
  __shared__ int of_warp[kWarps];
  const int expert = static_cast<int>(blockIdx.y);
  const int row = static_cast<int>(blockIdx.x) * kWarps + static_cast<int>(threadIdx.x) / kWarp;
  const void* matrix = w.many != nullptr ? w.many[expert] : w.few[expert];
  const T* weights = static_cast<const T*>(matrix) + row * w.stride;
  for (int64_t begin = 0; begin < slots; begin += kBlock) {
    const int count =
        CollectSlots(found, of_warp, experts, begin, slots, expert, static_cast<int>(gridDim.y));
    if (row >= rows) continue;
    for (int first = 0; first < count; first += kGroup) {
      const int32_t* group = found + first;
      if (count - first == 1) {
        MeetSlots<T, N, 1>(y, x, weights, group, 1, divisor, row, columns);
      } else if (count - first <= kGroup / 2) {
        MeetSlots<T, N, kGroup / 2>(y, x, weights, group, count - first, divisor, row, columns);
      } else {
        const int met = min(kGroup, count - first);
        MeetSlots<T, N, kGroup>(y, x, weights, group, met, divisor, row, columns);
      }
    }
  }
}

void Products(const Context& ctx, const Tensor& y, const Tensor& x, const std::vector<Tensor>& w,
              const Tensor& experts, int64_t divisor) {
  const int64_t rows = w[0].dim(0), columns = w[0].row_numel();
  CheckShape("y", y, experts.numel(), rows);
  CheckShape("x", x, y.dim(0) / divisor, columns);
  if (w.size() == 1) {
    Gemm(ctx, {.m = y.dim(0),
               .n = rows,
               .k = columns,
               .a = x.data(),
               .lda = x.stride(),
               .b = w[0].data(),
               .ldb = w[0].stride(),
               .b_transposed = true,
               .c = y.data(),
               .ldc = y.stride(),
               .input = x.dtype(),
               .output = y.dtype()});
    return;
  }
  const ArenaScope scope(ctx.scratch);
  const Matrices matrices = AddressesOf(ctx, w);
  const dim3 grid(GridSize(CeilDiv(rows, kWarps)), GridSize(static_cast<int64_t>(w.size())));
  Tensor least = w[0];  // the least aligned decides
  for (const Tensor& matrix : w) {
    if (!IsVectorised(matrix)) least = matrix;
  }
  WithVectors(
      [&](auto element, auto n) {
        using T = decltype(element);
        SlotProducts<T, n><<<grid, kBlock, 0, StreamOf(ctx)>>>(
            Rows<T>(y), Rows<T>(x), matrices, experts.as<int32_t>(), y.dim(0),
            static_cast<int>(divisor), static_cast<int>(rows), static_cast<int>(columns));
      },
      x, least);
  CheckLaunch("SlotProducts");
}

/// A thread an element of out.
template <class T>
__global__ void CombineSlots(Rows<T> out, Rows<T> f, Rows<float> weights, const int32_t* experts,
                             Rows<T> labels, Rows<T> added, int64_t tokens, int choices, int d,
                             LabelBias bias) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kBlock + threadIdx.x;
  if (i >= tokens * d) return;
  const int64_t token = i / d, column = i - token * d;
  float sum = 0;
  for (int k = 0; k < choices; ++k) {
    const float w = weights[token][k];
    const int64_t slot = token * choices + k;
    float y = w * ToFloat(f[slot][column]);
    if (bias != LabelBias::kNone) {
      y += (bias == LabelBias::kInner ? w : 1.0f) * ToFloat(labels[experts[slot]][column]);
    }
    sum += y;
  }
  if (added.data != nullptr) sum += ToFloat(added[token][column]);
  Store(out[token] + column, sum);
}

}  // namespace

void ExpertsForward(const Context& ctx, Tensor out, Tensor x, Tensor weights, Tensor experts,
                    const std::vector<Tensor>& up, const std::vector<Tensor>& down, Tensor labels,
                    LabelBias bias, Tensor added) {
  const int64_t tokens = x.dim(0), d = x.row_numel(), k = experts.row_numel();
  ELA_CHECK(!up.empty() && up.size() == down.size() && experts.dense(), "%zu up, %zu down",
            up.size(), down.size());
  CheckShape("out", out, tokens, d);
  CheckShape("weights", weights, tokens, k);
  CheckShape("experts", experts, tokens, k);
  if (bias != LabelBias::kNone) CheckShape("labels", labels, static_cast<int64_t>(up.size()), d);
  if (tokens == 0) return;
  const ArenaScope scope(ctx.scratch);
  const int64_t slots = tokens * k, width = down[0].row_numel();
  const auto take = [&](int64_t columns) {
    const size_t bytes = static_cast<size_t>(slots * columns) * SizeOf(x.dtype());
    return Tensor(ctx.scratch->Take(bytes), x.dtype(), {slots, columns});
  };
  const Tensor gate_value = take(2 * width), hidden = take(width), f = take(d);
  Products(ctx, gate_value, x, up, experts, k);
  cuda::SwigluForward(ctx, hidden, gate_value);
  Products(ctx, f, hidden, down, experts, 1);
  const Tensor label_rows = bias == LabelBias::kNone ? f : labels;
  if (!added.empty()) CheckShape("added", added, tokens, d);
  WithElement(
      [&](auto element) {
        using T = decltype(element);
        CombineSlots<T><<<GridSize(CeilDiv(tokens * d, kBlock)), kBlock, 0, StreamOf(ctx)>>>(
            Rows<T>(out), Rows<T>(f), Rows<float>(weights), experts.as<int32_t>(),
            Rows<T>(label_rows), added.empty() ? Rows<T>() : Rows<T>(added), tokens,
            static_cast<int>(k), static_cast<int>(d), bias);
      },
      out, f, label_rows);
  CheckLaunch("CombineSlots");
}

}  // namespace ela::kernels::cuda
