#include "kernels/matrix.h"

namespace ela::kernels::reference {
namespace {

/// visit(row, column, element) for every element of x, in its own type.
template <class Visit>
void ForEach(const Tensor& x, const Visit& visit) {
  const auto walk = [&](auto* data) {
    for (int64_t i = 0; i < x.dim(0); ++i) {
      for (int64_t j = 0; j < x.row_numel(); ++j) visit(i, j, data[i * x.stride() + j]);
    }
  };
  switch (x.dtype()) {
    case DType::kF32:
      return walk(x.as<float>());
    case DType::kF64:
      return walk(x.as<double>());
    case DType::kI32:
      return walk(x.as<int32_t>());
    case DType::kI64:
      return walk(x.as<int64_t>());
    case DType::kBf16:
      break;
  }
  ELA_CHECK(false, "the reference back end has no bf16");
}

}  // namespace

Matrix::Matrix(const Tensor& x) : Matrix(x.dim(0), x.row_numel()) {
  ForEach(x, [&](int64_t i, int64_t j, auto& element) {
    (*this)(i, j) = static_cast<double>(element);
  });
}

void Matrix::StoreTo(const Tensor& y) const {
  ELA_CHECK(y.dim(0) == rows_ && y.row_numel() == columns_);
  ForEach(y, [&](int64_t i, int64_t j, auto& element) {
    element = static_cast<std::decay_t<decltype(element)>>((*this)(i, j));
  });
}

void Matrix::AddTo(const Tensor& y) const {
  ELA_CHECK(y.dim(0) == rows_ && y.row_numel() == columns_);
  ForEach(y, [&](int64_t i, int64_t j, auto& element) {
    element += static_cast<std::decay_t<decltype(element)>>((*this)(i, j));
  });
}

Matrix Product(const Matrix& a, const Matrix& b) {
  ELA_CHECK(a.columns() == b.rows());
  Matrix c(a.rows(), b.columns());
  for (int64_t i = 0; i < c.rows(); ++i) {
    for (int64_t k = 0; k < a.columns(); ++k) {
      for (int64_t j = 0; j < c.columns(); ++j) c(i, j) += a(i, k) * b(k, j);
    }
  }
  return c;
}

Matrix ProductOfTransposed(const Matrix& a, const Matrix& b) {
  ELA_CHECK(a.rows() == b.rows());
  Matrix c(a.columns(), b.columns());
  for (int64_t k = 0; k < a.rows(); ++k) {
    for (int64_t i = 0; i < c.rows(); ++i) {
      for (int64_t j = 0; j < c.columns(); ++j) c(i, j) += a(k, i) * b(k, j);
    }
  }
  return c;
}

Matrix ProductWithTransposed(const Matrix& a, const Matrix& b) {
  ELA_CHECK(a.columns() == b.columns());
  Matrix c(a.rows(), b.rows());
  for (int64_t i = 0; i < c.rows(); ++i) {
    for (int64_t j = 0; j < c.columns(); ++j) {
      for (int64_t k = 0; k < a.columns(); ++k) c(i, j) += a(i, k) * b(j, k);
    }
  }
  return c;
}

}  // namespace ela::kernels::reference
