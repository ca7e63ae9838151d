// Experts in slots: that each round has the right bytes, whatever is in memory, and no access races (ThreadSanitizer).
#include <algorithm>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <random>

#include "check.h"
#include "cpu/expert_slots.h"
#include "cpu/team.h"

using namespace glmlite;

namespace {

constexpr size_t kPage = 4096;

// Two groups of experts, each filled with its own number.
class Experts {
 public:
  Experts()
      : path_(std::filesystem::temp_directory_path() / ("glmlite_slots_" + std::to_string(std::random_device()()))) {
    std::string data;
    for (size_t g = 0; g < groups.size(); ++g) {
      groups[g].offset = PackedFile::kHeaderBytes + data.size();
      for (int64_t e = 0; e < groups[g].count; ++e) data.append(groups[g].stride, number(g, e));
    }
    identity_.bytes = data.size();
    const auto header = PackedFile::header(identity_);
    std::ofstream(path_, std::ios::binary).write(reinterpret_cast<const char*>(header.data()), header.size()) << data;
  }
  ~Experts() { std::filesystem::remove(path_); }

  static char number(size_t group, int64_t expert) { return static_cast<char>(1 + 40 * group + expert); }
  PackedFile open() const { return PackedFile(path_.string(), identity_); }
  void cut(size_t bytes) const { std::filesystem::resize_file(path_, bytes); }

  std::vector<ExpertSlots::Group> groups{{0, 3 * kPage, 12}, {0, 300 * kPage, 5}};

 private:
  const std::filesystem::path path_;
  PackedFile::Identity identity_;
};

// An op on some experts of a group, as a mixture does it. How many of them were seen, with their bytes.
int run(ExpertSlots& slots, Team& team, const Experts& file, int group, const std::vector<int32_t>& busy) {
  std::vector<std::vector<int>> seen(static_cast<size_t>(team.size()), std::vector<int>(20, 0));
  team.run([&](int thread) {
    if (thread == 0) slots.begin(group, busy);
    team.barrier();
    for (int r = 0; r < slots.rounds(); ++r) {
      slots.wait(r);
      const ExpertSlots::Round round = slots.round(r);
      for (const int32_t* e = round.begin; e < round.end; ++e) {
        const uint8_t* at = slots.at(group, *e);
        const auto want = static_cast<uint8_t>(Experts::number(static_cast<size_t>(group), *e));
        const size_t size = file.groups[static_cast<size_t>(group)].stride;
        seen[static_cast<size_t>(thread)][static_cast<size_t>(*e)] +=
            std::all_of(at, at + size, [&](uint8_t byte) { return byte == want; });
      }
      team.barrier();
      if (thread == 0) slots.finish(r);
    }
  });
  int count = 0;
  for (const int32_t e : busy)
    count += std::all_of(seen.begin(), seen.end(), [&](const auto& of) { return of[static_cast<size_t>(e)] == 1; });
  return count;
}

}  // namespace

TEST(every_expert_of_an_op_is_there_in_one_round) {
  const Experts file;
  const PackedFile packed = file.open();
  std::mt19937 random(3);
  for (const size_t room : {size_t{0}, 300 * kPage, 2 * 300 * kPage, 7 * 300 * kPage, 1000 * 300 * kPage}) {
    ExpertSlots slots(packed, file.groups, room);
    CHECK(slots.bytes() == std::clamp<size_t>(room / (300 * kPage), 1, 17) * 300 * kPage);
    Team team(3);
    for (int i = 0; i < 60; ++i) {
      const int group = static_cast<int>(random() % 2);
      std::vector<int32_t> busy;
      for (int32_t e = 0; e < file.groups[static_cast<size_t>(group)].count; ++e)
        if (random() % 3) busy.push_back(e);
      CHECK(run(slots, team, file, group, busy) == static_cast<int>(busy.size()));
      slots.rethrow();
    }
  }
}

TEST(what_is_in_memory_is_not_read_again) {
  const Experts file;
  const PackedFile packed = file.open();
  ExpertSlots slots(packed, file.groups, 3 * 300 * kPage);
  Team team(2);
  CHECK(run(slots, team, file, 0, {1, 2, 3}) == 3);
  CHECK(run(slots, team, file, 0, {1, 3}) == 2 && slots.rounds() == 1);
  CHECK(run(slots, team, file, 0, {5}) == 1);  // in the place of 2
#ifndef _WIN32
  file.cut(kPage);
#endif
  CHECK(run(slots, team, file, 0, {1, 3, 5}) == 3);
  slots.rethrow();
#ifndef _WIN32
  run(slots, team, file, 0, {1, 2});
  CHECK(slots.failed());
  CHECK_THROWS(FileError, "cut short", slots.rethrow());
  CHECK(!slots.failed());
#endif
}

RUN_TESTS()
