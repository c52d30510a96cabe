/* What compilers tell about a kernel. Their words come from other programs: nothing of them is trusted. */
#include <elf.h>
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli/matrix/offline.h"

enum { LINE = 512, MOST_KERNELS = 1024 };

/* ---- lists and lines --------------------------------------------------------------------------------------------- */

static od_status add(od_usage_list *list, const char *origin) {
    if (list->count == MOST_KERNELS)
        return od_fail(OD_ERR_FORMAT, "%s: more than %d kernels", origin, MOST_KERNELS);
    od_usage *rows = realloc(list->rows, (list->count + 1) * sizeof *rows);
    if (!rows)
        return od_fail(OD_ERR_MEMORY, "no memory for %zu kernels", list->count + 1);
    list->rows = rows;
    rows[list->count++] = (od_usage){"", -1, -1, -1, -1, -1, -1, -1, -1, -1, -1};
    return OD_OK;
}

static od_status refuse(od_usage_list *list, const char *origin, const char *why) {
    free(list->rows);
    *list = (od_usage_list){NULL, 0};
    return od_fail(OD_ERR_FORMAT, "%s: %s", origin, why);
}

/* The next line, cut to fit; false at the end. */
static bool next_line(const char **at, char line[LINE]) {
    if (!**at)
        return false;
    const size_t length = strcspn(*at, "\n"), kept = length < LINE - 1 ? length : LINE - 1;
    memcpy(line, *at, kept);
    line[kept] = '\0';
    *at += length + ((*at)[length] == '\n');
    return true;
}

/* A number of at least 0 at the beginning of a text. */
static bool number(const char *text, long *out) {
    char *end = NULL;
    errno = 0;
    const long value = strtol(text, &end, 10);
    if (end == text || errno || value < 0 || value > INT_MAX)
        return false;
    *out = value;
    return true;
}

/* The number behind `key`, with blanks between them; *out stays where there is none. False: no number that can be. */
static bool number_after(const char *line, const char *key, long *out) {
    const char *found = strstr(line, key);
    return !found || number(found + strlen(key), out);
}

static bool copy_name(char to[OD_KERNEL_NAME], const char *from, const char *end_characters) {
    from += strspn(from, " \t'\"");
    const size_t n = strcspn(from, end_characters);
    if (n == 0 || n >= OD_KERNEL_NAME)
        return false;
    memcpy(to, from, n);
    to[n] = '\0';
    return true;
}

static od_usage *find(const od_usage_list *list, const char *name) {
    for (size_t i = 0; i < list->count; i++)
        if (strcmp(list->rows[i].name, name) == 0)
            return &list->rows[i];
    return NULL;
}

/* ---- AMD --------------------------------------------------------------------------------------------------------- */

/* "    .vgpr_count:     62", with "  - ." for the first key of a kernel; an argument's keys stand further in. */
static bool amd_key(od_usage *u, long *private_bytes, long *vector_spills, const char *key) {
    if (strncmp(key, ".name:", 6) == 0)
        return copy_name(u->name, key + 6, " \t\r'\"");
    const struct {
        const char *key;
        long *to;
    } keys[] = {
        {".vgpr_count:", &u->registers},
        {".sgpr_count:", &u->scalar_registers},
        {".vgpr_spill_count:", vector_spills},
        {".sgpr_spill_count:", &u->scalar_spills},
        {".private_segment_fixed_size:", private_bytes},
        {".group_segment_fixed_size:", &u->local_bytes},
        {".max_flat_workgroup_size:", &u->max_group},
        {".wavefront_size:", &u->simd},
    };
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++)
        if (strncmp(key, keys[i].key, strlen(keys[i].key)) == 0)
            return number(key + strlen(keys[i].key), keys[i].to);
    return true;
}

static bool amd_finish(od_usage *u, long private_bytes, long vector_spills) {
    u->spill_bytes = vector_spills < 0 ? -1 : vector_spills > INT_MAX / 4 ? INT_MAX : 4 * vector_spills;
    u->stack_bytes = private_bytes > u->spill_bytes ? private_bytes - u->spill_bytes : 0;
    return u->name[0] && u->registers >= 0 && u->local_bytes >= 0 && private_bytes >= 0 && vector_spills >= 0;
}

/* "; Occupancy: 8" belongs to the kernel whose descriptor (".amdhsa_kernel NAME") came last. */
static void amd_occupancy(od_usage_list *list, const char *text) {
    char line[LINE], name[OD_KERNEL_NAME] = "";
    while (next_line(&text, line)) {
        const char *at = line + strspn(line, " \t");
        od_usage *u;
        if (strncmp(at, ".amdhsa_kernel ", 15) == 0) {
            if (!copy_name(name, at + 15, " \t\r"))
                name[0] = '\0';
        } else if (name[0] && strncmp(at, "; Occupancy:", 12) == 0) {
            if ((u = find(list, name)))
                (void)number(at + 12, &u->waves);
            name[0] = '\0';
        }
    }
}

od_status od_parse_amd(const char *text, const char *origin, od_usage_list *out) {
    const char *at = strstr(text, "\namdhsa.kernels:");
    long private_bytes = -1, vector_spills = -1;
    char line[LINE];
    *out = (od_usage_list){NULL, 0};
    if (!at)
        return od_fail(OD_ERR_FORMAT, "%s: no list of kernels (amdhsa.kernels) in the assembly", origin);
    at++;
    (void)next_line(&at, line);
    bool ended = false;
    while (!ended && next_line(&at, line)) {
        const bool first = strncmp(line, "  - .", 5) == 0;
        ended = line[0] != ' ';
        if ((first || ended) && out->count && !amd_finish(&out->rows[out->count - 1], private_bytes, vector_spills))
            return refuse(out, origin, "a kernel without its name, registers or memory");
        if (first) {
            od_status status = add(out, origin);
            if (status) {
                free(out->rows);
                *out = (od_usage_list){NULL, 0};
                return status;
            }
            private_bytes = vector_spills = -1;
        }
        if ((first || strncmp(line, "    .", 5) == 0) && out->count &&
            !amd_key(&out->rows[out->count - 1], &private_bytes, &vector_spills, line + 4))
            return refuse(out, origin, "a key of a kernel has no number that can be");
    }
    if (!ended)
        return refuse(out, origin, "the list of kernels is cut short");
    amd_occupancy(out, text);
    return OD_OK;
}

/* ---- NVIDIA ------------------------------------------------------------------------------------------------------ */

/* "    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads" */
static bool ptxas_memory(od_usage *u, const char *line) {
    const char *comma = strchr(line, ',');
    return number(line, &u->stack_bytes) && comma && number(comma + 1, &u->spill_bytes);
}

/* "ptxas info    : Used 59 registers, used 1 barriers, 17408 bytes smem, 444 bytes cmem[0]" */
static bool ptxas_used(od_usage *u, const char *used) {
    const char *at = used;
    if (!number_after(used, "Used ", &u->registers))
        return false;
    u->local_bytes = 0;
    while ((at = strchr(at, ','))) {
        const char *words = ++at;
        long bytes = 0;
        words += strspn(words, " 0123456789");
        if (strncmp(words, "bytes smem", 10) == 0) {
            if (!number(at, &bytes))
                return false;
            u->local_bytes = bytes;
        }
    }
    return u->registers >= 0;
}

od_status od_parse_ptxas(const char *text, const char *origin, od_usage_list *out) {
    static const char entry[] = "Compiling entry function '";
    char line[LINE];
    const char *found;
    *out = (od_usage_list){NULL, 0};
    while (next_line(&text, line)) {
        od_usage *u = out->count ? &out->rows[out->count - 1] : NULL;
        bool good = true;
        if ((found = strstr(line, entry))) {
            od_status status = add(out, origin);
            if (status) {
                free(out->rows);
                *out = (od_usage_list){NULL, 0};
                return status;
            }
            u = &out->rows[out->count - 1];
            u->simd = 32;
            good = found[sizeof entry - 1] != '\'' && copy_name(u->name, found + sizeof entry - 1, "'");
        } else if (u && strstr(line, "bytes spill stores"))
            good = u->spill_bytes >= 0 || ptxas_memory(u, line); /* functions that it calls follow */
        else if (u && (found = strstr(line, ": Used ")))
            good = u->registers >= 0 || ptxas_used(u, found);
        if (!good)
            return refuse(out, origin, "a line of ptxas -v is not what it should be");
    }
    for (size_t i = 0; i < out->count; i++)
        if (out->rows[i].registers < 0 || out->rows[i].spill_bytes < 0)
            return refuse(out, origin, "ptxas -v tells no registers or no spills of a kernel");
    return out->count ? OD_OK : od_fail(OD_ERR_FORMAT, "%s: ptxas -v names no kernel", origin);
}

static long round_up(long x, long step) {
    return (x + step - 1) / step * step;
}

static long least(long a, long b) {
    return a < b ? a : b;
}

void od_occupancy_nvidia(od_usage *u, int capability, size_t work_group, uint64_t local_bytes) {
    enum { REGISTERS = 65536, MOST_WARPS = 64, MOST_GROUPS = 32, UNSAID_GROUP = 128 };
    const long memory = (capability >= 90 ? 228L : capability >= 80 ? 164L : 96L) << 10;
    const long reserved = capability >= 80 ? 1024 : 0; /* of each group's local memory */
    const long group = least(work_group ? (long)work_group : UNSAID_GROUP, 1024);
    const long warps = (group + 31) / 32, of_registers = round_up(u->registers > 0 ? u->registers * 32 : 32, 256);
    long groups = least(MOST_WARPS / warps, MOST_GROUPS);
    groups = least(groups, REGISTERS / of_registers / 4 * 4 / warps);
    const uint64_t local = local_bytes + (uint64_t)reserved;
    if (local)
        groups = least(groups, (long)((uint64_t)memory / local));
    u->most_waves = MOST_WARPS;
    u->waves = groups * warps;
}

/* ---- Intel ------------------------------------------------------------------------------------------------------- */

void od_occupancy_intel(od_usage *u, bool xe_hpg) {
    u->most_waves = xe_hpg ? 8 : 7;
    u->waves = u->registers > 128 ? u->most_waves / 2 : u->most_waves;
}

typedef struct memory_buffer {
    bool open, spills, arrays, by_item;
    long bytes;
} memory_buffer;

/* Scratch memory is for spills, for private arrays, or (on Gen12 LP) one space for both: taken for spills then. */
static void ze_buffer_end(od_usage *u, memory_buffer *b) {
    if (b->open && b->bytes > 0) {
        const long simd = u->simd > 0 ? u->simd : 8, bytes = b->by_item ? b->bytes : (b->bytes + simd - 1) / simd;
        if (b->spills)
            u->spill_bytes += bytes;
        else if (b->arrays)
            u->stack_bytes += bytes;
    }
    *b = (memory_buffer){0};
}

static bool ze_key(od_usage *u, memory_buffer *b, const char *section, const char *line) {
    const char *key = line + strspn(line, " -");
    if (strcmp(section, "execution_env:") == 0)
        return number_after(key, "grf_count:", &u->registers) && number_after(key, "simd_size:", &u->simd) &&
               number_after(key, "slm_size:", &u->local_bytes);
    if (strcmp(section, "per_thread_memory_buffers:") != 0)
        return true;
    if (strncmp(line, "      - ", 8) == 0) {
        ze_buffer_end(u, b);
        b->open = true;
    }
    if (strncmp(key, "usage:", 6) == 0) {
        b->spills = strstr(key, "spill_fill_space") || strstr(key, "single_space");
        b->arrays = strstr(key, "private_space") != NULL;
    }
    b->by_item = b->by_item || (strncmp(key, "is_simt_thread:", 15) == 0 && strstr(key, "true"));
    return strncmp(key, "size:", 5) != 0 || number(key + 5, &b->bytes);
}

od_status od_parse_ze_info(const char *text, const char *origin, od_usage_list *out) {
    char line[LINE], section[48] = "";
    bool in_kernels = false, ended = false;
    memory_buffer buffer = {0};
    *out = (od_usage_list){NULL, 0};
    while (next_line(&text, line)) {
        od_usage *u = out->count ? &out->rows[out->count - 1] : NULL;
        if (line[0] != ' ') {
            if (in_kernels && u)
                ze_buffer_end(u, &buffer);
            ended = ended || strncmp(line, "...", 3) == 0;
            in_kernels = strncmp(line, "kernels:", 8) == 0;
            continue;
        }
        if (!in_kernels)
            continue;
        if (strncmp(line, "  - name:", 9) == 0) {
            if (u)
                ze_buffer_end(u, &buffer);
            od_status status = add(out, origin);
            if (status) {
                free(out->rows);
                *out = (od_usage_list){NULL, 0};
                return status;
            }
            u = &out->rows[out->count - 1];
            u->local_bytes = u->spill_bytes = u->stack_bytes = 0; /* not told where there is none */
            section[0] = '\0';
            if (!copy_name(u->name, line + 9, " \t\r'\""))
                return refuse(out, origin, "a kernel without a name in .ze_info");
        } else if (u && strncmp(line, "    ", 4) == 0 && line[4] != ' ' && line[4] != '-') {
            ze_buffer_end(u, &buffer);
            (void)snprintf(section, sizeof section, "%.40s", line + 4);
        } else if (u && !ze_key(u, &buffer, section, line))
            return refuse(out, origin, "a key in .ze_info has no number that can be");
    }
    for (size_t i = 0; i < out->count; i++)
        if (out->rows[i].registers < 0 || out->rows[i].simd <= 0)
            return refuse(out, origin, "a kernel without registers or SIMD width in .ze_info");
    if (!ended || !out->count)
        return refuse(out, origin, ended ? ".ze_info names no kernel" : ".ze_info is cut short");
    return OD_OK;
}

static bool within(size_t bytes, uint64_t offset, uint64_t size) {
    return offset <= bytes && size <= bytes - offset;
}

/* The section of this name, or NULL. */
static const unsigned char *elf_section(const unsigned char *file, size_t bytes, const char *name, size_t *size) {
    Elf64_Ehdr header;
    Elf64_Shdr names, section;
    if (bytes < sizeof header || memcmp(file, ELFMAG, SELFMAG) != 0 || file[EI_CLASS] != ELFCLASS64 ||
        file[EI_DATA] != ELFDATA2LSB)
        return NULL;
    memcpy(&header, file, sizeof header);
    if (header.e_shentsize != sizeof section || header.e_shstrndx >= header.e_shnum ||
        !within(bytes, header.e_shoff, (uint64_t)header.e_shnum * sizeof section))
        return NULL;
    memcpy(&names, file + header.e_shoff + header.e_shstrndx * sizeof names, sizeof names);
    if (!within(bytes, names.sh_offset, names.sh_size))
        return NULL;
    for (size_t i = 0; i < header.e_shnum; i++) {
        memcpy(&section, file + header.e_shoff + i * sizeof section, sizeof section);
        if (!within(names.sh_size, section.sh_name, strlen(name) + 1) ||
            memcmp(file + names.sh_offset + section.sh_name, name, strlen(name) + 1) != 0 ||
            !within(bytes, section.sh_offset, section.sh_size))
            continue;
        *size = (size_t)section.sh_size;
        return file + section.sh_offset;
    }
    return NULL;
}

od_status od_parse_zebin(const void *binary, size_t bytes, const char *origin, od_usage_list *out) {
    size_t size = 0;
    const unsigned char *info = elf_section(binary, bytes, ".ze_info", &size);
    *out = (od_usage_list){NULL, 0};
    if (!info)
        return od_fail(OD_ERR_FORMAT, "%s: not an ELF file with a section .ze_info (zebin)", origin);
    char *text = malloc(size + 1);
    if (!text)
        return od_fail(OD_ERR_MEMORY, "no memory for %zu bytes of .ze_info", size);
    memcpy(text, info, size);
    text[size] = '\0'; /* what follows a NUL inside is cut off, and so found cut short */
    od_status status = od_parse_ze_info(text, origin, out);
    free(text);
    return status;
}
