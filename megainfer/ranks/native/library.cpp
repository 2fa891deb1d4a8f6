// What Python calls: plain C, pointers to memory that the caller owns, no exception leaves.
#include "words.h"

#define EXPORT extern "C" __attribute__((visibility("default")))

EXPORT Waiter* megainfer_ranks_waiter_new(int64_t spin_ns) { return new Waiter(spin_ns); }

EXPORT void megainfer_ranks_waiter_delete(Waiter* waiter) { delete waiter; }

EXPORT int32_t megainfer_ranks_wait(Waiter* waiter, Word* word, uint32_t number,
                                    int64_t timeout_ns) {
  return waiter->wait(word, number, timeout_ns);
}

EXPORT void megainfer_ranks_say(Word* word, uint32_t number) { say(word, number); }
