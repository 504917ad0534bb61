// A dense double matrix for the reference back end: ops load their inputs, compute in plain loops,
// and store.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/tensor.h"

namespace ela::kernels::reference {

class Matrix {
 public:
  /// Zeros.
  Matrix(int64_t rows, int64_t columns) : rows_(rows), columns_(columns) {
    values_.resize(static_cast<size_t>(rows * columns));
  }
  /// The elements of x, [x.dim(0), x.row_numel()], of any floating or integer type.
  explicit Matrix(const Tensor& x);

  /// Writes into y, which has the same numbers of rows and columns; AddTo adds.
  void StoreTo(const Tensor& y) const;
  void AddTo(const Tensor& y) const;

  int64_t rows() const { return rows_; }
  int64_t columns() const { return columns_; }
  double& operator()(int64_t i, int64_t j) {
    return values_[static_cast<size_t>(i * columns_ + j)];
  }
  double operator()(int64_t i, int64_t j) const {
    return values_[static_cast<size_t>(i * columns_ + j)];
  }

 private:
  int64_t rows_ = 0, columns_ = 0;
  std::vector<double> values_;
};

/// a b, and a^T b, and a b^T.
Matrix Product(const Matrix& a, const Matrix& b);
Matrix ProductOfTransposed(const Matrix& a, const Matrix& b);
Matrix ProductWithTransposed(const Matrix& a, const Matrix& b);

}  // namespace ela::kernels::reference
