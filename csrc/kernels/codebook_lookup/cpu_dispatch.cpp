#include <cstring>

#include "common/cpu_level.h"
#include "kernels/codebook_lookup/codebook_lookup.h"

namespace soho {

int64_t codebook_lookup_width(CpuLevel level) { return level == CpuLevel::kScalar ? 0 : kCodebookLookupWidthAvx2; }

void codebook_lookup([[maybe_unused]] CpuLevel level, const CodebookLookupArgs& args, const ScreenedCodes& screened,
                     int64_t begin, int64_t end) {
#ifdef SOHO_LEVEL_AVX2
  if (level >= CpuLevel::kAvx2) return codebook_lookup_avx2(args, screened, begin, end);
#endif
  codebook_lookup_scalar(args, screened, begin, end);
}

int64_t gather_codes(const GatherCodesArgs& args, int64_t begin, int64_t end) {
  const char* codebook = static_cast<const char*>(args.codebook);
  char* output = static_cast<char*>(args.output);
  int64_t first_bad = -1;
  for (int64_t i = begin; i < end; ++i) {
    const int64_t code = args.index[i];
    if (code >= args.num_codes) {
      if (first_bad < 0) first_bad = i;
    } else if (code < 0) {
      std::memset(output + i * args.row_bytes, 0, args.row_bytes);
    } else {
      std::memcpy(output + i * args.row_bytes, codebook + code * args.row_bytes, args.row_bytes);
    }
  }
  return first_bad;
}

}  // namespace soho
