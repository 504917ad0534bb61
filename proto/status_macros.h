// The two macros every folder above the schema uses with absl::Status and absl::StatusOr.
#pragma once

#include "absl/status/status.h"
#include "absl/status/statusor.h"

#define ELA_RETURN_IF_ERROR(expression)                   \
  do {                                                    \
    ::absl::Status ela_status_ = (expression);            \
    if (!ela_status_.ok()) return ela_status_;            \
  } while (false)

// ELA_ASSIGN_OR_RETURN(auto value, Call()); Not for two uses on one line.
#define ELA_ASSIGN_OR_RETURN(lhs, expression) \
  ELA_ASSIGN_OR_RETURN_(lhs, expression, ELA_MACRO_CONCAT_(ela_status_or_, __LINE__))
#define ELA_ASSIGN_OR_RETURN_(lhs, expression, name) \
  auto name = (expression);                          \
  if (!name.ok()) return name.status();              \
  lhs = *std::move(name)
#define ELA_MACRO_CONCAT_(a, b) ELA_MACRO_CONCAT_INNER_(a, b)
#define ELA_MACRO_CONCAT_INNER_(a, b) a##b
