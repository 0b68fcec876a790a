// SPDX-License-Identifier: MIT
// Makes clusters of blocks, and reuses blocks: mapping memory takes longer than a small launch.
#include "machine.h"
#include "schedule.h"

#include <algorithm>

namespace emulator {

namespace {

constexpr size_t kMostIdleThreads = 16384;

struct Pool {
  std::map<size_t, std::vector<std::unique_ptr<Block>>> blocks;  // by their number of threads
  size_t threads = 0;
};
Pool& pool() {
  static Pool* const all = new Pool;  // never destroyed: static destructors may launch
  return *all;
}

std::unique_ptr<Block> take(unsigned threads) {
  auto& idle = pool().blocks[threads];
  if (idle.empty()) return std::make_unique<Block>(threads);
  auto block = std::move(idle.back());
  idle.pop_back();
  pool().threads -= threads;
  return block;
}

void reset(Thread& t) {
  t.party.take();
  t.fake_stack = nullptr;
  t.started = t.exited = t.polling = t.fenced = false;
  t.ready = nullptr;
  t.what = "nothing";
  t.result = nullptr;
  t.observed.clear();
  t.uncommitted.clear();
  t.committed.clear();
  t.loads.assign(1, {});
  prepare_stack(t);
}

void reset(Block& block) {
  block.hardware.take();
  block.exited = 0;
  block.started = false;
  block.barrier = {};
  uint3 index = {0, 0, 0};
  for (Thread& t : block.threads) {
    reset(t);
    t.index = index;
    if (++index.x == blockDim.x) index.x = 0, ++index.y;
    if (index.y == blockDim.y) index.y = 0, ++index.z;
  }
  block.order.clear();
  for (Warp& warp : block.warps) {
    warp.collecting = warp.exited = 0;
    warp.generation = 0;
    warp.order.clear();
    for (unsigned lane = 0; lane < warp.size; ++lane) warp.order.push_back(warp.lanes + lane);
    schedule().arrange(warp.order);
    block.order.push_back(&warp);
  }
  schedule().arrange(block.order);
}

}  // namespace

Block::Block(unsigned count) : stacks(count * kStackBytes), shared(image_bytes()), threads(count) {
  for (unsigned rank = 0; rank < count; ++rank) {
    threads[rank].block = this;
    threads[rank].rank = rank;
    threads[rank].stack = stacks.data + rank * kStackBytes;
    mprotect(threads[rank].stack, kPageBytes, PROT_NONE);  // an overflow faults
  }
  for (unsigned first = 0; first < count; first += warpSize)
    warps.push_back({this, &threads[first], std::min<unsigned>(warpSize, count - first), {}});
}

bool Cluster::done() const {
  return std::all_of(blocks.begin(), blocks.end(), [](const auto& b) { return b->exited == b->threads.size(); });
}

std::unique_ptr<Cluster> make_cluster(dim3 origin) {
  auto cluster = std::make_unique<Cluster>();
  const dim3 shape = running->cluster_shape;
  const unsigned threads = blockDim.x * blockDim.y * blockDim.z;
  for (unsigned z = 0; z < shape.z; ++z)
    for (unsigned y = 0; y < shape.y; ++y)
      for (unsigned x = 0; x < shape.x; ++x) {
        auto block = take(threads);
        block->cluster = cluster.get();
        block->index = {origin.x + x, origin.y + y, origin.z + z};
        block->rank = cluster->blocks.size();
        reset(*block);
        cluster->order.push_back(block.get());
        cluster->blocks.push_back(std::move(block));
      }
  schedule().arrange(cluster->order);
  // The host's mapping of the memory happens before its use by the parties, which are older.
  running->start.release();
  for (auto& block : cluster->blocks) prepare_shared(*block);
  return cluster;
}

void retire(std::unique_ptr<Cluster> cluster) {
  for (auto& block : cluster->blocks) {
    block->hardware.give_back();
    for (Thread& t : block->threads) t.party.give_back();
    // ThreadSanitizer forgets the accesses of these blocks only if their memory is unmapped.
    if (racing() || pool().threads + block->threads.size() > kMostIdleThreads) continue;
    pool().threads += block->threads.size();
    pool().blocks[block->threads.size()].push_back(std::move(block));
  }
}

}  // namespace emulator
