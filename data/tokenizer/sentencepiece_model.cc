#include "data/tokenizer/sentencepiece_model.h"

#include <google/protobuf/io/coded_stream.h>
#include <google/protobuf/wire_format_lite.h>

#include <bit>

#include "absl/status/status.h"

namespace ela::data {
namespace {

using google::protobuf::internal::WireFormatLite;
using google::protobuf::io::CodedInputStream;

// Calls field(number, stream) for every field of a message; it returns 1 if it has read the value,
// 0 to have it skipped, -1 for malformed bytes.
template <typename Field>
bool ForEachField(std::string_view bytes, const Field& field) {
  CodedInputStream in(reinterpret_cast<const uint8_t*>(bytes.data()),
                      static_cast<int>(bytes.size()));
  while (const uint32_t tag = in.ReadTag()) {
    const int read = field(tag, &in);
    if (read < 0 || (read == 0 && !WireFormatLite::SkipField(&in, tag))) return false;
  }
  return in.ConsumedEntireMessage();
}

constexpr uint32_t Varint(int number) { return static_cast<uint32_t>(number) << 3; }
constexpr uint32_t Bytes(int number) { return static_cast<uint32_t>(number) << 3 | 2; }
constexpr uint32_t Fixed32(int number) { return static_cast<uint32_t>(number) << 3 | 5; }

int ReadInt(CodedInputStream* in, int64_t* value) {
  uint64_t raw = 0;
  if (!in->ReadVarint64(&raw)) return -1;
  *value = static_cast<int64_t>(raw);
  return 1;
}

int ReadBool(CodedInputStream* in, bool* value) {
  int64_t raw = 0;
  const int read = ReadInt(in, &raw);
  *value = raw != 0;
  return read;
}

int ReadString(CodedInputStream* in, std::string* value) {
  uint32_t length = 0;
  if (!in->ReadVarint32(&length) || length > INT32_MAX) return -1;
  return in->ReadString(value, static_cast<int>(length)) ? 1 : -1;
}

void AppendVarint(uint64_t value, std::string* out) {
  for (; value >= 0x80; value >>= 7) out->push_back(static_cast<char>(value | 0x80));
  out->push_back(static_cast<char>(value));
}

void AppendInt(int number, int64_t value, std::string* out) {
  AppendVarint(Varint(number), out);
  AppendVarint(static_cast<uint64_t>(value), out);
}

void AppendBytes(uint32_t tag, std::string_view bytes, std::string* out) {
  AppendVarint(tag, out);
  AppendVarint(bytes.size(), out);
  out->append(bytes);
}

bool ParsePiece(std::string_view bytes, SentencePieceModel::Piece* piece) {
  int64_t type = 1;
  const bool parsed = ForEachField(bytes, [&](uint32_t tag, CodedInputStream* in) {
    switch (tag) {
      case Bytes(1):
        return ReadString(in, &piece->text);
      case Fixed32(2): {
        uint32_t bits = 0;
        if (!in->ReadLittleEndian32(&bits)) return -1;
        piece->score = std::bit_cast<float>(bits);
        return 1;
      }
      case Varint(3):
        return ReadInt(in, &type);
      default:
        return 0;
    }
  });
  if (!parsed || type < 1 || type > 6) return false;
  piece->type = static_cast<SentencePieceModel::Type>(type);
  return true;
}

bool ParseTrainerSpec(std::string_view bytes, SentencePieceModel* model, int64_t* eos) {
  return ForEachField(bytes, [&](uint32_t tag, CodedInputStream* in) {
    switch (tag) {
      case Varint(3): {
        int64_t type = 0;
        const int read = ReadInt(in, &type);
        model->model_type = static_cast<int>(type);
        return read;
      }
      case Varint(24):
        return ReadBool(in, &model->whitespace_as_suffix);
      case Varint(35):
        return ReadBool(in, &model->byte_fallback);
      case Varint(42):
        return ReadInt(in, eos);
      default:
        return 0;
    }
  });
}

bool ParseNormalizerSpec(std::string_view bytes, SentencePieceModel* model) {
  return ForEachField(bytes, [&](uint32_t tag, CodedInputStream* in) {
    std::string table;
    switch (tag) {
      case Bytes(2): {
        const int read = ReadString(in, &table);
        model->has_normalization_table = !table.empty();
        return read;
      }
      case Varint(3):
        return ReadBool(in, &model->add_dummy_prefix);
      case Varint(4):
        return ReadBool(in, &model->remove_extra_whitespaces);
      case Varint(5):
        return ReadBool(in, &model->escape_whitespaces);
      default:
        return 0;
    }
  });
}

}  // namespace

absl::StatusOr<SentencePieceModel> ParseSentencePieceModel(std::string_view bytes) {
  SentencePieceModel model;
  int64_t eos = 2;
  const bool parsed = ForEachField(bytes, [&](uint32_t tag, CodedInputStream* in) {
    std::string part;
    switch (tag) {
      case Bytes(1):
        model.pieces.emplace_back();
        return ReadString(in, &part) == 1 && ParsePiece(part, &model.pieces.back()) ? 1 : -1;
      case Bytes(2):
        return ReadString(in, &part) == 1 && ParseTrainerSpec(part, &model, &eos) ? 1 : -1;
      case Bytes(3):
        return ReadString(in, &part) == 1 && ParseNormalizerSpec(part, &model) ? 1 : -1;
      default:
        return 0;
    }
  });
  if (!parsed || bytes.size() > INT32_MAX || model.pieces.empty()) {
    return absl::InvalidArgumentError("no SentencePiece model: its protocol buffer is damaged");
  }
  const bool has_eos = eos >= 0 && eos < static_cast<int64_t>(model.pieces.size()) &&
                       model.pieces[eos].type == SentencePieceModel::Type::kControl;
  model.end_of_sentence = has_eos ? static_cast<int32_t>(eos) : -1;
  return model;
}

std::string SerializeSentencePieceModel(const SentencePieceModel& model) {
  std::string out;
  for (const SentencePieceModel::Piece& piece : model.pieces) {
    std::string part;
    AppendBytes(Bytes(1), piece.text, &part);
    AppendVarint(Fixed32(2), &part);
    const auto score = std::bit_cast<uint32_t>(piece.score);
    for (int shift = 0; shift < 32; shift += 8) part.push_back(static_cast<char>(score >> shift));
    AppendInt(3, static_cast<int64_t>(piece.type), &part);
    AppendBytes(Bytes(1), part, &out);
  }
  std::string trainer;
  AppendInt(3, model.model_type, &trainer);
  AppendInt(4, static_cast<int64_t>(model.pieces.size()), &trainer);
  AppendInt(24, model.whitespace_as_suffix, &trainer);
  AppendInt(35, model.byte_fallback, &trainer);
  AppendInt(40, 0, &trainer);   // unk_id
  AppendInt(41, -1, &trainer);  // bos_id
  AppendInt(42, model.end_of_sentence, &trainer);
  AppendInt(43, -1, &trainer);  // pad_id
  AppendBytes(Bytes(2), trainer, &out);
  std::string normalizer;
  AppendBytes(Bytes(1), "identity", &normalizer);
  AppendInt(3, model.add_dummy_prefix, &normalizer);
  AppendInt(4, model.remove_extra_whitespaces, &normalizer);
  AppendInt(5, model.escape_whitespaces, &normalizer);
  AppendBytes(Bytes(3), normalizer, &out);
  return out;
}

}  // namespace ela::data
