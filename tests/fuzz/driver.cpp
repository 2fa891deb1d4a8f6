// For compilers without libFuzzer: the same targets over random bytes, and over what was tried
// before with some of it changed. Usage as libFuzzer's: [-max_total_time=SECONDS] [-seed=NUMBER]
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <vector>

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

namespace {

constexpr size_t most_bytes = 4096;
constexpr size_t kept = 64;  // inputs

long option(int count, char** arguments, const char* name, long otherwise) {
  const size_t length = std::strlen(name);
  for (int i = 1; i < count; ++i) {
    if (std::strncmp(arguments[i], name, length) == 0) return std::atol(arguments[i] + length);
  }
  return otherwise;
}

}  // namespace

int main(int count, char** arguments) {
  const long seconds = option(count, arguments, "-max_total_time=", 10);
  const long seed = option(count, arguments, "-seed=", 1);
  std::mt19937_64 random(seed);
  std::vector<std::vector<uint8_t>> before(kept);
  const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(seconds);
  long runs = 0;
  for (; std::chrono::steady_clock::now() < end; ++runs) {
    std::vector<uint8_t>& input = before[random() % kept];
    if (input.empty() || random() % 4 == 0) {
      input.resize(1 + random() % most_bytes);
      for (uint8_t& byte : input) byte = static_cast<uint8_t>(random());
    }
    for (size_t changes = random() % 8; changes > 0; --changes) {
      constexpr uint8_t borders[] = {0, 1, 0x7f, 0x80, 0xff};
      const size_t at = random() % input.size(), run = 1 + random() % 8;
      const auto value = random() % 2 ? borders[random() % 5] : static_cast<uint8_t>(random());
      for (size_t i = at; i < at + run && i < input.size(); ++i) input[i] = value;
    }
    LLVMFuzzerTestOneInput(input.data(), input.size());
  }
  std::printf("Done %ld runs in %ld second(s), seed %ld\n", runs, seconds, seed);
  return 0;
}
