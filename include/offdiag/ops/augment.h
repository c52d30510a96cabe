/* Image augmentation on the device, one pass per view as far as the operations allow.
 *
 * Images are uint8 (N, H, W, C), C 1 or 3 (grey is spread to three channels); the result is float32 (N, S, S, 4): R, G,
 * B normalised by mean and std, channel 3 zero. Every random choice is Philox(seed; epoch, image id, view): it does not
 * depend on the batch, the device or the order. Definitions follow torchvision (RandomResizedCrop, ColorJitter with its
 * four parts in random order, RandomGrayscale, GaussianBlur with reflect padding, RandomSolarize, RandomHorizontalFlip,
 * Normalize), in that order of solo-learn: crop, jitter, grey, blur, solarise, flip, normalise. The crop is resized as
 * Pillow and torchvision's antialias=True do: Keys' bicubic with a = -0.5 that widens when the crop shrinks
 * (antialias=False has a = -0.75 and aliases there), in float, clamped to [0, 1] once after both axes. */
#ifndef OFFDIAG_OPS_AUGMENT_H
#define OFFDIAG_OPS_AUGMENT_H

#include "offdiag/device.h"

typedef struct od_augment_policy {
    float crop_scale_min, crop_scale_max; /* area; 1, 1 with ratio 1, 1: no crop, only resize */
    float crop_ratio_min, crop_ratio_max; /* 3/4, 4/3 */
    float jitter_p, brightness, contrast, saturation, hue;
    float grey_p;
    float blur_p, blur_sigma_min, blur_sigma_max; /* kernel width: the odd number nearest S/10, at least 3 */
    float solarize_p, solarize_threshold;         /* 0.5 */
    float flip_p;
    float mean[3], std[3];
} od_augment_policy;

/* What was drawn for one image: the part that a fixed-parameter test sets by hand. */
typedef struct od_augment_params {
    float crop_top, crop_left, crop_height, crop_width; /* whole pixels */
    float brightness, contrast, saturation, hue;        /* factors; hue in turns, -0.5..0.5; 1 and 0: unchanged */
    int32_t jitter, order[4]; /* jitter 0: skip; order: 0 brightness, 1 contrast, 2 saturation, 3 hue */
    int32_t grey, flip, solarize;
    float blur_sigma; /* 0: none */
} od_augment_params;

/* Draw on the host, bit for bit what the device draws from the same seed: for tests and for showing a view. id: the
 * image's index in its data set; view 0 or 1. */
void od_augment_draw(od_augment_params *out, const od_augment_policy *policy, int h, int w, uint64_t seed,
                     uint32_t epoch, uint32_t id, uint32_t view);

/* The device's draw for ids (n), read back into out (n). */
od_status od_augment_draw_on(od_device *device, od_augment_params *out, const od_augment_policy *policy, int n, int h,
                             int w, const od_buffer *ids, size_t ids_offset, uint64_t seed, uint32_t epoch,
                             uint32_t view);

typedef struct od_augment_shape {
    int n, h, w, c; /* input */
    int size;       /* S */
} od_augment_shape;

/* out (n, S, S, 4) from images (n, h, w, c) uint8 and ids (n) uint32; both offsets in bytes. */
od_status od_augment(od_device *device, const od_augment_shape *shape, const od_augment_policy *policy, od_span out,
                     const od_buffer *images, size_t images_offset, const od_buffer *ids, size_t ids_offset,
                     uint64_t seed, uint32_t epoch, uint32_t view);
/* The same with given parameters, params (n) of od_augment_params in host memory. */
od_status od_augment_fixed(od_device *device, const od_augment_shape *shape, const od_augment_policy *policy,
                           od_span out, const od_buffer *images, size_t images_offset, const od_augment_params *params);
/* No augmentation: resize (bicubic when S differs) and normalise, for evaluation. */
od_status od_augment_none(od_device *device, const od_augment_shape *shape, const od_augment_policy *policy,
                          od_span out, const od_buffer *images, size_t images_offset);

#endif
