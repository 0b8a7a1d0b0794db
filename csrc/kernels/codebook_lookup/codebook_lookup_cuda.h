// The lookup of codebook_lookup.h on a GPU, with the same results: tensor cores screen in float16, see cuda.cu. All
// pointers are to the device's memory; work is queued on `stream`, nothing is waited for, and a CUDA graph can capture
// it. Codebooks, features and workspace stay until the stream has come past.
#pragma once

#include "../../common/cuda_status.h"
#include "codebook_lookup.h"

namespace soho {

// Codebooks of one size lie one after the other, and so do their rows, indices and distances: num_codes, num_rows and
// so on are those of each. A packed codebook is a block of packed_codebook_bytes_cuda(), aligned to 256 bytes; they,
// too, lie one after the other. Workspace is aligned to 256 bytes.
size_t packed_codebook_bytes_cuda(int64_t num_codes, int64_t num_channels);
size_t pack_codebook_workspace_bytes_cuda(int64_t num_codebooks, int64_t num_codes, int64_t num_channels);
CudaStatus pack_codebook_cuda(const float* codebook, int64_t num_codebooks, int64_t num_codes, int64_t num_channels,
                              void* packed, void* workspace, CudaStream stream);

// The workspace's size depends on num_rows up to a bound, and never on num_rows times num_codes. `counts` is null or
// two counters, to which the lookup adds the rows compared in float64 and those of them whose candidates did not fit
// their list, so that all codes were compared.
size_t codebook_lookup_workspace_bytes_cuda(const CodebookLookupArgs& args, int64_t num_codebooks);
CudaStatus codebook_lookup_cuda(const CodebookLookupArgs& args, int64_t num_codebooks, const void* packed,
                                void* workspace, unsigned long long* counts, CudaStream stream);

// A row whose index is num_codes or more is filled with zeros, too. `num_rows` are those of all codebooks together.
CudaStatus gather_codes_cuda(const GatherCodesArgs& args, int64_t num_rows, int64_t rows_of_codebook,
                             CudaStream stream);

}  // namespace soho
