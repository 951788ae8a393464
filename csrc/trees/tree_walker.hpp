#pragma once

#include <pybind11/pybind11.h>

namespace structloss {

/// Adds the class TreeWalker to the Python module.
void bind_tree_walker(pybind11::module_& module);

}  // namespace structloss
