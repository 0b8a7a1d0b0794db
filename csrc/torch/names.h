// Names of the compiled module and of the namespace of its ops. A build for a kernel hub gives one name for both, so
// that several versions can be loaded into one process.
#pragma once

#ifdef TORCH_EXTENSION_NAME
#define SOHO_NAMESPACE TORCH_EXTENSION_NAME
#define SOHO_MODULE TORCH_EXTENSION_NAME
#else
#define SOHO_NAMESPACE soho_fast
#define SOHO_MODULE _C
#endif
