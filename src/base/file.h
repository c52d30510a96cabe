/* Files and paths. A file that we write appears whole or not at all. */
#ifndef BASE_FILE_H
#define BASE_FILE_H

#include <stdbool.h>
#include <stddef.h>

#include "offdiag/status.h"

/* The whole of a regular file of at most max_bytes, with a NUL after it; *data is malloc'd. bytes may be NULL. */
od_status od_file_read(const char *path, size_t max_bytes, char **data, size_t *bytes);

/* Replace `path` atomically: a temporary file in the same directory, fsync, rename, fsync of the directory. On failure
 * the old file stays and the temporary one is removed. */
od_status od_file_write_atomic(const char *path, const void *data, size_t bytes);
typedef struct od_part {
    const void *data;
    size_t bytes;
} od_part;
od_status od_file_write_atomic_parts(const char *path, const od_part *parts, size_t count);

od_status od_dir_make(const char *path); /* with its parents; fine if it is there */

/* "dir/name", or name alone where it is absolute or dir is empty; malloc'd, NULL without memory. */
char *od_path_join(const char *dir, const char *name);

/* $XDG_DATA_HOME/offdiag or ~/.local/share/offdiag. make: where it is not there, with mode 0700; refused if it is a
 * link, not ours, or open to others' writing. malloc'd. */
od_status od_data_dir(bool make, char **path);

/* $XDG_CACHE_HOME/offdiag or ~/.cache/offdiag, made with mode 0700; refused if it is a link, or not ours alone.
 * malloc'd. */
od_status od_cache_dir(char **path);

#endif
