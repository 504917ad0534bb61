// Functions of a library that is loaded at run time.
#pragma once

#include <dlfcn.h>

namespace ela::kernels {

/// Sets *function to the one named `name` in what dlopen returned; false if there is none.
template <class Function>
bool FindFunction(void* library, const char* name, Function* function) {
  *function = reinterpret_cast<Function>(dlsym(library, name));
  return *function != nullptr;
}

}  // namespace ela::kernels
