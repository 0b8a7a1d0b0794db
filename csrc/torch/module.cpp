// soho_fast._C: introspection only. Loading it registers the CPU ops (see the other files of this folder). Python's
// limited API alone, so that a kernel hub's build serves every Python.
#ifndef Py_LIMITED_API
#define Py_LIMITED_API 0x03090000
#endif
#include <Python.h>

#include <exception>
#include <memory>
#include <string>
#include <vector>

#include "common/cpu_level.h"
#include "torch/lookup_totals.h"
#include "torch/names.h"

namespace {

struct DropReference {
  void operator()(PyObject* object) const { Py_XDECREF(object); }
};
using Object = std::unique_ptr<PyObject, DropReference>;

// A null object means, as everywhere in Python's API, that the error is set.
Object object_of(const std::string& text) { return Object(PyUnicode_FromString(text.c_str())); }

Object object_of(int64_t number) { return Object(PyLong_FromLongLong(number)); }

Object object_of(const std::vector<std::string>& texts) {
  Object list(PyList_New(0));
  for (const std::string& text : texts) {
    const Object item = object_of(text);
    if (!list || !item || PyList_Append(list.get(), item.get()) != 0) return nullptr;
  }
  return list;
}

class Dict {
 public:
  Dict() : dict_(PyDict_New()) {}

  template <class Value>
  void set(const char* name, const Value& value) {
    const Object item = dict_ ? object_of(value) : nullptr;
    if (!item || PyDict_SetItemString(dict_.get(), name, item.get()) != 0) dict_ = nullptr;
  }

  PyObject* release() { return dict_.release(); }

 private:
  Object dict_;
};

std::string compiler() {
#if defined(__clang__)
  return "Clang " __clang_version__;
#else
  return "GNU " __VERSION__;
#endif
}

std::string architecture() {
#if defined(__x86_64__)
  return "x86_64";
#elif defined(__aarch64__)
  return "aarch64";
#else
  return "other";
#endif
}

// The oldest libtorch that this loads into.
std::string stable_abi() {
  const unsigned long long version = TORCH_TARGET_VERSION;
  return std::to_string(version >> 56) + "." + std::to_string(version >> 48 & 255);
}

PyObject* build_info(PyObject*, PyObject*) {
  std::vector<std::string> built, available;
  for (soho::CpuLevel level : soho::built_cpu_levels()) {
    built.push_back(soho::cpu_level_name(level));
    if (soho::cpu_level_available(level)) available.push_back(soho::cpu_level_name(level));
  }
  Dict info;
  info.set("compiler", compiler());
  info.set("architecture", architecture());
  info.set("stable_abi", stable_abi());
#ifdef SOHO_CUDA_ARCHITECTURES
  info.set("cuda_architectures", std::string(SOHO_CUDA_ARCHITECTURES));
#endif
  info.set("cpu_levels_built", built);
  info.set("cpu_levels_available", available);
  info.set("cpu_level", std::string(soho::cpu_level_name(soho::active_cpu_level())));
  return info.release();
}

PyObject* lookup_totals(PyObject*, PyObject*) {
  const soho::LookupTotals totals = soho::lookup_totals();
  Dict info;
  info.set("rows", totals.rows);
  info.set("reduced", totals.reduced);
  info.set("compared", totals.compared);
  info.set("left", totals.left);
  return info.release();
}

PyObject* set_cpu_level(PyObject*, PyObject* level) {
  const Object name(PyUnicode_AsUTF8String(level));
  if (!name) return nullptr;
  try {
    soho::set_cpu_level(PyBytes_AsString(name.get()));
  } catch (const std::exception& error) {
    PyErr_SetString(PyExc_ValueError, error.what());
    return nullptr;
  }
  Py_INCREF(Py_None);
  return Py_None;
}

PyMethodDef methods[] = {
    {"build_info", build_info, METH_NOARGS, "What was built, and which levels run here."},
    {"lookup_totals", lookup_totals, METH_NOARGS,
     "Rows of all lookups so far; of them, those that the reduced pass decided, those compared in float64 and those "
     "that the first full pass left."},
    {"set_cpu_level", set_cpu_level, METH_O, "Forces a level by its name; \"\" goes back to the best one."},
    {nullptr, nullptr, 0, nullptr}};

#define SOHO_TEXT_OF(name) #name
#define SOHO_TEXT(name) SOHO_TEXT_OF(name)
PyModuleDef definition = {PyModuleDef_HEAD_INIT,
                          SOHO_TEXT(SOHO_MODULE),
                          "Introspection of the compiled soho_fast kernels.",
                          -1,
                          methods,
                          nullptr,
                          nullptr,
                          nullptr,
                          nullptr};

}  // namespace

#define SOHO_INIT_OF(name) PyInit_##name
#define SOHO_INIT(name) SOHO_INIT_OF(name)
PyMODINIT_FUNC SOHO_INIT(SOHO_MODULE)() { return PyModule_Create(&definition); }
