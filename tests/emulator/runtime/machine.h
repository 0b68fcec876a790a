// SPDX-License-Identifier: MIT
// The state of the machine: threads, warps, blocks, clusters, the current launch.
#pragma once

#include "../device/interface.h"
#include "mapping.h"
#include "sanitizers.h"

#include <array>
#include <deque>
#include <exception>
#include <map>
#include <memory>
#include <string>
#include <vector>

namespace emulator {

struct Block;
struct Cluster;

struct Copy {
  void* destination;
  const void* source;
  unsigned bytes;
  uint64_t* mbarrier;  // null: a store
  Block* issuer;
  unsigned char value[16] = {};  // of a push, which has no source
};

struct Thread {
  Block* block;
  unsigned rank;  // in the block
  uint3 index;
  char* stack;  // its lowest address
  // The rest is reset for every launch.
  void* stack_pointer;
  void* fake_stack;  // AddressSanitizer's
  Party party;
  bool started, exited;
  // What it waits for:
  bool (*ready)(void*);
  void* condition;
  const char* what;
  Where where;
  bool polling;
  unsigned long awaited;  // the generation of the cluster barrier it arrived at
  // Warp collectives:
  unsigned collective_mask;
  uint64_t contribution;
  Lanes* result;
  // Memory order, and copies under way:
  bool fenced;
  std::vector<const void*> observed;
  std::vector<Copy> uncommitted;
  std::vector<std::vector<Copy>> committed;
  std::deque<std::vector<Copy>> loads;  // groups of the thread's own asynchronous copies, the last one still open

  unsigned lane() const { return rank % warpSize; }
};

struct Barrier {
  unsigned arrived = 0;
  unsigned long generation = 0;
  Where where;
  std::array<Edge, 2> edges;
  std::array<int, 2> votes = {};
};

struct Warp {
  Block* block;
  Thread* lanes;  // `size` of them
  unsigned size;
  std::vector<Thread*> order = {};
  unsigned collecting = 0;  // lanes that wait in a collective
  unsigned exited = 0;      // lanes
  unsigned long generation = 0;
  std::array<Edge, 2> edges = {};
};

struct Mbarrier {
  unsigned expected, pending;
  int64_t bytes = 0;
  unsigned phase = 0;
  std::array<Edge, 2> edges = {};
};

struct Block {
  explicit Block(unsigned threads);
  Block(const Block&) = delete;

  Mapping stacks, shared;
  std::vector<Thread> threads;
  std::vector<Warp> warps;
  Cluster* cluster;
  uint3 index;
  unsigned rank;   // in the cluster
  Party hardware;  // which fills and reclaims shared memory, and performs bulk copies
  std::vector<Warp*> order;
  unsigned exited;
  bool started;
  Barrier barrier;
  Edge start, finish, proxy, issue;
};

struct Cluster {
  std::vector<std::unique_ptr<Block>> blocks;
  std::vector<Block*> order;
  Barrier barrier;
  std::map<uint64_t*, Mbarrier> mbarriers;
  size_t threads() const { return blocks.size() * blocks[0]->threads.size(); }
  bool done() const;
};

struct Launch {
  const std::function<void()>* body;
  dim3 cluster_shape;
  size_t dynamic_bytes;
  void* party = Party::current();
  void* stack_pointer = nullptr;
  const void* stack_bottom = nullptr;
  size_t stack_size = 0;
  Edge start = {}, finish = {};
  std::exception_ptr error = nullptr;
  bool cancelled = false;        // threads unwind their stacks
  unsigned long round = 0;       // of the scheduler
  std::deque<Copy> copies = {};  // under way
};

// One of each, as launches take turns. Not thread-local: such variables are the blocks' shared memory.
extern Launch* running;
extern Thread* self;
extern Block* resident;  // whose shared memory `__shared__` names

// What kernels have done so far.
struct Counters {
  long loaded = 0;    // bytes, by asynchronous copies and by loads with a cache hint (__ldg, __ldcs, load_once)
  long stored = 0;    // bytes, by stores with a cache hint (__stcs)
  long pushed = 0;    // numbers, by st.async
  long barriers = 0;  // __syncthreads of blocks
};
extern Counters counters;

// --- shared_memory.cpp

constexpr size_t kMaxDynamicBytes = 227 * 1024;
size_t image_bytes();
void enter_block(Block*);     // null: leaves it
void prepare_shared(Block&);  // before its threads exist
void hand_out(Block&);        // before its first thread runs
void reclaim(Block&);         // after its last thread has exited

// --- fibers.cpp

constexpr size_t kStackBytes = 64 << 10;
struct Cancelled {};
void prepare_stack(Thread&);
void switch_to_thread(Thread&);
void switch_to_scheduler();
void exit_thread(Thread&);

template <typename Ready>
void wait_until(Ready ready, const char* what, const Where& where) {
  while (!ready()) {
    self->ready = [](void* condition) { return (*static_cast<Ready*>(condition))(); };
    self->condition = &ready;
    self->what = what;
    self->where = where;
    switch_to_scheduler();
    if (running->cancelled) throw Cancelled();
  }
  self->ready = nullptr;
}

// --- blocks.cpp

std::unique_ptr<Cluster> make_cluster(dim3 origin);
void retire(std::unique_ptr<Cluster>);

// --- scheduler.cpp

size_t most_resident();  // threads
void run_clusters(std::vector<dim3> origins);

// --- copies.cpp

void perform(const Copy&, Edge& ordered_after);

// --- reports.cpp

std::string at(const Where&);
std::string name(const Thread&);
[[noreturn]] void fault(const std::string& problem, const Where&);
std::string deadlock(const std::vector<std::unique_ptr<Cluster>>&);

}  // namespace emulator
