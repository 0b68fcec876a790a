// SPDX-License-Identifier: MIT
// Fences, atomics, and loads and stores with cache hints. cuda::atomic_ref is libcu++'s own.
#pragma once

#include "interface.h"

#include <concepts>
#include <type_traits>

inline void __threadfence() { emulator::fence(); }
inline void __threadfence_block() { emulator::fence(); }
inline void __threadfence_system() { emulator::fence(); }

namespace emulator {

// Relaxed, as CUDA's are: a fence before makes it release, one after makes it acquire (runtime/barriers.cpp).
template <typename T>
T update(T* address, auto operation) {
  before_atomic(address);
  T old, desired;
  __atomic_load(address, &old, __ATOMIC_RELAXED);
  do desired = operation(old);
  while (!__atomic_compare_exchange(address, &old, &desired, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
  after_atomic(address);
  return old;
}

}  // namespace emulator

template <typename T>
T atomicAdd(T* address, std::type_identity_t<T> value) {
  return emulator::update(address, [&](T old) { return T(old + value); });
}
template <std::integral T>
T atomicSub(T* address, std::type_identity_t<T> value) {
  return emulator::update(address, [&](T old) { return T(old - value); });
}
template <typename T>
T atomicExch(T* address, std::type_identity_t<T> value) {
  return emulator::update(address, [&](T) { return value; });
}
template <std::integral T>
T atomicMin(T* address, std::type_identity_t<T> value) {
  return emulator::update(address, [&](T old) { return value < old ? value : old; });
}
template <std::integral T>
T atomicMax(T* address, std::type_identity_t<T> value) {
  return emulator::update(address, [&](T old) { return old < value ? value : old; });
}
template <std::integral T>
T atomicAnd(T* address, std::type_identity_t<T> value) {
  return emulator::update(address, [&](T old) { return T(old & value); });
}
template <std::integral T>
T atomicOr(T* address, std::type_identity_t<T> value) {
  return emulator::update(address, [&](T old) { return T(old | value); });
}
template <std::integral T>
T atomicCAS(T* address, std::type_identity_t<T> expected, std::type_identity_t<T> desired) {
  return emulator::update(address, [&](T old) { return old == expected ? desired : old; });
}

template <typename T>
T __ldg(const T* address) {
  emulator::count_load(sizeof *address);
  return *address;
}
template <typename T>
T __ldca(const T* address) {
  return *address;
}
template <typename T>
T __ldcg(const T* address) {
  return *address;
}
template <typename T>
T __ldcs(const T* address) {
  emulator::count_load(sizeof *address);
  return *address;
}
template <typename T>
T __ldcv(const T* address) {
  return *address;
}
template <typename T>
T __ldlu(const T* address) {
  return *address;
}
template <typename T>
void __stcg(T* address, std::type_identity_t<T> value) {
  *address = value;
}
template <typename T>
void __stcs(T* address, std::type_identity_t<T> value) {
  emulator::count_store(sizeof value);
  *address = value;
}
template <typename T>
void __stwb(T* address, std::type_identity_t<T> value) {
  *address = value;
}
template <typename T>
void __stwt(T* address, std::type_identity_t<T> value) {
  *address = value;
}
