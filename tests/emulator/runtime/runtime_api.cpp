// SPDX-License-Identifier: MIT
// The part of the CUDA runtime API that host code calls, and the functions by which tests set up the machine.
#include "device.h"
#include "machine.h"
#include "schedule.h"

#include <algorithm>
#include <utility>

namespace emulator {

Machine& machine() {
  static Machine* const one = new Machine;  // never destroyed: static destructors may launch
  return *one;
}

namespace {
// One for all system threads, unlike CUDA's: a thread-local variable would be part of the blocks' images.
std::atomic<cudaError_t> last_error = cudaSuccess;
}  // namespace

cudaError_t remember(cudaError_t error) {
  if (error) last_error = error;
  return error;
}

int Device::blocks_per_multiprocessor(size_t threads, size_t dynamic_bytes) const {
  if (threads == 0 || threads > size_t(max_threads_per_block) || dynamic_bytes > size_t(shared_bytes_per_block))
    return 0;
  const size_t by_threads = kThreadsPerMultiprocessor / ((threads + 31) / 32 * 32);
  const size_t by_memory = shared_bytes_per_multiprocessor() / (dynamic_bytes + kReservedSharedBytes);
  return int(std::min({by_threads, by_memory, size_t(kBlocksPerMultiprocessor)}));
}

}  // namespace emulator

using emulator::machine;
using emulator::remember;

extern "C" {

void emulator_set_schedule(unsigned schedule) {
  const std::lock_guard lock(machine().mutex);
  emulator::schedule().set(schedule);
}

void emulator_set_device(int multiprocessors, int max_threads_per_block, int shared_bytes_per_block, int l2_bytes,
                         int compute_capability) {
  const std::lock_guard lock(machine().mutex);
  machine().device = {multiprocessors, std::min(max_threads_per_block, 1024),
                      std::min(shared_bytes_per_block, int(emulator::kMaxDynamicBytes)), l2_bytes, compute_capability};
  auto& all = machine().all;
  const auto found = std::find(all.begin(), all.end(), machine().device);
  machine().index = int(found - all.begin());
  if (found == all.end()) all.push_back(machine().device);
}

long emulator_launches() { return machine().launches; }
long emulator_blocks() { return machine().blocks; }
long emulator_loaded() { return emulator::counters.loaded; }
long emulator_stored() { return emulator::counters.stored; }
long emulator_pushed() { return emulator::counters.pushed; }
long emulator_barriers() { return emulator::counters.barriers; }

cudaError_t cudaGetLastError() { return emulator::last_error.exchange(cudaSuccess); }
cudaError_t cudaPeekAtLastError() { return emulator::last_error; }

const char* cudaGetErrorName(cudaError_t error) {
  switch (error) {
#define EMULATOR_ERROR(name) \
  case name:                 \
    return #name;
    EMULATOR_ERROR(cudaSuccess)
    EMULATOR_ERROR(cudaErrorInvalidValue)
    EMULATOR_ERROR(cudaErrorInvalidConfiguration)
    EMULATOR_ERROR(cudaErrorInvalidDevice)
    EMULATOR_ERROR(cudaErrorInvalidClusterSize)
    EMULATOR_ERROR(cudaErrorNotSupported)
#undef EMULATOR_ERROR
    default:
      return "unrecognized error code";
  }
}
const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
      return "no error";
    case cudaErrorInvalidValue:
      return "invalid argument";
    case cudaErrorInvalidConfiguration:
      return "invalid configuration argument";
    case cudaErrorInvalidDevice:
      return "invalid device ordinal";
    case cudaErrorInvalidClusterSize:
      return "cluster misconfiguration";
    case cudaErrorNoKernelImageForDevice:
      return "no kernel image is available for execution on the device";
    case cudaErrorNotSupported:
      return "operation not supported";
    default:
      return "unrecognized error code";
  }
}

cudaError_t cudaGetDeviceCount(int* count) {
  *count = int(machine().all.size());
  return cudaSuccess;
}
cudaError_t cudaGetDevice(int* device) {
  *device = machine().index;
  return cudaSuccess;
}
cudaError_t cudaSetDevice(int device) {
  return remember(device == machine().index ? cudaSuccess : cudaErrorInvalidDevice);
}
cudaError_t cudaDeviceSynchronize() { return cudaSuccess; }
cudaError_t cudaStreamSynchronize(cudaStream_t) { return cudaSuccess; }

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
  if (device != machine().index) return remember(cudaErrorInvalidDevice);
  const std::lock_guard lock(machine().mutex);
  const emulator::Device& emulated = machine().device;
  switch (attribute) {
    case cudaDevAttrMultiProcessorCount:
      return *value = emulated.multiprocessors, cudaSuccess;
    case cudaDevAttrMaxThreadsPerBlock:
    case cudaDevAttrMaxBlockDimX:
    case cudaDevAttrMaxBlockDimY:
      return *value = emulated.max_threads_per_block, cudaSuccess;
    case cudaDevAttrMaxBlockDimZ:
      return *value = std::min(emulated.max_threads_per_block, 64), cudaSuccess;
    case cudaDevAttrMaxGridDimX:
      return *value = 0x7fffffff, cudaSuccess;
    case cudaDevAttrMaxGridDimY:
    case cudaDevAttrMaxGridDimZ:
      return *value = 65535, cudaSuccess;
    case cudaDevAttrWarpSize:
      return *value = warpSize, cudaSuccess;
    case cudaDevAttrMaxThreadsPerMultiProcessor:
      return *value = emulated.kThreadsPerMultiprocessor, cudaSuccess;
    case cudaDevAttrMaxBlocksPerMultiprocessor:
      return *value = emulated.kBlocksPerMultiprocessor, cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerBlock:
      return *value = emulated.shared_bytes_without_opt_in(), cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      return *value = emulated.shared_bytes_per_block, cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor:
      return *value = emulated.shared_bytes_per_multiprocessor(), cudaSuccess;
    case cudaDevAttrReservedSharedMemoryPerBlock:
      return *value = emulated.kReservedSharedBytes, cudaSuccess;
    case cudaDevAttrL2CacheSize:
      return *value = emulated.l2_bytes, cudaSuccess;
    case cudaDevAttrComputeCapabilityMajor:
      return *value = emulated.compute_capability / 10, cudaSuccess;
    case cudaDevAttrComputeCapabilityMinor:
      return *value = emulated.compute_capability % 10, cudaSuccess;
    case cudaDevAttrClusterLaunch:
      return *value = emulated.has_clusters(), cudaSuccess;
    default:
      return remember(cudaErrorInvalidValue);
  }
}

cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute attribute, int value) {
  const std::lock_guard lock(machine().mutex);
  if (attribute == cudaFuncAttributeMaxDynamicSharedMemorySize &&
      (value < 0 || value > machine().device.shared_bytes_per_block))
    return remember(cudaErrorInvalidValue);
  machine().of(kernel)[attribute] = value;
  return cudaSuccess;
}

cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, const void* kernel) {
  const std::lock_guard lock(machine().mutex);
  const emulator::Device& device = machine().device;
  *attributes = {};
  attributes->maxThreadsPerBlock = device.max_threads_per_block;
  attributes->maxDynamicSharedSizeBytes =
      std::max(device.shared_bytes_without_opt_in(), machine().of(kernel)[cudaFuncAttributeMaxDynamicSharedMemorySize]);
  attributes->ptxVersion = attributes->binaryVersion = device.compute_capability;
  return cudaSuccess;
}

// By threads and dynamic shared memory only: only nvcc knows the registers and static shared memory of a kernel.
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int* blocks, const void*, int threads,
                                                                   size_t dynamic_bytes, unsigned) {
  if (threads <= 0) return remember(cudaErrorInvalidValue);
  const std::lock_guard lock(machine().mutex);
  *blocks = machine().device.blocks_per_multiprocessor(threads, dynamic_bytes);
  return cudaSuccess;
}
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, const void* kernel, int threads,
                                                          size_t dynamic_bytes) {
  return cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(blocks, kernel, threads, dynamic_bytes, 0);
}

// As if the multiprocessors were one large one.
cudaError_t cudaOccupancyMaxActiveClusters(int* clusters, const void* kernel, const cudaLaunchConfig_t* config) {
  const std::lock_guard lock(machine().mutex);
  const emulator::Device& device = machine().device;
  dim3 shape;
  if (const auto error = emulator::cluster_shape(*config, shape)) return remember(error);
  if (const auto error = device.refusal(*config, kernel, shape)) return remember(error);
  const size_t threads = size_t(config->blockDim.x) * config->blockDim.y * config->blockDim.z;
  const int blocks = device.multiprocessors * device.blocks_per_multiprocessor(threads, config->dynamicSmemBytes);
  *clusters = blocks / int(shape.x * shape.y * shape.z);
  return cudaSuccess;
}

cudaError_t cudaMemsetAsync(void* memory, int value, size_t bytes, cudaStream_t) {
  if (__tsan_write_range) __tsan_write_range(memory, bytes);
  std::memset(memory, value, bytes);
  return cudaSuccess;
}

}  // extern "C"
