// SPDX-License-Identifier: MIT
// mbarriers and copies. Bulk loads are performed as late as possible or (schedule 1) at once, stores when waited for.
#include <cstring>

#include "machine.h"
#include "schedule.h"

namespace emulator {

Counters counters;

void count_load(unsigned bytes) { counters.loaded += bytes; }
void count_store(unsigned bytes) { counters.stored += bytes; }

namespace {

Mbarrier& find(uint64_t* address, const Where& where) {
  auto& all = self->block->cluster->mbarriers;
  const auto found = all.find(address);
  if (found == all.end()) fault("an mbarrier that was never initialized", where);
  return found->second;
}

void check_bulk(const void* destination, const void* source, unsigned bytes, const Where& where) {
  if (reinterpret_cast<uintptr_t>(destination) % 16 || reinterpret_cast<uintptr_t>(source) % 16 || bytes % 16)
    fault("bulk copies need addresses and sizes in multiples of 16 bytes", where);
  if (poisoned(source, bytes)) fault("a bulk copy from outside its source", where);
  if (poisoned(destination, bytes)) fault("a bulk copy to outside its destination", where);
}

void settle(Mbarrier& barrier) {
  if (barrier.pending || barrier.bytes) return;
  ++barrier.phase;
  barrier.pending = barrier.expected;
}

}  // namespace

void perform(const Copy& copy, Edge& ordered_after) {
  copy.issuer->hardware.act([&] {
    ordered_after.acquire();
    unpoison(copy.destination, copy.bytes);
    if (copy.source)
      emulator::copy(copy.destination, copy.source, copy.bytes);
    else
      write(copy.destination, copy.value, copy.bytes);
    if (!copy.mbarrier) return copy.issuer->issue.release();
    Mbarrier& barrier = copy.issuer->cluster->mbarriers.at(copy.mbarrier);
    barrier.edges[barrier.phase & 1].release();
    barrier.bytes -= copy.bytes;
    settle(barrier);
  });
}

void mbarrier_init(uint64_t* address, unsigned count, Where where) {
  const IgnoreAccesses ignore;
  if (!self->block->shared.contains(address, 8)) fault("an mbarrier outside shared memory", where);
  self->block->cluster->mbarriers.insert_or_assign(address, Mbarrier{count, count});
}

uint64_t mbarrier_arrive(uint64_t* address, unsigned count, unsigned bytes, Where where) {
  const IgnoreAccesses ignore;
  Mbarrier& barrier = find(address, where);
  if (barrier.pending < count) fault("more arrivals than the mbarrier expects", where);
  const unsigned phase = barrier.phase;
  barrier.edges[phase & 1].release();
  barrier.bytes += bytes;
  barrier.pending -= count;
  settle(barrier);
  return phase;
}

bool mbarrier_wait(uint64_t* address, unsigned parity, Where where) {
  const IgnoreAccesses ignore;
  Mbarrier& barrier = find(address, where);
  wait_until([&, parity] { return (barrier.phase & 1) != parity; }, "an mbarrier", where);
  barrier.edges[parity].acquire();
  return true;
}

bool mbarrier_test(uint64_t* address, unsigned parity, Where where) {
  const IgnoreAccesses ignore;
  Mbarrier& barrier = find(address, where);
  if ((barrier.phase & 1) == parity) poll("mbarrier_test_wait (polling)", where);
  if ((barrier.phase & 1) == parity) return false;
  barrier.edges[parity].acquire();
  return true;
}

void bulk_load(void* shared, const void* source, unsigned bytes, uint64_t* mbarrier, Where where) {
  const IgnoreAccesses ignore;
  Block& block = *self->block;
  check_bulk(shared, source, bytes, where);
  find(mbarrier, where);
  block.issue.release();
  // No thread may access the destination until the mbarrier's phase ends.
  block.hardware.act([&] {
    block.issue.acquire();
    fill(shared, bytes);
    poison(shared, bytes);
  });
  counters.loaded += bytes;
  const Copy copy{shared, source, bytes, mbarrier, &block};
  if (schedule().reversed())
    perform(copy, block.issue);
  else
    running->copies.push_back(copy);
}

// st.async: a number for another block of the cluster, which arrives at any later time.
void push(void* shared, const void* value, unsigned bytes, uint64_t* mbarrier, Where where) {
  const IgnoreAccesses ignore;
  if (reinterpret_cast<uintptr_t>(shared) % bytes) fault("a push to a misaligned address", where);
  if (poisoned(shared, bytes)) fault("a push to outside its destination", where);
  find(mbarrier, where);
  ++counters.pushed;
  Copy copy{shared, nullptr, bytes, mbarrier, self->block};
  memcpy(copy.value, value, bytes);
  self->block->issue.release();
  if (schedule().reversed())
    perform(copy, self->block->issue);
  else
    running->copies.push_back(copy);
}

void bulk_store(void* global, const void* shared, unsigned bytes, Where where) {
  const IgnoreAccesses ignore;
  check_bulk(global, shared, bytes, where);
  self->uncommitted.push_back({global, shared, bytes, nullptr, self->block});
}

void bulk_commit() {
  const IgnoreAccesses ignore;
  self->committed.push_back(std::move(self->uncommitted));
  self->uncommitted.clear();
}

// Stores see shared memory as of the last proxy fence.
void bulk_wait(unsigned groups_left, Where where) {
  const IgnoreAccesses ignore;
  if (!self->uncommitted.empty()) fault("bulk stores waited for before they are committed", where);
  while (self->committed.size() > groups_left) {
    for (const Copy& copy : self->committed.front()) perform(copy, self->block->proxy);
    self->committed.erase(self->committed.begin());
  }
  self->block->issue.acquire();
}

void fence_proxy_async() { self->block->proxy.release(); }

// A thread's own copy: no thread may read it before this one has waited for it, and no other one before a barrier.
void thread_load(void* shared, const void* source, unsigned bytes, Where where) {
  {
    const IgnoreAccesses ignore;
    if (bytes != 4 && bytes != 8 && bytes != 16) fault("asynchronous copies are of 4, 8 or 16 bytes", where);
    if (reinterpret_cast<uintptr_t>(shared) % bytes || reinterpret_cast<uintptr_t>(source) % bytes)
      fault("an asynchronous copy needs addresses that are multiples of its size", where);
    if (poisoned(source, bytes)) fault("an asynchronous copy from outside its source", where);
    if (poisoned(shared, bytes)) fault("an asynchronous copy to outside its destination", where);
    counters.loaded += bytes;
    self->loads.back().push_back({shared, source, bytes, nullptr, self->block});
  }
  fill(shared, bytes);
  poison(shared, bytes);
}

void thread_load_commit() {
  const IgnoreAccesses ignore;
  self->loads.emplace_back();
}

void thread_load_wait(unsigned groups_left, Where where) {
  std::vector<Copy> done;
  {
    const IgnoreAccesses ignore;
    if (!self->loads.back().empty()) fault("asynchronous copies waited for before they are committed", where);
    while (self->loads.size() > groups_left + 1) {
      done.insert(done.end(), self->loads.front().begin(), self->loads.front().end());
      self->loads.pop_front();
    }
  }
  for (const Copy& load : done) {
    unpoison(load.destination, load.bytes);
    copy(load.destination, load.source, load.bytes);
  }
}

}  // namespace emulator
