// The choice among copies of the same kernels that were compiled for several instruction sets.
#pragma once

#include <cstdlib>
#include <initializer_list>
#include <stdexcept>
#include <string>

namespace structloss {

inline bool can_run(const std::string& instruction_set) {
    if (instruction_set == "baseline") return true;
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (instruction_set == "avx2") return __builtin_cpu_supports("avx2");
    if (instruction_set == "avx512") {
        return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
               __builtin_cpu_supports("avx512vl");
    }
#endif
    return false;
}

// Of copies in ascending order, each with a `name`, the last that this processor runs;
// STRUCTLOSS_CPU=baseline|avx2|avx512 asks for a certain one. Throws std::invalid_argument where it cannot
// run.
template <class Kernels>
const Kernels& choose_kernels(std::initializer_list<const Kernels*> copies) {
    const char* variable = std::getenv("STRUCTLOSS_CPU");
    const std::string wanted = variable == nullptr ? "" : variable;
    const Kernels* chosen = nullptr;
    std::string names;
    for (const Kernels* kernels : copies) {
        if (!can_run(kernels->name)) continue;
        if (wanted.empty() || wanted == kernels->name) chosen = kernels;
        names += (names.empty() ? "" : ", ") + std::string(kernels->name);
    }
    if (chosen == nullptr) {
        throw std::invalid_argument("STRUCTLOSS_CPU=" + wanted + " cannot run here; wants one of " + names);
    }
    return *chosen;
}

}  // namespace structloss
