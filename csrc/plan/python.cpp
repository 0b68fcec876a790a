// SPDX-License-Identifier: MIT
// L3. See python.h. The dictionaries have the names and the nesting of the structs.
#include "python.h"

#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <iterator>
#include <string>
#include <utility>

#include "../gates/registry.h"
#include "resident.h"
#include "tuning.h"

namespace eca {
namespace {

namespace py = pybind11;

constexpr int64_t kMostElements = int64_t{1} << 40;  // of a map, far beyond any device, so that nothing overflows

[[noreturn]] void refuse(const std::string& argument, const std::string& expected, const std::string& got) {
  throw py::value_error(argument + ": expected " + expected + ", got " + got);
}

struct Name {
  const char* name;
  int value;
};
constexpr Name kDTypeNames[] = {{"float32", static_cast<int>(DType::kFloat)},
                                {"float64", static_cast<int>(DType::kDouble)},
                                {"float16", static_cast<int>(DType::kHalf)},
                                {"bfloat16", static_cast<int>(DType::kBFloat16)}};
constexpr Name kLayoutNames[] = {{"contiguous", static_cast<int>(Layout::kPlanes)},
                                 {"channels_last", static_cast<int>(Layout::kRows)}};
constexpr Name kWalkNames[] = {{"planes", static_cast<int>(Layout::kPlanes)},
                               {"rows", static_cast<int>(Layout::kRows)}};
constexpr Name kDirectionNames[] = {{"forward", static_cast<int>(Direction::kForward)},
                                    {"backward", static_cast<int>(Direction::kBackward)}};
constexpr Name kVariantNames[] = {{"eca", static_cast<int>(Variant::kEca)},
                                  {"multi_kernel_eca", static_cast<int>(Variant::kMultiKernel)},
                                  {"bidirectional_eca", static_cast<int>(Variant::kBidirectional)}};

template <class E, size_t Count>
E named(const std::string& argument, const std::string& name, const Name (&names)[Count]) {
  std::string all;
  for (const Name& known : names) {
    if (name == known.name) return static_cast<E>(known.value);
    all += std::string(all.empty() ? "" : ", ") + known.name;
  }
  refuse(argument, "one of " + all, "'" + name + "'");
}

py::dict to_dict(const Device& d) {
  using namespace py::literals;
  return py::dict("name"_a = d.name, "capability"_a = d.capability, "multiprocessors"_a = d.multiprocessors,
                  "max_threads"_a = d.max_threads, "threads_per_multiprocessor"_a = d.threads_per_multiprocessor,
                  "shared_per_block"_a = d.shared_per_block,
                  "shared_per_multiprocessor"_a = d.shared_per_multiprocessor, "l2"_a = d.l2,
                  "copy_rate"_a = d.copy_rate, "measured"_a = d.measured, "shared_opt_in"_a = d.shared_opt_in,
                  "clusters"_a = std::vector<std::vector<int>>{{std::begin(d.clusters[0]), std::end(d.clusters[0])},
                                                               {std::begin(d.clusters[1]), std::end(d.clusters[1])}});
}

// The entries of a dict that was given as the argument of that name.
struct Entries {
  const char* argument;
  const py::dict& dict;

  py::object at(const char* key) const {
    if (!dict.contains(key)) refuse(argument, std::string("a dict with '") + key + "'", "one without");
    return dict[key];
  }
  template <class T>
  T number(const char* key, T least) const {
    const std::string expected = std::string(key) + " >= " + std::to_string(static_cast<int64_t>(least));
    try {
      const T value = at(key).cast<T>();
      if (value >= least) return value;
    } catch (const py::cast_error&) {
    }
    refuse(argument, expected, py::repr(at(key)));
  }
  template <class E, size_t Count>
  E name(const char* key, const Name (&names)[Count]) const {
    const py::object value = at(key);
    const std::string argument_and_key = std::string(argument) + ": " + key;
    if (!py::isinstance<py::str>(value)) refuse(argument_and_key, "a name", py::repr(value));
    return named<E>(argument_and_key, value.cast<std::string>(), names);
  }
};

Device from_dict(const py::dict& d) {
  const Entries device{"device", d};
  Device made{"",
              device.number("capability", 0),
              device.number("multiprocessors", 1),
              device.number("max_threads", 32),
              device.number("threads_per_multiprocessor", 32),
              device.number<int64_t>("shared_per_block", 4 << 10),
              device.number<int64_t>("shared_per_multiprocessor", 4 << 10),
              device.number<int64_t>("l2", 0),
              device.number<double>("copy_rate", 0),
              false,
              d.contains("shared_opt_in") ? device.number<int64_t>("shared_opt_in", 0) : 0};
  if (!d.contains("clusters")) return made;
  const py::object clusters = d["clusters"];
  try {
    const auto counts = clusters.cast<std::array<std::array<int, kMostRanks + 1>, 2>>();
    for (int room = 0; room < 2; ++room) std::copy(counts[room].begin(), counts[room].end(), made.clusters[room]);
  } catch (const py::cast_error&) {
    refuse("device: clusters", "two lists of 17 numbers", py::repr(clusters));
  }
  return made;
}

Device device_of(const py::object& given) {
  if (py::isinstance<py::dict>(given)) return from_dict(given);
  if (!py::isinstance<py::str>(given)) refuse("device", "a name or a dict", py::repr(given));
  const std::string name = given.cast<std::string>();
  std::string all;
  size_t count = 0;
  const Device* const devices = known_devices(&count);
  for (size_t i = 0; i < count; ++i) {
    if (name == devices[i].name) return devices[i];
    all += std::string(i ? ", " : "") + devices[i].name;
  }
  refuse("device", "one of " + all, "'" + name + "'");
}

// The layout that FeatureMaps finds for dense maps.
Layout walked(Layout given, int64_t c, int64_t s) {
  return s == 1 || (given == Layout::kRows && c != 1) ? Layout::kRows : Layout::kPlanes;
}

int64_t alignment_of_dense(const Problem& p) {
  const bool rows = p.layout == Layout::kRows;
  return alignment_of(p, {reinterpret_cast<void*>(256), p.c * p.s, rows ? p.c : p.s});
}

py::dict to_dict(const Plan& p, Layout layout, int64_t alignment) {
  using namespace py::literals;
  const py::dict tiling("channels"_a = p.tiling.channels, "positions"_a = p.tiling.positions,
                        "blocks"_a = p.tiling.blocks, "count"_a = p.tiling.count);
  const py::dict shared("ticket"_a = p.shared.ticket, "warps"_a = p.shared.warps, "sums"_a = p.shared.sums,
                        "gate"_a = p.shared.gate, "total"_a = p.shared.total);
  return py::dict("path"_a = p.path == Path::kNothing ? "nothing" : "two-phase", "reason"_a = p.reason,
                  "layout"_a = layout == Layout::kRows ? "rows" : "planes", "alignment"_a = alignment,
                  "vector"_a = p.vector, "threads"_a = p.threads, "lanes"_a = p.lanes, "tiling"_a = tiling,
                  "tickets"_a = p.tickets, "lag"_a = p.lag, "blocks"_a = p.blocks, "shared"_a = shared,
                  "gate_numbers"_a = p.gate_numbers, "floor_bytes"_a = p.floor_bytes, "memory_bytes"_a = p.memory_bytes,
                  "l2_bytes"_a = p.l2_bytes, "floor_us"_a = p.floor_us, "predicted_us"_a = p.predicted_us);
}

py::dict to_dict(const ResidentPlan& p) {
  using namespace py::literals;
  if (!p.possible) return py::dict("possible"_a = false, "reason"_a = p.reason);
  return py::dict("possible"_a = true, "ranks"_a = p.ranks, "stages"_a = p.stages, "threads"_a = p.threads,
                  "vector"_a = p.vector, "lanes"_a = p.lanes, "runs"_a = p.runs, "channels"_a = p.channels,
                  "copies"_a = p.copies == Copies::kBulk ? "bulk" : "threads", "straddle"_a = p.straddle,
                  "parked"_a = p.parked, "group"_a = p.group, "piece_bytes"_a = 1 << p.piece_shift,
                  "evict_first"_a = p.evict_first, "persistent"_a = p.persistent, "kept_rows"_a = p.kept_rows,
                  "clusters"_a = p.clusters, "slab_bytes"_a = p.slab_bytes, "shared_bytes"_a = p.shared.total,
                  "exchange_numbers"_a = p.exchange_numbers, "floor_us"_a = p.floor_us,
                  "predicted_us"_a = p.predicted_us, "text"_a = describe(p));
}

py::dict plan(int64_t n, int64_t c, int64_t s, const std::string& dtype, const std::string& layout,
              const std::string& variant, const std::string& direction, const py::object& device, bool relu,
              bool residual, int kernel_size, int hidden, bool cross_channel, int64_t alignment) {
  const std::pair<const char*, int64_t> sizes[] = {{"n", n}, {"c", c}, {"s", s}, {"hidden", hidden}};
  for (const auto& [name, size] : sizes)
    if (size < 0 || size > kMostElements) refuse(name, "a size from 0 to 2^40", std::to_string(size));
  if (static_cast<double>(n) * static_cast<double>(c) * static_cast<double>(s) > static_cast<double>(kMostElements))
    refuse("n * c * s", "at most 2^40 elements", "more");
  if (kernel_size < 1 || kernel_size % 2 == 0)
    refuse("kernel_size", "a positive odd number", std::to_string(kernel_size));

  Problem p{n,
            c,
            s,
            named<DType>("dtype", dtype, kDTypeNames),
            Layout::kPlanes,
            named<Variant>("variant", variant, kVariantNames),
            (relu ? kRelu : int64_t{0}) | (cross_channel ? kCrossChannel : int64_t{0})};
  p.layout = walked(named<Layout>("layout", layout, kLayoutNames), c, s);
  const int64_t dense = alignment_of_dense(p);
  if (alignment == 0) alignment = dense;
  if (alignment < item_size(p.dtype) || dense % alignment != 0)
    refuse("alignment", "a power of two from the size of an element to " + std::to_string(dense) + " bytes",
           std::to_string(alignment));

  const GateArgs<float> args{{}, c, kernel_size, hidden, p.flags};
  const GateFacts facts = gate_facts(p.variant, args);
  const Request request{p,           named<Direction>("direction", direction, kDirectionNames),
                        residual,    alignment,
                        kernel_size, facts.scratch_size};
  const Device on = device_of(device);
  const bool is_kept = is_dense(p, {reinterpret_cast<void*>(256), c * s, p.layout == Layout::kRows ? c : s});
  py::dict made = to_dict(make_plan(request, on), p.layout, alignment);
  const Exchanges& exchanges = facts.exchanges[request.direction == Direction::kBackward];
  made["resident"] = to_dict(make_resident_plan({request, is_kept, exchanges, facts.weights, tuned(request)}, on));
  return made;
}

// An entry that may be left out: 0 or a power of two.
int power(const Entries& rule, const char* key, int least, int most) {
  if (!rule.dict.contains(key)) return 0;
  const int value = rule.number(key, 0);
  if (value != 0 && (value & (value - 1) || value < least || value > most))
    refuse("rules",
           std::string(key) + ": 0 or a power of two from " + std::to_string(least) + " to " + std::to_string(most),
           std::to_string(value));
  return value;
}

// One rule, as described at set_tuning.
Rule rule_of(const py::handle& given) {
  if (!py::isinstance<py::dict>(given)) refuse("rules", "dicts", py::repr(given));
  const auto d = py::reinterpret_borrow<py::dict>(given);
  const Entries rule{"rules", d};
  rule.at("threads");  // the others may be left out
  const int threads = power(rule, "threads", 32, 512), piece = power(rule, "piece", 4096, 1 << 17);
  const bool groups = d.contains("lanes") && rule.number("lanes", -1) == -1;
  const int evict_first = d.contains("evict_first") ? rule.number("evict_first", -1) : 0;
  if (evict_first > (kRead | kWritten)) refuse("rules: evict_first", "-1 to 3", std::to_string(evict_first));
  const int persistent = d.contains("persistent") ? rule.number("persistent", -1) : 0;
  if (persistent > 1) refuse("rules: persistent", "-1 to 1", std::to_string(persistent));
  const int lanes = groups ? -1 : power(rule, "lanes", 1, 512);
  return {rule.name<Direction>("direction", kDirectionNames),
          rule.name<DType>("dtype", kDTypeNames),
          rule.name<Layout>("layout", kWalkNames),
          d.contains("variant") ? static_cast<int>(rule.name<Variant>("variant", kVariantNames)) : -1,
          rule.number<int64_t>("n", 0),
          rule.number<int64_t>("c", 1),
          rule.number<int64_t>("s", 1),
          {rule.number("ranks", -1), rule.number("stages", 0), threads, lanes, piece, evict_first, persistent}};
}

}  // namespace

void bind_plan(py::module_& m) {
  using namespace py::literals;
  m.def(
      "devices",
      [] {
        size_t count = 0;
        const Device* const devices = known_devices(&count);
        py::list all;
        for (size_t i = 0; i < count; ++i) all.append(to_dict(devices[i]));
        return all;
      },
      "The devices that plan knows by name, with the figures that a plan depends on.");
  m.def(
      "plan", plan, "n"_a, "c"_a, "s"_a, "dtype"_a, "layout"_a, "variant"_a, "direction"_a, "device"_a, py::kw_only(),
      "relu"_a = false, "residual"_a = false, "kernel_size"_a = 3, "hidden"_a = 0, "cross_channel"_a = false,
      "alignment"_a = 0,
      "How the CUDA kernels would do a call with maps [n, c, s]: csrc/plan/plan.h as a dict. device: a name, or a dict "
      "like those of devices(). alignment: 0 for that of dense maps.");
  m.def(
      "known_device",
      [](const std::string& name, int multiprocessors) -> py::object {
        const Device* const known = known_device(name, multiprocessors);
        return known ? py::object(to_dict(*known)) : py::none();
      },
      "name"_a, "multiprocessors"_a,
      "The one of devices() that a driver calls by such a name and that has so many multiprocessors, or None.");
  m.def(
      "device",
      []() -> py::object {
        Device device{};
        if (!driver_device || !driver_device(&device)) return py::none();
        return to_dict(device);
      },
      "The current GPU as its driver describes it, a dict as those of devices(), copy_rate 0 if not known; None if "
      "there is none, or in builds without CUDA.");
  m.def(
      "clusters",
      [](int ranks, int threads, int shared_bytes) {
        if (!driver_clusters) throw std::runtime_error("clusters: expected a build with CUDA, this one has none");
        return driver_clusters(ranks, threads, shared_bytes);
      },
      "ranks"_a, "threads"_a, "shared_bytes"_a,
      "How many clusters of so many blocks, threads per block and bytes of shared memory per block run at once on the "
      "current GPU, as its driver says.");
  m.def(
      "set_tuning",
      [](const py::list& rules) {
        std::vector<Rule> all;
        for (const auto& rule : rules) all.push_back(rule_of(rule));
        set_tuning(std::move(all));
      },
      "rules"_a,
      "Replaces what is known to be best for the resident kernels: dicts with direction, dtype, layout ('planes' or "
      "'rows'), n (0: any), c, s, ranks (-1: two-phase kernels), stages and threads, and if you like lanes (threads to "
      "a plane; -1: groups of planes to a thread), piece (bytes of a slab that arrive together), evict_first (what the "
      "L2 cache gives up first; 1: what is read, 2: what is written, 3: both, -1: neither) and persistent (1: clusters "
      "that take samples in turn, -1: one for each sample); 0: as the plan finds. A rule may have a variant, and is "
      "else for all of them. The first rule that fits counts.");
}

}  // namespace eca
