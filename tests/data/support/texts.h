// Texts to encode: real ones that every build machine has, and random ones.
#pragma once

#include <fstream>
#include <iterator>
#include <random>
#include <string>
#include <vector>

#include "data/tokenizer/utf8.h"

namespace ela::data::testing {

/// Heads of C headers, some of which are much longer than a document.
inline std::vector<std::string> RealTexts(size_t bytes_each = 100'000) {
  std::vector<std::string> texts;
  for (const char* name : {"stdio.h", "stdlib.h", "string.h", "math.h", "elf.h", "unistd.h",
                           "gtest/gtest.h", "nlohmann/json.hpp", "zstd.h", "CLI/App.hpp"}) {
    std::ifstream in(std::string("/usr/include/") + name, std::ios::binary);
    std::string text((std::istreambuf_iterator<char>(in)), {});
    if (!text.empty()) texts.push_back(text.substr(0, bytes_each));
  }
  return texts;
}

/// Valid UTF-8: words that repeat, runs of whitespace, all planes of Unicode, control characters.
inline std::string RandomText(std::mt19937* random, int words) {
  const auto below = [&](uint32_t n) { return static_cast<uint32_t>((*random)() % n); };
  static const char* const kWords[] = {
      "int",     "return", "  ",    "\n",       "\t",        "\n\n\t\t",     "    ",
      "foo_bar", "Größe",  "слово", "汉字文本", "한국어",    "🙂🚀",     "x",
      "0x1F",    "12345",  "//",    "-----",    "e\xCC\x81", "\xE2\x96\x81", "</s>",
      "<0x41>",  "<unk>",  "', '",  "\r\n",     "\xC2\xA0",  "HTTPServer"};
  std::string text;
  for (int w = 0; w < words; ++w) {
    const uint32_t kind = below(10);
    if (kind < 7) {
      text += kWords[below(std::size(kWords))];
    } else if (kind < 8) {
      text += ' ';
    } else {
      uint32_t c = kind == 8 ? below(0x3000) : below(0x110000);
      if (c >= 0xD800 && c < 0xE000) c -= 0x800;
      text += EncodeUtf8(c);
    }
  }
  return text;
}

inline std::string RandomBytes(std::mt19937* random, size_t size) {
  std::string text(size, 0);
  for (char& c : text) c = static_cast<char>((*random)() & 0xFF);
  return text;
}

}  // namespace ela::data::testing
