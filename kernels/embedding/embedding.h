// Token embedding: x_t = table[ids_t].
#pragma once

#include "kernels/context.h"
#include "kernels/tensor.h"

namespace ela::kernels {

/// x [T, d], ids [T] (i32, each in [0, V)), table [V, d].
void EmbeddingForward(const Context& ctx, Tensor x, Tensor ids, Tensor table);
/// dtable [V, d] += rows of dx, in token order.
void EmbeddingBackward(const Context& ctx, Tensor dtable, Tensor dx, Tensor ids);

}  // namespace ela::kernels
