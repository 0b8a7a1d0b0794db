// The namespace of the ops. A build for a kernel hub gives another name, so that several versions can be loaded into
// one process.
#pragma once

#ifdef TORCH_EXTENSION_NAME
#define SOHO_NAMESPACE TORCH_EXTENSION_NAME
#else
#define SOHO_NAMESPACE soho_fast
#endif
