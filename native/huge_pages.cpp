#include "native/huge_pages.h"

#ifdef __linux__
#include <sys/mman.h>
#endif

namespace fapo {

#ifdef __linux__
void prefer_huge_pages(void* data, int64_t bytes) {
  constexpr int64_t kPage = int64_t{2} << 20;
  // The whole pages within.
  const auto past = static_cast<int64_t>(reinterpret_cast<uintptr_t>(data) % kPage);
  const int64_t head = past == 0 ? 0 : kPage - past;
  const int64_t whole = (bytes - head) / kPage * kPage;
  if (whole > 0) madvise(static_cast<char*>(data) + head, static_cast<size_t>(whole), MADV_HUGEPAGE);
}
#else
void prefer_huge_pages(void*, int64_t) {}
#endif

}  // namespace fapo
