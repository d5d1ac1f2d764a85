#include "weights/safetensors.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <boost/json/basic_parser_impl.hpp>
#include <cstring>
#include <limits>
#include <optional>
#include <unordered_set>

#include "base/utf8.h"
#include "weights/problems.h"

namespace foresight {
namespace {

namespace json = boost::json;

// A tensor's description as the header gives it.
struct HeaderEntry {
  std::string name;
  std::string dtype;
  std::vector<uint64_t> shape;
  std::vector<uint64_t> offsets;
  bool has_dtype = false;
  bool has_shape = false;
  bool has_offsets = false;
};

// Builds the entries from the parser's events: nothing but the shape above is let through. Reading events
// instead of a document makes names that occur twice visible.
class HeaderHandler {
 public:
  static constexpr size_t max_object_size = std::numeric_limits<size_t>::max();
  static constexpr size_t max_array_size = std::numeric_limits<size_t>::max();
  static constexpr size_t max_key_size = std::numeric_limits<size_t>::max();
  static constexpr size_t max_string_size = std::numeric_limits<size_t>::max();

  std::vector<HeaderEntry> entries;
  Status status;

  bool on_document_begin(json::error_code&) { return true; }
  bool on_document_end(json::error_code&) { return true; }
  bool on_object_begin(json::error_code& error) {
    if (place_ == Place::kStart) return Enter(Place::kTop);
    if (place_ == Place::kEntryValue) return Enter(Place::kEntry);
    if (place_ == Place::kMetadataValue) return Enter(Place::kMetadata);
    return Refuse(error, "an object");
  }
  bool on_object_end(size_t, json::error_code& error) {
    if (place_ == Place::kEntry && !CheckComplete(error)) return false;
    return Enter(place_ == Place::kTop ? Place::kStart : Place::kTop);
  }
  bool on_array_begin(json::error_code& error) {
    if (place_ == Place::kShapeValue) return Enter(Place::kShape);
    if (place_ == Place::kOffsetsValue) return Enter(Place::kOffsets);
    return Refuse(error, "an array");
  }
  bool on_array_end(size_t, json::error_code&) { return Enter(Place::kEntry); }
  bool on_key_part(json::string_view part, size_t, json::error_code&) { return Append(part); }
  bool on_key(json::string_view part, size_t, json::error_code& error) {
    Append(part);
    const std::string key = std::move(text_);
    text_.clear();
    switch (place_) {
      case Place::kTop:
        if (!names_.insert(key).second) return Fail(error, "tensor {}: the name occurs twice", key);
        if (HasControlCharacters(key)) return Fail(error, "control characters in the name of tensor {}", key);
        if (key == "__metadata__") return Enter(Place::kMetadataValue);
        entries.emplace_back().name = key;
        return Enter(Place::kEntryValue);
      case Place::kEntry:
        return OnField(key, error);
      default:  // kMetadata: an object's key can't come elsewhere
        return Enter(Place::kMetadataText);
    }
  }
  bool on_string_part(json::string_view part, size_t, json::error_code&) { return Append(part); }
  bool on_string(json::string_view part, size_t, json::error_code& error) {
    Append(part);
    const std::string value = std::move(text_);
    text_.clear();
    if (place_ == Place::kMetadataText) return Enter(Place::kMetadata);
    if (place_ != Place::kDtypeValue) return Refuse(error, "a string");
    entries.back().dtype = value;
    return Enter(Place::kEntry);
  }
  bool on_number_part(json::string_view, json::error_code&) { return true; }
  bool on_int64(int64_t value, json::string_view, json::error_code& error) {
    if (value < 0) return Refuse(error, "a negative number");
    return OnSize(static_cast<uint64_t>(value), error);
  }
  bool on_uint64(uint64_t value, json::string_view, json::error_code& error) { return OnSize(value, error); }
  bool on_double(double, json::string_view, json::error_code& error) {
    return Refuse(error, "a fraction or a number beyond 64 bits");
  }
  bool on_bool(bool, json::error_code& error) { return Refuse(error, "a boolean"); }
  bool on_null(json::error_code& error) { return Refuse(error, "null"); }
  bool on_comment_part(json::string_view, json::error_code&) { return true; }
  bool on_comment(json::string_view, json::error_code&) { return true; }

 private:
  // Where the next event belongs.
  enum class Place {
    kStart,
    kTop,            // between tensors
    kMetadataValue,  // the object of __metadata__
    kMetadata,
    kMetadataText,
    kEntryValue,  // the object of a tensor
    kEntry,
    kDtypeValue,
    kShapeValue,
    kShape,
    kOffsetsValue,
    kOffsets,
  };

  bool Enter(Place place) {
    place_ = place;
    return true;
  }
  bool Append(json::string_view part) {
    text_.append(part.data(), part.size());
    return true;
  }
  template <typename... Args>
  bool Fail(json::error_code& error, fmt::format_string<Args...> format, Args&&... args) {
    status = InvalidArgument(format, std::forward<Args>(args)...);
    error = make_error_code(json::error::exception);  // any: `status` says what it is
    return false;
  }
  bool Refuse(json::error_code& error, std::string_view what) {
    switch (place_) {
      case Place::kStart:
        return Fail(error, "the header is {}, not an object", what);
      case Place::kMetadataValue:
      case Place::kMetadata:
      case Place::kMetadataText:
        return Fail(error, "__metadata__: want an object of strings, got {}", what);
      case Place::kDtypeValue:
        return Fail(error, "tensor {}: dtype: want a string, got {}", entries.back().name, what);
      case Place::kShapeValue:
      case Place::kShape:
        return Fail(error, "tensor {}: shape: want an array of sizes, got {}", entries.back().name, what);
      case Place::kOffsetsValue:
      case Place::kOffsets:
        return Fail(error, "tensor {}: data_offsets: want two offsets, got {}", entries.back().name, what);
      case Place::kTop:
      case Place::kEntryValue:
      case Place::kEntry:
        break;
    }
    return Fail(error, "tensor {}: want an object, got {}", entries.back().name, what);
  }
  bool OnField(const std::string& key, json::error_code& error) {
    HeaderEntry& entry = entries.back();
    bool* seen = key == "dtype"          ? &entry.has_dtype
                 : key == "shape"        ? &entry.has_shape
                 : key == "data_offsets" ? &entry.has_offsets
                                         : nullptr;
    if (seen == nullptr) return Fail(error, "tensor {}: unknown field {}", entry.name, key);
    if (*seen) return Fail(error, "tensor {}: {} occurs twice", entry.name, key);
    *seen = true;
    return Enter(seen == &entry.has_dtype   ? Place::kDtypeValue
                 : seen == &entry.has_shape ? Place::kShapeValue
                                            : Place::kOffsetsValue);
  }
  bool OnSize(uint64_t value, json::error_code& error) {
    HeaderEntry* entry = entries.empty() ? nullptr : &entries.back();
    if (place_ == Place::kShape) {
      if (entry->shape.size() == kSafetensorsRankMax) {
        return Fail(error, "tensor {}: more than {} dimensions", entry->name, kSafetensorsRankMax);
      }
      entry->shape.push_back(value);
      return true;
    }
    if (place_ == Place::kOffsets && entry->offsets.size() < 2) {
      entry->offsets.push_back(value);
      return true;
    }
    return Refuse(error, place_ == Place::kOffsets ? "three" : "a number");
  }
  bool CheckComplete(json::error_code& error) {
    const HeaderEntry& entry = entries.back();
    const std::string_view missing = !entry.has_dtype           ? "dtype"
                                     : !entry.has_shape         ? "shape"
                                     : entry.offsets.size() < 2 ? "data_offsets"
                                                                : "";
    if (missing.empty()) return true;
    return Fail(error, "tensor {}: {} is missing or incomplete", entry.name, missing);
  }

  Place place_ = Place::kStart;
  std::string text_;
  std::unordered_set<std::string> names_;
};

Result<std::vector<HeaderEntry>> ParseHeader(std::string_view text) {
  try {
    json::parse_options options;
    options.max_depth = 4;
    json::basic_parser<HeaderHandler> parser(options);
    json::error_code error;
    const size_t offset = parser.write_some(false, text.data(), text.size(), error);
    if (!parser.handler().status.ok()) return parser.handler().status;
    if (error == json::error::incomplete) return InvalidArgument("the header's JSON ends too early");
    if (error == json::error::too_deep) return InvalidArgument("the header's JSON is nested too deep");
    if (error) return InvalidArgument("the header's JSON: {} at byte {}", error.message(), offset);
    if (const size_t rest = text.find_first_not_of(' ', offset); rest != std::string_view::npos) {
      return InvalidArgument("the header has something after its JSON, at byte {}", rest);
    }
    return std::move(parser.handler().entries);
  } catch (const std::bad_alloc&) {
    return ResourceExhausted("out of memory for a header of {} bytes", text.size());
  }
}

// The bytes of a tensor by its shape; nothing when they don't fit into 63 bits.
std::optional<uint64_t> TensorBytes(const std::vector<uint64_t>& shape, DType dtype) {
  // A zero makes the product zero only if the others alone are sane: huge dimensions are refused either way.
  uint64_t bytes = DTypeBytes(dtype);
  bool has_zero = false;
  for (const uint64_t size : shape) {
    if (size > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) return std::nullopt;
    if (size == 0) has_zero = true;
    if (__builtin_mul_overflow(bytes, std::max<uint64_t>(size, 1), &bytes)) return std::nullopt;
  }
  if (bytes > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) return std::nullopt;
  return has_zero ? 0 : bytes;
}

}  // namespace

std::string ShapeToString(std::span<const int64_t> shape) {
  return fmt::format("[{}]", fmt::join(shape, ", "));
}

Result<std::vector<StoredTensor>> ParseSafetensors(std::span<const std::byte> file) {
  if (file.size() < 8) {
    return DataLoss("want at least 8 bytes with the header's length, got a file of {}", file.size());
  }
  uint64_t header_bytes = 0;
  for (int i = 7; i >= 0; --i) header_bytes = header_bytes << 8 | static_cast<uint64_t>(file[i]);
  if (header_bytes > kSafetensorsHeaderBytesMax) {
    return InvalidArgument("the header's length is {}, more than the {} that the format allows", header_bytes,
                           kSafetensorsHeaderBytesMax);
  }
  if (header_bytes > file.size() - 8) {
    return DataLoss("the header of {} bytes does not fit into the file of {}", header_bytes, file.size());
  }
  const std::string_view text(reinterpret_cast<const char*>(file.data()) + 8, header_bytes);
  ASSIGN_OR_RETURN(std::vector<HeaderEntry> entries, ParseHeader(text));

  const std::span<const std::byte> data = file.subspan(8 + header_bytes);
  std::stable_sort(entries.begin(), entries.end(),
                   [](const HeaderEntry& a, const HeaderEntry& b) { return a.offsets < b.offsets; });
  std::vector<StoredTensor> tensors;
  tensors.reserve(entries.size());
  ProblemList problems;
  uint64_t end = 0;  // of the tensors before, and which of them ends there
  std::string end_name;
  for (HeaderEntry& entry : entries) {
    const uint64_t begin = entry.offsets[0];
    const uint64_t stop = entry.offsets[1];
    if (begin > stop) {
      problems.Add("tensor {}: data_offsets [{}, {}] run backwards", entry.name, begin, stop);
      continue;
    }
    if (stop > data.size()) {
      problems.Add("tensor {}: data_offsets [{}, {}] run past the {} bytes of data in the file", entry.name,
                   begin, stop, data.size());
      continue;
    }
    if (begin < end) {
      problems.Add("tensor {}: its bytes [{}, {}) overlap those of tensor {}", entry.name, begin, stop,
                   end_name);
    } else if (begin > end) {
      problems.Add("bytes [{}, {}) before tensor {} belong to no tensor", end, begin, entry.name);
    }
    if (stop >= end) {
      end = stop;
      end_name = entry.name;
    }
    const std::optional<DType> dtype = DTypeFromName(entry.dtype);
    if (!dtype) {
      problems.Add("tensor {}: dtype {} is none of F32, BF16, F8_E4M3, F8_E8M0, I8, I64", entry.name,
                   entry.dtype);
      continue;
    }
    const std::optional<uint64_t> bytes = TensorBytes(entry.shape, *dtype);
    if (!bytes || *bytes != stop - begin) {
      problems.Add("tensor {}: {} [{}] takes {} bytes, but data_offsets [{}, {}] hold {}", entry.name,
                   entry.dtype, fmt::join(entry.shape, ", "),
                   bytes ? std::to_string(*bytes) : std::string("more than 2^63"), begin, stop, stop - begin);
      continue;
    }
    StoredTensor& tensor = tensors.emplace_back();
    tensor.name = std::move(entry.name);
    tensor.dtype = *dtype;
    tensor.shape.assign(entry.shape.begin(), entry.shape.end());
    tensor.bytes = data.subspan(begin, stop - begin);
  }
  if (problems.empty() && end < data.size()) {
    problems.Add("bytes [{}, {}) at the end of the data belong to no tensor", end, data.size());
  }
  RETURN_IF_ERROR(problems.ToStatus("header"));
  return tensors;
}

}  // namespace foresight
