// SPDX-License-Identifier: MIT
// L0. What a launch plan must know of a GPU. At run time cuda/device.cu asks the driver; device.cpp knows some by name.
#pragma once
#include <cstddef>
#include <cstdint>
#include <string>

namespace eca {

constexpr int kMostRanks = 16;  // blocks of a cluster, at most

struct Device {
  const char* name;
  int capability;  // 90 for compute capability 9.0
  int multiprocessors;
  int max_threads;                 // of a block
  int threads_per_multiprocessor;  // resident at once
  int64_t shared_per_block;        // bytes without asking for more than every kernel may have
  int64_t shared_per_multiprocessor;
  int64_t l2;        // bytes
  double copy_rate;  // bytes/s of a large device-to-device copy, read + write; for predictions only; 0: not known
  bool measured;     // the copy rate is, and not taken from a data sheet
  int64_t shared_opt_in = 0;  // bytes of shared memory that a block can have by asking for it

  // How many clusters of so many blocks run at once, where a multiprocessor has room for one block, or for two; 0: not
  // known, or none. Fewer than the multiprocessors suggest, because a cluster does not cross the borders of GPCs.
  int clusters[2][kMostRanks + 1] = {};
};

// Devices that plans can be shown and tested for on any machine, in alphabetical order.
const Device* known_devices(size_t* count);

// The one that a driver calls by such a name. Other boards and slices of the same name have other numbers of
// multiprocessors, and other rates; null for those, and for names that are not known.
const Device* known_device(std::string name, int multiprocessors);

// How many clusters of so many blocks, threads and bytes of shared memory per block run at once on the current GPU, as
// its driver says. Null in builds without CUDA; cuda/register_cuda.cpp sets it.
extern int64_t (*driver_clusters)(int ranks, int threads, int shared_bytes);

// The current GPU, as its driver describes it; whether there is one. Null in builds without CUDA, as above.
extern bool (*driver_device)(Device*);

}  // namespace eca
