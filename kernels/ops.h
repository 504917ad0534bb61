// Every op of the training step. One folder an op: its header holds the mathematics, the shapes and
// what is saved; beside it stand the back ends: reference.cc (double, written to be read), cpu.cc,
// and CUDA where a toolkit is found. dispatch.cc is the only place that switches on the back end.
//
// Conventions: outputs first, then gradients, inputs, saved statistics, sizes. T = tokens (rows) on
// this rank. Parameter gradients add to what is there; input gradients overwrite. Zero rows are
// legal everywhere. Every sum has a fixed order that does not depend on the number of threads.
//
// Element types: kF64 for every floating-point tensor on the reference back end. On the others
// activations, their gradients and parameters are kF32 or kBf16 with float arithmetic, while
// statistics (what a header calls float), parameter gradients and optimizer state are kF32 and sums
// over many rows kF64.
#pragma once

#include "kernels/adamw/adamw.h"
#include "kernels/context.h"
#include "kernels/ela/ela.h"
#include "kernels/elementwise/elementwise.h"
#include "kernels/embedding/embedding.h"
#include "kernels/experts/experts.h"
#include "kernels/label_bias/label_bias.h"
#include "kernels/linear/linear.h"
#include "kernels/loss/loss.h"
#include "kernels/permute/permute.h"
#include "kernels/rms_norm/rms_norm.h"
#include "kernels/rope/rope.h"
#include "kernels/router/router.h"
#include "kernels/softmax_attention/softmax_attention.h"
#include "kernels/swiglu/swiglu.h"
#include "kernels/tensor.h"
