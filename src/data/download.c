/* One file over HTTP, through libcurl. */
#include <curl/curl.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "data/fetch.h"
#include "od_config.h"

enum { ATTEMPTS = 5, SLOW_BYTES = 1000, SLOW_SECONDS = 60, CONNECT_SECONDS = 30, REDIRECTS = 5 };

typedef struct transfer {
    const od_download *d;
    CURL *curl;
    int fd;
    uint64_t have;       /* bytes in the file */
    uint64_t range_from; /* where the server says its part begins; UINT64_MAX: it did not say */
    bool begun;          /* the first bytes of this answer have been looked at */
    bool ignores_range;  /* the server answers with another part than was asked for */
    od_status status;    /* a failure of ours, with its message */
    struct timespec started;
    uint64_t started_at;
} transfer;

static bool stopped(const transfer *t) {
    return t->d->stop && atomic_load(t->d->stop);
}

static size_t on_header(char *line, size_t size, size_t count, void *context) {
    transfer *t = context;
    char text[256];
    unsigned long long from;
    size_t bytes = size * count;
    (void)snprintf(text, sizeof text, "%.*s", (int)(bytes < sizeof text ? bytes : sizeof text - 1), line);
    if (strncasecmp(text, "HTTP/", 5) == 0) /* of the last answer, after redirections */
        t->range_from = UINT64_MAX;
    else if (strncasecmp(text, "content-range:", 14) == 0 && sscanf(text + 14, " bytes %llu-", &from) == 1)
        t->range_from = from;
    return bytes;
}

/* What kind of answer is this: a part that goes on where we are, or the whole? And of the right size? */
static bool look_at_answer(transfer *t) {
    long code = 0;
    curl_off_t length = -1;
    t->begun = true;
    (void)curl_easy_getinfo(t->curl, CURLINFO_RESPONSE_CODE, &code);
    (void)curl_easy_getinfo(t->curl, CURLINFO_CONTENT_LENGTH_DOWNLOAD_T, &length);
    if (code == 206 && t->range_from != t->have) {
        t->ignores_range = true;
        return false;
    }
    if (code != 206 && t->have) { /* the whole again */
        if (ftruncate(t->fd, 0) || lseek(t->fd, 0, SEEK_SET) < 0) {
            t->status = od_fail(OD_ERR_IO, "%s: %s", t->d->path, strerror(errno));
            return false;
        }
        t->have = t->started_at = 0;
    }
    if (t->d->expected && length >= 0 && t->have + (uint64_t)length != t->d->expected) {
        unsigned long long offered = t->have + (uint64_t)length;
        t->status = od_fail(OD_ERR_FORMAT, "%s: expected %llu bytes, the server offers %llu", t->d->url,
                            (unsigned long long)t->d->expected, offered);
        return false;
    }
    return true;
}

static size_t on_data(char *data, size_t size, size_t count, void *context) {
    transfer *t = context;
    size_t bytes = size * count;
    if (!t->begun && !look_at_answer(t))
        return 0;
    if (t->have + bytes > t->d->most) {
        t->status = od_fail(OD_ERR_FORMAT, "%s: expected at most %llu bytes, the server sends more", t->d->url,
                            (unsigned long long)t->d->most);
        return 0;
    }
    for (size_t at = 0; at < bytes;) {
        ssize_t put = write(t->fd, data + at, bytes - at);
        if (put < 0 && errno != EINTR) {
            t->status = od_fail(OD_ERR_IO, "%s: cannot write: %s", t->d->path, strerror(errno));
            return 0;
        }
        at += put > 0 ? (size_t)put : 0;
    }
    t->have += bytes;
    return bytes;
}

static int on_progress(void *context, curl_off_t total, curl_off_t now, curl_off_t up_total, curl_off_t up) {
    transfer *t = context;
    struct timespec time;
    (void)total, (void)now, (void)up_total, (void)up;
    (void)clock_gettime(CLOCK_MONOTONIC, &time);
    double seconds =
        (double)(time.tv_sec - t->started.tv_sec) + 1e-9 * (double)(time.tv_nsec - t->started.tv_nsec) + 1e-3;
    const char *name = strrchr(t->d->path, '/');
    double rate = (double)(t->have - t->started_at) / 1e6 / seconds;
    if (t->d->expected)
        od_meter_show(t->d->meter, false, "%s: %.1f of %.1f MB, %.1f MB/s", name ? name + 1 : t->d->path,
                      (double)t->have / 1e6, (double)t->d->expected / 1e6, rate);
    else
        od_meter_show(t->d->meter, false, "%s: %.1f MB, %.1f MB/s", name ? name + 1 : t->d->path, (double)t->have / 1e6,
                      rate);
    return stopped(t);
}

static void set_options(transfer *t, char *error) {
    char range[32];
    CURL *c = t->curl;
    (void)snprintf(range, sizeof range, "%llu-", (unsigned long long)t->have);
    (void)curl_easy_setopt(c, CURLOPT_URL, t->d->url);
    (void)curl_easy_setopt(c, CURLOPT_RANGE, t->have ? range : NULL);
    (void)curl_easy_setopt(c, CURLOPT_PROTOCOLS_STR, "http,https,file");
    (void)curl_easy_setopt(c, CURLOPT_REDIR_PROTOCOLS_STR, "http,https");
    (void)curl_easy_setopt(c, CURLOPT_FOLLOWLOCATION, 1L);
    (void)curl_easy_setopt(c, CURLOPT_MAXREDIRS, (long)REDIRECTS);
    (void)curl_easy_setopt(c, CURLOPT_FAILONERROR, 1L);
    (void)curl_easy_setopt(c, CURLOPT_USERAGENT, "offdiag/" OD_VERSION);
    (void)curl_easy_setopt(c, CURLOPT_CONNECTTIMEOUT, (long)CONNECT_SECONDS);
    (void)curl_easy_setopt(c, CURLOPT_LOW_SPEED_LIMIT, (long)SLOW_BYTES);
    (void)curl_easy_setopt(c, CURLOPT_LOW_SPEED_TIME, (long)SLOW_SECONDS);
    (void)curl_easy_setopt(c, CURLOPT_NOSIGNAL, 1L);
    (void)curl_easy_setopt(c, CURLOPT_HEADERFUNCTION, on_header);
    (void)curl_easy_setopt(c, CURLOPT_HEADERDATA, t);
    (void)curl_easy_setopt(c, CURLOPT_WRITEFUNCTION, on_data);
    (void)curl_easy_setopt(c, CURLOPT_WRITEDATA, t);
    (void)curl_easy_setopt(c, CURLOPT_NOPROGRESS, 0L);
    (void)curl_easy_setopt(c, CURLOPT_XFERINFOFUNCTION, on_progress);
    (void)curl_easy_setopt(c, CURLOPT_XFERINFODATA, t);
    (void)curl_easy_setopt(c, CURLOPT_ERRORBUFFER, error);
}

static bool may_pass(CURLcode code, long answer) {
    return code == CURLE_PARTIAL_FILE || code == CURLE_RECV_ERROR || code == CURLE_GOT_NOTHING ||
           code == CURLE_OPERATION_TIMEDOUT || (code == CURLE_HTTP_RETURNED_ERROR && answer >= 500);
}

/* Half a second, then twice as long each time; ends at once when asked to. */
static void wait_before(int attempt, const transfer *t) {
    const struct timespec tenth = {.tv_nsec = 100000000};
    for (int i = 0; i < 5 << attempt && !stopped(t); i++)
        (void)nanosleep(&tenth, NULL);
}

static od_status fail_download(const transfer *t, CURLcode code, long answer, const char *error) {
    if (stopped(t))
        return od_fail(OD_ERR_INTERRUPTED, "interrupted; the same command goes on where the download stopped");
    if (t->status)
        return t->status;
    if (code == CURLE_HTTP_RETURNED_ERROR)
        return od_fail(OD_ERR_IO, "%s: the server answers %ld%s", t->d->url, answer,
                       answer == 404 ? " (not found); --url may name another place" : "");
    const char *why = error[0] ? error : curl_easy_strerror(code);
    if (t->have && may_pass(code, answer))
        return od_fail(OD_ERR_IO, "%s: broke off after %llu bytes (%s); the same command goes on there", t->d->url,
                       (unsigned long long)t->have, why);
    return od_fail(OD_ERR_IO,
                   "%s: cannot download: %s. Without a network, get the file elsewhere and give --url file:///PATH",
                   t->d->url, why);
}

/* One request after the other until the file is whole. */
static od_status transfer_file(transfer *t) {
    char error[CURL_ERROR_SIZE];
    for (int attempt = 0;; attempt++) {
        long answer = 0;
        error[0] = '\0';
        t->begun = t->ignores_range = false;
        t->range_from = UINT64_MAX;
        t->started_at = t->have;
        (void)clock_gettime(CLOCK_MONOTONIC, &t->started);
        set_options(t, error);
        CURLcode code = curl_easy_perform(t->curl);
        (void)curl_easy_getinfo(t->curl, CURLINFO_RESPONSE_CODE, &answer);
        if (code == CURLE_OK && t->d->expected && t->have < t->d->expected)
            code = CURLE_PARTIAL_FILE; /* a server that told no length */
        if (code == CURLE_OK)
            return OD_OK;
        bool bad_range = t->ignores_range || (t->have && code == CURLE_HTTP_RETURNED_ERROR && answer == 416);
        bool again = !t->status && !stopped(t) && attempt + 1 < ATTEMPTS && (bad_range || may_pass(code, answer));
        if (!again)
            return fail_download(t, code, answer, error);
        if (bad_range) {
            if (ftruncate(t->fd, 0) || lseek(t->fd, 0, SEEK_SET) < 0)
                return od_fail(OD_ERR_IO, "%s: %s", t->d->path, strerror(errno));
            t->have = 0;
        } else {
            wait_before(attempt, t);
        }
    }
}

static void start_curl(void) {
    (void)curl_global_init(CURL_GLOBAL_DEFAULT);
}

od_status od_download_file(const od_download *d, bool *resumed) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    struct stat info;
    transfer t = {.d = d, .fd = -1};
    od_status status = OD_OK;
    (void)pthread_once(&once, start_curl);
    t.fd = open(d->path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0644);
    if (t.fd < 0 || fstat(t.fd, &info) || !S_ISREG(info.st_mode)) {
        status = od_fail(OD_ERR_IO, "%s: cannot write: %s", d->path, t.fd < 0 ? strerror(errno) : "not a regular file");
        goto out;
    }
    t.have = (uint64_t)info.st_size;
    if (strncasecmp(d->url, "file:", 5) == 0 || t.have > d->most || (d->expected && t.have >= d->expected))
        t.have = 0; /* a copy is quick; and what is too long is not the front of it */
    if (ftruncate(t.fd, (off_t)t.have) || lseek(t.fd, (off_t)t.have, SEEK_SET) < 0) {
        status = od_fail(OD_ERR_IO, "%s: %s", d->path, strerror(errno));
        goto out;
    }
    *resumed = t.have > 0;
    t.curl = curl_easy_init();
    if (!t.curl) {
        status = od_fail(OD_ERR_MEMORY, "libcurl cannot start");
        goto out;
    }
    status = transfer_file(&t);
out:
    if (t.curl)
        curl_easy_cleanup(t.curl);
    if (t.fd >= 0)
        (void)close(t.fd);
    if (status && t.have == 0)
        (void)unlink(d->path); /* nothing to go on with */
    return status;
}
