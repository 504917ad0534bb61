// Programmatic dependent launch (Hopper): a kernel's blocks come to the multiprocessors, and do
// what depends on nothing, while what the stream was given before still runs. What a step of
// decoding consists of is hardly longer than the pause between two kernels otherwise.
#pragma once

#include "kernels/cuda_support.h"
#include "kernels/hopper.h"

namespace ela::kernels::cuda {

/// Rows that leave a card idle, as decoding has them: there launches count.
inline constexpr int64_t kFewRows = 128;

/// First in a kernel that LaunchEarly launches, but for reading what no kernel writes: all that the
/// stream was given before is done, and what it wrote can be seen.
__device__ inline void AwaitEarlier() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

/// The next kernel, if it is launched early, may come once every block has said so (or ended).
__device__ inline void LetNextStart() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

/// Both of a kernel that reads nothing before.
__device__ inline void StartEarly() {
  LetNextStart();
  AwaitEarlier();
}

/// Early if `rows`, what the kernel works on, are few. To be followed by CheckLaunch.
template <class... Parameters, class... Arguments>
void LaunchEarly(const Context& ctx, int64_t rows, void (*kernel)(Parameters...), dim3 grid,
                 unsigned block, Arguments&&... arguments) {
  cudaLaunchAttribute early = {};
  early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  early.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = grid;
  config.blockDim = dim3(block);
  config.stream = StreamOf(ctx);
  config.attrs = &early;
  config.numAttrs = rows <= kFewRows && IsHopper() ? 1 : 0;
  cudaLaunchKernelEx(&config, kernel, Parameters(arguments)...);
}

}  // namespace ela::kernels::cuda
