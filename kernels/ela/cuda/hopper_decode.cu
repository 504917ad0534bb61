// Decode on Hopper: hadamard_exp, bf16, head dims 64 and 128. The step of decode.cu, for a state
// that is read and written once and nothing else of size.
//
// A block takes states in turn through a ring of slots in shared memory: while it works on one, the
// copy engine loads the next ones and stores the one before, so reads and writes never wait for
// arithmetic. A slot holds the head's whole state, as it lies in memory, and its rows of q, k, v.
// It comes and goes in parts: rows of S, each stored as soon as it is done, and replaced at once.
#include "kernels/early_launch.cuh"
#include "kernels/ela/cuda/hopper.h"
#include "kernels/ela/cuda/portable.h"
#include "kernels/hopper.cuh"

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
  static constexpr int kParts = kDim == 128 ? 4 : 1;
  static constexpr int kPartRows = kDim / kParts;
  static constexpr int kPart = 4 * kPartRows * kDim;  // bytes of S
  static constexpr int kTail = 4 * (2 * kDim + 4);    // of what follows S
  static constexpr int kSlot = (4 * kState + 3 * kRowBytes + 127) / 128 * 128 + 128;
  static constexpr int kBytes = kSlots * kSlot;
  static constexpr int kBlocks = kDim == 128 ? 1 : 4;  // of a multiprocessor, by shared memory
};

template <int kDim>
struct DecodeShared {
  float4 weights[kDim];  // of a feature: what its row shrinks by, the key's, the query's
  float part[kGroups][kDim];
  float top[kDim / 32], den[kDim / 32];
  uint64_t loaded[kSlots][DecodeSize<kDim>::kParts];  // the first one with the tail and the rows
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

/// Where in its slot a state lies: as in memory to a line of 128 bytes, so that lines are copied
/// whole.
template <int kDim>
__device__ unsigned char* StateIn(const DecodeArgs& p, unsigned char* slot, int64_t item) {
  return slot + reinterpret_cast<uintptr_t>(p.states + item * DecodeSize<kDim>::kState) % 128;
}

/// Starts loading a part of a state, the first one with the tail and the rows; by one thread.
template <int kDim>
__device__ void LoadPart(const DecodeArgs& p, unsigned char* slot, uint64_t* loaded, int64_t item,
                         int part) {
  using Size = DecodeSize<kDim>;
  slot = StateIn<kDim>(p, slot, item);
  const float* state = p.states + item * Size::kState;
  hopper::ExpectBytes(loaded, Size::kPart + (part == 0 ? Size::kTail + 3 * Size::kRowBytes : 0));
  if (part == 0) {
    const int64_t b = item / p.heads;
    const int head = static_cast<int>(item % p.heads);
    unsigned char* rows = slot + 4 * Size::kState;
    hopper::LoadBulk(rows - Size::kTail, state + kDim * kDim, Size::kTail, loaded);
    for (const RowsView* x : {&p.q, &p.k, &p.v}) {
      hopper::LoadBulk(rows, RowOf<kDim>(*x, b, head), Size::kRowBytes, loaded);
      rows += Size::kRowBytes;
    }
  }
  hopper::LoadBulk(slot + part * Size::kPart, state + part * (Size::kPart / 4), Size::kPart,
                   loaded);
}

/// Starts storing a part of a state, the first one with the tail; by one thread.
template <int kDim>
__device__ void StorePart(const DecodeArgs& p, const unsigned char* slot, int64_t item, int part) {
  using Size = DecodeSize<kDim>;
  float* state = p.states + item * Size::kState;
  if (part == 0) {
    const int at = 4 * Size::kState - Size::kTail;
    hopper::StoreBulk(state + kDim * kDim, slot + at, Size::kTail);
  }
  hopper::StoreBulk(state + part * (Size::kPart / 4), slot + part * Size::kPart, Size::kPart);
  hopper::CommitStores();
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

/// Takes the token into a part of the state, and adds what it reads out to `sum`.
template <int kDim>
__device__ void StepRows(float* state, int part, const __nv_bfloat16* value,
                         const DecodeShared<kDim>& sh, float (&sum)[4]) {
  constexpr int kRows = DecodeSize<kDim>::kPartRows;
  const int group = static_cast<int>(threadIdx.x) / (kDim / 4);
  const int column = static_cast<int>(threadIdx.x) % (kDim / 4) * 4;
  float v[4];
#pragma unroll
  for (int j = 0; j < 4; ++j) v[j] = __bfloat162float(value[column + j]);
#pragma unroll
  for (int f = part * kRows + group; f < (part + 1) * kRows; f += kGroups) {
    float4* at = reinterpret_cast<float4*>(state + f * kDim + column);
    const float4 w = sh.weights[f], loaded = *at;
    float x[4] = {loaded.x, loaded.y, loaded.z, loaded.w};
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      x[j] = fmaf(w.y, v[j], x[j] * w.x);
      sum[j] = fmaf(w.z, x[j], sum[j]);
    }
    *at = make_float4(x[0], x[1], x[2], x[3]);
  }
}

#endif  // ELA_HOPPER_CODE

template <int kDim>
__global__ void __launch_bounds__(DecodeSize<kDim>::kThreads, DecodeSize<kDim>::kBlocks)
    DecodeRing(const __grid_constant__ DecodeArgs p) {
#ifdef ELA_HOPPER_CODE
  using Size = DecodeSize<kDim>;
  extern __shared__ __align__(128) unsigned char slots[];
  __shared__ DecodeShared<kDim> sh;
  LetNextStart();
  const int thread = static_cast<int>(threadIdx.x);
  const auto load = [&](int64_t n, int part) {  // of the block's n-th state
    const int64_t item = blockIdx.x + n * gridDim.x;
    if (item >= p.count) return;
    LoadPart<kDim>(p, slots + n % kSlots * Size::kSlot, &sh.loaded[n % kSlots][part], item, part);
  };
  if (thread == 0) {
    for (auto& barriers : sh.loaded) {
      for (uint64_t& barrier : barriers) hopper::InitBarrier(&barrier, 1);
    }
    hopper::FenceProxy();
    for (int n = 0; n < kSlots; ++n) {
      for (int part = 0; part < Size::kParts; ++part) load(n, part);
    }
  }
  __syncthreads();
  int64_t n = 0;
  for (int64_t item = blockIdx.x; item < p.count; item += gridDim.x, ++n) {
    const int slot = static_cast<int>(n % kSlots), head = static_cast<int>(item % p.heads);
    const auto parity = static_cast<int>(n / kSlots % 2);
    unsigned char* const memory = StateIn<kDim>(p, slots + slot * Size::kSlot, item);
    auto* state = reinterpret_cast<float*>(memory);
    const auto* rows = reinterpret_cast<const __nv_bfloat16*>(state + Size::kState);
    float sum[4] = {};
    for (int part = 0; part < Size::kParts; ++part) {
      hopper::WaitBarrier(&sh.loaded[slot][part], parity);
      if (part == 0) StepFeatures<kDim>(state, rows, p.decay[head], &sh);
      StepRows<kDim>(state, part, rows + 2 * kDim, sh, sum);
      if (part == Size::kParts - 1) {
        *reinterpret_cast<float4*>(&sh.part[thread / (kDim / 4)][thread % (kDim / 4) * 4]) =
            make_float4(sum[0], sum[1], sum[2], sum[3]);
      }
      hopper::FenceProxy();
      __syncthreads();
      if (thread != 0) continue;
      StorePart<kDim>(p, memory, item, part);
      // All of the state before has left its slot: the next one there begins elsewhere in a line,
      // so that its parts overlap others.
      hopper::WaitStoresRead<1>();
      if (n > 0) load(n + kSlots - 1, part);
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
