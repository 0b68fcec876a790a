// SPDX-License-Identifier: MIT
// Runs the clusters of a launch: some at a time, each thread until it has to wait.
#include "machine.h"
#include "schedule.h"

#include <algorithm>

namespace emulator {

Schedule& schedule() {
  static Schedule one;
  return one;
}

// ThreadSanitizer needs 0.85 MB per thread.
size_t most_resident() { return racing() ? 12 * 64 : 8192; }

namespace {

// A round of nothing but polls does not prove a deadlock: in a chain of blocks, each waiting for the one before it, a
// round may advance one of them, from one poll to the next. So many such rounds do.
constexpr unsigned kMostPollingRounds = 1000;

class Scheduler {
 public:
  explicit Scheduler(std::vector<dim3> origins)
      : waiting_(std::move(origins)), window_(schedule().window(waiting_.size())) {
    std::reverse(waiting_.begin(), waiting_.end());  // the next one is the last
  }

  void run() {
    unsigned polling_rounds = 0;
    for (admit(); !resident_.empty(); admit()) {
      ++running->round;
      polled_ = false;
      const bool moved = round();
      if (moved) retire_finished();
      const bool copied = (!moved || (schedule().drawn() && schedule().below(4) == 0)) && copy_one();
      if (moved || copied)
        polling_rounds = 0;
      else if (!polled_ || ++polling_rounds == kMostPollingRounds)
        throw Fault(deadlock(resident_));
    }
  }

  // Unwinds the stacks of all started threads.
  void cancel() {
    running->cancelled = true;
    for (auto& cluster : resident_)
      for (auto& block : cluster->blocks)
        for (Thread& thread : block->threads)
          if (thread.started && !thread.exited) switch_to_thread(thread);
    for (auto& cluster : resident_) retire(std::move(cluster));
    resident_.clear();
  }

 private:
  void admit() {
    while (!waiting_.empty() && resident_.size() < window_) {
      const size_t there = resident_.empty() ? 0 : resident_.size() * resident_[0]->threads();
      if (there && there + resident_[0]->threads() > most_resident()) return;
      resident_.push_back(make_cluster(waiting_.back()));
      waiting_.pop_back();
    }
  }

  void retire_finished() {
    for (auto& cluster : resident_)
      if (cluster->done()) retire(std::move(cluster));
    std::erase(resident_, nullptr);
  }

  // Lets all resident threads run. Returns whether any did more than poll again.
  bool round() { return schedule().in_turn() ? greedy_round() : schedule().drawn() ? drawn_round() : even_round(); }

  // Each block as far as it gets alone.
  bool greedy_round() {
    bool any = false;
    for (auto& cluster : resident_)
      for (Block* block : cluster->order)
        while (advance(*block)) any = true;
    return any;
  }

  // Each block from barrier to barrier.
  bool even_round() {
    bool any = false;
    for (auto& cluster : resident_)
      for (Block* block : cluster->order) any |= advance(*block);
    return any;
  }

  // Warps drawn at random, and now and then a few steps of a whole block, so that some get far ahead of others.
  bool drawn_round() {
    std::vector<Warp*> warps;
    for (auto& cluster : resident_)
      for (Block* block : cluster->order)
        if (block->exited < block->threads.size()) warps.insert(warps.end(), block->order.begin(), block->order.end());
    bool any = false;
    for (size_t i = 0; i < warps.size(); ++i) {
      Warp& warp = *warps[schedule().below(warps.size())];
      any |= advance(warp);
      if (schedule().below(8) == 0)
        for (size_t steps = schedule().below(8); steps > 0 && advance(*warp.block); --steps) any = true;
    }
    return any || even_round();
  }

  bool advance(Block& block) {
    bool any = false;
    for (Warp* warp : block.order) any |= advance(*warp);
    return any;
  }

  // A warp as far as it gets alone.
  bool advance(Warp& warp) {
    if (warp.exited == ~0u >> (warpSize - warp.size)) return false;
    Block& block = *warp.block;
    if (!block.started) hand_out(block), block.started = true;
    bool any = false;
    for (bool moved = true; moved; any |= moved) {
      moved = false;
      for (Thread* thread : warp.order)
        if (!thread->exited && (!thread->ready || thread->ready(thread->condition))) moved |= resume(*thread);
    }
    if (block.exited == block.threads.size()) finish(block);
    return any;
  }

  // Returns whether the thread did more than poll again.
  bool resume(Thread& thread) {
    const bool polled = std::exchange(thread.polling, false);
    switch_to_thread(thread);
    if (running->error) std::rethrow_exception(running->error);
    polled_ |= thread.polling;
    return !(polled && thread.polling);
  }

  void finish(Block& block) {
    for (const Copy& copy : running->copies)
      if (block.shared.contains(copy.destination, copy.bytes))
        throw Fault("a block exits with a bulk copy into its shared memory under way");
    reclaim(block);
  }

  // As late as possible; in drawn schedules some early, and in any order.
  bool copy_one() {
    auto& copies = running->copies;
    if (copies.empty()) return false;
    const auto next = copies.begin() + (schedule().drawn() ? schedule().below(copies.size()) : 0);
    const Copy copy = *next;
    copies.erase(next);
    perform(copy, copy.issuer->issue);
    return true;
  }

  std::vector<dim3> waiting_;
  size_t window_;
  std::vector<std::unique_ptr<Cluster>> resident_;
  bool polled_ = false;
};

}  // namespace

void run_clusters(std::vector<dim3> origins) {
  schedule().arrange(origins);
  Scheduler scheduler(std::move(origins));
  try {
    scheduler.run();
  } catch (...) {
    scheduler.cancel();
    throw;
  }
}

void poll(const char* what, Where where) {
  const IgnoreAccesses ignore;
  self->polling = true;
  wait_until([round = running->round] { return running->round != round; }, what, where);
}

}  // namespace emulator
