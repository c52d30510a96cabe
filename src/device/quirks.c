/* The one place for what single vendors do differently. A row matches when each part it names is found (without case)
 * in that property; all matching rows add up. Limits that can be asked for (work-group size, memory, ...) are asked
 * for, not listed here. */
#include <stdio.h>
#include <string.h>

#include "base/text.h"
#include "device/internal.h"

static const struct {
    const char *platform, *vendor, *name, *driver; /* NULL: any */
    unsigned flags;
    const char *options;
    const char *note; /* shown by `offdiag devices` */
} rows[] = {
    /* Mesa's first OpenCL: its compiler is unmaintained and miscompiles kernels with barriers. */
    {.platform = "clover", .flags = OD_QUIRK_UNUSABLE, .note = "Clover is unmaintained; use rusticl (RUSTICL_ENABLE)"},
    /* A simulator: a binary keeps no source lines, which its reports need; it rejects the scopes that clang makes of
     * restrict in inlined functions, so kernels write RESTRICT there. It knows what of a buffer is initialised only up
     * to the size of its first write. Its --uninitialized (21.10) crashes at a shuffle of which a lane does not matter,
     * as in `float8 v = x[0]; v.s3 = x[1];`: the compiler gives that lane no index, and the plugin copies from there
     * (Uninitialized::instructionExecuted). Compilers make such shuffles at will: there is no way round. */
    {.platform = "oclgrind",
     .flags = OD_QUIRK_NO_BINARIES | OD_QUIRK_SAME_SIZE,
     .options = "-DRESTRICT= -DNO_PREFETCH",
     .note = "a simulator, for finding errors; very slow"},
    /* A software rasteriser: right, and good for tests. It tells its SIMD width (32) as the work-group limit of every
     * kernel, although groups up to the device's limit run right. A guard against shaders that hang ends every loop of
     * a work-item, without a word, once it has gone round 65,535 times in all of them (LP_MAX_TGSI_LOOP_ITERATIONS).
     * Its compiler takes 37 s for a convolution with a tile of 8 x 12, 2.5 s with 4 x 4. */
    {.platform = "rusticl",
     .name = "llvmpipe",
     .flags = OD_QUIRK_GROUP_SIZE | OD_QUIRK_LOOP_LIMIT | OD_QUIRK_SMALL_TILES,
     .note = "a software device; PoCL is faster on CPUs"},
    /* Intel's CPU runtime (2026.2): the optimiser is wrong about -max(-a, -b) reduced over a work-group through local
     * memory (found by offdiag matrix: cross_entropy counted no hit); kernels reduce the negated values instead, see
     * cl/loss.clh. Tests: --kernels gpu, cross_entropy. */
    {.platform = "intel(r) opencl",
     .driver = "2026.",
     .note = "its optimiser gets -max(-a, -b) over a work-group wrong; our kernels avoid it"},
    /* Keeps programs and kernels itself. Asked for a binary it compiles every kernel once more, for any work-group size
     * (0.1 to 0.3 s each), and the first run from a binary compiles them again. */
    {.platform = "portable computing language", .flags = OD_QUIRK_NO_BINARIES},
    /* Apple's CPU device: kernels with barriers run only in work-groups of one. */
    {.platform = "apple", .name = "cpu", .note = "no barriers: kernels that need work-groups are refused"},
    /* The driver waits by spinning: one core is busy while we wait. Nothing to do but to wait rarely. */
    {.vendor = "nvidia", .note = "waiting keeps one CPU core busy"},
};

static bool matches(const char *text, const char *part) {
    return !part || od_contains_nocase(text, part);
}

od_quirks od_quirks_of(const od_device_info *info, char *note, size_t note_size) {
    od_quirks sum = {0, ""};
    size_t used = 0;
    note[0] = '\0';
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        if (!matches(info->platform, rows[i].platform) || !matches(info->vendor, rows[i].vendor) ||
            !matches(info->name, rows[i].name) || !matches(info->driver, rows[i].driver))
            continue;
        sum.flags |= rows[i].flags;
        if (rows[i].options)
            sum.options = rows[i].options;
        if (rows[i].note && used < note_size)
            used += (size_t)snprintf(note + used, note_size - used, "%s%s", used ? "; " : "", rows[i].note);
    }
    return sum;
}
