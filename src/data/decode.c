/* One JPEG or PNG file -> a small square of pixels, through libjpeg and libpng. Rows go straight into the resizer. */
#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "base/file.h"
#include "data/reader.h"
#include "od_config.h"

/* No file holds more pixels than its compression can pack into its bytes: deflate reaches 1032 : 1, a grey progressive
 * JPEG spends a bit on 64 pixels. What claims more is refused before anything is allocated for it. */
enum {
    MAX_FILE_BYTES = 256 << 20,
    MAX_SIDE = 65535,
    MAX_PIXELS = 1 << 28,
    MAX_WHOLE_PIXELS = 1 << 26, /* of pictures that must be held as a whole: interlaced or progressive */
    JPEG_PIXELS_PER_BYTE = 600,
    PNG_BYTES_PER_BYTE = 1100,
    MAX_SCANS = 100,
};

typedef struct picture {
    const char *path;
    const uint8_t *data; /* the file */
    size_t bytes, at;
    int side;
    od_resizer *resizer;
    uint8_t *row;   /* or all rows of an interlaced picture */
    char text[256]; /* a decoder's message */
} picture;

bool od_image_name(const char *name) {
    const char *dot = strrchr(name, '.');
    static const char *const endings[] = {".jpg", ".jpeg", ".png"};
    for (size_t i = 0; dot && i < sizeof endings / sizeof *endings; i++)
        if (strcasecmp(dot, endings[i]) == 0)
            return true;
    return false;
}

static bool too_large(const picture *p, uint64_t w, uint64_t h, bool whole, uint64_t claimed, uint64_t most) {
    return w < 1 || h < 1 || w > MAX_SIDE || h > MAX_SIDE || w * h > (whole ? MAX_WHOLE_PIXELS : MAX_PIXELS) ||
           claimed > most * p->bytes;
}

static od_status refuse(const picture *p, unsigned w, unsigned h) {
    return od_fail(OD_ERR_FORMAT, "%s: claims %u x %u pixels: more than %zu bytes can hold, or more than is allowed",
                   p->path, w, h, p->bytes);
}

static od_status begin(picture *p, unsigned w, unsigned h, size_t row_bytes) {
    p->row = malloc(row_bytes);
    if (!p->row)
        return od_fail(OD_ERR_MEMORY, "%s: no memory for a row of %zu bytes", p->path, row_bytes);
    return od_resizer_create(&p->resizer, (int)h, (int)w, p->side);
}

/* ---- JPEG ------------------------------------------------------------------------------------------------------- */

#if OD_HAVE_JPEG
#include <jerror.h>
#include <jpeglib.h>

typedef struct jpeg_reader {
    struct jpeg_decompress_struct info;
    struct jpeg_error_mgr errors;
    struct jpeg_progress_mgr progress;
    jmp_buf where;
    picture *p;
} jpeg_reader;

static void jpeg_stop(j_common_ptr info) {
    jpeg_reader *r = info->client_data;
    char text[JMSG_LENGTH_MAX];
    r->errors.format_message(info, text);
    (void)snprintf(r->p->text, sizeof r->p->text, "%s", text);
    longjmp(r->where, 1);
}

/* Warnings that mean lost pixels end the decoding; libjpeg would go on in grey. */
static void jpeg_warn(j_common_ptr info, int level) {
    const int code = info->err->msg_code;
    if (level < 0 && (code == JWRN_JPEG_EOF || code == JWRN_HIT_MARKER || code == JWRN_HUFF_BAD_CODE ||
                      code == JWRN_MUST_RESYNC || code == JWRN_BOGUS_PROGRESSION))
        jpeg_stop(info);
}

/* A progressive picture of endless scans costs time, each for all pixels. */
static void jpeg_watch(j_common_ptr info) {
    jpeg_reader *r = info->client_data;
    if (r->info.input_scan_number > MAX_SCANS) {
        (void)snprintf(r->p->text, sizeof r->p->text, "more than %d scans", MAX_SCANS);
        longjmp(r->where, 1);
    }
}

/* CMYK as Adobe writes it (inverted) or not, in place: row (w, 4) -> (w, 3). */
static void cmyk_to_rgb(uint8_t *row, unsigned w, bool inverted) {
    for (unsigned x = 0; x < w; x++) {
        unsigned k = inverted ? row[4 * x + 3] : 255u - row[4 * x + 3];
        for (unsigned c = 0; c < 3; c++) {
            unsigned v = inverted ? row[4 * x + c] : 255u - row[4 * x + c];
            row[3 * x + c] = (uint8_t)((v * k + 127) / 255);
        }
    }
}

/* libjpeg can give a half, a quarter or an eighth for less work: while twice the side is left, the rest is averaged. */
static unsigned shrink(unsigned shorter, int side) {
    unsigned by = 1;
    while (by < 8 && shorter / (2 * by) >= 2 * (unsigned)side)
        by *= 2;
    return by;
}

static od_status read_jpeg(jpeg_reader *r) {
    picture *p = r->p;
    struct jpeg_decompress_struct *d = &r->info;
    jpeg_mem_src(d, p->data, p->bytes);
    (void)jpeg_read_header(d, TRUE);
    uint64_t pixels = (uint64_t)d->image_width * d->image_height;
    bool whole = jpeg_has_multiple_scans(d);
    if (too_large(p, d->image_width, d->image_height, whole, pixels, JPEG_PIXELS_PER_BYTE))
        return refuse(p, d->image_width, d->image_height);
    bool cmyk = d->num_components == 4;
    d->out_color_space = cmyk ? JCS_CMYK : JCS_RGB;
    d->dct_method = JDCT_ISLOW;
    d->scale_denom = shrink(d->image_width < d->image_height ? d->image_width : d->image_height, p->side);
    (void)jpeg_start_decompress(d);
    unsigned w = d->output_width, h = d->output_height;
    od_status status = begin(p, w, h, (size_t)w * (cmyk ? 4 : 3));
    while (!status && d->output_scanline < h) {
        JSAMPROW rows[1] = {p->row};
        (void)jpeg_read_scanlines(d, rows, 1);
        if (cmyk)
            cmyk_to_rgb(p->row, w, d->saw_Adobe_marker);
        od_resizer_row(p->resizer, p->row);
    }
    if (!status)
        (void)jpeg_finish_decompress(d);
    return status;
}

static od_status decode_jpeg(picture *p) {
    jpeg_reader *r = calloc(1, sizeof *r);
    od_status status = OD_OK;
    if (!r)
        return od_fail(OD_ERR_MEMORY, "%s: no memory", p->path);
    r->p = p;
    r->info.err = jpeg_std_error(&r->errors);
    r->errors.error_exit = jpeg_stop;
    r->errors.emit_message = jpeg_warn;
    r->info.client_data = r;
    if (setjmp(r->where)) {
        status = od_fail(OD_ERR_FORMAT, "%s: %s", p->path, p->text);
    } else {
        jpeg_create_decompress(&r->info);
        r->progress.progress_monitor = jpeg_watch;
        r->info.progress = &r->progress;
        status = read_jpeg(r);
    }
    jpeg_destroy_decompress(&r->info);
    free(r);
    return status;
}
#else
static od_status decode_jpeg(picture *p) {
    return od_fail(OD_ERR_UNSUPPORTED, "%s: this build has no libjpeg", p->path);
}
#endif

/* ---- PNG -------------------------------------------------------------------------------------------------------- */

#if OD_HAVE_PNG
#include <png.h>

static void png_stop(png_structp png, png_const_charp text) {
    picture *p = png_get_error_ptr(png);
    (void)snprintf(p->text, sizeof p->text, "%s", text);
    png_longjmp(png, 1);
}

static void png_warn(png_structp png, png_const_charp text) { /* colour profiles and the like */
    (void)png;
    (void)text;
}

static void png_take(png_structp png, png_bytep to, size_t bytes) {
    picture *p = png_get_io_ptr(png);
    if (bytes > p->bytes - p->at)
        png_error(png, "the file ends too soon");
    memcpy(to, p->data + p->at, bytes);
    p->at += bytes;
}

/* Whatever it is, to 8-bit RGB; transparency is dropped. */
static void ask_for_rgb(png_structp png) {
    png_set_expand(png);
    png_set_scale_16(png);
    png_set_gray_to_rgb(png);
    png_set_strip_alpha(png);
}

static od_status read_png(png_structp png, png_infop info, picture *p) {
    enum { CHUNK_BYTES = 8 << 20, CHUNKS = 64 };
    png_set_read_fn(png, p, png_take);
    png_set_user_limits(png, MAX_SIDE, MAX_SIDE);
    png_set_chunk_malloc_max(png, CHUNK_BYTES);
    png_set_chunk_cache_max(png, CHUNKS);
    png_read_info(png, info);
    unsigned w = png_get_image_width(png, info), h = png_get_image_height(png, info);
    bool whole = png_get_interlace_type(png, info) != PNG_INTERLACE_NONE;
    if (too_large(p, w, h, whole, (uint64_t)png_get_rowbytes(png, info) * h, PNG_BYTES_PER_BYTE))
        return refuse(p, w, h);
    ask_for_rgb(png);
    int passes = png_set_interlace_handling(png);
    png_read_update_info(png, info);
    size_t row_bytes = png_get_rowbytes(png, info);
    if (row_bytes != (size_t)w * 3)
        return od_fail(OD_ERR_FORMAT, "%s: not a picture of 1 to 4 channels", p->path);
    od_status status = begin(p, w, h, whole ? row_bytes * h : row_bytes);
    for (int pass = 0; pass < passes && !status; pass++)
        for (unsigned y = 0; y < h; y++) {
            uint8_t *row = whole ? p->row + y * row_bytes : p->row;
            png_read_row(png, row, NULL);
            if (pass == passes - 1)
                od_resizer_row(p->resizer, row);
        }
    if (!status)
        png_read_end(png, NULL);
    return status;
}

static od_status decode_png(picture *p) {
    png_infop info = NULL;
    png_structp png = png_create_read_struct(PNG_LIBPNG_VER_STRING, p, png_stop, png_warn);
    if (png)
        info = png_create_info_struct(png);
    if (!info) {
        png_destroy_read_struct(&png, NULL, NULL);
        return od_fail(OD_ERR_MEMORY, "%s: no memory", p->path);
    }
    od_status status = OD_OK;
    if (setjmp(png_jmpbuf(png)))
        status = od_fail(OD_ERR_FORMAT, "%s: %s", p->path, p->text);
    else
        status = read_png(png, info, p);
    png_destroy_read_struct(&png, &info, NULL);
    return status;
}
#else
static od_status decode_png(picture *p) {
    return od_fail(OD_ERR_UNSUPPORTED, "%s: this build has no libpng", p->path);
}
#endif

od_status od_image_decode(const char *path, uint8_t *out, int side) {
    static const uint8_t png_magic[8] = {0x89, 'P', 'N', 'G', '\r', '\n', 0x1a, '\n'},
                         jpeg_magic[3] = {0xff, 0xd8, 0xff};
    picture p = {.path = path, .side = side};
    char *data = NULL;
    od_status status = od_file_read(path, MAX_FILE_BYTES, &data, &p.bytes);
    if (status)
        return status;
    p.data = (const uint8_t *)data;
    if (p.bytes >= sizeof png_magic && memcmp(data, png_magic, sizeof png_magic) == 0)
        status = decode_png(&p);
    else if (p.bytes >= sizeof jpeg_magic && memcmp(data, jpeg_magic, sizeof jpeg_magic) == 0)
        status = decode_jpeg(&p);
    else
        status = od_fail(OD_ERR_FORMAT, "%s: neither a JPEG nor a PNG file", path);
    if (!status)
        od_resizer_finish(p.resizer, out);
    od_resizer_destroy(p.resizer);
    free(p.row);
    free(data);
    return status;
}
