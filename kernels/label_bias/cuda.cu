// y, f, df, dy and labels are of one type; w, dw and dlabels are float. A warp a row, whose expert
// it finds in the offsets; dlabels: parts of each expert's rows, then the parts in order.
#include "kernels/device_code.cuh"
#include "kernels/label_bias/label_bias.h"

namespace ela::kernels::cuda {
namespace {

constexpr int64_t kMostParts = 64;    // of an expert's rows
constexpr int64_t kRowsPerPart = 64;  // about, when experts have equal numbers of rows
constexpr int kPartLanes = 8;         // threads that share a column of a part

void CheckShapes(const Tensor& f, const Tensor& w, const Tensor& labels,
                 const std::vector<int64_t>& offsets, LabelBias bias) {
  CheckShape("w", w, f.dim(0), 1);
  ELA_CHECK(!offsets.empty() && offsets.front() == 0 && offsets.back() == f.dim(0),
            "offsets do not span %lld rows", static_cast<long long>(f.dim(0)));
  if (bias == LabelBias::kNone) return;
  CheckShape("labels", labels, static_cast<int64_t>(offsets.size()) - 1, f.row_numel());
}

struct Experts {
  const int64_t* offsets = nullptr;  // [count + 1]
  int count = 0;

  Experts(const Context& ctx, const std::vector<int64_t>& host)
      : offsets(UploadWords(ctx, host.data(), static_cast<int64_t>(host.size()))),
        count(static_cast<int>(host.size()) - 1) {}

  /// The expert of a row: the last whose rows begin at or before it.
  __device__ int Of(int64_t row) const {
    int low = 0, high = count;
    while (high - low > 1) {
      const int middle = (low + high) / 2;
      (offsets[middle] <= row ? low : high) = middle;
    }
    return low;
  }
};

template <class T, int N>
__global__ void AddLabels(Rows<T> y, Rows<T> f, const float* w, Rows<T> labels, Experts experts,
                          int64_t rows, int d, LabelBias bias) {
  const int64_t row = static_cast<int64_t>(blockIdx.x) * (kBlock / kWarp) + threadIdx.x / kWarp;
  if (row >= rows) return;
  const float weight = w[row], factor = bias == LabelBias::kInner ? weight : 1.0f;
  const T* label = bias == LabelBias::kNone ? nullptr : labels[experts.Of(row)];
  for (int i = static_cast<int>(threadIdx.x) % kWarp * N; i < d; i += kWarp * N) {
    float v[N], b[N] = {};
    Load(v, f[row] + i);
    if (label != nullptr) Load(b, label + i);
#pragma unroll
    for (int j = 0; j < N; ++j) v[j] = weight * v[j] + factor * b[j];
    StoreAll(y[row] + i, v);
  }
}

template <class T, int N>
__global__ void RowGradients(Rows<T> df, float* dw, Rows<T> dy, Rows<T> f, const float* w,
                             Rows<T> labels, Experts experts, int64_t rows, int d, LabelBias bias) {
  const int64_t row = static_cast<int64_t>(blockIdx.x) * (kBlock / kWarp) + threadIdx.x / kWarp;
  if (row >= rows) return;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const T* label = bias == LabelBias::kInner ? labels[experts.Of(row)] : nullptr;
  float dot = 0;
  for (int i = lane * N; i < d; i += kWarp * N) {
    float grad[N], v[N], b[N] = {};
    Load(grad, dy[row] + i);
    Load(v, f[row] + i);
    if (label != nullptr) Load(b, label + i);
#pragma unroll
    for (int j = 0; j < N; ++j) {
      dot = fmaf(grad[j], v[j] + b[j], dot);
      grad[j] *= w[row];
    }
    StoreAll(df[row] + i, grad);
  }
  dot = WarpSum(dot);
  if (lane == 0) dw[row] = dot;
}

/// Block (columns, part, expert): thread (x, y) every 8th row of the part from y, then the 8 sums.
template <class T>
__global__ void SumParts(float* partials, Rows<T> dy, const float* w, Experts experts, int d,
                         int parts, LabelBias bias) {
  __shared__ float sums[kPartLanes][kWarp];
  const int column = static_cast<int>(blockIdx.x) * kWarp + static_cast<int>(threadIdx.x);
  const int part = static_cast<int>(blockIdx.y), expert = static_cast<int>(blockIdx.z);
  const int64_t first = experts.offsets[expert], all = experts.offsets[expert + 1] - first;
  const int64_t begin = first + all * part / parts, end = first + all * (part + 1) / parts;
  float sum = 0;
  if (column < d) {
    for (int64_t r = begin + threadIdx.y; r < end; r += kPartLanes) {
      sum = fmaf(bias == LabelBias::kInner ? w[r] : 1.0f, ToFloat(dy[r][column]), sum);
    }
  }
  sums[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y != 0 || column >= d) return;
  for (int y = 1; y < kPartLanes; ++y) sum += sums[y][threadIdx.x];
  partials[(static_cast<int64_t>(expert) * parts + part) * d + column] = sum;
}

/// dlabels [E, d] += partials [E, parts, d].
__global__ void AddParts(Rows<float> dlabels, const float* partials, int64_t d, int parts) {
  const int64_t column = static_cast<int64_t>(blockIdx.x) * kBlock + threadIdx.x;
  if (column >= d) return;
  float sum = 0;
  for (int part = 0; part < parts; ++part) {
    sum += partials[(static_cast<int64_t>(blockIdx.y) * parts + part) * d + column];
  }
  dlabels[blockIdx.y][column] += sum;
}

void AddLabelGradients(const Context& ctx, const Tensor& dlabels, const Tensor& dy, const float* w,
                       const Experts& experts, LabelBias bias) {
  const int64_t d = dy.row_numel();
  CheckShape("dlabels", dlabels, experts.count, d);
  const int parts = static_cast<int>(
      std::clamp<int64_t>(dy.dim(0) / (experts.count * kRowsPerPart), 1, kMostParts));
  float* partials = TakeScratch<float>(ctx, experts.count * parts * d);
  const dim3 grid(GridSize(CeilDiv(d, kWarp)), GridSize(parts), GridSize(experts.count));
  WithElement(
      [&](auto element) {
        using T = decltype(element);
        SumParts<T><<<grid, dim3(kWarp, kPartLanes), 0, StreamOf(ctx)>>>(
            partials, Rows<T>(dy), w, experts, static_cast<int>(d), parts, bias);
      },
      dy);
  const dim3 columns(GridSize(CeilDiv(d, kBlock)), GridSize(experts.count));
  AddParts<<<columns, kBlock, 0, StreamOf(ctx)>>>(Rows<float>(dlabels), partials, d, parts);
  CheckLaunch("AddLabelGradients");
}

}  // namespace

void LabelBiasForward(const Context& ctx, Tensor y, Tensor f, Tensor w, Tensor labels,
                      const std::vector<int64_t>& offsets, LabelBias bias) {
  const int64_t rows = f.dim(0), d = f.row_numel();
  CheckShape("y", y, rows, d);
  CheckShapes(f, w, labels, offsets, bias);
  if (rows == 0) return;
  const ArenaScope scope(ctx.scratch);
  const Experts experts(ctx, offsets);
  const Tensor label_rows = bias == LabelBias::kNone ? f : labels;
  WithVectors(
      [&](auto element, auto n) {
        using T = decltype(element);
        AddLabels<T, n><<<GridSize(CeilDiv(rows, kBlock / kWarp)), kBlock, 0, StreamOf(ctx)>>>(
            Rows<T>(y), Rows<T>(f), w.as<float>(), Rows<T>(label_rows), experts, rows,
            static_cast<int>(d), bias);
      },
      y, f, label_rows);
  CheckLaunch("AddLabels");
}

void LabelBiasBackward(const Context& ctx, Tensor df, Tensor dw, Tensor dlabels, Tensor dy,
                       Tensor f, Tensor w, Tensor labels, const std::vector<int64_t>& offsets,
                       LabelBias bias) {
  const int64_t rows = f.dim(0), d = f.row_numel();
  CheckShape("df", df, rows, d);
  CheckShape("dy", dy, rows, d);
  CheckShape("dw", dw, rows, 1);
  CheckShapes(f, w, labels, offsets, bias);
  if (rows == 0) return;
  const ArenaScope scope(ctx.scratch);
  const Experts experts(ctx, offsets);
  if (bias != LabelBias::kNone) {
    AddLabelGradients(ctx, dlabels, dy, w.as<float>(), experts, bias);
  }
  const Tensor label_rows = bias == LabelBias::kInner ? labels : f;
  WithVectors(
      [&](auto element, auto n) {
        using T = decltype(element);
        RowGradients<T, n><<<GridSize(CeilDiv(rows, kBlock / kWarp)), kBlock, 0, StreamOf(ctx)>>>(
            Rows<T>(df), dw.as<float>(), Rows<T>(dy), Rows<T>(f), w.as<float>(),
            Rows<T>(label_rows), experts, rows, static_cast<int>(d), bias);
      },
      df, dy, f, label_rows);
  CheckLaunch("RowGradients");
}

}  // namespace ela::kernels::cuda
