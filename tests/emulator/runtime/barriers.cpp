// SPDX-License-Identifier: MIT
// Barriers of blocks and clusters, collectives of warps, distributed shared memory, fences.
#include "machine.h"

#include <cstring>
#include <utility>

namespace emulator {

namespace {

// Whether this arrival completes the barrier.
bool arrive(Barrier& barrier, unsigned expected, const Where& where) {
  const bool same = barrier.where.line() == where.line() && !std::strcmp(barrier.where.file_name(), where.file_name());
  if (barrier.arrived && !same) fault("other threads wait at " + at(barrier.where), where);
  barrier.where = where;
  barrier.edges[barrier.generation & 1].release();
  if (++barrier.arrived < expected) return false;
  barrier.arrived = 0;
  ++barrier.generation;
  return true;
}

Warp& warp_of(const Thread& thread) { return thread.block->warps[thread.rank / warpSize]; }

// Completes the collective over the mask once all of its lanes that have not exited take part.
void complete(Warp& warp, unsigned mask) {
  const unsigned valid = mask & (~0u >> (warpSize - warp.size)) & ~warp.exited;
  if ((warp.collecting & valid) != valid) return;
  Lanes lanes;
  lanes.valid = valid;
  for (unsigned l = 0; l < warp.size; ++l) {
    if (!(valid >> l & 1)) continue;
    if (warp.lanes[l].collective_mask != mask) return;
    lanes.value[l] = warp.lanes[l].contribution;
  }
  for (lanes.self = 0; lanes.self < warp.size; ++lanes.self)
    if (valid >> lanes.self & 1) *std::exchange(warp.lanes[lanes.self].result, nullptr) = lanes;
  warp.collecting &= ~valid;
}

}  // namespace

void exit_thread(Thread& thread) {
  Block& block = *thread.block;
  if (block.barrier.arrived)
    fault("exits while other threads wait in __syncthreads at " + at(block.barrier.where), Where());
  if (block.cluster->barrier.arrived)
    fault("exits while other threads wait for the cluster at " + at(block.cluster->barrier.where), Where());
  if (!thread.uncommitted.empty() || !thread.committed.empty())
    fault("exits before its bulk stores have read shared memory", Where());
  thread.exited = true;
  ++block.exited;
  Warp& warp = warp_of(thread);
  warp.exited |= 1u << thread.lane();
  for (unsigned l = 0; l < warp.size; ++l)
    if (warp.lanes[l].result) complete(warp, warp.lanes[l].collective_mask);
}

// --- Warps. Shuffles and ballots give no order to memory accesses; __syncwarp does.

Lanes exchange(unsigned mask, uint64_t value, Where where) {
  const IgnoreAccesses ignore;
  Thread& me = *self;
  Warp& warp = warp_of(me);
  if (!(mask >> me.lane() & 1)) fault("a lane outside its own mask", where);
  Lanes lanes;
  me.collective_mask = mask;
  me.contribution = value;
  me.result = &lanes;
  warp.collecting |= 1u << me.lane();
  complete(warp, mask);
  wait_until([&me] { return !me.result; }, "a warp collective", where);
  return lanes;
}

void syncwarp(unsigned mask, Where where) {
  Warp& warp = warp_of(*self);
  // Lanes of two masks share the edges: at worst, this orders too much.
  const auto generation = warp.generation;
  warp.edges[generation & 1].release();
  exchange(mask, 0, where);
  warp.generation = generation + 1;
  warp.edges[generation & 1].acquire();
}

// --- Blocks and clusters

int syncthreads(bool predicate, Where where) {
  const IgnoreAccesses ignore;
  Block& block = *self->block;
  Barrier& barrier = block.barrier;
  if (block.exited) fault("__syncthreads after other threads have left the kernel", where);
  const auto generation = barrier.generation;
  int& votes = barrier.votes[generation & 1];  // read before the generation after the next begins
  if (barrier.arrived == 0) votes = 0;
  votes += predicate;
  if (arrive(barrier, block.threads.size(), where)) ++counters.barriers;
  wait_until([&, generation] { return barrier.generation != generation; }, "__syncthreads", where);
  barrier.edges[generation & 1].acquire();
  return votes;
}

void cluster_arrive(Where where) {
  const IgnoreAccesses ignore;
  Cluster& cluster = *self->block->cluster;
  for (const auto& block : cluster.blocks)
    if (block->exited) fault("a cluster barrier after other threads have left the kernel", where);
  self->awaited = cluster.barrier.generation;
  arrive(cluster.barrier, cluster.threads(), where);
}
void cluster_wait(Where where) {
  const IgnoreAccesses ignore;
  Barrier& barrier = self->block->cluster->barrier;
  const auto generation = self->awaited;
  wait_until([&, generation] { return barrier.generation != generation; }, "a cluster barrier", where);
  barrier.edges[generation & 1].acquire();
}
unsigned cluster_rank() { return self->block->rank; }
unsigned cluster_size() { return self->block->cluster->blocks.size(); }

void* map_shared(const void* address, unsigned rank, Where where) {
  const Block& block = *self->block;
  if (rank >= block.cluster->blocks.size()) fault("no block of that rank in the cluster", where);
  if (!block.shared.contains(address, 0)) fault("map_shared_rank of an address outside shared memory", where);
  return block.cluster->blocks[rank]->shared.data + (static_cast<const char*>(address) - block.shared.data);
}

// --- Fences: before an atomic operation, one releases; after it, one acquires.

void fence() {
  const IgnoreAccesses ignore;
  for (const void* address : self->observed)
    if (__tsan_acquire) __tsan_acquire(const_cast<void*>(address));
  self->observed.clear();
  self->fenced = true;
}
void before_atomic(const void* address) {
  if (self->fenced && __tsan_release) __tsan_release(const_cast<void*>(address));
  self->fenced = false;
}
void after_atomic(const void* address) {
  const IgnoreAccesses ignore;
  if (__tsan_acquire) self->observed.push_back(address);
}

}  // namespace emulator
