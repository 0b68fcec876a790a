// SPDX-License-Identifier: MIT
// Messages of faults and deadlocks.
#include "machine.h"

#include <cstring>

namespace emulator {

std::string at(const Where& where) {
  const char* const slash = std::strrchr(where.file_name(), '/');
  return std::string(slash ? slash + 1 : where.file_name()) + ":" + std::to_string(where.line());
}

namespace {
std::string coordinates(uint3 i) {
  return "(" + std::to_string(i.x) + "," + std::to_string(i.y) + "," + std::to_string(i.z) + ")";
}
}  // namespace

std::string name(const Thread& t) {
  return "thread " + coordinates(t.index) + " of block " + coordinates(t.block->index);
}

void fault(const std::string& problem, const Where& where) {
  throw Fault((where.line() ? at(where) + ": " : "") + problem + (self ? " [" + name(*self) + "]" : ""));
}
void fault(const char* problem, Where where) { fault(std::string(problem), where); }

std::string deadlock(const std::vector<std::unique_ptr<Cluster>>& clusters) {
  constexpr size_t most = 40;
  std::string report = "deadlock:";
  size_t lines = 0;
  for (const auto& cluster : clusters)
    for (const auto& block : cluster->blocks) {
      std::map<std::string, unsigned> waits;
      for (const Thread& t : block->threads)
        if (!t.exited) ++waits[std::string(t.what) + " at " + at(t.where)];
      for (const auto& [wait, count] : waits)
        if (++lines <= most)
          report += "\n  " + std::to_string(count) + (count == 1 ? " thread" : " threads") + " of block " +
                    coordinates(block->index) + " in " + wait;
    }
  if (lines > most) report += "\n  and " + std::to_string(lines - most) + " such lines more";
  return report;
}

}  // namespace emulator
