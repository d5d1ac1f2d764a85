// Saved states. The form, all little-endian:
//
//   the complete entries of every block | the valid rows of every ring | StateRecord
//
// The record is what makes the bytes before it a state: it comes last, and holds their hash.
#include <fcntl.h>
#include <unistd.h>
#define XXH_STATIC_LINKING_ONLY  // for a hash state on the stack
#include <xxhash.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <memory>
#include <vector>

#include "base/check.h"
#include "base/mapped_file.h"
#include "kv_cache/sequence_state.h"

namespace foresight {
namespace {

constexpr uint64_t kMagic = 0x6574617473736566;  // "fesstate"
constexpr uint64_t kFormatVersion = 1;
// Of the draft layers, which have no limit of their own; keeps arithmetic on damaged records in range.
constexpr int64_t kDraftTokensMax = int64_t{1} << 40;

struct StateRecord {
  uint64_t layout_fingerprint = 0;
  uint64_t model_identity = 0;
  int64_t length = 0;
  int64_t furthest = 0;
  int64_t draft_length = 0;
  int64_t draft_furthest = 0;
  uint64_t version = kFormatVersion;
  uint64_t magic = kMagic;
  uint64_t hash = 0;  // XXH3 of everything before it
};
static_assert(sizeof(StateRecord) == 72);

// All pieces in the order of the saved form.
template <typename Visit>
void ForEachPiece(const CacheLayout& layout, const StateMarks& marks, Visit visit) {
  ForEachBlockPiece(layout, marks, visit);
  ForEachRingPiece(layout, marks, visit);
}

int64_t PieceBytes(const CacheLayout& layout, const StateMarks& marks) {
  int64_t bytes = 0;
  ForEachPiece(layout, marks, [&](const StatePiece& piece) { bytes += piece.bytes; });
  return bytes;
}

// Calls write(data, bytes) for each part of the saved form, in order. Errors: kDeviceError.
template <typename Write>
Status WriteState(const KvCache& cache, Device& device, const StateMarks& marks, std::byte* const* table,
                  const std::byte* fixed, Write write) {
  XXH3_state_t hash;
  XXH3_64bits_reset(&hash);
  Status status;
  std::vector<std::byte> downloaded;
  ForEachPiece(cache.layout(), marks, [&](const StatePiece& piece) {
    if (!status.ok()) return;
    const std::byte* data = (piece.block < 0 ? fixed : table[piece.block]) + piece.offset;
    if (!device.is_host()) {
      downloaded.resize(static_cast<size_t>(piece.bytes));
      status = device.Download(downloaded.data(), data, piece.bytes);
      data = downloaded.data();
    }
    XXH3_64bits_update(&hash, data, piece.bytes);
    write(data, piece.bytes);
  });
  RETURN_IF_ERROR(status);
  StateRecord record;
  record.layout_fingerprint = cache.layout().fingerprint;
  record.model_identity = cache.options().model_identity;
  record.length = marks.main.length;
  record.furthest = marks.main.furthest;
  record.draft_length = marks.draft.length;
  record.draft_furthest = marks.draft.furthest;
  XXH3_64bits_update(&hash, &record, offsetof(StateRecord, hash));
  record.hash = XXH3_64bits_digest(&hash);
  write(reinterpret_cast<const std::byte*>(&record), static_cast<int64_t>(sizeof(record)));
  return Status();
}

bool IsPossible(const LengthMark& mark, int64_t slack, int64_t tokens_max) {
  return mark.length >= 0 && mark.furthest <= tokens_max && mark.length <= mark.furthest &&
         mark.length >= mark.LowestExact(slack) && (mark.length > 0 || mark.furthest == 0);
}

// The marks of a snapshot that is whole, ours, and of the size that they ask for.
Result<StateMarks> ReadRecord(const KvCache& cache, std::span<const std::byte> snapshot) {
  StateRecord record;
  if (snapshot.size() < sizeof(record)) {
    return DataLoss("saved state: {} bytes hold no state record of {}", snapshot.size(), sizeof(record));
  }
  std::memcpy(&record, snapshot.data() + snapshot.size() - sizeof(record), sizeof(record));
  if (record.magic != kMagic)
    return DataLoss("saved state: no state record at the end: cut off, or another file");
  if (record.hash != XXH3_64bits(snapshot.data(), snapshot.size() - sizeof(record.hash))) {
    return DataLoss("saved state: the hash of its {} bytes is wrong: damaged", snapshot.size());
  }
  if (record.version != kFormatVersion) {
    return InvalidArgument("saved state: want format version {}, got {}", kFormatVersion, record.version);
  }
  if (record.layout_fingerprint != cache.layout().fingerprint) {
    return InvalidArgument("saved state: made with another cache layout (model shape, numerics or slack)");
  }
  if (record.model_identity != cache.options().model_identity) {
    return InvalidArgument("saved state: made by another model: want {:016x}, got {:016x}",
                           cache.options().model_identity, record.model_identity);
  }
  const StateMarks marks = {{record.length, record.furthest}, {record.draft_length, record.draft_furthest}};
  const int64_t slack = cache.layout().slack_tokens;
  if (!IsPossible(marks.main, slack, cache.options().max_sequence_tokens) ||
      !IsPossible(marks.draft, slack, kDraftTokensMax)) {
    return InvalidArgument("saved state: lengths {} (furthest {}), draft {} ({}): want at most {} tokens",
                           record.length, record.furthest, record.draft_length, record.draft_furthest,
                           cache.options().max_sequence_tokens);
  }
  const int64_t bytes = PieceBytes(cache.layout(), marks) + static_cast<int64_t>(sizeof(record));
  if (bytes != static_cast<int64_t>(snapshot.size())) {
    return DataLoss("saved state: want {} bytes for {} tokens, got {}", bytes, record.length,
                    snapshot.size());
  }
  return marks;
}

struct CloseFile {
  void operator()(std::FILE* file) const { std::fclose(file); }
};
using File = std::unique_ptr<std::FILE, CloseFile>;

// Makes the names in a directory last.
Status SyncDirectory(const std::filesystem::path& directory) {
  const int fd = open(directory.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0) return Status(StatusCode::kUnavailable, std::strerror(errno));
  const bool synced = fsync(fd) == 0;
  const int error = errno;
  close(fd);
  return synced ? Status() : Status(StatusCode::kUnavailable, std::strerror(error));
}

Status FileError(int error) {
  const bool full = error == ENOSPC || error == EDQUOT || error == EFBIG;
  return Status(full ? StatusCode::kResourceExhausted : StatusCode::kUnavailable, std::strerror(error));
}

}  // namespace

int64_t SequenceState::SavedBytes() const {
  return PieceBytes(cache_->layout(), marks_) + static_cast<int64_t>(sizeof(StateRecord));
}

Snapshot SequenceState::Save() const {
  Snapshot snapshot;
  snapshot.bytes.reserve(SavedBytes());
  const auto append = [&](const std::byte* data, int64_t bytes) {
    snapshot.bytes.insert(snapshot.bytes.end(), data, data + bytes);
  };
  // What a faulty device gives is no state; without a record nobody takes it for one.
  if (!WriteState(*cache_, cache_->device(), marks_, table(), fixed(), append).ok()) snapshot.bytes.clear();
  return snapshot;
}

Status SequenceState::Restore(std::span<const std::byte> snapshot) {
  ASSIGN_OR_RETURN(const StateMarks marks, ReadRecord(*cache_, snapshot));
  BlockPool& pool = cache_->pool_;
  const int64_t wanted = cache_->BlocksFor(marks.main.length);
  int64_t available = pool.available();  // once ours are given back
  for (int64_t i = 0; i < num_blocks_; ++i) available += pool.IsShared(table()[i]) ? 0 : 1;
  if (wanted > available) {
    return ResourceExhausted("saved state: {} tokens take {} blocks, {} of {} are free", marks.main.length,
                             wanted, available, pool.capacity());
  }
  Reset();
  while (num_blocks_ < wanted) table()[num_blocks_++] = pool.Allocate();
  PublishBlocks(0, num_blocks_);
  const std::byte* next = snapshot.data();
  ForEachPiece(cache_->layout(), marks, [&](const StatePiece& piece) {
    std::byte* to = (piece.block < 0 ? fixed() : table()[piece.block]) + piece.offset;
    cache_->device().Upload(to, next, piece.bytes);
    next += piece.bytes;
  });
  marks_ = marks;
  reserved_ = marks.main.length;
  return Status();
}

Status SequenceState::SaveToFile(const std::string& path) const {
  std::string temporary = path + ".XXXXXX";
  const int fd = mkostemp(temporary.data(), O_CLOEXEC);
  if (fd < 0) return InvalidArgument("{}: can't create it: {}", path, std::strerror(errno));
  const auto write_file = [&]() -> Status {
    File file(fdopen(fd, "wb"));
    if (file == nullptr) {
      close(fd);
      return FileError(ENOMEM);
    }
    bool written = true;
    const auto write = [&](const std::byte* data, int64_t bytes) {
      written = written && std::fwrite(data, 1, bytes, file.get()) == static_cast<size_t>(bytes);
    };
    RETURN_IF_ERROR(WriteState(*cache_, cache_->device(), marks_, table(), fixed(), write));
    if (!written || std::fflush(file.get()) != 0 || fsync(fd) != 0) return FileError(errno);
    return Status();
  };
  Status status = write_file();
  if (status.ok() && std::rename(temporary.c_str(), path.c_str()) != 0) status = FileError(errno);
  if (!status.ok()) {
    unlink(temporary.c_str());
    return status.WithContext(path);
  }
  const std::filesystem::path directory = std::filesystem::path(path).parent_path();
  return SyncDirectory(directory.empty() ? "." : directory).WithContext(path);
}

Status SequenceState::RestoreFromFile(const std::string& path) {
  ASSIGN_OR_RETURN(const MappedFile file, MappedFile::Open(path));
  return Restore(file.bytes()).WithContext(path);
}

}  // namespace foresight
