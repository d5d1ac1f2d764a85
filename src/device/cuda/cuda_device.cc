#include "device/cuda/cuda_device.h"

#include <algorithm>
#include <cstring>

#include "base/check.h"
#include "device/cuda/fp4_codes.h"
#include "device/cuda/small_copies.h"

namespace foresight {
namespace {

constexpr int64_t kHalfBytes = int64_t{8} << 20;
constexpr int64_t kFetchBytes = int64_t{4} << 20;
// A graph of a step takes some hundred kilobytes.
constexpr size_t kRecordingsMax = 256;
constexpr size_t kSeenMax = size_t{1} << 16;
// A recording takes longer than a run by about as much as so many runs take longer than replays: however
// often a key will come, what is lost is at most twice the least.
constexpr int kRunsBeforeRecording = 8;

Status Fault(cudaError_t error, const char* what) {
  return Error(StatusCode::kDeviceError, "{}: {} ({})", what, cudaGetErrorString(error),
               cudaGetErrorName(error));
}

}  // namespace

Result<std::unique_ptr<CudaDevice>> CudaDevice::Open(int ordinal) {
  int count = 0;
  int driver = 0;  // 0: there is none, for which CUDA's own words are that it is too old
  if (cudaDriverGetVersion(&driver) == cudaSuccess && driver == 0) {
    return NotFound("device cuda:{}: this machine has no NVIDIA driver", ordinal);
  }
  if (const cudaError_t error = cudaGetDeviceCount(&count); error != cudaSuccess) {
    return NotFound("device cuda:{}: {}", ordinal, cudaGetErrorString(error));
  }
  if (ordinal < 0 || ordinal >= count) return NotFound("device cuda:{}: there are {}", ordinal, count);
  std::unique_ptr<CudaDevice> device(new CudaDevice);
  cudaDeviceProp properties;
  const auto check = [](cudaError_t error, const char* what) {
    return error == cudaSuccess ? Status() : Fault(error, what);
  };
  RETURN_IF_ERROR(check(cudaGetDeviceProperties(&properties, ordinal), "cudaGetDeviceProperties"));
  device->name_ = properties.name;
  device->num_sms_ = properties.multiProcessorCount;
  device->capability_ = 10 * properties.major + properties.minor;
  // Before anything is taken of it.
  RETURN_IF_ERROR(CheckCudaCapability(device->name_, device->capability_));
  RETURN_IF_ERROR(check(cudaSetDevice(ordinal), "cudaSetDevice"));
  for (cudaStream_t* stream : {&device->stream_, &device->branch_stream_}) {
    RETURN_IF_ERROR(check(cudaStreamCreateWithFlags(stream, cudaStreamNonBlocking), "cudaStreamCreate"));
  }
  RETURN_IF_ERROR(check(cudaMalloc(&device->zeros_, kZeros * sizeof(int)), "cudaMalloc"));
  RETURN_IF_ERROR(
      check(cudaMemsetAsync(device->zeros_, 0, kZeros * sizeof(int), device->stream_), "cudaMemsetAsync"));
  RETURN_IF_ERROR(check(cudaMallocHost(&device->staging_, 2 * kHalfBytes), "cudaMallocHost"));
  RETURN_IF_ERROR(check(cudaMallocHost(&device->fetching_, kFetchBytes), "cudaMallocHost"));
  device->fetched_.reserve(64);
  for (cudaEvent_t* event :
       {&device->half_done_[0], &device->half_done_[1], &device->forked_, &device->joined_}) {
    RETURN_IF_ERROR(check(cudaEventCreateWithFlags(event, cudaEventDisableTiming), "cudaEventCreate"));
  }
  return device;
}

CudaDevice::~CudaDevice() {
  for (const auto& [key, recording] : recordings_) cudaGraphExecDestroy(recording.graph);
  for (cudaEvent_t event : {half_done_[0], half_done_[1], forked_, joined_}) {
    if (event != nullptr) cudaEventDestroy(event);
  }
  if (staging_ != nullptr) cudaFreeHost(staging_);
  if (fetching_ != nullptr) cudaFreeHost(fetching_);
  if (zeros_ != nullptr) cudaFree(zeros_);
  for (cudaStream_t stream : {stream_, branch_stream_}) {
    if (stream != nullptr) cudaStreamDestroy(stream);
  }
}

int64_t CudaDevice::AvailableBytes() const {
  size_t available = 0;
  size_t total = 0;
  return cudaMemGetInfo(&available, &total) == cudaSuccess ? static_cast<int64_t>(available) : 0;
}

Result<DeviceMemory> CudaDevice::Allocate(int64_t bytes, std::string_view what) {
  CHECK(bytes >= 0);
  if (bytes == 0) return DeviceMemory();
  void* data = nullptr;
  if (const cudaError_t error = cudaMalloc(&data, bytes); error != cudaSuccess) {
    cudaGetLastError();  // a refused allocation leaves the device usable
    return ResourceExhausted("{}: {} has no {} bytes, {} are free", what, name_, bytes, AvailableBytes());
  }
  Zero(data, bytes);
  return DeviceMemory(this, static_cast<std::byte*>(data), bytes);
}

void CudaDevice::Free(std::byte* data, int64_t) {
  cudaFree(data);
}

CudaQueue& QueueOf(Device& device) {
  return static_cast<CudaDevice&>(device);
}

void CudaDevice::Note(cudaError_t error, const char* what) {
  if (error != cudaSuccess && fault_.ok()) fault_ = Fault(error, what);
}

void CudaDevice::Upload(void* to, const void* from, int64_t bytes) {
  const std::byte* next = static_cast<const std::byte*>(from);
  std::byte* target = static_cast<std::byte*>(to);
  while (bytes > 0) {
    if (staged_ == kHalfBytes) {
      Note(cudaEventRecord(half_done_[half_], stream_), "cudaEventRecord");
      half_ ^= 1;
      staged_ = 0;
      Note(cudaEventSynchronize(half_done_[half_]), "upload");
    }
    const int64_t part = std::min(bytes, kHalfBytes - staged_);
    std::byte* pinned = staging_ + half_ * kHalfBytes + staged_;
    std::memcpy(pinned, next, part);
    Note(cudaMemcpyAsync(target, pinned, part, cudaMemcpyHostToDevice, stream_), "upload");
    staged_ += part;
    next += part;
    target += part;
    bytes -= part;
  }
}

void CudaDevice::UploadWeight(void* to, const void* from, int64_t bytes, DType dtype) {
  Upload(to, from, bytes);
  if (dtype == DType::kI8 && bytes > 0) {
    Note(LaunchArrangeFp4(stream_, static_cast<uint8_t*>(to), bytes), "upload of FP4 weights");
  }
}

void CudaDevice::UploadInputs(void* to, const void* from, int64_t bytes) {
  if (bytes == 0) return;
  if (bytes > kCarriedBytesMax || reinterpret_cast<uintptr_t>(to) % 16 != 0) return Upload(to, from, bytes);
  Note(LaunchCarry(stream_, capability_ >= 90, static_cast<std::byte*>(to),
                   static_cast<const std::byte*>(from), bytes),
       "upload");
}

void CudaDevice::Copy(void* to, const void* from, int64_t bytes) {
  if (bytes > 0) Note(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, stream_), "copy");
}

void CudaDevice::Zero(void* to, int64_t bytes) {
  if (bytes > 0) Note(cudaMemsetAsync(to, 0, bytes, stream_), "memset");
}

void CudaDevice::Fetch(void* to, const void* from, int64_t bytes) {
  while (bytes > 0) {
    // An error stays for whoever waits next.
    if (fetched_bytes_ == kFetchBytes) static_cast<void>(Synchronize());
    const int64_t part = std::min(bytes, kFetchBytes - fetched_bytes_);
    std::byte* pinned = fetching_ + fetched_bytes_;
    Note(part <= kSmallFetchMax
             ? LaunchSmallFetch(stream_, capability_ >= 90, pinned, static_cast<const std::byte*>(from), part)
             : cudaMemcpyAsync(pinned, from, part, cudaMemcpyDeviceToHost, stream_),
         "download");
    fetched_.push_back({to, pinned, part});
    fetched_bytes_ += part;
    to = static_cast<std::byte*>(to) + part;
    from = static_cast<const std::byte*>(from) + part;
    bytes -= part;
  }
}

Status CudaDevice::Synchronize() {
  Note(cudaStreamSynchronize(stream_), "step");
  if (fault_.ok()) {
    for (const Fetched& f : fetched_) std::memcpy(f.to, f.pinned, f.bytes);
  }
  fetched_.clear();
  fetched_bytes_ = 0;
  return fault_;
}

cudaGraphExec_t CudaDevice::Record(const std::function<void()>& launches) {
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t recorded = nullptr;
  Note(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal), "recording of a step");
  launches();
  Note(cudaStreamEndCapture(stream_, &graph), "recording of a step");
  if (graph == nullptr) return nullptr;
  Note(cudaGraphInstantiate(&recorded, graph, 0), "recording of a step");
  Note(cudaGraphDestroy(graph), "recording of a step");
  return recorded;
}

// Recorded behind a run, which the device is busy with meanwhile: a long step hides what that takes.
void CudaDevice::Replay(uint64_t key, const std::function<void()>& launches) {
  const auto found = recordings_.find(key);
  if (found != recordings_.end()) {
    found->second.replayed = ++replays_;
    Note(cudaGraphLaunch(found->second.graph, stream_), "replay of a step");
    return;
  }
  launches();
  ++unrecorded_runs_;
  if (seen_.size() == kSeenMax) seen_.clear();
  if (++seen_[key] <= kRunsBeforeRecording) return;
  if (recordings_.size() == kRecordingsMax) ForgetOldest();
  const cudaGraphExec_t graph = Record(launches);
  if (graph != nullptr) recordings_.emplace(key, Recording{.graph = graph, .replayed = replays_});
}

bool CudaDevice::IsDueForRecording(uint64_t key, int calls) {
  if (seen_.size() == kSeenMax) seen_.clear();
  int& seen = seen_[key];
  if (++seen <= calls) return false;
  seen = std::max(seen, kRunsBeforeRecording);
  return true;
}

// In a recording the branch becomes one of the graph.
void CudaDevice::Fork(const std::function<void()>& branch) {
  Note(cudaEventRecord(forked_, stream_), "fork of a step");
  Note(cudaStreamWaitEvent(branch_stream_, forked_), "fork of a step");
  std::swap(stream_, branch_stream_);
  branch();
  std::swap(stream_, branch_stream_);
}

void CudaDevice::Join() {
  Note(cudaEventRecord(joined_, branch_stream_), "join of a step");
  Note(cudaStreamWaitEvent(stream_, joined_), "join of a step");
}

void CudaDevice::ForgetOldest() {
  const auto oldest =
      std::min_element(recordings_.begin(), recordings_.end(),
                       [](const auto& a, const auto& b) { return a.second.replayed < b.second.replayed; });
  cudaGraphExecDestroy(oldest->second.graph);
  seen_.erase(oldest->first);
  recordings_.erase(oldest);
}

Result<std::unique_ptr<Device>> OpenCudaDevice(int ordinal) {
  ASSIGN_OR_RETURN(std::unique_ptr<CudaDevice> device, CudaDevice::Open(ordinal));
  return std::unique_ptr<Device>(std::move(device));
}

}  // namespace foresight
