// Who holds which page: nothing is lost, nothing is shared by mistake.
#include <map>
#include <random>
#include <set>

#include "check.h"
#include "kv.h"

using namespace glmlite;

using Copies = std::vector<PageTable::Copy>;

TEST(pages_come_and_go) {
  PageTable table(4, 64);
  const int a = table.create();
  Copies copies;
  CHECK(table.reserve(a, 65, &copies));
  CHECK(copies.empty());
  CHECK(table.at(a).length == 0 && table.at(a).pages.size() == 2 && table.free_pages() == 2);
  table.extend(a, 65);
  CHECK(table.reserve(a, 63, &copies) && table.free_pages() == 2);
  CHECK(!table.reserve(a, 64 * 3, &copies) && table.free_pages() == 2);
  table.truncate(a, 64);
  CHECK(table.at(a).pages.size() == 1 && table.free_pages() == 3);
  table.free(a);
  CHECK(table.free_pages() == 4);
  CHECK_THROWS(std::invalid_argument, "there is none", table.at(a));
}

TEST(a_shared_page_is_copied_before_it_is_written) {
  PageTable table(4, 64);
  const int a = table.create();
  Copies copies;
  CHECK(table.reserve(a, 70, &copies));
  table.extend(a, 70);
  const int b = table.fork(a, 70);
  CHECK(table.free_pages() == 2 && table.at(b).pages == table.at(a).pages);
  CHECK(table.reserve(b, 1, &copies));
  CHECK(copies.size() == 1 && copies[0].from == table.at(a).pages[1] && copies[0].to == table.at(b).pages[1]);
  CHECK(table.at(b).pages[0] == table.at(a).pages[0]);
  copies.clear();
  CHECK(table.reserve(a, 1, &copies) && copies.empty());  // now its own alone
  const int c = table.fork(a, 64);                        // whole pages: nothing to copy
  CHECK(table.reserve(c, 1, &copies) && copies.empty());
  CHECK(table.free_pages() == 0);
  const int d = table.fork(a, 70);
  CHECK(!table.reserve(d, 1, &copies) && copies.empty());
  for (int id : {a, b, c, d}) table.free(id);
  CHECK(table.free_pages() == 4);
}

// Random calls against a plain model of them: each sequence's pages hold what it wrote.
TEST(random_calls_keep_every_sequence_apart) {
  constexpr int kPages = 12, kTokens = 4;
  std::mt19937 random(1);
  PageTable table(kPages, kTokens);
  std::vector<std::vector<int>> pages(kPages, std::vector<int>(kTokens));  // what is written where
  std::map<int, std::vector<int>> want;                                    // sequence -> its entries
  int next = 0;
  for (int round = 0; round < 20000; ++round) {
    const auto pick = [&] { return std::next(want.begin(), random() % want.size())->first; };
    const int action = random() % 5;
    if (want.empty() || action == 0) {
      if (want.size() < 6) want[table.create()] = {};
    } else if (action == 1) {
      const int from = pick();
      const auto length = static_cast<int64_t>(random() % (want[from].size() + 1));
      want[table.fork(from, length)] = {want[from].begin(), want[from].begin() + length};
    } else if (action == 2) {
      const int id = pick();
      want[id].resize(random() % (want[id].size() + 1));
      table.truncate(id, static_cast<int64_t>(want[id].size()));
    } else if (action == 3) {
      const int id = pick();
      table.free(id);
      want.erase(id);
    } else {
      const int id = pick();
      const int count = 1 + random() % 6;
      Copies copies;
      if (table.reserve(id, count, &copies)) {
        for (const auto& copy : copies) pages[copy.to] = pages[copy.from];
        for (int i = 0; i < count; ++i, ++next) {
          const auto at = want[id].size();
          pages[table.at(id).pages[at / kTokens]][at % kTokens] = next;
          want[id].push_back(next);
        }
        table.extend(id, count);
      }
    }
    std::set<int32_t> held;
    for (const auto& [id, entries] : want) {
      const auto& s = table.at(id);
      CHECK(s.length == static_cast<int64_t>(entries.size()));
      for (size_t e = 0; e < entries.size(); ++e) CHECK(pages[s.pages[e / kTokens]][e % kTokens] == entries[e]);
      held.insert(s.pages.begin(), s.pages.end());
    }
    CHECK(table.free_pages() + static_cast<int64_t>(held.size()) == kPages);
  }
}

RUN_TESTS()
