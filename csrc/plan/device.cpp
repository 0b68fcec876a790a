// SPDX-License-Identifier: MIT
// L0. Public figures of some GPUs. Copy rates: measured on an H100 and an H200 (shared/KERNELS.md section 1); for the
// others about 85 % of the memory's nominal rate, an assumption for predictions that no measurement backs yet.
#include "device.h"

#include <algorithm>
#include <cctype>
#include <initializer_list>

namespace eca {
namespace {

constexpr int64_t kKB = 1024, kMB = 1024 * 1024;
constexpr int64_t kShared = 48 * kKB;

// With GPCs of so many multiprocessors.
constexpr Device with(std::initializer_list<int> gpcs, Device device) {
  for (int ranks = 1; ranks <= kMostRanks; ++ranks)
    for (const int multiprocessors : gpcs)
      for (const int room : {1, 2}) device.clusters[room - 1][ranks] += room * multiprocessors / ranks;
  return device;
}

// One of the two dies that KERNELS.md section 6 has counted, the one with room for fewer clusters.
constexpr std::initializer_list<int> kHopper = {18, 18, 18, 16, 16, 16, 16, 14};

constexpr Device kDevices[] = {
    {"a10", 86, 72, 1024, 1536, kShared, 100 * kKB, 6 * kMB, 0.51e12, false, 99 * kKB},
    {"a100", 80, 108, 1024, 2048, kShared, 164 * kKB, 40 * kMB, 1.7e12, false, 163 * kKB},
    {"b200", 100, 148, 1024, 2048, kShared, 228 * kKB, 126 * kMB, 6.8e12, false, 227 * kKB},
    with(kHopper, {"h100", 90, 132, 1024, 2048, kShared, 228 * kKB, 50 * kMB, 3.0e12, true, 227 * kKB}),
    with({16}, {"h100-mig-1g", 90, 16, 1024, 2048, kShared, 228 * kKB, 6 * kMB, 0.4e12, false, 227 * kKB}),
    with(kHopper, {"h200", 90, 132, 1024, 2048, kShared, 228 * kKB, 60 * kMB, 4.3e12, true, 227 * kKB}),
    {"l4", 89, 58, 1024, 1536, kShared, 100 * kKB, 48 * kMB, 0.25e12, false, 99 * kKB},
    {"rtx4090", 89, 128, 1024, 1536, kShared, 100 * kKB, 72 * kMB, 0.86e12, false, 99 * kKB},
    {"rtx5090", 120, 170, 1024, 1536, kShared, 100 * kKB, 96 * kMB, 1.5e12, false, 99 * kKB},
    {"t4", 75, 40, 1024, 1024, kShared, 64 * kKB, 4 * kMB, 0.27e12, false, 64 * kKB},
};

}  // namespace

int64_t (*driver_clusters)(int, int, int) = nullptr;
bool (*driver_device)(Device*) = nullptr;

const Device* known_device(std::string name, int multiprocessors) {
  name.erase(std::remove(name.begin(), name.end(), ' '), name.end());
  std::transform(name.begin(), name.end(), name.begin(), [](unsigned char c) { return std::tolower(c); });
  for (const Device& device : kDevices)
    if (device.multiprocessors == multiprocessors && name.find(device.name) != std::string::npos) return &device;
  return nullptr;
}

const Device* known_devices(size_t* count) {
  *count = sizeof kDevices / sizeof *kDevices;
  return kDevices;
}

}  // namespace eca
