// The input families on which a careless implementation overflows, divides by zero or drops terms
// (kernels.md): everything is finite, and right.
#include <functional>

#include "tests/kernels/ela_testing.h"

namespace ela::kernels {
namespace {

using namespace ela::testing;  // NOLINT

struct Family {
  const char* name;
  /// q and k of a token and feature of d, from two normal numbers.
  std::function<std::pair<double, double>(int64_t t, int64_t f, int64_t d, double a, double b)> of;
};

double Sign(double x) { return x < 0 ? -1 : 1; }

const Family kFamilies[] = {
    {"N(0, 1)", [](auto, auto, auto, double a, double b) { return std::pair(a, b); }},
    {"N(0, 10^2)", [](auto, auto, auto, double a, double b) { return std::pair(10 * a, 10 * b); }},
    {"+-80",
     [](auto, auto, auto, double a, double b) { return std::pair(80 * Sign(a), 80 * Sign(b)); }},
    {"+-1000", [](auto, auto, auto, double a,
                  double b) { return std::pair(1000 * Sign(a), 1000 * Sign(b)); }},
    {"-15", [](auto, auto, auto, double, double) { return std::pair(-15.0, -15.0); }},
    {"opposite 100",
     [](auto, int64_t f, int64_t d, double, double) {
       return f < d / 2 ? std::pair(100.0, -100.0) : std::pair(-100.0, 100.0);
     }},
    {"keys jump", [](int64_t t, auto, auto, double a,
                     double b) { return std::pair(a, b + 1000 * static_cast<double>(t / 50)); }},
    {"keys drift", [](int64_t t, auto, auto, double a,
                      double b) { return std::pair(a, b + 0.5 * static_cast<double>(t)); }},
};

void FillFamily(const Attention& a, const Family& family) {
  std::mt19937_64 engine(7);
  std::normal_distribution<double> normal;
  const Tensor q = a.q(), k = a.k();
  const int64_t heads = q.dim(1), d = q.dim(2);
  for (int64_t i = 0; i < q.numel(); ++i) {
    const double first = normal(engine), second = normal(engine);
    const auto [x, z] = family.of(i / (heads * d), i % d, d, first, second);
    Set(q, i, static_cast<float>(Bf16(static_cast<float>(x))));
    Set(k, i, static_cast<float>(Bf16(static_cast<float>(z))));
  }
}

double LargestOf(const std::vector<double>& x) {
  double largest = 0;
  for (double at : x) largest = std::fmax(largest, std::fabs(at));
  return largest;
}

/// The largest error of `actual`, relative to the largest sum of absolute terms.
double Error(const Tensor& actual, const std::vector<double>& expected, double terms) {
  return RelativeError(actual, expected, terms) *
         (LargestOf(expected) > terms ? LargestOf(expected) / terms : 1);
}

struct Errors {
  double forward, backward;
};

Errors ErrorsOf(DType dtype, const Problem& p, const Family& family, Counters* counters = nullptr) {
  OpContext ctx(dtype == DType::kF64 ? Backend::kReference : Backend::kCpu);
  Attention a(dtype, p);
  a.FillNormal(1);
  FillFamily(a, family);
  a.Run(ctx);
  const OracleOutput o = a.Oracle();
  if (counters != nullptr) counters->slow_path_chunks = ctx.counters().slow_path_chunks.load();
  return {Error(a.y(), o.y, MaxAbs(a.v())),
          std::fmax(std::fmax(Error(a.dq(), o.dq, LargestOf(o.dq_terms)),
                              Error(a.dk(), o.dk, LargestOf(o.dk_terms))),
                    Error(a.dv(), o.dv, LargestOf(o.dv_terms)))};
}

std::vector<Problem> Problems(int64_t length) {
  return AllModes(2, 16, 8, Documents({length - 60, 60}));
}

TEST(ElaFamilies, ReferenceIsRight) {
  for (const Problem& p : Problems(160)) {
    for (const Family& family : kFamilies) {
      const auto [forward, backward] = ErrorsOf(DType::kF64, p, family);
      EXPECT_TRUE(forward <= 1e-9 && backward <= 1e-9)
          << p.Name() << ", " << family.name << ": " << forward << ", " << backward;
    }
  }
}

// Forward: a few roundings of 6e-8, whatever the numbers are. Backward: log-denominators of up to
// 2000 are rounded to float, which makes every weight off by up to 6e-5.
TEST(ElaFamilies, CpuIsRight) {
  for (const Problem& p : Problems(160)) {
    for (const Family& family : kFamilies) {
      const auto [forward, backward] = ErrorsOf(DType::kF32, p, family);
      EXPECT_TRUE(forward <= 2e-6 && backward <= 6e-5)
          << p.Name() << ", " << family.name << ": " << forward << ", " << backward;
    }
  }
}

}  // namespace
}  // namespace ela::kernels
