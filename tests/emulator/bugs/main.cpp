// SPDX-License-Identifier: MIT
// main BUG FAMILY SCHEDULE...: runs the family's kernels. Exit status 0: correct results; 1: wrong results; 2: the
// emulator reported a fault. Sanitizers exit in their own ways.
#include "../device/interface.h"
#include "bugs.h"

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <thread>
#include <vector>

using namespace bugs;

namespace {

int failures = 0;

void check(bool right, const std::string& what) {
  if (right) return;
  std::printf("WRONG %s\n", what.c_str());
  ++failures;
}
void check(cudaError_t error, const char* what) { check(error == cudaSuccess, what + std::to_string(error)); }
void compare(const std::vector<double>& expected, const float* got, const char* what) {
  for (size_t i = 0; i < expected.size(); ++i)
    if (!(std::abs(expected[i] - got[i]) <= 1e-3)) return check(false, what);  // a NaN is wrong, too
}
std::vector<float> numbers(size_t n) {
  std::vector<float> x(n);
  unsigned state = 1;
  for (float& v : x) v = float((state = state * 1664525u + 1013904223u) >> 8) / (1 << 24) - 0.25f;
  return x;
}

void run_rows(Bug bug) {
  const int count = 4, columns = 1000;
  const auto x = numbers(count * columns);
  std::vector<float> y(count);
  check(rows(x.data(), y.data(), count, columns, bug), "rows");
  std::vector<double> sums(count);
  for (int i = 0; i < count * columns; ++i) sums[i / columns] += x[i];
  compare(sums, y.data(), "rows");
}

void run_planes(Bug bug) {
  const int channels = 32, pixels = 25, taps = 3, images = 2;
  const auto x = numbers(images * channels * pixels), w = numbers(taps);
  std::vector<float> y(x.size());
  check(planes(x.data(), w.data(), y.data(), images, channels, pixels, taps, bug), "planes");
  std::vector<double> expected;
  for (int n = 0; n < images; ++n) {
    std::vector<double> means(channels + taps - 1);
    for (int i = 0; i < channels * pixels; ++i) means[taps / 2 + i / pixels] += x[n * channels * pixels + i] / pixels;
    for (int i = 0; i < channels * pixels; ++i) {
      double z = 0;
      for (int k = 0; k < taps; ++k) z += w[k] * means[i / pixels + k];
      expected.push_back(x[n * channels * pixels + i] / (1 + std::exp(-z)));
    }
  }
  compare(expected, y.data(), "planes");
}

void run_total(Bug bug, bool fences) {
  const int size = 1000, blocks = 4;
  const auto x = numbers(size);
  std::vector<float> result(1), partial(blocks);
  std::vector<unsigned> counter(1);
  check(total(x.data(), result.data(), partial.data(), counter.data(), size, blocks, fences, bug), "total");
  std::vector<double> sum(1);
  for (float v : x) sum[0] += v;
  compare(sum, result.data(), "total");
}

// y = 2 x by `kernel(x, y)`, both at multiples of 16 bytes.
template <class Kernel>
void run_twice(int count, const char* what, Kernel kernel) {
  const auto x = numbers(count);
  const auto aligned = [&] {  // bulk copies need it
    return std::unique_ptr<float, void (*)(void*)>(static_cast<float*>(std::aligned_alloc(16, x.size() * 4)),
                                                   std::free);
  };
  const auto in = aligned(), out = aligned();
  std::memcpy(in.get(), x.data(), x.size() * 4);
  check(kernel(in.get(), out.get()), what);
  std::vector<double> twice;
  for (float v : x) twice.push_back(2.0 * v);
  compare(twice, out.get(), what);
}
void run_stages(Bug bug) {
  run_twice(10 * 64, "stages", [&](const float* x, float* y) { return stages(x, y, 10, 64, bug); });
}
void run_copies(Bug bug) {
  run_twice(5 * 4 * kThreads, "copies", [&](const float* x, float* y) { return copies(x, y, 5, bug); });
}

void run_tickets(Bug bug) {
  const int items = 6, item = 70, blocks = 5;
  const auto x = numbers(items * item);
  std::vector<float> y(x.size()), partial(items);
  std::vector<unsigned> counters(2);
  check(tickets(x.data(), y.data(), partial.data(), counters.data(), items, item, blocks, bug), "tickets");
  double mean = 0;
  for (float v : x) mean += v / double(x.size());
  std::vector<double> expected;
  for (float v : x) expected.push_back(v - mean);
  compare(expected, y.data(), "tickets");
}

void run_chain(Bug bug) {
  const int blocks = 12;
  std::vector<unsigned> y(blocks), counters(2);
  check(chain(y.data(), counters.data(), blocks, bug), "chain");
  for (int i = 0; i < blocks; ++i) check(y[i] == unsigned(i) + 1, "chain");
}

void run_features(Bug) {
  const unsigned threads = kFeatureThreads;
  std::vector<unsigned> x(threads), y(8 * threads * kFeatures), sum(1);
  for (unsigned i = 0; i < threads; ++i) x[i] = 5 * i + 1;
  check(features(x.data(), y.data(), sum.data()), "features");
  for (unsigned block = 0; block < 8; ++block)
    for (unsigned t = 0; t < threads; ++t) {
      const unsigned* const got = &y[(block * threads + t) * kFeatures];
      const unsigned lane = t % 32, lanes = t < 32 ? 32 : 16, one = 1;
      check(got[0] == x[threads - 1 - t], "shared memory");
      check(got[1] == lanes / 2 + 100 * (t >= 32) + 1000 + 10000 * 16 + 1000000, "votes");
      const unsigned down = lane % 4 == 3 ? t : t + 1, up = lane % 8 < 2 ? t : t - 2, at5 = t / 8 * 8 + 5;
      check(got[2] == down + 1000 * up + 1000000 * at5, "shuffles");
      check(got[3] == (t < 16 ? 120 + 1000 * 15 + 100000 * 3 + 1000000 : 0), "reductions");
      const unsigned smaller = t < 20 ? t : 20, larger = t < 40 ? 40 : t;
      check(got[4] == smaller + 100 * larger + 10000 * (t / 2) + 2000000 + 20000000 * one, "arithmetic");
      check(got[5] == block % 2 + block / 4 * 2, "ranks");
      check(got[6] == x[t] + 1000 * x[(threads - t) % threads], "copies");
    }
  check(sum[0] == 8 * threads / 4 * (1 + 2 + 3 + 4), "atomics");
}

int attribute(cudaDeviceAttr name) {
  int value = -1;
  int device = 0;
  check(cudaGetDevice(&device), "device");
  check(cudaDeviceGetAttribute(&value, name, device), "attribute");
  return value;
}

// Launches that the device refuses, and its attributes.
void run_device(Bug) {
  check(allow_dynamic(0), "opting out");
  check(empty(1, 65, 0, 1) == cudaErrorInvalidConfiguration, "too many threads");
  check(cudaPeekAtLastError() == cudaErrorInvalidConfiguration, "peek");
  check(cudaGetLastError() == cudaErrorInvalidConfiguration && cudaGetLastError() == cudaSuccess, "last error");
  check(!std::strcmp(cudaGetErrorName(cudaErrorInvalidConfiguration), "cudaErrorInvalidConfiguration"), "name");
  check(empty(0, 64, 0, 1) == cudaErrorInvalidConfiguration, "no blocks");
  check(empty(1, 64, (48 << 10) + 1, 1) == cudaErrorInvalidValue, "shared memory without opting in");
  check(allow_dynamic((227 << 10) + 1) == cudaErrorInvalidValue, "opting in for more than there is");
  check(allow_dynamic(100 << 10), "opting in");
  check(empty(1, 64, 100 << 10, 1), "shared memory after opting in");
  check(empty(6, 64, 0, 4) == cudaErrorInvalidClusterSize, "clusters that do not divide the grid");
  check(empty(16, 64, 0, 16) == cudaErrorInvalidClusterSize, "a cluster of 16");
  check(attribute(cudaDevAttrMultiProcessorCount) == 3 && attribute(cudaDevAttrL2CacheSize) == 64 << 10, "size");
  check(attribute(cudaDevAttrMaxSharedMemoryPerBlock) == 48 << 10, "limit");
  check(attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin) == 227 << 10, "limit with opting in");
  check(attribute(cudaDevAttrClusterLaunch) == 1, "clusters");
  int clusters = 0;
  check(most_clusters(&clusters, 4), "occupancy");
  check(clusters == 3 * 32 / 4, "occupancy");
  const long before = emulator_launches(), blocks = emulator_blocks();
  check(empty(2, 64, 0, 1), "empty");
  check(emulator_blocks() == blocks + 2, "count of blocks");
  check(emulator_launches() == before + 1, "count of launches");
  check(empty(300, 64, 0, 1), "more threads than are resident at once");
  emulator_set_device(5, 1024, 64 << 10, 1 << 20, 80);
  check(attribute(cudaDevAttrMultiProcessorCount) == 5 && attribute(cudaDevAttrMaxThreadsPerBlock) == 1024, "new size");
  check(attribute(cudaDevAttrComputeCapabilityMajor) == 8 && !attribute(cudaDevAttrClusterLaunch), "new capability");
  check(empty(2, 256, 0, 1), "more threads");
  check(empty(2, 64, 0, 2) == cudaErrorNotSupported, "clusters before 9.0");
  check(empty(1, 64, 50 << 10, 1) == cudaErrorInvalidValue, "opting in is a device's own");
  emulator_set_device(3, 64, 227 << 10, 64 << 10, 90);

  // A fault reaches the caller, and the machine can be used again.
  bool caught = false;
  try {
    run_rows(Bug::lanes_leave_shuffle);
  } catch (const std::exception& e) {
    caught = !std::strncmp(e.what(), "deadlock", 8);
  }
  check(caught, "fault");
  run_rows(Bug::none);

  // Launches by several system threads take turns.
  std::vector<std::thread> threads;
  for (int i = 0; i < 3; ++i)
    threads.emplace_back([] {
      for (int k = 0; k < 5; ++k) run_rows(Bug::none);
    });
  for (auto& thread : threads) thread.join();
}

void run(const std::string& family, Bug bug) {
  if (family == "rows") return run_rows(bug);
  if (family == "planes") return run_planes(bug);
  if (family == "total") return run_total(bug, false), run_total(bug, true);
  if (family == "stages") return run_stages(bug);
  if (family == "copies") return run_copies(bug);
  if (family == "tickets") return run_tickets(bug);
  if (family == "chain") return run_chain(bug);
  if (family == "features") return run_features(bug);
  if (family == "device") return run_device(bug);
  check(false, "no such family");
}

Bug named(const char* name) {
#define BUGS_FIND(bug) \
  if (!std::strcmp(name, #bug)) return Bug::bug;
  BUGS(BUGS_FIND)
#undef BUGS_FIND
  std::printf("no such bug\n");
  std::exit(3);
}

}  // namespace

__attribute__((visibility("default"))) int main(int argc, char** argv) {
  std::setvbuf(stdout, nullptr, _IOLBF, 0);
  for (int i = 3; i < argc; ++i) {
    emulator_set_schedule(std::atoi(argv[i]));
    try {
      run(argv[2], named(argv[1]));
    } catch (const emulator::Fault& fault) {
      std::printf("FAULT %s\n", fault.what());
      return 2;
    }
  }
  if (!failures) std::printf("right\n");
  return failures != 0;
}
