/* The two halves of od_fetch that need libraries: bytes from a server, files out of an archive. */
#ifndef DATA_FETCH_H
#define DATA_FETCH_H

#include <stdint.h>

#include "base/meter.h"
#include "offdiag/data.h"

typedef struct od_download {
    const char *url, *path; /* path: the file that grows; what it holds already is not asked for again */
    uint64_t expected;      /* bytes; 0: not known */
    uint64_t most;          /* never more than this */
    const atomic_int *stop; /* may be NULL */
    od_meter *meter;
} od_download;

/* Goes on where the server allows it, and tries again when a connection breaks. A download that breaks off for good
 * leaves what has arrived. resumed: the file's front is from an earlier time. */
od_status od_download_file(const od_download *download, bool *resumed);

/* Unpack a tar archive (gzip or plain) into `dir`, which must be empty and ours. Every entry must be a folder or a
 * regular file below `top`; a link, a device, a path that leads elsewhere, a name twice, more bytes than `most` or more
 * than a hundred entries end it. Files are written by us alone, whatever modes and owners the archive has. */
od_status od_unpack(const char *archive, const char *dir, const char *top, uint64_t most, const atomic_int *stop,
                    od_meter *meter);

#endif
