#include "base/imports.h"

// Elsewhere the loader leaves addresses in these sections as they are in the file.
#if defined(__linux__) && defined(__GLIBC__) && defined(__LP64__) && (defined(__x86_64__) || defined(__aarch64__))

#include <elf.h>
#include <link.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <vector>

namespace herd {

namespace {

// Where the address of an imported function is kept. `is_sealed`: in pages that the loader made read-only.
struct Slot {
    void** place;
    void* function;
    bool is_sealed;
};

struct Search {
    std::string_view library;
    std::span<const Import> imports;
    std::vector<Slot> slots;
    size_t found = 0;  // of the imports
};

// The parts of a library's dynamic section that say which functions it imports and where their addresses are kept.
struct Tables {
    const ElfW(Sym)* symbols = nullptr;
    const char* names = nullptr;
    std::span<const ElfW(Rela)> calls, data;
};

Tables tables_of(const dl_phdr_info& info) {
    const ElfW(Dyn)* entry = nullptr;
    for (int index = 0; index < info.dlpi_phnum; ++index) {
        if (info.dlpi_phdr[index].p_type == PT_DYNAMIC) entry = reinterpret_cast<const ElfW(Dyn)*>(info.dlpi_addr + info.dlpi_phdr[index].p_vaddr);
    }
    Tables tables;
    const ElfW(Rela) *calls = nullptr, *data = nullptr;
    size_t calls_size = 0, data_size = 0;
    for (; entry != nullptr && entry->d_tag != DT_NULL; ++entry) {
        const auto address = entry->d_un.d_ptr;
        if (entry->d_tag == DT_SYMTAB) tables.symbols = reinterpret_cast<const ElfW(Sym)*>(address);
        if (entry->d_tag == DT_STRTAB) tables.names = reinterpret_cast<const char*>(address);
        if (entry->d_tag == DT_JMPREL) calls = reinterpret_cast<const ElfW(Rela)*>(address);
        if (entry->d_tag == DT_PLTRELSZ) calls_size = entry->d_un.d_val;
        if (entry->d_tag == DT_RELA) data = reinterpret_cast<const ElfW(Rela)*>(address);
        if (entry->d_tag == DT_RELASZ) data_size = entry->d_un.d_val;
    }
    tables.calls = {calls, calls_size / sizeof(ElfW(Rela))};
    tables.data = {data, data_size / sizeof(ElfW(Rela))};
    return tables;
}

bool is_sealed(const dl_phdr_info& info, uintptr_t address) {
    const auto page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
    for (int index = 0; index < info.dlpi_phnum; ++index) {
        const ElfW(Phdr)& part = info.dlpi_phdr[index];
        const uintptr_t begin = info.dlpi_addr + part.p_vaddr, end = (begin + part.p_memsz) / page * page;
        if (part.p_type == PT_GNU_RELRO && begin / page * page <= address && address < end) return true;
    }
    return false;
}

int look(dl_phdr_info* info, size_t, void* argument) {
    auto& search = *static_cast<Search*>(argument);
    const std::string_view path(info->dlpi_name);
    if (!path.substr(path.rfind('/') + 1).starts_with(search.library)) return 0;
    const Tables tables = tables_of(*info);
    if (tables.symbols == nullptr || tables.names == nullptr) return 0;
    for (const Import& import : search.imports) {
        const size_t before = search.slots.size();
        for (const auto& entries : {tables.calls, tables.data}) {
            for (const ElfW(Rela)& entry : entries) {
                const size_t symbol = ELF64_R_SYM(entry.r_info);
                if (symbol == 0 || import.name != tables.names + tables.symbols[symbol].st_name) continue;
                const uintptr_t place = info->dlpi_addr + entry.r_offset;
                search.slots.push_back({reinterpret_cast<void**>(place), import.function, is_sealed(*info, place)});
            }
        }
        if (search.slots.size() > before) ++search.found;
    }
    return 1;
}

bool protect(const Slot& slot, int protection) {
    const auto page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
    const uintptr_t begin = reinterpret_cast<uintptr_t>(slot.place) / page * page;
    return mprotect(reinterpret_cast<void*>(begin), page, protection) == 0;
}

}  // namespace

bool redirect(std::string_view library, std::span<const Import> imports) {
    Search search{library, imports, {}};
    dl_iterate_phdr(look, &search);
    const auto open = [](const Slot& slot) { return !slot.is_sealed || protect(slot, PROT_READ | PROT_WRITE); };
    if (search.found != imports.size() || !std::ranges::all_of(search.slots, open)) return false;
    for (const Slot& slot : search.slots) __atomic_store_n(slot.place, slot.function, __ATOMIC_RELEASE);
    for (const Slot& slot : search.slots) {
        if (slot.is_sealed) protect(slot, PROT_READ);
    }
    return true;
}

void* imported(std::string_view library, std::string_view name) {
    const Import wanted{name, nullptr};
    Search search{library, {&wanted, 1}, {}};
    dl_iterate_phdr(look, &search);
    return search.slots.empty() ? nullptr : __atomic_load_n(search.slots.front().place, __ATOMIC_ACQUIRE);
}

}  // namespace herd

#else

namespace herd {

bool redirect(std::string_view, std::span<const Import>) { return false; }
void* imported(std::string_view, std::string_view) { return nullptr; }

}  // namespace herd

#endif
