#include "base/hash.h"

#include <sha2.h>
#include <stdint.h>
#include <string.h>

void od_sha256(char out[OD_SHA256_TEXT], const void *data, size_t bytes) {
    SHA2_CTX context;
    SHA256Init(&context);
    if (bytes)
        SHA256Update(&context, data, bytes);
    (void)SHA256End(&context, out);
}

void od_sha256_strings(char out[OD_SHA256_TEXT], const char *const *strings, size_t count) {
    SHA2_CTX context;
    SHA256Init(&context);
    for (size_t i = 0; i < count; i++) {
        uint64_t length = strlen(strings[i]);
        SHA256Update(&context, (const uint8_t *)&length, sizeof length);
        SHA256Update(&context, (const uint8_t *)strings[i], length);
    }
    (void)SHA256End(&context, out);
}
