// Decode on Hopper: hadamard_exp, bf16, head dims 64 and 128. The step of decode.cu, for a state
// that is read and written once and nothing else of size.
//
// A block takes states in turn through a ring of slots in shared memory: while it works on one, the
// copy engine loads the next ones and stores the one before, so reads and writes never wait for
// arithmetic. A slot holds the head's whole state, as it lies in memory, and its rows of q, k, v.
#include "kernels/hopper.cuh"
#include "kernels/ela/cuda/hopper.h"
#include "kernels/ela/cuda/portable.h"

namespace ela::kernels::cuda {
namespace {

constexpr int kSlots = 3;   // one loading, one at work, one on its way back
constexpr int kGroups = 8;  // of threads that share a state's row

struct DecodeArgs {
  RowsView y, q, k, v;
  float* states;
  HeadDecay decay;
  int heads;
  int64_t count;  // states of one head: B H
};

template <int kDim>
struct DecodeSize {
  static constexpr int kThreads = kGroups * kDim / 4;
  static constexpr int kState = kDim * kDim + 2 * kDim + 4;  // floats, with the padding
  static constexpr int kRowBytes = 2 * kDim;
  static constexpr int kLoaded = 4 * kState + 3 * kRowBytes;
  static constexpr int kSlot = (kLoaded + 127) / 128 * 128;
  static constexpr int kBytes = kSlots * kSlot;
  static constexpr int kBlocks = kDim == 128 ? 1 : 4;  // of a multiprocessor, by shared memory
};

template <int kDim>
struct DecodeShared {
  float4 weights[kDim];  // of a feature: what its row shrinks by, the key's, the query's
  float part[kGroups][kDim];
  float top[kDim / 32], den[kDim / 32];
  uint64_t loaded[kSlots];
};
static_assert(DecodeSize<128>::kBytes + sizeof(DecodeShared<128>) <= 227 * 1024);
static_assert(4 * (DecodeSize<64>::kBytes + sizeof(DecodeShared<64>) + 1024) <= 228 * 1024);

#ifdef ELA_HOPPER_CODE

__device__ float LaneMax(float x) {
#pragma unroll
  for (int lanes = 16; lanes > 0; lanes /= 2) {
    x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, lanes));
  }
  return x;
}

__device__ float LaneSum(float x) {
#pragma unroll
  for (int lanes = 16; lanes > 0; lanes /= 2) x += __shfl_xor_sync(0xffffffffu, x, lanes);
  return x;
}

/// Row b of one head.
template <int kDim>
__device__ __nv_bfloat16* RowOf(const RowsView& x, int64_t b, int head) {
  return static_cast<__nv_bfloat16*>(x.data) + b * x.stride + head * kDim;
}

/// Starts loading a state and its rows; by one thread.
template <int kDim>
__device__ void LoadSlot(const DecodeArgs& p, unsigned char* slot, uint64_t* loaded, int64_t item) {
  using Size = DecodeSize<kDim>;
  const int64_t b = item / p.heads;
  const int head = static_cast<int>(item % p.heads);
  unsigned char* rows = slot + 4 * Size::kState;
  hopper::ExpectBytes(loaded, Size::kLoaded);
  hopper::LoadBulk(slot, p.states + item * Size::kState, 4 * Size::kState, loaded);
  for (const RowsView* x : {&p.q, &p.k, &p.v}) {
    hopper::LoadBulk(rows, RowOf<kDim>(*x, b, head), Size::kRowBytes, loaded);
    rows += Size::kRowBytes;
  }
}

/// Gauge, normaliser and weights of the features, one a thread: the first kDim threads.
template <int kDim>
__device__ void StepFeatures(float* state, const __nv_bfloat16* rows, float decay,
                             DecodeShared<kDim>* sh) {
  const int f = static_cast<int>(threadIdx.x);
  float* norm = state + kDim * kDim;
  float* gauge = norm + kDim;
  float exponent = 0.0f, c = 0.0f;
  float4 weights = {};
  if (f < kDim) {
    const float key = Saturate(__bfloat162float(rows[kDim + f])), shifted = gauge[f] + decay;
    const float m = fmaxf(shifted, key);
    weights.x = expf(shifted - m);
    weights.y = expf(key - m);
    exponent = Saturate(__bfloat162float(rows[f])) + m;
    c = fmaf(norm[f], weights.x, weights.y);
    gauge[f] = m;
    norm[f] = c;
    const float top = LaneMax(exponent);
    if (f % 32 == 0) sh->top[f / 32] = top;
  }
  if (f == 0) gauge[kDim] += decay;  // the state's shift
  __syncthreads();
  if (f < kDim) {
    float top = sh->top[0];
#pragma unroll
    for (int i = 1; i < kDim / 32; ++i) top = fmaxf(top, sh->top[i]);
    weights.z = expf(exponent - top);
    sh->weights[f] = weights;
    const float den = LaneSum(weights.z * c);
    if (f % 32 == 0) sh->den[f / 32] = den;
  }
  __syncthreads();
}

/// Takes the token into the state, and reads it out in `part`.
template <int kDim>
__device__ void StepRows(float* state, const __nv_bfloat16* value, DecodeShared<kDim>* sh) {
  const int group = static_cast<int>(threadIdx.x) / (kDim / 4);
  const int column = static_cast<int>(threadIdx.x) % (kDim / 4) * 4;
  float v[4], sum[4] = {};
#pragma unroll
  for (int j = 0; j < 4; ++j) v[j] = __bfloat162float(value[column + j]);
#pragma unroll
  for (int f = group; f < kDim; f += kGroups) {
    float4* at = reinterpret_cast<float4*>(state + f * kDim + column);
    const float4 w = sh->weights[f], loaded = *at;
    float x[4] = {loaded.x, loaded.y, loaded.z, loaded.w};
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      x[j] = fmaf(w.y, v[j], x[j] * w.x);
      sum[j] = fmaf(w.z, x[j], sum[j]);
    }
    *at = make_float4(x[0], x[1], x[2], x[3]);
  }
  *reinterpret_cast<float4*>(&sh->part[group][column]) =
      make_float4(sum[0], sum[1], sum[2], sum[3]);
}

#endif  // ELA_HOPPER_CODE

template <int kDim>
__global__ void __launch_bounds__(DecodeSize<kDim>::kThreads, DecodeSize<kDim>::kBlocks)
    DecodeRing(const __grid_constant__ DecodeArgs p) {
#ifdef ELA_HOPPER_CODE
  using Size = DecodeSize<kDim>;
  extern __shared__ __align__(128) unsigned char slots[];
  __shared__ DecodeShared<kDim> sh;
  const int thread = static_cast<int>(threadIdx.x);
  const auto load = [&](int64_t n) {  // the block's n-th state
    const int64_t item = blockIdx.x + n * gridDim.x;
    if (item >= p.count) return;
    LoadSlot<kDim>(p, slots + n % kSlots * Size::kSlot, &sh.loaded[n % kSlots], item);
  };
  if (thread == 0) {
    for (uint64_t& barrier : sh.loaded) hopper::InitBarrier(&barrier, 1);
    hopper::FenceProxy();
    for (int n = 0; n < kSlots; ++n) load(n);
  }
  __syncthreads();
  int64_t n = 0;
  for (int64_t item = blockIdx.x; item < p.count; item += gridDim.x, ++n) {
    const int slot = static_cast<int>(n % kSlots), head = static_cast<int>(item % p.heads);
    auto* state = reinterpret_cast<float*>(slots + slot * Size::kSlot);
    const auto* rows = reinterpret_cast<const __nv_bfloat16*>(state + Size::kState);
    hopper::WaitBarrier(&sh.loaded[slot], static_cast<int>(n / kSlots % 2));
    StepFeatures<kDim>(state, rows, p.decay[head], &sh);
    StepRows<kDim>(state, rows + 2 * kDim, &sh);
    hopper::FenceProxy();
    __syncthreads();
    if (thread == 0) {
      hopper::StoreBulk(p.states + item * Size::kState, state, 4 * Size::kState);
      hopper::CommitStores();
      hopper::WaitStoresRead<1>();  // the state before has left its slot
      if (n > 0) load(n + kSlots - 1);
    }
    if (thread < kDim) {
      float sum = 0.0f, den = 0.0f;
#pragma unroll
      for (int g = 0; g < kGroups; ++g) sum += sh.part[g][thread];
#pragma unroll
      for (int i = 0; i < kDim / 32; ++i) den += sh.den[i];
      RowOf<kDim>(p.y, item / p.heads, head)[thread] = __float2bfloat16(sum / den);
    }
  }
  if (thread == 0) hopper::WaitStores();
#endif
}

template <int kDim>
void Launch(const Context& ctx, const DecodeArgs& p) {
  using Size = DecodeSize<kDim>;
  ELA_CUDA_CHECK(cudaFuncSetAttribute(DecodeRing<kDim>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                      Size::kBytes));
  const auto blocks =
      static_cast<unsigned>(std::min(p.count, int64_t{NumMultiprocessors(ctx)} * Size::kBlocks));
  DecodeRing<kDim><<<blocks, Size::kThreads, Size::kBytes, StreamOf(ctx)>>>(p);
  CheckLaunch("DecodeRing");
}

}  // namespace

void RunHopperDecode(const Context& ctx, const Tensor& y, float* states, const Tensor& q,
                     const Tensor& k, const Tensor& v, const ElaConfig& config) {
  if (q.dim(0) == 0) return;
  const ArenaScope scope(ctx.scratch);
  const StateLayout l = LayoutOf(config);
  DecodeArgs p = {};
  p.y = ViewOf(y), p.q = ViewOf(q), p.k = ViewOf(k), p.v = ViewOf(v);
  p.states = states;
  p.decay = HeadDecayOf(ctx, config);
  p.heads = static_cast<int>(config.num_heads);
  p.count = q.dim(0) * config.num_heads;
  const bool wide = config.head_dim == 128;
  ELA_CHECK(l.size == (wide ? DecodeSize<128>::kState : DecodeSize<64>::kState) &&
                l.c == l.features * l.values && l.m == l.c + l.features &&
                l.shift == l.m + l.features,
            "a head's state is %lld floats", static_cast<long long>(l.size));
  if (wide) {
    Launch<128>(ctx, p);
  } else {
    Launch<64>(ctx, p);
  }
}

}  // namespace ela::kernels::cuda
