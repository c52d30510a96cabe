/* SHA-256 as lower-case hexadecimal text. */
#ifndef BASE_HASH_H
#define BASE_HASH_H

#include <stddef.h>

enum { OD_SHA256_TEXT = 65 }; /* with its NUL */

void od_sha256(char out[OD_SHA256_TEXT], const void *data, size_t bytes);

/* Over several strings, each with its length, so that ("ab", "c") and ("a", "bc") differ. */
void od_sha256_strings(char out[OD_SHA256_TEXT], const char *const *strings, size_t count);

#endif
