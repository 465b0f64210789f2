// Vocabularies - checks, signature, docstring. What is read and how pieces merge: text/vocabulary.h.
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/vector.h>

#include <cstring>

#include "bind/bind.h"
#include "text/vocabulary.h"

namespace herd {

using namespace nb::literals;

namespace {

using Kinds = nb::ndarray<const int32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

std::span<const uint8_t> span_of(const Bytes& bytes) { return {bytes.data(), bytes.size()}; }

std::shared_ptr<Vocabulary> read(Bytes tokens, int64_t count, std::optional<Bytes> kinds, Bytes merges, int64_t merge_count) {
    std::span<const int32_t> numbers;
    if (kinds) {
        const bool is_aligned = reinterpret_cast<uintptr_t>(kinds->data()) % alignof(int32_t) == 0;
        if (kinds->size() != static_cast<size_t>(count) * 4) throw std::invalid_argument("kinds has " + std::to_string(kinds->size()) + " bytes; expected 4 for each token");
        if (is_aligned) numbers = {reinterpret_cast<const int32_t*>(kinds->data()), static_cast<size_t>(count)};
    }
    nb::gil_scoped_release unlocked;
    std::vector<int32_t> copy;
    if (kinds && numbers.empty()) {
        copy.resize(static_cast<size_t>(count));
        std::memcpy(copy.data(), kinds->data(), kinds->size());
        numbers = copy;
    }
    auto found = read_vocabulary({span_of(tokens), count}, numbers, {span_of(merges), merge_count});
    return found ? std::make_shared<Vocabulary>(std::move(*found)) : nullptr;
}

// Python's own UTF-8 of a text; ValueError for lone surrogates.
std::string_view text_of(nb::handle piece) {
    Py_ssize_t size = 0;
    const char* data = PyUnicode_AsUTF8AndSize(piece.ptr(), &size);
    if (data == nullptr) throw nb::python_error();
    return {data, static_cast<size_t>(size)};
}

std::vector<int32_t> merge(const Vocabulary& self, const nb::list& pieces, bool whole_first) {
    // Views of `pieces`, which the caller's list keeps alive.
    std::vector<std::string_view> texts;
    texts.reserve(pieces.size());
    for (const nb::handle piece : pieces) texts.push_back(text_of(piece));
    nb::gil_scoped_release unlocked;
    std::vector<int32_t> ids;
    for (const std::string_view text : texts) self.merge(text, whole_first, ids);
    return ids;
}

std::vector<std::pair<int, int>> exceptions(const Vocabulary& self) {
    std::vector<std::pair<int, int>> pairs;
    for (const auto& [id, kind] : self.exceptions()) pairs.emplace_back(id, static_cast<int>(kind));
    return pairs;
}

}  // namespace

void bind_vocabulary(nb::module_& m) {
    nb::class_<Vocabulary>(m, "Vocabulary", "A byte-level vocabulary of a GGUF file and its merges. Immutable, safe to share between threads.")
        .def_static("read", &read, "tokens"_a, "count"_a, "kinds"_a.none(), "merges"_a, "merge_count"_a,
                    nb::sig("def read(tokens: memoryview, count: int, kinds: memoryview | None, merges: memoryview, merge_count: int) -> Vocabulary | None"),
                    "From the stored bytes of a file's lists (`kinds`: int32). None if anything in them is unusual or wrong.")
        .def("__len__", &Vocabulary::size)
        .def(
            "token",
            [](const Vocabulary& self, int64_t id) {
                if (id < 0 || id >= self.size()) throw nb::index_error();
                const std::string_view text = self.token(id);
                return nb::str(text.data(), text.size());
            },
            "id"_a, "The text of a token as the file writes it.")
        .def_prop_ro("exceptions", &exceptions, "(id, kind) of tokens that are not plain text, ascending.")
        .def("merge", &merge, "pieces"_a, "whole_first"_a, "The ids of pieces of text in the byte-level alphabet, one after another.");
    m.def(
        "skip_strings",
        [](Bytes data, int64_t start, int64_t count) {
            if (start < 0 || count < 0 || start > static_cast<int64_t>(data.size())) throw std::invalid_argument("start and count must lie in the data");
            return skip_strings(span_of(data), start, count);
        },
        "data"_a, "start"_a, "count"_a, nb::sig("def skip_strings(data: memoryview, start: int, count: int) -> int"),
        "The position after `count` stored strings (a length of 8 bytes, then the text), or -1 if they are not all there.");
}

}  // namespace herd
