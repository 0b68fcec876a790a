// SPDX-License-Identifier: MIT
// L3. See python.h. The dictionaries have the names and the nesting of the structs.
#include "python.h"

#include <pybind11/stl.h>

#include <algorithm>
#include <string>
#include <utility>

#include "../gates/registry.h"
#include "../sizes.h"
#include "plan.h"

namespace eca {
namespace {

namespace py = pybind11;

// Published figures of some GPUs, so that their plans can be shown and tested on any machine.
constexpr int64_t kKB = 1024, kMB = 1024 * 1024;
constexpr int64_t kShared = 48 * kKB;
constexpr int kMostCount = 1 << 16;  // more than any device has, small enough that nothing overflows

constexpr Device kDevices[] = {
    {"a10", 86, 72, 1024, 1536, 1, kShared, 100 * kKB, 99 * kKB, 6 * kMB},
    {"a100", 80, 108, 1024, 2048, 1, kShared, 164 * kKB, 163 * kKB, 40 * kMB},
    {"b200", 100, 148, 1024, 2048, 16, kShared, 228 * kKB, 227 * kKB, 126 * kMB},
    {"h100", 90, 132, 1024, 2048, 16, kShared, 228 * kKB, 227 * kKB, 50 * kMB},
    {"h100-mig-1g", 90, 16, 1024, 2048, 16, kShared, 228 * kKB, 227 * kKB, 6 * kMB},
    {"h200", 90, 132, 1024, 2048, 16, kShared, 228 * kKB, 227 * kKB, 60 * kMB},
    {"l4", 89, 58, 1024, 1536, 1, kShared, 100 * kKB, 99 * kKB, 48 * kMB},
    {"rtx4090", 89, 128, 1024, 1536, 1, kShared, 100 * kKB, 99 * kKB, 72 * kMB},
    {"rtx5090", 120, 170, 1024, 1536, 8, kShared, 100 * kKB, 99 * kKB, 96 * kMB},
    {"t4", 75, 40, 1024, 1024, 1, kShared, 64 * kKB, 64 * kKB, 4 * kMB},
};

[[noreturn]] void refuse(const std::string& argument, const std::string& expected, const std::string& got) {
  throw py::value_error(argument + ": expected " + expected + ", got " + got);
}

int64_t integer(const std::string& argument, const py::object& given, int64_t least, int64_t most) {
  try {
    const auto value = given.cast<int64_t>();
    if (value >= least && value <= most) return value;
  } catch (const py::cast_error&) {
  }
  refuse(argument, "an integer from " + std::to_string(least) + " to " + std::to_string(most), py::repr(given));
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
const std::vector<Name> kVariantNames = [] {
  std::vector<Name> names;
  for (const GateInfo& gate : Gates::kInfo) names.push_back({gate.name, static_cast<int>(names.size())});
  return names;
}();

template <class E, class Names>
E named(const std::string& argument, const std::string& name, const Names& names) {
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
                  "most_blocks"_a = d.most_blocks, "shared_per_block"_a = d.shared_per_block,
                  "shared_per_multiprocessor"_a = d.shared_per_multiprocessor, "shared_opt_in"_a = d.shared_opt_in,
                  "l2"_a = d.l2);
}

// The entries of a dict, given as the named argument.
struct Entries {
  std::string argument;
  const py::dict& dict;

  py::object at(const char* key) const {
    if (!dict.contains(key)) refuse(argument, std::string("a dict with '") + key + "'", "one without");
    return dict[key];
  }
  int64_t number(const char* key, int64_t least, int64_t most) const {
    return integer(argument + ": " + key, at(key), least, most);
  }
  int count(const char* key, int least, int most) const { return static_cast<int>(number(key, least, most)); }
  template <class E, class Names>
  E name(const char* key, const Names& names) const {
    const py::object value = at(key);
    const std::string argument_and_key = argument + ": " + key;
    if (!py::isinstance<py::str>(value)) refuse(argument_and_key, "a name", py::repr(value));
    return named<E>(argument_and_key, value.cast<std::string>(), names);
  }
};

Device from_dict(const py::dict& d) {
  const Entries device{"device", d};
  return {"",
          device.count("capability", 0, 1000),
          device.count("multiprocessors", 1, kMostCount),
          device.count("max_threads", 32, kMostCount),
          device.count("threads_per_multiprocessor", 32, kMostCount),
          device.count("most_blocks", 1, kMostCount),
          device.number("shared_per_block", 4 * kKB, 1024 * kMB),
          device.number("shared_per_multiprocessor", 4 * kKB, 1024 * kMB),
          device.number("shared_opt_in", 4 * kKB, 1024 * kMB),
          device.number("l2", 0, kMostNumbers)};
}

Device device_of(const py::object& given) {
  if (py::isinstance<py::dict>(given)) return from_dict(given);
  if (!py::isinstance<py::str>(given)) refuse("device", "a name or a dict", py::repr(given));
  const std::string name = given.cast<std::string>();
  std::string all;
  for (const Device& device : kDevices) {
    if (name == device.name) return device;
    all += std::string(all.empty() ? "" : ", ") + device.name;
  }
  refuse("device", "one of " + all, "'" + name + "'");
}

// The layout that FeatureMaps chooses for dense maps.
Layout walked(Layout given, int64_t c, int64_t s) {
  return s == 1 || (given == Layout::kRows && c != 1) ? Layout::kRows : Layout::kPlanes;
}

void add(py::dict& made, const OnePassPlan& p) {
  made["blocks_per_sample"] = p.blocks;
  made["position_parts"] = p.parts;
  made["shared_bytes"] = p.shared.total;
  made["blocks_per_multiprocessor"] = p.blocks_per_multiprocessor;
  made["channels"] = p.channels;
  made["positions"] = p.positions;
  made["lanes"] = p.lanes;
  made["straddle"] = p.straddle;
  made["bulk"] = p.bulk;
  made["slabs"] = p.slabs.count;
  made["slab_bytes"] = p.slabs.bytes;
  made["keeps_x"] = p.slabs.second_sum;
  made["keeps_extra"] = p.slabs.extra;
}

void add(py::dict& made, const TwoPhasePlan& p) {
  using namespace py::literals;
  made["shared_bytes"] = p.shared.total;
  made["lanes"] = p.lanes;
  made["straddle"] = p.straddle;
  made["vector"] = p.vector;
  made["tiling"] = py::dict("channels"_a = p.tiling.channels, "positions"_a = p.tiling.positions,
                            "blocks"_a = p.tiling.blocks, "count"_a = p.tiling.count);
  made["tickets"] = p.tickets;
  made["lag"] = p.lag;
  made["gate_numbers"] = p.gate_numbers;
  made["gate_in_shared_memory"] = p.shared.gate >= 0;
}

py::dict to_dict(const Plan& p, Layout layout) {
  using namespace py::literals;
  constexpr const char* kPaths[] = {"nothing", "one_pass", "two_phase"};
  py::dict made("path"_a = kPaths[static_cast<int>(p.path)], "reason"_a = p.reason,
                "layout"_a = layout == Layout::kRows ? "rows" : "planes", "blocks_per_sample"_a = py::none(),
                "position_parts"_a = py::none(), "threads"_a = p.threads, "shared_bytes"_a = 0,
                "blocks_per_multiprocessor"_a = py::none(), "grid"_a = p.blocks, "text"_a = describe(p));
  if (p.path == Path::kOnePass) add(made, p.one_pass);
  if (p.path == Path::kTwoPhase) add(made, p.two_phase);
  return made;
}

py::dict plan(const py::object& n_, const py::object& c_, const py::object& s_, const std::string& dtype,
              const std::string& layout, const std::string& variant, const std::string& direction,
              const py::object& device, bool relu, bool residual, const py::object& kernel_size_,
              const py::object& hidden_, bool cross_channel, bool gaps) {
  const int64_t n = integer("n", n_, 0, kMostNumbers), c = integer("c", c_, 0, kMostNumbers),
                s = integer("s", s_, 0, kMostNumbers);
  const auto kernel_size = static_cast<int>(integer("kernel_size", kernel_size_, 1, kMostRows - 1)),
             hidden = static_cast<int>(integer("hidden", hidden_, 0, kMostRows - 1));
  if (kernel_size % 2 == 0) refuse("kernel_size", "an odd number", std::to_string(kernel_size));
  require_countable("n, c, s", "elements", {n, c, s});

  Problem p{n,
            c,
            s,
            named<DType>("dtype", dtype, kDTypeNames),
            Layout::kPlanes,
            named<Variant>("variant", variant, kVariantNames),
            (relu ? kRelu : int64_t{0}) | (cross_channel ? kCrossChannel : int64_t{0})};
  p.layout = walked(named<Layout>("layout", layout, kLayoutNames), c, s);
  const MapView whole{reinterpret_cast<void*>(256), c * s, p.layout == Layout::kRows ? c : s};
  const GateFacts facts = gate_facts(p.variant, {c, kernel_size, hidden, p.flags});
  require_countable("n, c and the gate", "numbers for the gates of all samples", {n, c + facts.size()});
  Request request{p, named<Direction>("direction", direction, kDirectionNames), residual};
  request.aligned = is_aligned(p, whole);
  request.dense = !gaps && is_dense(p, whole);
  request.half = kernel_size / 2;
  request.needs = facts.needs[request.backward()];
  request.numbers = facts.numbers;
  request.choice = tuned(p, request.direction);
  request.batch_invariant = batch_invariance();
  return to_dict(make_plan(request, device_of(device)), p.layout);
}

// One rule: see the docstring of set_tuning.
Rule rule_of(const py::handle& given, size_t index) {
  const std::string argument = "rules[" + std::to_string(index) + "]";
  if (!py::isinstance<py::dict>(given)) refuse(argument, "a dict", py::repr(given));
  const auto d = py::reinterpret_borrow<py::dict>(given);
  const Entries rule{argument, d};
  const int threads = rule.count("threads", 0, kOnePassThreads);
  if (threads != 0 && (threads & (threads - 1) || threads < 32))
    refuse(argument + ": threads", "0 or a power of two from 32 to " + std::to_string(kOnePassThreads),
           std::to_string(threads));
  return {
      rule.name<Direction>("direction", kDirectionNames),
      rule.name<DType>("dtype", kDTypeNames),
      rule.name<Layout>("layout", kWalkNames),
      d.contains("variant") ? static_cast<int>(rule.name<Variant>("variant", kVariantNames)) : -1,
      rule.number("n", 0, kMostNumbers),
      rule.number("c", 1, kMostNumbers),
      rule.number("s", 1, kMostNumbers),
      {rule.count("blocks", -1, kMostCount), d.contains("parts") ? rule.count("parts", 0, kMostCount) : 0, threads}};
}

}  // namespace

bool (*driver_device)(Device*) = nullptr;

void bind_plan(py::module_& m) {
  using namespace py::literals;
  m.def(
      "devices",
      [] {
        py::list all;
        for (const Device& device : kDevices) all.append(to_dict(device));
        return all;
      },
      "The devices that plan knows by name, with the figures that a plan depends on.");
  m.def(
      "plan", plan, "n"_a, "c"_a, "s"_a, "dtype"_a, "layout"_a, "variant"_a, "direction"_a, "device"_a, py::kw_only(),
      "relu"_a = false, "residual"_a = false, "kernel_size"_a = py::int_(3), "hidden"_a = py::int_(0),
      "cross_channel"_a = false, "gaps"_a = false,
      "How the CUDA kernels would do a call with maps [n, c, s]: csrc/plan/plan.h as a dict. device: a name, or a dict "
      "like those of devices(). gaps: the maps are slices of larger ones.");
  m.def(
      "device",
      []() -> py::object {
        Device device{};
        if (!driver_device || !driver_device(&device)) return py::none();
        return to_dict(device);
      },
      "The current GPU as its driver describes it, a dict as those of devices(); None if there is none, "
      "or in builds without CUDA.");
  m.def(
      "set_tuning",
      [](const py::list& rules) {
        std::vector<Rule> all;
        for (const auto& rule : rules) all.push_back(rule_of(rule, all.size()));
        set_tuning(std::move(all));
      },
      "rules"_a,
      "Replaces what is known to be best: dicts with direction, dtype, layout ('planes' or 'rows'), n (0: any), c, s, "
      "blocks (of a sample; -1: the two-phase kernel) and threads (of a block), and if you like parts (of the "
      "positions); 0: as the plan finds. A rule may have a variant, and is else for all of them. The first rule that "
      "fits counts.");
}

}  // namespace eca
