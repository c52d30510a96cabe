#include "base/text.h"

#include <ctype.h>
#include <string.h>

enum { LONGEST = 63 };

unsigned od_edit_distance(const char *a, const char *b) {
    size_t n = strnlen(a, LONGEST), m = strnlen(b, LONGEST);
    unsigned row[LONGEST + 1]; /* distances of a's first i characters to b's first j */
    for (size_t j = 0; j <= m; j++)
        row[j] = (unsigned)j;
    for (size_t i = 1; i <= n; i++) {
        unsigned diagonal = row[0];
        row[0] = (unsigned)i;
        for (size_t j = 1; j <= m; j++) {
            unsigned change = diagonal + (tolower((unsigned char)a[i - 1]) != tolower((unsigned char)b[j - 1]));
            unsigned add = (row[j] < row[j - 1] ? row[j] : row[j - 1]) + 1;
            diagonal = row[j];
            row[j] = change < add ? change : add;
        }
    }
    return row[m];
}

const char *od_nearest(const char *word, const char *const *names) {
    const char *best = NULL;
    unsigned least = ~0u;
    for (; *names; names++) {
        unsigned distance = od_edit_distance(word, *names);
        if (distance < least) {
            least = distance;
            best = *names;
        }
    }
    return best;
}

const char *od_nearest_name(const char *word, const char *const *names) {
    const char *nearest = od_nearest(word, names);
    return nearest && od_edit_distance(word, nearest) < strnlen(word, LONGEST) / 2 + 2 ? nearest : NULL;
}

bool od_contains_nocase(const char *text, const char *part) {
    return strcasestr(text, part) != NULL;
}

bool od_list_holds(const char *list, const char *name) {
    const size_t n = strlen(name);
    for (const char *at = list; n && (at = strstr(at, name)); at += n)
        if ((at == list || at[-1] == ',') && (at[n] == ',' || at[n] == '\0'))
            return true;
    return list[0] == '\0';
}
