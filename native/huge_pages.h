#pragma once
#include <cstdint>

namespace fapo {

// Wishes that memory which is about to be written as a whole comes in pages of 2 MB: the first write to each page of 4
// KB is a fault, and those of a large array take longer than the op that fills it. Where there are no such pages,
// nothing happens.
void prefer_huge_pages(void* data, int64_t bytes);

}  // namespace fapo
