#include "words.h"

#include <climits>
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "clock.h"

namespace {

// Counts go round after 2^32; nobody is ever half of that behind.
bool reached(uint32_t found, uint32_t number) {
  return static_cast<int32_t>(found - number) >= 0;
}

// Not a private futex: the ranks are processes, each of which has the memory where it likes.
long futex(uint32_t* number, int operation, uint32_t value, const timespec* timeout) {
  return syscall(SYS_futex, number, operation, value, timeout, nullptr, 0);
}

// Until the word's number isn't `found` any more, or for so many ns; it may end early.
void sleep_over(Word* word, uint32_t found, int64_t ns) {
  __atomic_add_fetch(&word->sleepers, 1, __ATOMIC_SEQ_CST);
  const timespec timeout = {ns / 1'000'000'000, ns % 1'000'000'000};
  futex(&word->number, FUTEX_WAIT, found, &timeout);
  __atomic_sub_fetch(&word->sleepers, 1, __ATOMIC_SEQ_CST);
}

}  // namespace

// Who says stores the number, then looks for sleepers; who sleeps counts itself, then the kernel looks at
// the number. Of the two looks at least one finds what the other side has stored.
void say(Word* word, uint32_t number) {
  __atomic_store_n(&word->number, number, __ATOMIC_SEQ_CST);
  if (__atomic_load_n(&word->sleepers, __ATOMIC_SEQ_CST) > 0) {
    futex(&word->number, FUTEX_WAKE, INT_MAX, nullptr);
  }
}

bool Waiter::wait(Word* word, uint32_t number, int64_t timeout_ns) {
  const auto there = [=] {
    return reached(__atomic_load_n(&word->number, __ATOMIC_ACQUIRE), number);
  };
  if (there()) return true;
  const int64_t started = now_ns(), budget = std::min(spin_.next_budget(), timeout_ns);
  if (budget > 0) look_for(there, budget, started) ? spin_.succeeded() : spin_.failed();
  for (int64_t left = timeout_ns; left > 0; left = started + timeout_ns - now_ns()) {
    const uint32_t found = __atomic_load_n(&word->number, __ATOMIC_ACQUIRE);
    if (reached(found, number)) break;
    sleep_over(word, found, left);
  }
  spin_.waited(now_ns() - started);
  return there();
}
