// Constants of the .bin/.idx format; FORMAT.md has the grammar and a worked example.
#pragma once

#include <cstdint>
#include <cstring>
#include <string_view>

namespace ela::data {

inline constexpr std::string_view kIndexMagic{"MMIDIDX\0\0", 9};
inline constexpr uint64_t kIndexVersion = 1;
inline constexpr int64_t kIndexHeaderBytes = 9 + 8 + 1 + 8 + 8;
inline constexpr int64_t kChecksumBlockBytes = int64_t{64} << 20;
/// Vocabularies below this are stored as u16.
inline constexpr int64_t kSmallVocab = 65500;

/// Code of an element type in the .idx file.
enum class TokenType : uint8_t {
  kU8 = 1,
  kI8 = 2,
  kI16 = 3,
  kI32 = 4,
  kI64 = 5,
  kF64 = 6,
  kF32 = 7,
  kU16 = 8,
};

inline TokenType TypeForVocab(int64_t vocab_size) {
  return vocab_size < kSmallVocab ? TokenType::kU16 : TokenType::kI32;
}

/// Bytes of one token; 0 for codes that are no integer type.
inline int64_t TokenBytes(TokenType type) {
  switch (type) {
    case TokenType::kU8:
    case TokenType::kI8:
      return 1;
    case TokenType::kI16:
    case TokenType::kU16:
      return 2;
    case TokenType::kI32:
      return 4;
    case TokenType::kI64:
      return 8;
    case TokenType::kF64:
    case TokenType::kF32:
      return 0;
  }
  return 0;
}

inline const char* TypeName(TokenType type) {
  switch (type) {
    case TokenType::kU8:
      return "u8";
    case TokenType::kI8:
      return "i8";
    case TokenType::kI16:
      return "i16";
    case TokenType::kI32:
      return "i32";
    case TokenType::kI64:
      return "i64";
    case TokenType::kF64:
      return "f64";
    case TokenType::kF32:
      return "f32";
    case TokenType::kU16:
      return "u16";
  }
  return "unknown";
}

/// Little-endian read at any address: the arrays of the .idx file are unaligned.
template <typename T>
T LoadUnaligned(const char* at) {
  T value;
  std::memcpy(&value, at, sizeof(T));
  return value;
}

}  // namespace ela::data
