#include "data/tokenizer/split_pattern.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include "absl/strings/str_cat.h"

namespace ela::data {
namespace {

struct CodeDeleter {
  void operator()(pcre2_code* code) const { pcre2_code_free(code); }
};
struct MatchDeleter {
  void operator()(pcre2_match_data* data) const { pcre2_match_data_free(data); }
};

class RegexPattern final : public SplitPattern {
 public:
  explicit RegexPattern(pcre2_code* code) : code_(code) {
    pcre2_jit_compile(code, PCRE2_JIT_COMPLETE);  // where it fails, matching is only slower
  }

  void Split(std::string_view text,
             const std::function<void(std::string_view)>& word) const override {
    const std::unique_ptr<pcre2_match_data, MatchDeleter> match(
        pcre2_match_data_create_from_pattern(code_.get(), nullptr));
    const auto* subject = reinterpret_cast<PCRE2_SPTR>(text.data());
    size_t done = 0;    // words cover the text up to here
    size_t search = 0;  // next place to look for a match
    while (search < text.size()) {
      const int found = pcre2_match(code_.get(), subject, text.size(), search, PCRE2_NO_UTF_CHECK,
                                    match.get(), nullptr);
      if (found < 0) break;  // no match, or one that takes more than the library's limits
      const size_t* at = pcre2_get_ovector_pointer(match.get());
      if (at[1] <= at[0] || at[1] <= search) {  // empty: go on behind the next character
        search = at[1] + 1;
        while (search < text.size() && (text[search] & 0xC0) == 0x80) ++search;
        continue;
      }
      if (at[0] > done) word(text.substr(done, at[0] - done));
      word(text.substr(at[0], at[1] - at[0]));
      done = search = at[1];
    }
    if (done < text.size()) word(text.substr(done));
  }

 private:
  std::unique_ptr<pcre2_code, CodeDeleter> code_;
};

}  // namespace

const char* SplitPattern::Gpt2() {
  return R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";
}

absl::StatusOr<std::unique_ptr<SplitPattern>> SplitPattern::Compile(const std::string& pattern) {
  int error = 0;
  size_t offset = 0;
  pcre2_code* code =
      pcre2_compile(reinterpret_cast<PCRE2_SPTR>(pattern.data()), pattern.size(),
                    PCRE2_UTF | PCRE2_UCP | PCRE2_NEVER_BACKSLASH_C, &error, &offset, nullptr);
  if (code == nullptr) {
    char message[256];
    pcre2_get_error_message(error, reinterpret_cast<PCRE2_UCHAR*>(message), sizeof(message));
    return absl::InvalidArgumentError(
        absl::StrCat("the pattern of a pre-tokenizer, ", pattern, ", at ", offset, ": ", message));
  }
  return std::make_unique<RegexPattern>(code);
}

}  // namespace ela::data
