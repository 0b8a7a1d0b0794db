// The module of a kernel hub's build, in the place of csrc/torch/module.cpp: pybind11 serves one Python, this one
// binary has to serve every one, so it uses Python's limited API alone.
#ifndef Py_LIMITED_API
#define Py_LIMITED_API 0x03090000
#endif
#include <Python.h>

#include <exception>

#include "common/cpu_level.h"
#include "kernels/codebook_lookup/codebook_lookup.h"
#include "torch/build_info.h"

namespace {

PyObject* object_of(const std::string& text) { return PyUnicode_FromString(text.c_str()); }

PyObject* object_of(const std::vector<std::string>& texts) {
  PyObject* list = PyList_New(static_cast<Py_ssize_t>(texts.size()));
  for (size_t i = 0; list != nullptr && i < texts.size(); ++i)
    PyList_SetItem(list, static_cast<Py_ssize_t>(i), object_of(texts[i]));
  return list;
}

PyObject* build_info(PyObject*, PyObject*) {
  PyObject* info = PyDict_New();
  for (const auto& [name, value] : soho::build_info()) {
    PyObject* object = std::visit([](const auto& held) { return object_of(held); }, value);
    if (info != nullptr && object != nullptr) PyDict_SetItemString(info, name.c_str(), object);
    Py_XDECREF(object);
  }
  return info;
}

PyObject* lookup_level(PyObject*, PyObject* sizes) {
  long long num_codes, num_channels;
  if (!PyArg_ParseTuple(sizes, "LL", &num_codes, &num_channels)) return nullptr;
  return object_of(soho::cpu_level_name(soho::lookup_level(num_codes, num_channels)));
}

PyObject* set_cpu_level(PyObject*, PyObject* level) {
  PyObject* name = PyUnicode_AsUTF8String(level);
  if (name == nullptr) return nullptr;
  try {
    soho::set_cpu_level(PyBytes_AsString(name));
  } catch (const std::exception& error) {
    PyErr_SetString(PyExc_ValueError, error.what());
  }
  Py_DECREF(name);
  return PyErr_Occurred() ? nullptr : Py_BuildValue("");
}

PyMethodDef methods[] = {{"build_info", build_info, METH_NOARGS, nullptr},
                         {"lookup_level", lookup_level, METH_VARARGS, nullptr},
                         {"set_cpu_level", set_cpu_level, METH_O, nullptr},
                         {nullptr, nullptr, 0, nullptr}};

#define SOHO_TEXT_OF(name) #name
#define SOHO_TEXT(name) SOHO_TEXT_OF(name)
PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, SOHO_TEXT(TORCH_EXTENSION_NAME), nullptr, -1, methods, nullptr, nullptr, nullptr, nullptr};

}  // namespace

#define SOHO_INIT_OF(name) PyInit_##name
#define SOHO_INIT(name) SOHO_INIT_OF(name)
PyMODINIT_FUNC SOHO_INIT(TORCH_EXTENSION_NAME)() { return PyModule_Create(&definition); }
